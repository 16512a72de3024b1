//! Input on its way from the console to where the guest listens: its serial port, or its virtio console.

use std::io;

use lodger::console::{Console, Input};
use lodger::hv::Vm;
use lodger::vm::{Ear, Machine};

/// While the guest has no room for input, how soon it is tried again.
pub const RETRY_MILLISECONDS: i32 = 10;
/// How much input is read at once.
const INPUT_BUFFER: usize = 4096;

/// What carries the input.
pub struct Keyboard<'a> {
    ear: Ear<'a>,
    /// Read, but not yet taken by the guest.
    held: Vec<u8>,
    ended: bool,
}

impl<'a> Keyboard<'a> {
    /// For this machine.
    pub fn of<V: Vm>(machine: &'a Machine<V>) -> Self {
        Self { ear: machine.ear(), held: Vec::new(), ended: false }
    }

    /// Whether there is room for input.
    pub fn has_room(&self) -> bool {
        self.ear.has_room()
    }

    /// A person may always type, so that Ctrl-A x works on a guest that reads nothing; what comes through a
    /// pipe waits there until the guest has room.
    pub fn wants_input(&self, has_room: bool, console: &Console) -> bool {
        !self.ended && (console.is_interactive() || self.held.is_empty() && has_room)
    }

    /// Nothing tells when the guest has made room.
    pub fn timeout(&self, has_room: bool) -> i32 {
        if self.held.is_empty() && (has_room || self.ended) { -1 } else { RETRY_MILLISECONDS }
    }

    /// Moves on what there is; whether the user wants to leave.
    pub fn carry(&mut self, console: &mut Console, ready: bool) -> io::Result<bool> {
        let mut buffer = [0; INPUT_BUFFER];
        self.offer();
        while ready && !self.ended {
            match console.read_input(&mut buffer).map_err(unreadable)? {
                Input::Bytes(count) => {
                    // A guest that reads nothing while somebody keeps typing loses what is typed last.
                    if self.held.len() < INPUT_BUFFER {
                        self.held.extend_from_slice(&buffer[..count]);
                    }
                    self.offer();
                    if !console.is_interactive() {
                        break;
                    }
                }
                Input::Leave => return Ok(true),
                Input::End => self.ended = true,
                Input::Nothing => break,
            }
        }
        if self.ended && self.held.is_empty() {
            self.ear.end();
        }
        Ok(false)
    }

    fn offer(&mut self) {
        let taken = self.ear.offer(&self.held);
        self.held.drain(..taken);
    }
}

fn unreadable(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read the console's input: {error}"))
}
