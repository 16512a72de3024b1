//! What the tests share: starting the program, waiting for it with a time limit, and what to start it with.

mod process;
mod pty;
mod rounds;
mod scratch;
mod session;

use std::thread;
use std::time::{Duration, Instant};

pub use process::{Finished, Running, ended, guest, lodger, program};
pub use pty::{Modes, Screen};
pub use rounds::rounds;
pub use scratch::Scratch;
pub use session::{Session, is_gone};

/// After so long something that should have happened never will.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits until `condition` holds; `what` names it in the panic if it never does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A system call's result, or a panic with its error.
#[track_caller]
pub fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}
