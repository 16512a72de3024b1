//! The threads that serve a device's queues.
//!
//! Each waits for the doorbells of its queues, for the moment at which its device wants to go on, and for its end. What
//! it served it gives back when it ends, so that a device can be stopped at any moment between two requests, saved, and
//! started again.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::{Device, Left, Misuse, Queue};
use crate::{event, threads};

/// Hashing and images that lie behind each other take much of it, above all where nothing is optimised.
const STACK_SIZE: usize = 512 << 10;
/// A device that wants to wait for longer is asked again.
const LONGEST: Duration = Duration::from_hours(1);

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

/// When a queue is to be served although nobody rings.
#[derive(Clone, Copy)]
enum Due {
    Never,
    Now,
    At(Instant),
}

impl Due {
    fn of(left: Left) -> Self {
        match left {
            Left::Nothing => Self::Never,
            Left::More => Self::Now,
            Left::After(time) => Self::At(Instant::now() + time.min(LONGEST)),
        }
    }

    /// How long until then. Looks at the clock only for queues that wait for a moment.
    fn wait(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Now => Some(Duration::ZERO),
            Self::At(moment) => Some(moment.saturating_duration_since(Instant::now())),
        }
    }
}

fn serve(device: &dyn Device, queues: &mut [Served], stop: &EventFd) -> Result<(), Misuse> {
    let readable = |event: &EventFd| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<_> = queues.iter().map(|served| readable(&served.doorbell)).collect();
    polled.push(readable(stop));
    // What came before this thread did not ring for it.
    let mut due = vec![Due::Now; queues.len()];
    loop {
        poll(&mut polled, due.iter().filter_map(|due| due.wait()).min());
        if stop.read().is_ok() {
            return Ok(());
        }
        for (served, due) in queues.iter_mut().zip(&mut due) {
            if served.doorbell.read().is_ok() || due.wait() == Some(Duration::ZERO) {
                *due = Due::of(device.serve(served.number, &mut served.queue)?);
            }
        }
    }
}

/// Waits until one of them is set or so much time has passed. Milliseconds would be too coarse for that.
fn poll(polled: &mut [libc::pollfd], limit: Option<Duration>) {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: so many initialised entries, and a limit that is none or lives as long as the call. Interrupted or not,
    // the doorbells tell what there is to do.
    unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit, ptr::null()) };
}
