//! What the tests of this room share: a small snapshot.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use serde::{Deserialize, Serialize};

use super::{CHUNK, Draft, Info, PAGE, Section};
use crate::saved::Saved;

/// The state of nothing in particular.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lamp {
    pub lit: bool,
    pub hours: u32,
}

pub const LAMP: Lamp = Lamp { lit: true, hours: 70_000 };

impl Saved for Lamp {
    const NAME: &'static str = "lamp";
    const VERSION: u16 = 3;
}

/// A directory that goes away with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lodger-snapshot-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in it, hidden or not.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How much memory the small snapshot has.
pub const MEMORY_SIZE: u64 = 2 * CHUNK + 3 * PAGE;

pub fn page(filling: u8) -> Vec<u8> {
    vec![filling; PAGE as usize]
}

/// The pages that are in the small snapshot's memory.
pub const PAGES: [(u64, u8); 4] = [(PAGE, 1), (2 * PAGE, 2), (CHUNK - PAGE, 3), (2 * CHUNK + 2 * PAGE, 4)];

pub fn sections() -> Vec<Section> {
    vec![Section::of("lamp/0", &LAMP), Section::of("lamp/1", &Lamp { lit: false, ..LAMP })]
}

/// Writes a small snapshot.
pub fn write(place: &Path) -> Info {
    let mut draft = Draft::begin(place, MEMORY_SIZE).unwrap();
    PAGES.iter().for_each(|&(offset, filling)| draft.put(offset, &page(filling)).unwrap());
    draft.finish(sections()).unwrap()
}
