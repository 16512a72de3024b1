//! The `lodger` process as somebody at a shell uses it: arguments, pipes, terminals, signals, exit statuses.
//!
//! Every test starts the real program with the embedded guest or a file made for it. What is told apart is
//! what a user sees: both outputs, the status, the terminal's modes, how long nothing happens.

mod bad_files;
mod bad_values;
mod bz_images;
mod described;
mod detached;
mod directories;
mod endings;
mod ends;
mod file_console;
mod host;
mod input;
mod limits;
mod many;
mod output;
mod ports;
mod printing;
mod processors;
mod profile;
mod pty_console;
mod restored;
mod sharing;
mod signals;
mod snapshots;
mod start;
mod support;
mod terminal;
mod typing;
mod verified;
mod virtio;
