//! What makes a snapshot a diff: which pages it has, and which snapshot has the others.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::place::path_from;
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

#[cfg(test)]
mod tests {
    use std::fs;

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
}
