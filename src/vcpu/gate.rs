//! Whether a vCPU may run: the one place where other threads and a vCPU's thread agree on it.
//!
//! A request is one step under one lock: what is wanted, and the flag that makes `KVM_RUN` return at once
//! while anything but running is wanted. A signal then fetches the vCPU out of the guest. Because the flag
//! stays set until running is wanted again, it does not matter when the signal arrives, and no request is
//! ever lost. The vCPU looks at the gate only after the hypervisor reported an interruption, that is when no
//! access is half done.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::hv::Kick;

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
    waiting: bool,
    ended: bool,
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
        let state = State { wanted: Wanted::Pause, waiting: false, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), kick }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.kick.set(wanted != Wanted::Run);
        if wanted != Wanted::Run && may_be_inside {
            signal();
        }
        self.changed.notify_all();
    }

    /// Waits until the vCPU is at rest: waiting at the gate, or ended.
    pub(super) fn wait_at_rest(&self) {
        let at_rest = |state: &mut State| !state.waiting && !state.ended;
        drop(self.changed.wait_while(self.lock(), at_rest));
    }

    /// Called by the vCPU's thread: waits while it shall pause, and says what to do then.
    pub(super) fn pass(&self) -> Pass {
        let mut state = self.lock();
        if state.wanted == Wanted::Pause {
            state.waiting = true;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.wanted == Wanted::Pause)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting = false;
        }
        match state.wanted {
            Wanted::Stop => Pass::Stop,
            Wanted::Run | Wanted::Pause => Pass::Run,
        }
    }

    /// Called by the vCPU's thread as its last act.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
