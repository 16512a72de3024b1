//! A snapshot of a machine that others go on to use.
//!
//! It is taken on the thread of whoever wants it. The driver is asked twice at most, for as long as it takes to read
//! what is left when the memory has been copied, and to end the machine where that was wanted: before, in between, and
//! while the disk is waited for, it carries out what others ask for. Two at once would be in each other's way, so that
//! the second is refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::{After, Answer, Handle, Kind, Origin, Refusal, Request, State, What, answer};
use crate::hv::{Hypervisor, Vm};
use crate::snapshot::{self, DISKS, Info};
use crate::threads::lock;
use crate::vm::{Capture, DiskLook, DiskMode, Drafted, Error, KeptDisks, Progress, SavedDescription};

/// The snapshot that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Where it is to be.
    pub place: PathBuf,
    /// On which other one it builds, if it is to hold only what changed since then: the last that was taken of the
    /// machine, or that with which it began.
    pub base: Option<PathBuf>,
    /// What becomes of its disks; each has what fits it if nothing is said.
    pub disks: Option<DiskMode>,
    /// How the machine was described, for those who restore it without being told.
    pub description: Option<SavedDescription>,
    /// Whether the machine ends there: nothing runs behind the point at which it was taken.
    pub stop: bool,
}

impl Order {
    /// The same with paths that say where something is without a detour.
    fn normal(&self) -> Result<Self, Error> {
        let base = self.base.as_ref().map(|base| snapshot::resolved(base));
        Ok(Self { place: snapshot::place_for(&self.place)?, base, ..self.clone() })
    }
}

/// What is being done for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The memory is copied while the guest runs.
    Memory,
    /// The disk is waited for.
    Disk,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Step {
    /// In what.
    pub phase: Phase,
    /// So many bytes are done.
    pub done: u64,
    /// Of so many, as far as is known: it grows with what the guest changes meanwhile.
    pub total: u64,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Where it is.
    pub directory: PathBuf,
    /// What its header says.
    pub info: Info,
    /// How many bytes of a disk it takes, copies of the machine's disks included.
    pub size: u64,
    /// What became of the machine's disks.
    pub disks: Vec<DiskLook>,
    /// How many bytes of them were copied meanwhile that could have [stayed](KeptDisks::copied) where they were.
    pub copied: u64,
    /// How long the guest stood still for it.
    pub stopped_for: Duration,
    /// What the machine does now.
    pub state: State,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Somebody else is at it.
    #[error("another snapshot of this VM is being taken: wait for it")]
    Busy,
    /// The machine is in no state for it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be saved, or not be written down.
    #[error(transparent)]
    Failed(#[from] Error),
    /// There is one, but the machine was to end with it.
    #[error(
        "the snapshot {} is complete, but somebody has let the VM run on meanwhile, so that it was not ended",
        place.display()
    )]
    RunOn {
        /// Where it is.
        place: PathBuf,
    },
}

