//! Where guest memory lies in the guest's physical address space.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::saved::Saved;

/// Memory below this address comes first; interrupt controllers, firmware and device windows live above it.
pub const HOLE_START: u64 = 3 << 30;
/// Memory that does not fit below the hole goes on here.
pub const HOLE_END: u64 = 4 << 30;
/// The least memory a machine can have.
pub const MIN_SIZE: u64 = 1 << 20;
/// Sizes are counted in pages.
pub const PAGE_SIZE: u64 = 4096;

/// A piece of guest memory without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Region {
    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// All pieces of guest memory, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    regions: Vec<Region>,
}

impl Layout {
    /// The layout of a machine with `size` bytes, on a host whose guests have `address_bits` of physical
    /// address.
    pub fn new(size: u64, address_bits: u8) -> Result<Self, Error> {
        if size < MIN_SIZE {
            return Err(Error::TooSmall { size });
        }
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::NotWholePages { size });
        }
        let most = (1_u64 << address_bits.min(63)) - (HOLE_END - HOLE_START);
        if size > most {
            return Err(Error::TooLarge { size, most, address_bits });
        }
        let low = Region { start: 0, size: size.min(HOLE_START) };
        let high = Region { start: HOLE_END, size: size - low.size };
        Ok(Self { regions: [low, high].into_iter().filter(|region| region.size > 0).collect() })
    }

    /// The pieces, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// How much memory there is.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// The piece that starts at address 0 and ends at the hole or before it.
    pub fn low(&self) -> Region {
        self.regions[0]
    }

    /// What a snapshot keeps of it.
    pub fn save(&self) -> SavedLayout {
        let Self { regions } = self;
        SavedLayout { regions: regions.clone() }
    }

    /// The layout that was saved, if it is one that a machine can have.
    pub fn restore(saved: &SavedLayout, address_bits: u8) -> Result<Self, Error> {
        let size = saved.regions.iter().try_fold(0_u64, |sum, region| sum.checked_add(region.size));
        let layout = Self::new(size.ok_or(Error::Inconsistent)?, address_bits)?;
        if layout.regions != saved.regions {
            return Err(Error::Inconsistent);
        }
        Ok(layout)
    }
}

/// A memory layout as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLayout {
    regions: Vec<Region>,
}

impl Saved for SavedLayout {
    const NAME: &'static str = "memory-layout";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_below_three_gib_is_one_piece() {
        let layout = Layout::new(512 << 20, 48).unwrap();
        assert_eq!(layout.regions(), [Region { start: 0, size: 512 << 20 }]);
    }

    #[test]
    fn memory_above_three_gib_goes_on_at_four() {
        let layout = Layout::new(5 * GIB, 48).unwrap();
        let expected = [Region { start: 0, size: 3 * GIB }, Region { start: 4 * GIB, size: 2 * GIB }];
        assert_eq!(layout.regions(), expected);
        assert_eq!(layout.size(), 5 * GIB);
    }

    #[test]
    fn exactly_three_gib_leaves_nothing_above_the_hole() {
        assert_eq!(Layout::new(3 * GIB, 48).unwrap().regions().len(), 1);
        assert_eq!(Layout::new(3 * GIB + PAGE_SIZE, 48).unwrap().regions().len(), 2);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused() {
        assert!(matches!(Layout::new(0, 48), Err(Error::TooSmall { .. })));
        assert!(matches!(Layout::new(MIN_SIZE - PAGE_SIZE, 48), Err(Error::TooSmall { .. })));
        assert!(matches!(Layout::new(MIN_SIZE + 1, 48), Err(Error::NotWholePages { .. })));
        assert!(matches!(Layout::new(1 << 60, 48), Err(Error::TooLarge { .. })));
        assert!(Layout::new((1 << 48) - GIB, 48).is_ok());
        assert!(Layout::new((1 << 48) - GIB + PAGE_SIZE, 48).is_err());
    }

    #[test]
    fn a_saved_layout_is_restored() {
        let layout = Layout::new(5 * GIB, 48).unwrap();
        let bytes = saved::encode(&layout.save());
        let restored = Layout::restore(&saved::decode(&bytes).unwrap(), 48).unwrap();
        assert_eq!(restored, layout);
    }

    #[test]
    fn a_saved_layout_that_no_machine_has_is_refused() {
        let region = |start, size| Region { start, size };
        for regions in [
            vec![],
            vec![region(0, 4 * GIB)],
            vec![region(4 * GIB, GIB)],
            vec![region(0, GIB), region(0, GIB)],
            vec![region(0, u64::MAX), region(0, u64::MAX)],
        ] {
            assert!(Layout::restore(&SavedLayout { regions }, 48).is_err());
        }
    }
}
