//! Taking snapshots of a machine that runs on meanwhile, and of what changed since the last one.
//!
//! While the guest runs, its memory is copied, and what it changed during that is copied again, until little is left.
//! Only for this rest, and for the state of everything else, it has to stand still. Then it goes on, and what was
//! copied is brought to the disk.
//!
//! A machine knows what changed since one of its snapshots only, the last one: the one that was last finished, or that
//! it was restored from. It can save that alone, as a diff that builds on that snapshot. Where the host does not tell
//! what changes, all memory is copied while the guest stands still, and there are no diffs.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::machine::Machine;
use super::{Error, SavedDescription, SavedDisks};
use crate::hv::{Hypervisor, Vm};
use crate::memory::{GuestMemory, PAGE_SIZE, PageSet, Untracked};
use crate::saved::Saved;
use crate::snapshot::{self, Draft, Info, MOST_LAYERS, MemoryChanges, Section, Snapshot};
use crate::threads;

/// So few pages take a millisecond or two: they can be copied when the guest stands still.
const FEW_PAGES: u64 = 256;
/// How often the guest is followed. One that writes faster than that is never caught up with.
const MOST_ROUNDS: usize = 5;

/// Why such a snapshot cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum CannotCapture {
    /// One after the other.
    #[error("another snapshot of this machine is being taken: wait until it is finished")]
    Busy,
    /// The machine has no snapshot that another could build on.
    #[error(
        "{} is not the last snapshot of this machine, nor what it was restored from: only what changed since that one is \
         known; take a full snapshot",
        base.display()
    )]
    OtherBase {
        /// What it was to build on.
        base: PathBuf,
    },
    /// The snapshot would replace what it needs.
    #[error(
        "a snapshot in {} would replace what it builds on: choose another directory, or take a full snapshot",
        place.display()
    )]
    OnItself {
        /// Where it was to be.
        place: PathBuf,
    },
    /// It would be one too many.
    #[error(
        "{} builds on {} other snapshots, which is as many as there can be: take a full snapshot",
        base.display(),
        MOST_LAYERS - 1
    )]
    TooManyLayers {
        /// What it was to build on.
        base: PathBuf,
    },
    /// The host does not tell what changed.
    #[error("what changed cannot be saved alone: {0}; take a full snapshot")]
    Untracked(#[from] Untracked),
}

/// How far a snapshot is, in bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How much was copied.
    pub done: u64,
    /// How much there is to copy, as far as is known. It grows with what the guest changes meanwhile.
    pub total: u64,
}

/// What changed since which snapshot; the one who takes the next has it, too.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Since>>);

#[derive(Default)]
struct Since {
    /// The random number of the snapshot.
    snapshot: Option<[u8; 16]>,
    /// What changed since then, up to when the memory was asked for the last time.
    changed: PageSet,
    /// Somebody takes a snapshot.
    busy: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Since> {
        threads::lock(&self.0)
    }

    /// The machine is as in this snapshot.
    pub fn restored(&self, id: [u8; 16]) {
        self.lock().snapshot = Some(id);
    }

    /// Takes what is known so far, unless somebody else has it.
    fn claim(&self, memory: &Arc<GuestMemory>) -> Result<Claim, CannotCapture> {
        let mut since = self.lock();
        if mem::replace(&mut since.busy, true) {
            return Err(CannotCapture::Busy);
        }
        let changed = mem::take(&mut since.changed);
        Ok(Claim { shared: self.clone(), memory: Arc::clone(memory), changed })
    }
}

/// The right to take a snapshot. What changed is not lost if none comes of it.
struct Claim {
    shared: Shared,
    memory: Arc<GuestMemory>,
    changed: PageSet,
}

impl Claim {
    /// What was written since this was asked for the last time.
    fn look(&mut self) -> Result<PageSet, Untracked> {
        let found = self.memory.written_pages()?;
        self.changed.add(&found);
        Ok(found)
    }

    /// The machine was as in this snapshot when it was asked for the last time, and can build on it if that is known.
    fn taken(mut self, snapshot: Option<[u8; 16]>) {
        self.changed = PageSet::default();
        self.shared.lock().snapshot = snapshot;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut since = self.shared.lock();
        since.changed.add(&self.changed);
        since.busy = false;
    }
}

/// A snapshot that is being taken, and is nothing if it is dropped.
pub struct Capture {
    claim: Claim,
    draft: Draft,
    /// What it builds on.
    base: Option<(PathBuf, [u8; 16])>,
    /// Why nothing can be copied while the guest runs.
    untracked: Option<Untracked>,
    /// What is to be copied that has been asked for.
    pending: PageSet,
    progress: Progress,
}

impl Capture {
    /// Why all memory has to be copied while the guest stands still, if that is so.
    pub fn untracked(&self) -> Option<&Untracked> {
        self.untracked.as_ref()
    }

    /// Copies while the guest runs, until little is left, or the guest cannot be caught up with. `progress` is called
    /// now and then.
    pub fn copy(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        if self.untracked.is_some() {
            return Ok(());
        }
        let mut count = self.pending.count();
        self.copy_pending(progress)?;
        // What is written at rest need not wait then for a disk that is behind.
        self.draft.flush()?;
        for _ in 1..MOST_ROUNDS {
            self.look()?;
            let now = self.pending.count();
            if self.untracked.is_some() {
                break;
            }
            self.copy_pending(progress)?;
            if now <= FEW_PAGES || now > count / 2 {
                break;
            }
            count = now;
        }
        Ok(())
    }

