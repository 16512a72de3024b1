//! What tests of snapshots share: a place for them, and going on from one.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use lodger::devices::Collected;
use lodger::hv::kvm::KvmVm;
use lodger::snapshot::Snapshot;
use lodger::vm::{Config, Error, Machine, Timeline};

use super::kvm;

/// A directory that goes away with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    /// On a disk.
    pub fn new() -> Self {
        Self::within(&env::temp_dir())
    }

    /// In memory, where there is such a place: for those who write many snapshots.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::within(memory) } else { Self::new() }
    }

    fn within(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lodger-kvm-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    /// The path of something in it.
    pub fn path(&self, name: impl Display) -> PathBuf {
        self.0.join(name.to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A machine that goes on from a snapshot, and was not started.
pub fn restore(config: &Config, place: &Path, output: &Arc<Collected>) -> Result<Machine<KvmVm>, Error> {
    let snapshot = Snapshot::open(place)?;
    Machine::restore(&kvm(), config, &snapshot, output.clone(), &mut Timeline::start())
}
