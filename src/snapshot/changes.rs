//! What makes a snapshot a diff: which pages it has, and which snapshot has the others.

use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, PAGE, Section};
use crate::saved::Saved;

/// The section in which they are.
pub(super) const MEMORY_CHANGES: &str = "memory-changes";

/// The pages that a diff has in its own memory file, and the snapshot that has the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryChanges {
    base_id: [u8; 16],
    base: Vec<u8>,
    /// How many pages are left out, how many follow that are in the file, and so on.
    runs: Vec<u64>,
}

impl Saved for MemoryChanges {
    const NAME: &'static str = MEMORY_CHANGES;
    const VERSION: u16 = 1;
}

impl MemoryChanges {
    /// Changes since the snapshot `base`, for a diff that is to be in `place`. Runs of pages are in ascending order and
    /// not empty.
    pub fn new(
        place: &Path,
        base: &Path,
        base_id: [u8; 16],
        runs: impl Iterator<Item = Range<u64>>,
    ) -> Result<Self, Error> {
        let base = path_from(place, base).map_err(Error::io("find", base))?;
        let (mut end, mut list) = (0, Vec::new());
        for run in runs {
            match list.last_mut() {
                Some(length) if run.start == end => *length += run.end - run.start,
                _ => list.extend([run.start - end, run.end - run.start]),
            }
            end = run.end;
        }
        Ok(Self { base_id, base: base.into_os_string().into_vec(), runs: list })
    }

    /// As a section of the snapshot.
    pub fn section(&self) -> Section {
        Section::of(MEMORY_CHANGES, self)
    }

    /// The random number of the snapshot that it builds on.
    pub fn base_id(&self) -> [u8; 16] {
        self.base_id
    }

    /// Where that was, from the diff's own directory on.
    pub fn base(&self) -> PathBuf {
        OsString::from_vec(self.base.clone()).into()
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.runs.chunks(2).map(|pair| pair.get(1).copied().unwrap_or(0)).sum()
    }

    /// Which pages it has.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut end = 0;
        self.runs.chunks_exact(2).map(move |pair| {
            let start = end + pair[0];
            end = start + pair[1];
            start..end
        })
    }

    /// Whether these are pages of such a memory. Somebody wrote it, but not necessarily this program.
    pub(super) fn check(&self, memory_size: u64) -> Result<(), &'static str> {
        if self.base.is_empty() || self.base.contains(&0) {
            return Err("the path of the snapshot that it builds on is none");
        }
        if !self.runs.len().is_multiple_of(2) {
            return Err("its list of changed pages is cut short");
        }
        let mut end = 0_u64;
        for (number, pair) in self.runs.chunks_exact(2).enumerate() {
            // Runs that touch are one.
            if pair[1] == 0 || (number > 0 && pair[0] == 0) {
                return Err("its list of changed pages makes no sense");
            }
            end = pair.iter().try_fold(end, |end, &pages| end.checked_add(pages)).unwrap_or(u64::MAX);
            if end > memory_size / PAGE {
                return Err("it has pages behind the end of the memory");
            }
        }
        Ok(())
    }
}

/// How to get to `to` from the directory that is to be in `place`: both may be moved together then. What have nothing
/// in common but the root directory are not moved together.
fn path_from(place: &Path, to: &Path) -> std::io::Result<PathBuf> {
    let to = fs::canonicalize(to)?;
    let place = real(place)?;
    let common = place.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    // The root directory is a component, too.
    if common < 2 {
        return Ok(to);
    }
    let up = place.components().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(common)).collect();
    // Nothing is left if both are one; the path of that is its own.
    Ok(if path.as_os_str().as_bytes().is_empty() { PathBuf::from(".") } else { path })
}

/// The path of what need not be there yet, without links on the way.
pub(super) fn real(place: &Path) -> std::io::Result<PathBuf> {
    let place = std::path::absolute(place)?;
    match (fs::canonicalize(&place), place.parent(), place.file_name()) {
        (Ok(path), _, _) => Ok(path),
        (Err(_), Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        (Err(error), _, _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved;
    use crate::snapshot::testing::Scratch;

    fn changes(runs: &[u64]) -> MemoryChanges {
        MemoryChanges { base_id: [7; 16], base: b"../base".to_vec(), runs: runs.to_vec() }
    }

    #[test]
    fn changes_are_written_and_read() {
        let scratch = Scratch::new();
        let base = scratch.path("base");
        fs::create_dir(&base).unwrap();
        let runs = [0..3, 7..8, 100..200];
        // Runs that touch become one.
        let given = [0..1, 1..3, 7..8, 100..150, 150..200].into_iter();
        let saved = MemoryChanges::new(&scratch.path("diff"), &base, [9; 16], given).unwrap();
        let read: MemoryChanges = saved::decode(&saved::encode(&saved)).unwrap();
        assert_eq!(read, saved);
        assert!(read.runs().eq(runs));
        assert_eq!((read.pages(), read.base_id(), read.base()), (104, [9; 16], "../base".into()));
        assert_eq!(read.check(200 * PAGE), Ok(()));
        assert!(read.check(199 * PAGE).unwrap_err().contains("behind the end"));
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for good in [&[][..], &[0, 1], &[5, 1, 1, 4]] {
            assert_eq!(changes(good).check(16 * PAGE), Ok(()), "{good:?}");
        }
        for bad in [
            &[1][..],
            &[0, 0],
            &[1, 1, 0, 1],
            &[1, 1, 1, 0],
            &[0, 17],
            &[16, 1],
            &[u64::MAX, 1],
            &[1, u64::MAX],
            &[1, 1, u64::MAX, u64::MAX],
        ] {
            assert!(changes(bad).check(16 * PAGE).is_err(), "{bad:?}");
        }
        assert!(MemoryChanges { base: Vec::new(), ..changes(&[]) }.check(PAGE).is_err());
        assert!(MemoryChanges { base: vec![0], ..changes(&[]) }.check(PAGE).is_err());
    }

    #[test]
    fn paths_are_relative_where_both_can_be_moved_together() {
        let scratch = Scratch::new();
        let base = scratch.path("base");
        fs::create_dir(&base).unwrap();
        let inner = scratch.path("diffs");
        fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink(&base, scratch.path("latest")).unwrap();
        let from = |place: &Path, to: &Path| path_from(place, to).unwrap();
        assert_eq!(from(&scratch.path("diff"), &base), Path::new("../base"));
        assert_eq!(from(&scratch.path("diff"), &scratch.path("latest")), Path::new("../base"));
        assert_eq!(from(&inner.join("one"), &base), Path::new("../../base"));
        assert_eq!(from(&base.join("within"), &base), Path::new(".."));
        assert_eq!(from(&base, &base), Path::new("."));
        assert_eq!(from(Path::new("/proc/self"), &base), fs::canonicalize(&base).unwrap());
        assert!(path_from(&scratch.path("diff"), &scratch.path("none")).is_err());
    }
}
