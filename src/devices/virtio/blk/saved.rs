//! What a snapshot keeps of a disk.

use serde::{Deserialize, Serialize};

use super::Blk;
use crate::saved::Saved;

/// What the driver knows of a disk, which is the same after a snapshot. No request is under way while one is taken, and
/// what is on the disk is in its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBlk {
    size: u64,
    read_only: bool,
    serial: Vec<u8>,
    queues: usize,
}

impl Saved for SavedBlk {
    const NAME: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}

impl SavedBlk {
    pub(super) fn of(blk: &Blk) -> Self {
        // Limits are the user's, and are told with the machine's description.
        let Blk { size, read_only, serial, queues, lanes: _, link: _, limiter: _ } = blk;
        Self { size: *size, read_only: *read_only, serial: serial.to_vec(), queues: queues.len() }
    }

    /// What the driver would find to be something else.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let Self { size, read_only, serial, queues } = self;
        let differences = [
            (*size != other.size, "the disk has another size than it had"),
            (
                *read_only != other.read_only,
                "the disk could be written then and cannot now, or the other way round",
            ),
            (*serial != other.serial, "the disk has another serial number than it had"),
            (*queues != other.queues, "the disk has another number of queues than it had"),
        ];
        differences.into_iter().find_map(|(differs, reason)| differs.then_some(reason))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::devices::virtio::Device;
    use crate::storage::{Disk, DiskOptions};

    fn disk(size: u64, serial: &str, queues: u16) -> Blk {
        let storage = Disk::ephemeral(&std::env::temp_dir(), size, &DiskOptions::default()).unwrap();
        Blk::new(Arc::new(storage), serial, queues)
    }

    #[test]
    fn only_the_same_disk_is_restored() {
        let saved = disk(1 << 20, "one", 2).save_state();
        let same = disk(1 << 20, "one", 2);
        same.restore_state(&saved.bytes).unwrap();
        assert_eq!(same.save_state(), saved);
        for (other, said) in [
            (disk(1 << 21, "one", 2), "another size"),
            (disk(1 << 20, "two", 2), "serial number"),
            (disk(1 << 20, "one", 1), "number of queues"),
        ] {
            let error = other.restore_state(&saved.bytes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
