//! How often each cluster of a file is used, as the image says it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Header, MOST_REFTABLE_BYTES, be64, read_up_to};

/// Bits of an entry of the refcount table that are an offset.
const OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// The reference counts as they are in the file, a block of them at a time in memory.
pub(super) struct Refcounts<'a> {
    file: &'a File,
    cluster_bits: u32,
    order: u32,
    /// Where the blocks are; 0 for one that is not there.
    blocks: Vec<u64>,
    block: Vec<u8>,
    loaded: Option<usize>,
    changed: bool,
}

impl<'a> Refcounts<'a> {
    /// Reads the table. The header was judged, so that the table is in the file and not too large.
    pub fn read(file: &'a File, header: &Header) -> io::Result<Self> {
        let len = header.reftable_clusters as usize * header.cluster_size() as usize;
        let mut table = vec![0; len];
        read_up_to(file, &mut table, header.reftable_offset)?;
        let blocks = (0..len / 8).map(|index| be64(&table, index * 8)).collect();
        Ok(Self::of_blocks(file, header, blocks))
    }

    fn of_blocks(file: &'a File, header: &Header, blocks: Vec<u64>) -> Self {
        Self {
            file,
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            blocks,
            block: vec![0; header.cluster_size() as usize],
            loaded: None,
            changed: false,
        }
    }

    /// The table's entries that are in use: index and value.
    pub fn blocks(&self) -> impl Iterator<Item = (usize, u64)> {
        self.blocks.iter().copied().enumerate().filter(|(_, entry)| *entry != 0)
    }

    /// Takes a block out that cannot be one; what it counts counts as 0 then.
    pub fn forget(&mut self, index: usize) {
        self.blocks[index] = 0;
    }

    fn per_block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// How many clusters a block counts.
    pub fn per_block(&self) -> u64 {
        1 << self.per_block_bits()
    }

    /// The largest count there can be.
    pub fn most(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// Loads the block for a cluster; `None` if there is none.
    fn load(&mut self, cluster: u64) -> io::Result<Option<usize>> {
        let index = usize::try_from(cluster >> self.per_block_bits()).unwrap_or(usize::MAX);
        let Some(entry) = self.blocks.get(index).copied().filter(|entry| *entry != 0) else {
            return Ok(None);
        };
        if self.loaded != Some(index) {
            self.write_back()?;
            self.loaded = None;
            let count = read_up_to(self.file, &mut self.block, entry & OFFSET)?;
            self.block[count..].fill(0);
            self.loaded = Some(index);
        }
        Ok(Some((cluster & (self.per_block() - 1)) as usize))
    }

    /// The count of one cluster.
    pub fn get(&mut self, cluster: u64) -> io::Result<u64> {
        let Some(index) = self.load(cluster)? else { return Ok(0) };
        let bits = 1_usize << self.order;
        Ok(match bits {
            8.. => {
                let bytes = bits / 8;
                let field = &self.block[index * bytes..][..bytes];
                field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
            // Several to a byte, the first in the lowest bits.
            _ => {
                let per_byte = 8 / bits;
                u64::from(self.block[index / per_byte] >> (index % per_byte * bits)) & self.most()
            }
        })
    }

    /// Sets the count of one cluster; `Ok(false)` if there is no block for it or it cannot count so far.
    pub fn set(&mut self, cluster: u64, value: u64) -> io::Result<bool> {
        if value > self.most() {
            return Ok(false);
        }
        let Some(index) = self.load(cluster)? else { return Ok(false) };
        let bits = 1_usize << self.order;
        if bits >= 8 {
            let bytes = bits / 8;
            self.block[index * bytes..][..bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        } else {
            let per_byte = 8 / bits;
            let shift = index % per_byte * bits;
            let mask = 0xff_u8 >> (8 - bits);
            let byte = &mut self.block[index / per_byte];
            *byte = (*byte & !(mask << shift)) | ((value as u8) << shift);
        }
        self.changed = true;
        Ok(true)
    }

    /// Writes what was set.
    pub fn write_back(&mut self) -> io::Result<()> {
        if let (true, Some(index)) = (self.changed, self.loaded) {
            self.file.write_all_at(&self.block, self.blocks[index] & OFFSET)?;
        }
        self.changed = false;
        Ok(())
    }
}

/// Makes new counts behind the end of the file, and has the header name them; false if that cannot be. Interrupted, it
/// leaves the image as it was but longer.
pub(super) fn make_anew(file: &File, header: &Header, used: &[u16]) -> io::Result<bool> {
    let cluster = header.cluster_size();
    let per_block = Refcounts::of_blocks(file, header, Vec::new()).per_block();
    let first = used.len() as u64;
    // The new blocks and their table are counted by themselves.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (first + blocks + table).div_ceil(per_block);
        let for_them = (needed * 8).div_ceil(cluster);
        if (needed, for_them) == (blocks, table) {
            break;
        }
        (blocks, table) = (needed, for_them);
    }
    if table * cluster > MOST_REFTABLE_BYTES {
        return Ok(false);
    }
    let entries: Vec<_> = (first..first + blocks).map(|block| block * cluster).collect();
    let table_offset = (first + blocks) * cluster;
    let mut bytes: Vec<_> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    bytes.resize((table * cluster) as usize, 0);
    file.write_all_at(&bytes, table_offset)?;
    let mut counts = Refcounts::of_blocks(file, header, entries);
    for index in 0..first + blocks + table {
        let count = used.get(index as usize).map_or(1, |count| u64::from(*count));
        if count > 0 && !counts.set(index, count)? {
            return Ok(false);
        }
    }
    counts.write_back()?;
    file.sync_all()?;
    let clusters = table as u32;
    file.write_all_at(&[&table_offset.to_be_bytes()[..], &clusters.to_be_bytes()].concat(), 48)?;
    file.sync_all()?;
    Ok(true)
}
