//! Attending a guest that runs: its terminal, the process's signals, and who reads its console.
//!
//! Nothing is decided here about the machine: what the user, a signal or a reader that went away wants is a request to its
//! driver, like those of others.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use lodger::console::{Console, Output};
use lodger::devices::virtio::console::Size;
use lodger::hv::Vm;
use lodger::vm::Machine;
use lodger::vm::driver::{Handle, Origin, Request};

use super::keyboard::{Keyboard, RETRY_MILLISECONDS};
use super::signals::{Signal, Signals};

/// Carries input to the guest until the machine has stopped.
pub fn attend<V: Vm>(
    handle: &Handle<V>,
    mut keyboard: Keyboard<'_>,
    console: &mut Console,
    signals: &Signals,
) -> io::Result<()> {
    let output = console.output();
    // A console without input says so at once, without there being anything to wait for.
    keyboard.carry(console, true)?;
    // Once the end is asked for, nothing else counts.
    let mut ending = false;
    let end = |origin, ending: &mut bool| {
        handle.post(Request::Kill, origin);
        *ending = true;
    };
    loop {
        let has_room = keyboard.has_room();
        let input = if keyboard.wants_input(has_room, console) { console.input() } else { None };
        let timeout = if ending { -1 } else { keyboard.timeout(has_room) };
        let events = [
            Some(handle.stopped_event()),
            Some(signals.as_fd()),
            input.filter(|_| !ending),
            output.pipe().filter(|_| !ending),
        ];
        let ready = wait(events, timeout)?;
        if ready[0] {
            return Ok(());
        }
        // Taken even then, or the next wait would be none.
        let signal = signals.next();
        if ending {
            continue;
        }
        match signal {
            Some(Signal::End(number)) => end(Origin::Signal(number), &mut ending),
            Some(Signal::Continue) => {
                console.resume_terminal()?;
                tell_size(handle.machine(), console);
            }
            Some(Signal::Resized) => tell_size(handle.machine(), console),
            None => {}
        }
        if ending {
            continue;
        }
        if ready[3] {
            end(Origin::Reader, &mut ending);
        } else if keyboard.carry(console, ready[2])? {
            end(Origin::Terminal, &mut ending);
        }
    }
}

/// Lets a slow reader have what the guest printed before it ended, until a signal says that this is enough. A
/// pseudo-terminal may have no reader at all, so it is not waited for.
pub fn wait_for_reader(output: &Output, signals: &Signals) -> io::Result<()> {
    while !output.is_drained() {
        let ready = wait([None, Some(signals.as_fd()), None, output.pipe()], RETRY_MILLISECONDS)?;
        if ready[3] || matches!(signals.next(), Some(Signal::End(_))) {
            break;
        }
    }
    Ok(())
}

/// Waits until one of the first three descriptors is readable, or the last one, a pipe, cannot be written any
/// more; says which are.
pub fn wait(descriptors: [Option<BorrowedFd<'_>>; 4], timeout: i32) -> io::Result<[bool; 4]> {
    // A negative descriptor is passed over.
    let mut entries = descriptors.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    // Errors are reported unasked.
    entries[3].events = 0;
    // SAFETY: an array of initialised entries.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; 4]) } else { Err(error) };
    }
    Ok(entries.map(|entry| entry.revents != 0))
}

/// Tells the guest how large the terminal is, if there is one and a console that knows sizes.
pub fn tell_size<V: Vm>(machine: &Machine<V>, console: &Console) {
    if let (Some(device), Some((columns, rows))) = (machine.virtio_console(), console.terminal_size()) {
        device.set_size(Size { columns, rows });
    }
}
