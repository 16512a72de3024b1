//! What the tests of this room share: a small snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CHUNK, Draft, Info, PAGE, Section};
use crate::saved::Saved;
use crate::storage::testing::TempDir;

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

/// A directory in which names are looked at.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(TempDir::new())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.at(name)
    }

    /// What is in it, hidden or not.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
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
