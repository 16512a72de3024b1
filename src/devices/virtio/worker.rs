//! The threads that serve a device's queues.
//!
//! Each waits for the doorbells of its queues and for its end. What it served it gives back when it ends, so that a
//! device can be stopped at any moment between two requests, saved, and started again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::{Device, Misuse, Queue};
use crate::{event, threads};

const STACK_SIZE: usize = 128 << 10;

/// A queue with its number and its doorbell.
pub(super) struct Served {
    pub number: u16,
    pub queue: Queue,
    pub doorbell: Arc<EventFd>,
}

/// A thread that serves queues.
pub(super) struct Worker {
    stop: EventFd,
    thread: JoinHandle<Vec<Served>>,
}

impl Worker {
    /// Starts to serve `queues`; `misused` is called, once, if the driver does what it must not.
    pub(super) fn spawn(
        device: Arc<dyn Device>,
        mut queues: Vec<Served>,
        misused: impl FnOnce(Misuse) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = event::create()?;
        let heard = stop.try_clone()?;
        let builder = Builder::new().name(device.kind().name.to_owned()).stack_size(STACK_SIZE);
        let thread = threads::without_signals(|| {
            builder.spawn(move || {
                let mut result = serve(&*device, &mut queues, &heard);
                // All are finished, whatever becomes of one.
                for served in &mut queues {
                    result = result.and(device.finish(served.number, &mut served.queue));
                }
                if let Err(misuse) = result {
                    misused(misuse);
                }
                queues
            })
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it between two requests.
    pub(super) fn stop(self) -> Vec<Served> {
        event::signal(&self.stop);
        // A panic was reported by the thread; its queues are gone, and the device stays still.
        self.thread.join().unwrap_or_default()
    }
}

fn serve(device: &dyn Device, queues: &mut [Served], stop: &EventFd) -> Result<(), Misuse> {
    let readable = |event: &EventFd| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<_> = queues.iter().map(|served| readable(&served.doorbell)).collect();
    polled.push(readable(stop));
    // What came before this thread did not ring for it.
    let mut more = vec![true; queues.len()];
    loop {
        let limit = if more.contains(&true) { 0 } else { -1 };
        // SAFETY: so many initialised entries. Interrupted or not, the doorbells tell what there is to do.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit) };
        if stop.read().is_ok() {
            return Ok(());
        }
        for (served, more) in queues.iter_mut().zip(&mut more) {
            if served.doorbell.read().is_ok() || *more {
                *more = device.serve(served.number, &mut served.queue)?;
            }
        }
    }
}
