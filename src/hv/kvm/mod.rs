//! The real hypervisor: Linux KVM.
