//! A diff together with the snapshots that it builds on, down to a full one.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Error, MemoryChanges, Snapshot, id_in_hex, resolved};

/// How many snapshots can be one upon the other, with the full one below all.
pub const MOST_LAYERS: usize = 64;

/// Snapshots that were named as bases, and that nothing which was found builds on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused(Vec<([u8; 16], PathBuf)>);

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(id, place)| {
            let id = id_in_hex(id);
            write!(f, "; {} is snapshot {id}, on which none that was found builds", place.display())
        })
    }
}

/// A memory file, and what of it counts.
#[derive(Debug)]
pub struct Layer {
    /// Each page is at its own place in it.
    pub file: File,
    /// The pages that it has, in the place of those of the layer below. Nothing for the lowest layer, which has all.
    pub pages: Option<Vec<Range<u64>>>,
}

impl Snapshot {
    /// For a diff that builds on snapshots which are somewhere else than they were: each is told by its random number,
    /// however deep below this one it is.
    pub fn with_bases(mut self, places: &[PathBuf]) -> Result<Self, Error> {
        for place in places {
            self.moved.push((Self::open(place)?.info().id, place.clone()));
        }
        Ok(self)
    }

    /// Where the snapshot should be that this one builds on, if these are its changes.
    pub fn base(&self, changes: &MemoryChanges) -> PathBuf {
        let moved = self.moved.iter().rev().find(|(id, _)| *id == changes.base_id());
        moved.map_or_else(|| self.directory().join(changes.base()), |(_, place)| place.clone())
    }

    /// The snapshots that this one builds on: the nearest first, a full one last. Nothing if it is full itself. Each of
    /// them is the very one that was built on.
    pub fn bases(&self) -> Result<Vec<Self>, Error> {
        let mut bases = Vec::<Self>::new();
        loop {
            let current = bases.last().unwrap_or(self);
            let Some(next) = current.open_base(&bases)? else { return Ok(bases) };
            // A circle has no end either.
            if bases.len() + 1 >= MOST_LAYERS {
                return Err(Error::TooManyLayers { path: self.directory().to_owned() });
            }
            bases.push(next);
        }
    }

    /// Opens the snapshot that this one builds on; `above` are those that were found before it.
    fn open_base(&self, above: &[Self]) -> Result<Option<Self>, Error> {
        let Some(changes) = self.changes()? else { return Ok(None) };
        let (path, base) = (self.directory().to_owned(), self.base(&changes));
        let is_used =
            |id: &[u8; 16]| *id == changes.base_id() || above.iter().any(|found| found.info().id == *id);
        let unused = || Unused(self.moved.iter().filter(|(id, _)| !is_used(id)).cloned().collect());
        let mut opened = Self::open(&base).map_err(|source| Error::Base {
            path: path.clone(),
            base: base.clone(),
            source: Box::new(source),
            unused: unused(),
        })?;
        let (info, own) = (opened.info(), self.info());
        if info.id != changes.base_id() || info.memory_size != own.memory_size {
            return Err(Error::OtherBase { path, base, unused: unused() });
        }
        opened.moved.clone_from(&self.moved);
        Ok(Some(opened))
    }

    /// All memory files that make up its memory, the lowest first. Each is as long as it should be, and the one that
    /// was written; what is in them has not been looked at.
    pub fn layers(&self) -> Result<Vec<Layer>, Error> {
        let bases = self.bases()?;
        let layer = |snapshot: &Self| {
            let pages = snapshot.changes()?.map(|changes| changes.runs().collect());
            Ok(Layer { file: snapshot.memory()?, pages })
        };
        bases.iter().rev().chain([self]).map(layer).collect()
    }
}

/// Whether a snapshot that is put in `place` would take the place of this one, or of one that it builds on.
pub(crate) fn is_built_on(snapshot: &Snapshot, place: &Path) -> Result<bool, Error> {
    let place = resolved(place);
    let is_there = |snapshot: &Snapshot| resolved(snapshot.directory()) == place;
    Ok(is_there(snapshot) || snapshot.bases()?.iter().any(is_there))
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
