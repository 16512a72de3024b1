//! Whether a qcow2 image's tables agree: every cluster that is used is counted as often as it is used.
//!
//! A count that is too high wastes space and does no harm; a process that was killed leaves such. One that is too
//! low, or a table that points nowhere, destroys data sooner or later.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::{CORRUPT, DIRTY, Header, be32, be64, read_up_to};
use super::refcounts::{self, Refcounts};
use crate::storage::{Error, raw};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// How many problems are told; all are counted.
const MOST_TOLD: usize = 20;
/// More clusters than this are not counted: it would take gigabytes.
const MOST_CLUSTERS: u64 = 1 << 30;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// What endangers data, in words; the first of it if there is much.
    pub problems: Vec<String>,
    /// How much of it there is.
    pub corruptions: u64,
    /// Clusters that are kept for nothing.
    pub leaks: u64,
    /// Clusters that hold the guest's data.
    pub allocated_clusters: u64,
    /// Clusters that the disk would have if all were allocated.
    pub total_clusters: u64,
    /// How many of the allocated ones are compressed.
    pub compressed_clusters: u64,
    /// What was repaired: counts and flags that are right now.
    pub repaired: u64,
    /// Whether what is wrong has been put right, as far as that can be.
    pub repair: bool,
}

impl CheckReport {
    /// Whether data is in danger.
    pub fn is_corrupt(&self) -> bool {
        self.corruptions > 0
    }

    fn problem(&mut self, what: String) {
        self.corruptions += 1;
        if self.problems.len() < MOST_TOLD {
            self.problems.push(what);
        }
    }
}

/// Whether to repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Only look.
    No,
    /// Put counts and flags right.
    Yes,
}

/// Checks an image. `progress` is told how many of how many L1 entries are done.
pub(in crate::storage) fn check(
    file: &File,
    path: &Path,
    repair: Repair,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, Error> {
    let header = read_header(file, path)?;
    let file_len = raw::size_of(file).map_err(Error::io("read", path))?;
    let clusters = file_len.div_ceil(header.cluster_size());
    if clusters > MOST_CLUSTERS {
        return Err(Error::refused(
            path,
            format!("its file has {clusters} clusters, too many to count"),
            "copy what it holds with `lodger disk convert`",
        ));
    }
    match repair {
        Repair::No => {
            let walk = Walk::run(file, &header, Pass::Look, progress);
            walk.map(|walk| walk.report).map_err(Error::io("check", path))
        }
        Repair::Yes => self::repair(file, path, header, progress),
    }
}

/// Nothing tells where the tables are of an image whose header is wrong.
fn read_header(file: &File, path: &Path) -> Result<Header, Error> {
    Header::read(file, path).map_err(|error| match error {
        Error::Damaged { path, what } => {
            Error::refused(&path, format!("{what}, and that cannot be repaired"), "take it from a backup")
        }
        other => other,
    })
}

/// Puts counts right and then flags, which depend on them.
fn repair(
    file: &File,
    path: &Path,
    mut header: Header,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, Error> {
    let failed = || Error::io("repair", path);
    let mut walk = Walk::run(file, &header, Pass::Counts, progress).map_err(failed())?;
    let mut repaired = walk.report.repaired;
    // Bitmaps are not walked: new counts would give their clusters away.
    if walk.lacks_counts && !header.has_bitmaps {
        let (used, uncounted) = (std::mem::take(&mut walk.used), walk.uncounted);
        if refcounts::make_anew(file, &header, &used).map_err(failed())? {
            header = read_header(file, path)?;
            // The old ones are free now.
            let again = Walk::run(file, &header, Pass::Counts, progress).map_err(failed())?;
            repaired += uncounted + again.report.repaired;
        }
    }
    let walk = Walk::run(file, &header, Pass::Flags, progress).map_err(failed())?;
    let mut report = walk.report;
    report.repaired += repaired;
    Ok(report)
}

/// What is done while the tables are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// What is wrong is told.
    Look,
    /// Counts are put right.
    Counts,
    /// Flags are, by counts that are right.
    Flags,
}

struct Walk<'a> {
    file: &'a File,
    header: &'a Header,
    file_len: u64,
    /// How often each cluster of the file is referred to. Zeroed memory that was never touched costs nothing.
    used: Vec<u16>,
    counts: Refcounts<'a>,
    /// Whether there is no place for some counts.
    lacks_counts: bool,
    /// How many clusters are used and have none.
    uncounted: u64,
    report: CheckReport,
    pass: Pass,
}

impl<'a> Walk<'a> {
    fn run(
        file: &'a File,
        header: &'a Header,
        pass: Pass,
        progress: &mut dyn FnMut(u64, u64),
    ) -> io::Result<Self> {
        let file_len = raw::size_of(file)?;
        let report = CheckReport {
            total_clusters: header.size.div_ceil(header.cluster_size()),
            repair: pass != Pass::Look,
            ..CheckReport::default()
        };
        let used = vec![0; file_len.div_ceil(header.cluster_size()) as usize];
        let counts = Refcounts::read(file, header)?;
        let mut walk =
            Self { file, header, file_len, used, counts, lacks_counts: false, uncounted: 0, report, pass };
        walk.all(progress)?;
        Ok(walk)
    }
}

