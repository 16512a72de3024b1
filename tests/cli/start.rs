//! Signals at any moment of the start.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Running, Screen, ended, guest, program};

const ATTEMPTS: u32 = 200;
const LATEST: Duration = Duration::from_millis(5);

#[test]
fn a_signal_at_any_moment_of_the_start_ends_the_process_and_gives_the_terminal_back() {
    let workers: Vec<_> = (0..2).map(|worker| thread::spawn(move || interrupt_starts(worker))).collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

fn interrupt_starts(worker: u32) {
    for attempt in (worker..ATTEMPTS).step_by(2) {
        let moment = LATEST * attempt / ATTEMPTS;
        let screen = Screen::new();
        let before = screen.modes();
        let mut running = Running::start(screen.show(program().args(guest(""))));
        let start = Instant::now();
        while start.elapsed() < moment {
            std::hint::spin_loop();
        }
        running.signal(libc::SIGTERM);
        // By the program, or by the kernel before the program was ready.
        assert_eq!(ended(running.wait()), 143, "after {moment:?}");
        assert_eq!(screen.modes(), before, "after {moment:?}");
    }
}

#[test]
fn filling_in_memory_can_be_interrupted() {
    let running = Running::start(program().args(["--memory", "2G,prefault"]).args(guest("")));
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    running.signal(libc::SIGTERM);
    let status = running.finish().status;
    assert_eq!(ended(status), 143);
    assert!(start.elapsed() < Duration::from_secs(10));
}
