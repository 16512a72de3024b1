//! A hypervisor that replays scripted exits.