impl Walk<'_> {
    fn all(&mut self, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        self.use_range(0, 1, "the header");
        let header = self.header;
        let reftable = u64::from(header.reftable_clusters) * header.cluster_size();
        self.use_range(header.reftable_offset, reftable, "the refcount table");
        self.refcount_blocks();
        let (offset, entries) = (header.l1_offset, header.l1_entries);
        self.l1_table(offset, entries, true, progress)?;
        self.snapshots()?;
        self.forget_shared_blocks();
        self.compare()?;
        match self.pass {
            Pass::Look => Ok(()),
            Pass::Counts => self.counts.write_back(),
            Pass::Flags => self.finish_repair(),
        }
    }

    /// Counts the clusters of a range as used once more; false if they are not in the file.
    fn use_range(&mut self, offset: u64, len: u64, what: &str) -> bool {
        let Some(end) = offset.checked_add(len).filter(|_| offset < self.file_len) else {
            self.report.problem(format!("{what} is at {offset:#x}, past the end of the file"));
            return false;
        };
        let bits = self.header.cluster_bits;
        for cluster in offset >> bits..end.div_ceil(1 << bits) {
            match self.used.get_mut(cluster as usize) {
                Some(count) => *count = count.saturating_add(1),
                None => {
                    self.report.problem(format!("{what} at {offset:#x} reaches past the end of the file"));
                    return false;
                }
            }
        }
        true
    }

    fn is_aligned(&mut self, offset: u64, what: &str) -> bool {
        let aligned = offset.is_multiple_of(self.header.cluster_size());
        if !aligned {
            self.report.problem(format!("{what} is at {offset:#x}, where no cluster begins"));
        }
        aligned
    }

    fn refcount_blocks(&mut self) {
        let blocks: Vec<_> = self.counts.blocks().collect();
        for (index, entry) in blocks {
            let what = format!("block {index} of the reference counts");
            let good = self.is_aligned(entry, &what) && {
                let cluster = entry >> self.header.cluster_bits;
                let taken = self.used.get(cluster as usize).is_some_and(|count| *count > 0);
                if taken {
                    self.report.problem(format!("{what} is at {entry:#x}, where something else is"));
                }
                self.use_range(entry, self.header.cluster_size(), &what) && !taken
            };
            if !good {
                self.forget(index);
            }
        }
    }

    /// A block that is also a guest's data or a table is none, and what is written to it would destroy that.
    fn forget_shared_blocks(&mut self) {
        let blocks: Vec<_> = self.counts.blocks().collect();
        for (index, entry) in blocks {
            let cluster = entry >> self.header.cluster_bits;
            if self.used.get(cluster as usize).is_some_and(|count| *count > 1) {
                let what = format!(
                    "block {index} of the reference counts is at {entry:#x}, where something else is"
                );
                self.report.problem(what);
                self.forget(index);
            }
        }
    }

    fn forget(&mut self, index: usize) {
        self.counts.forget(index);
        self.lacks_counts = true;
    }

    fn l1_table(
        &mut self,
        offset: u64,
        entries: u32,
        active: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> io::Result<()> {
        let len = u64::from(entries) * 8;
        if len == 0 || !self.use_range(offset, len, "an L1 table") {
            return Ok(());
        }
        let mut table = vec![0; len as usize];
        read_up_to(self.file, &mut table, offset)?;
        let mut l2 = vec![0; self.header.cluster_size() as usize];
        for index in 0..entries as usize {
            progress(index as u64, entries.into());
            let entry = be64(&table, index * 8);
            let l2_offset = entry & OFFSET;
            if l2_offset == 0 {
                continue;
            }
            let what = format!("L2 table {index}");
            if !self.is_aligned(l2_offset, &what) || !self.use_range(l2_offset, 1, &what) {
                continue;
            }
            if active {
                self.copied_flag(entry, l2_offset, offset + index as u64 * 8, &what)?;
            }
            let count = read_up_to(self.file, &mut l2, l2_offset)?;
            l2[count..].fill(0);
            self.l2_table(&l2, l2_offset, active)?;
        }
        progress(entries.into(), entries.into());
        Ok(())
    }

    fn l2_table(&mut self, table: &[u8], table_offset: u64, active: bool) -> io::Result<()> {
        for index in 0..table.len() / 8 {
            let entry = be64(table, index * 8);
            if entry == 0 {
                continue;
            }
            if entry & COMPRESSED != 0 {
                self.compressed(entry, active);
                continue;
            }
            let offset = entry & OFFSET;
            // A cluster of zeroes need not be anywhere.
            if offset == 0 {
                if entry & COPIED != 0 && entry & ZERO == 0 {
                    self.report
                        .problem(format!("entry {index} of the L2 table at {table_offset:#x} is no entry"));
                }
                continue;
            }
            let what = format!("the data of entry {index} of the L2 table at {table_offset:#x}");
            if !self.is_aligned(offset, &what) || !self.use_range(offset, 1, &what) {
                continue;
            }
            if active {
                self.report.allocated_clusters += 1;
                self.copied_flag(entry, offset, table_offset + index as u64 * 8, &what)?;
            }
        }
        Ok(())
    }

    fn compressed(&mut self, entry: u64, active: bool) {
        // The upper bits of the descriptor are how many further sectors of 512 bytes there are.
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !COMPRESSED & !COPIED) >> offset_bits;
        let end = (offset & !511).saturating_add((sectors + 1) * 512);
        if active {
            self.report.allocated_clusters += 1;
            self.report.compressed_clusters += 1;
        }
        // The last sector may be cut off by the file's end.
        let end = end.min(self.file_len.max(offset.saturating_add(1)));
        self.use_range(offset, end - offset, "compressed data");
    }

    /// Whether an entry's flag says what the count says: used once, so that it may be written in place.
    fn copied_flag(&mut self, entry: u64, offset: u64, entry_offset: u64, what: &str) -> io::Result<()> {
        let once = self.counts.get(offset >> self.header.cluster_bits)? == 1;
        if once == (entry & COPIED != 0) {
            return Ok(());
        }
        match self.pass {
            // A missing flag costs a copy; one that is there wrongly writes into what others use.
            Pass::Look if !once => {
                self.report.problem(format!("{what} is said to be used once, and is not counted so"));
            }
            Pass::Flags => {
                self.file.write_all_at(&(entry ^ COPIED).to_be_bytes(), entry_offset)?;
                self.report.repaired += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn snapshots(&mut self) -> io::Result<()> {
        let mut offset = self.header.snapshots_offset;
        let start = offset;
        for _ in 0..self.header.snapshots {
            let mut entry = [0; 40];
            if read_up_to(self.file, &mut entry, offset)? < entry.len() {
                self.report.problem("the list of snapshots reaches past the end of the file".into());
                return Ok(());
            }
            let (l1_offset, l1_entries) = (be64(&entry, 0), be32(&entry, 8));
            let lens = be32(&entry, 12);
            let (id_len, name_len) = (u64::from(lens >> 16), u64::from(lens & 0xffff));
            let extra = u64::from(be32(&entry, 36));
            // Two lists of at most 4 Mi entries each are what QEMU makes; more is no image.
            if l1_entries > 4 << 20 || extra > 4096 {
                self.report.problem("the list of snapshots is damaged".into());
                return Ok(());
            }
            self.l1_table(l1_offset, l1_entries, false, &mut |_, _| {})?;
            offset += (40 + extra + id_len + name_len).next_multiple_of(8);
        }
        if offset > start {
            self.use_range(start, offset - start, "the list of snapshots");
        }
        Ok(())
    }

    fn compare(&mut self) -> io::Result<()> {
        let clusters = self.used.len() as u64;
        // Bitmaps are not walked: what they use looks like a leak here.
        let leaks_known = !self.header.has_bitmaps;
        let blocks: Vec<_> = self.counts.blocks().map(|(index, _)| index as u64).collect();
        let per_block = self.counts.per_block();
        let mut counted = vec![false; clusters.div_ceil(per_block) as usize];
        for block in blocks {
            let Some(first) = block.checked_mul(per_block) else { continue };
            // Beyond the end of the file nothing is used.
            for cluster in first..first.saturating_add(per_block) {
                self.compare_one(cluster, leaks_known)?;
            }
            if let Some(place) = counted.get_mut(block as usize) {
                *place = true;
            }
        }
        for (block, _) in counted.iter().enumerate().filter(|(_, counted)| !**counted) {
            let first = block as u64 * per_block;
            for cluster in first..(first + per_block).min(clusters) {
                self.compare_one(cluster, leaks_known)?;
            }
        }
        Ok(())
    }

    fn compare_one(&mut self, cluster: u64, leaks_known: bool) -> io::Result<()> {
        let used = u64::from(self.used.get(cluster as usize).copied().unwrap_or(0));
        let count = self.counts.get(cluster)?;
        if used == count || (used < count && !leaks_known) {
            return Ok(());
        }
        if self.pass != Pass::Look && self.counts.set(cluster, used)? {
            self.report.repaired += 1;
            return Ok(());
        }
        if used > 0 && count == 0 {
            self.uncounted += 1;
            self.lacks_counts = true;
        }
        if used < count {
            self.report.leaks += 1;
        } else {
            let offset = cluster << self.header.cluster_bits;
            self.report.problem(format!(
                "the cluster at {offset:#x} is used {used} times and counted {count} times"
            ));
        }
        Ok(())
    }

    /// Writes the counts, and takes the marks off an image that is whole again.
    fn finish_repair(&mut self) -> io::Result<()> {
        self.counts.write_back()?;
        self.file.sync_data()?;
        let bits = self.header.incompatible & (DIRTY | CORRUPT);
        if bits != 0 && !self.report.is_corrupt() {
            let bits = self.header.incompatible & !(DIRTY | CORRUPT);
            self.file.write_all_at(&bits.to_be_bytes(), 72)?;
            self.report.repaired += 1;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