    /// Asks what is to be copied again. A full snapshot can do without an answer.
    fn look(&mut self) -> Result<(), Error> {
        match self.claim.look() {
            Ok(found) => self.pending.add(&found),
            Err(reason) if self.base.is_some() => return Err(CannotCapture::Untracked(reason).into()),
            Err(reason) => {
                self.draft.restart_memory()?;
                self.pending = PageSet::default();
                self.untracked = Some(reason);
            }
        }
        Ok(())
    }

    fn copy_pending(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        let pages = mem::take(&mut self.pending);
        self.progress.total = self.progress.done + pages.count() * PAGE_SIZE;
        progress(self.progress);
        let (draft, now) = (&mut self.draft, &mut self.progress);
        self.claim.memory.each_of(&pages, |offset, bytes| {
            draft.put(offset, bytes)?;
            now.done += bytes.len() as u64;
            progress(*now);
            Ok::<_, Error>(())
        })
    }

    /// Copies the rest, and the state of everything else. The machine has to be paused, and can go on as soon as this
    /// returns; until [`Drafted::finish`] has put the snapshot in its place, there is none, or still the older one.
    pub fn complete<V: Vm, H: Hypervisor<Vm = V>>(
        mut self,
        machine: &Machine<V>,
        hypervisor: &H,
    ) -> Result<Drafted, Error> {
        let mut sections = machine.save(hypervisor)?.sections();
        if self.untracked.is_none() {
            self.look()?;
        }
        if self.untracked.is_some() {
            self.pending = self.claim.memory.used_pages();
        }
        self.copy_pending(&mut |_| {})?;
        let Self { claim, draft, base, untracked, pending: _, progress: _ } = self;
        if let Some((base, id)) = base {
            sections.push(MemoryChanges::new(draft.place(), &base, id, claim.changed.runs())?.section());
        }
        Ok(Drafted { claim, draft, sections, disks: None, tracked: untracked.is_none() })
    }
}

/// A snapshot of which everything has been read from the machine, which can go on.
pub struct Drafted {
    claim: Claim,
    draft: Draft,
    sections: Vec<Section>,
    disks: Option<SavedDisks>,
    tracked: bool,
}

impl Drafted {
    /// Where it is written: where [`Machine::capture_disks`] puts what it keeps.
    pub fn directory(&self) -> &Path {
        self.draft.directory()
    }

    /// Adds what the machine's disks were kept as.
    pub fn add_disks(&mut self, disks: &SavedDisks) {
        self.disks = Some(disks.clone());
    }

    /// Notes how the machine was described.
    pub fn describe(&mut self, description: &SavedDescription) {
        self.sections.push(Section::of(SavedDescription::NAME, description));
    }

    /// Waits until it is on the disk, and puts it in its place.
    pub fn finish(self) -> Result<Info, Error> {
        let Self { claim, draft, mut sections, disks, tracked } = self;
        if let Some(mut disks) = disks {
            disks.add_checksums(draft.directory())?;
            sections.push(Section::of(SavedDisks::NAME, &disks));
        }
        let info = draft.finish(sections)?;
        claim.taken(tracked.then_some(info.id));
        Ok(info)
    }
}

impl<V: Vm> Machine<V> {
    /// Begins a snapshot that is to be in `place`, of a machine that may run. With a `base`, which has to be this
    /// machine's last snapshot or what it was restored from, it holds only what changed since then.
    pub fn begin_snapshot(&self, place: &Path, base: Option<&Path>) -> Result<Capture, Error> {
        let memory = &self.board.memory;
        let mut claim = self.since.claim(memory)?;
        let base = match base {
            Some(base) => Some((base.to_owned(), self.check_base(place, base)?)),
            None => None,
        };
        let draft = Draft::begin(place, memory.layout().size())?;
        let untracked = match claim.look() {
            Ok(_) => None,
            Err(reason) if base.is_some() => return Err(CannotCapture::Untracked(reason).into()),
            Err(reason) => {
                log::debug!("all memory is copied while the guest stands still: {reason}");
                Some(reason)
            }
        };
        let pending = if base.is_some() { claim.changed.clone() } else { memory.used_pages() };
        Ok(Capture { claim, draft, base, untracked, pending, progress: Progress::default() })
    }

    /// The random number of a snapshot that a diff in `place` can build on.
    fn check_base(&self, place: &Path, base: &Path) -> Result<[u8; 16], Error> {
        let snapshot = Snapshot::open(base)?;
        let id = snapshot.info().id;
        if self.since.lock().snapshot != Some(id) {
            return Err(CannotCapture::OtherBase { base: base.to_owned() }.into());
        }
        if snapshot::is_built_on(&snapshot, place)? {
            return Err(CannotCapture::OnItself { place: place.to_owned() }.into());
        }
        // With itself.
        if snapshot.layers()?.len() >= MOST_LAYERS {
            return Err(CannotCapture::TooManyLayers { base: base.to_owned() }.into());
        }
        Ok(id)
    }

    /// Writes memory and state down, beside `place`. The machine has to be paused, and can go on as soon as this
    /// returns. [`begin_snapshot`](Self::begin_snapshot) lets it run for most of that time.
    pub fn draft_snapshot<H: Hypervisor<Vm = V>>(
        &self,
        hypervisor: &H,
        place: &Path,
    ) -> Result<Drafted, Error> {
        self.check_at_rest()?;
        self.begin_snapshot(place, None)?.complete(self, hypervisor)
    }
}

#[cfg(test)]
#[path = "capture_test.rs"]
mod tests;