/// The right to take a snapshot, which one has at a time.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(taken: &'a AtomicBool) -> Result<Self, SnapshotError> {
        if taken.swap(true, Ordering::AcqRel) { Err(SnapshotError::Busy) } else { Ok(Self(taken)) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What was read at rest.
struct Read {
    drafted: Drafted,
    disks: KeptDisks,
    stopped_for: Duration,
    /// What the machine did before.
    state: State,
    runs: u64,
}

impl<V: Vm> Handle<V> {
    /// Where the last snapshot of the machine was put, if one was taken since it began.
    pub fn last_snapshot(&self) -> Option<PathBuf> {
        lock(&self.shared.last_snapshot).clone()
    }

    /// Takes a snapshot of the machine, which does afterwards what it did before, unless it is to end there. `tell`
    /// hears how far it is. If it fails, an older snapshot in that place is still there, and the machine goes on.
    pub fn snapshot<H: Hypervisor<Vm = V> + Send + Sync + 'static>(
        &self,
        hypervisor: &Arc<H>,
        order: &Order,
        tell: &mut dyn FnMut(Step),
    ) -> Result<Taken, SnapshotError> {
        let _turn = Turn::take(&self.shared.snapshot)?;
        let order = &order.normal()?;
        let (capture, total) = self.copy(order, tell)?;
        let Read { drafted, disks, stopped_for, state, runs } = self.read(capture, hypervisor, order)?;
        tell(Step { phase: Phase::Disk, done: 0, total });
        let info = drafted.finish().inspect_err(|_| {
            if order.stop && state == State::Running {
                // Nothing has come of it, so it goes on, unless somebody has ended it meanwhile.
                let _: Result<State, Refusal> = self.request(Request::Resume, Origin::Snapshot);
            }
        })?;
        *lock(&self.shared.last_snapshot) = Some(order.place.clone());
        self.shared.events.tell(What::Snapshot {
            directory: order.place.display().to_string(),
            id: info.id_in_hex(),
            stopped_for_us: u64::try_from(stopped_for.as_micros()).unwrap_or(u64::MAX),
        });
        if order.stop {
            self.end_unless_run(runs, &order.place)?;
        }
        let (directory, size) = (order.place.clone(), size_on_disk(&order.place));
        let (disks, copied) = (disks.saved.look(), disks.copied);
        Ok(Taken { directory, info, size, disks, copied, stopped_for, state: self.state() })
    }

    /// Copies what can be copied while the guest runs; the bytes of it.
    fn copy(&self, order: &Order, tell: &mut dyn FnMut(Step)) -> Result<(Capture, u64), SnapshotError> {
        let state = self.state();
        if answer(state, Kind::AtRest) == Answer::Refused {
            return Err(Refusal { state, request: Kind::AtRest }.into());
        }
        let mut capture = self.machine.begin_snapshot(&order.place, order.base.as_deref())?;
        let mut copied = 0;
        capture.copy(&mut |Progress { done, total }| {
            copied = done;
            tell(Step { phase: Phase::Memory, done, total });
        })?;
        Ok((capture, copied))
    }

    /// Reads what can be read only while the guest stands still.
    fn read<H: Hypervisor<Vm = V> + Send + Sync + 'static>(
        &self,
        capture: Capture,
        hypervisor: &Arc<H>,
        order: &Order,
    ) -> Result<Read, SnapshotError> {
        let hypervisor = Arc::clone(hypervisor);
        let Order { description, disks, stop, .. } = order.clone();
        let read = self.while_at_rest(move |rest| {
            let drafted = capture.complete(rest.machine, &*hypervisor).and_then(|mut drafted| {
                let disks = rest.machine.capture_disks(disks, drafted.directory(), stop)?;
                drafted.add_disks(&disks.saved);
                description.iter().for_each(|description| drafted.describe(description));
                Ok((drafted, disks))
            });
            let after = if stop && drafted.is_ok() { After::Stay(Origin::Snapshot) } else { After::GoOn };
            let (state, since, runs) = (rest.state, rest.since, rest.runs);
            let read = drafted.map(|(drafted, disks)| {
                let stopped_for = since.elapsed();
                Read { drafted, disks, stopped_for, state, runs }
            });
            (read, after)
        })?;
        Ok(read?)
    }

    /// Ends a machine that stands where it stood when it had been let run so often.
    fn end_unless_run(&self, runs: u64, place: &Path) -> Result<(), SnapshotError> {
        let run_on = || SnapshotError::RunOn { place: place.to_owned() };
        let ended = self.while_at_rest(move |rest| {
            let is_there = rest.runs == runs;
            (is_there, if is_there { After::End(Origin::Snapshot) } else { After::GoOn })
        });
        match ended {
            Ok(true) | Err(Refusal { state: State::Stopped, .. }) => Ok(()),
            Ok(false) | Err(_) => Err(run_on()),
        }
    }
}

/// How much of a disk the files take. Nobody is told that they cannot be looked at: they were written a moment ago.
fn size_on_disk(place: &Path) -> u64 {
    let files = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let of = |directory: &Path| {
        let files = files(directory).filter_map(|file| file.metadata().ok());
        files.filter(|status| status.is_file()).map(|status| status.blocks() * 512).sum::<u64>()
    };
    of(place) + of(&place.join(DISKS))
}

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod tests;
