//! Whether a vCPU may run: the one place where other threads and a vCPU's thread agree on it.
//!
//! A request is one step under one lock: what is wanted, and the flag that makes `KVM_RUN` return at once
//! while anything but running is wanted. A signal then fetches the vCPU out of the guest. Because the flag
//! stays set until running is wanted again, it does not matter when the signal arrives, and no request is
//! ever lost. The vCPU looks at the gate only after the hypervisor reported an interruption, that is when no
//! access is half done.
//!
//! Besides what is wanted, a vCPU can be held for a moment, so that somebody can look at it. A hold changes nothing
//! that is wanted, and requests count while it lasts: whoever asks for a pause then gets one, and whoever asks for
//! running gets it when the hold is released.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::hv::Kick;
use crate::threads;

/// What the vCPU's thread shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Run,
    Pause,
    Stop,
}

/// What the gate tells the vCPU's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Run,
    Stop,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    held: bool,
    waiting: bool,
    ended: bool,
}

impl State {
    /// Whether the vCPU has to stay out of the guest.
    fn is_closed(&self) -> bool {
        self.held || self.wanted != Wanted::Run
    }

    fn must_wait(&self) -> bool {
        self.is_closed() && self.wanted != Wanted::Stop
    }
}

pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    kick: Arc<dyn Kick>,
}

impl Gate {
    /// A closed gate: the vCPU waits until it is wanted.
    pub(super) fn new(kick: Arc<dyn Kick>) -> Self {
        kick.set(true);
        let state = State { wanted: Wanted::Pause, held: false, waiting: false, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), kick }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        threads::lock(&self.state)
    }

    /// What the vCPU shall do.
    pub(super) fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// Says what the vCPU shall do; `signal` is called if it may be inside the guest and has to leave it.
    ///
    /// A processor that was told to stop stays stopped.
    pub(super) fn request(&self, wanted: Wanted, signal: impl FnOnce()) {
        let mut state = self.lock();
        if state.wanted == Wanted::Stop {
            return;
        }
        let may_be_inside = !state.waiting && !state.ended;
        state.wanted = wanted;
        // One that waits and shall stop is not at rest any longer, but on its way to its end.
        state.waiting &= wanted != Wanted::Stop;
        self.kick.set(state.is_closed());
        if wanted != Wanted::Run && may_be_inside {
            signal();
        }
        self.changed.notify_all();
    }

    /// Holds the vCPU, if it is wanted to run; whether it is held. `signal` is called as in
    /// [`request`](Self::request).
    pub(super) fn hold(&self, signal: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.is_closed() || state.ended {
            return false;
        }
        state.held = true;
        self.kick.set(true);
        if !state.waiting {
            signal();
        }
        true
    }

    /// Ends a hold.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.held = false;
        self.kick.set(state.is_closed());
        self.changed.notify_all();
    }

    /// Waits until the vCPU is at rest, but not for longer than `limit`; whether it is.
    pub(super) fn wait_at_rest_for(&self, limit: Duration) -> bool {
        let at_work = |state: &mut State| !state.waiting && !state.ended;
        let (_state, result) = self
            .changed
            .wait_timeout_while(self.lock(), limit, at_work)
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// Lets a vCPU that may be inside the guest leave it once and go on; one that is to be elsewhere is left
    /// alone. `before` is called first: from then on the vCPU may leave. It has not ended before `signal`, which
    /// fetches it out of the guest, returns.
    pub(super) fn nudge(&self, before: impl FnOnce(), signal: impl FnOnce()) {
        let state = self.lock();
        if !state.is_closed() && !state.waiting && !state.ended {
            before();
            self.kick.set(true);
            signal();
        }
    }

    /// Waits until the vCPU is at rest: waiting at the gate, or ended.
    pub(super) fn wait_at_rest(&self) {
        let at_rest = |state: &mut State| !state.waiting && !state.ended;
        drop(self.changed.wait_while(self.lock(), at_rest));
    }

    /// Called by the vCPU's thread: waits while it shall pause, and says what to do then.
    pub(super) fn pass(&self) -> Pass {
        let mut state = self.lock();
        if state.must_wait() {
            state.waiting = true;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.must_wait())
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting = false;
        }
        match state.wanted {
            Wanted::Stop => Pass::Stop,
            Wanted::Run | Wanted::Pause => {
                // It may have been a nudge that brought the vCPU here.
                self.kick.set(false);
                Pass::Run
            }
        }
    }

    /// Called by the vCPU's thread as its last act.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
