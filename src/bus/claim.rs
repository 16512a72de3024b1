//! What a device claims of the bus, and which claims are refused.

/// A range of ports (`u16`) or guest-physical addresses (`u64`) that a device answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim<A> {
    /// The device's name, for listings and errors.
    pub name: &'static str,
    /// The first port or address.
    pub base: A,
    /// How many ports or bytes.
    pub len: A,
    /// The widths of access that the device understands.
    pub widths: Widths,
}

impl Claim<u16> {
    pub(super) fn widen(self) -> Claim<u64> {
        let Self { name, base, len, widths } = self;
        Claim { name, base: base.into(), len: len.into(), widths }
    }
}

/// A set of access widths, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// Each width is a power of two, so the width itself is its bit in the set.
pub struct Widths(u8);

impl Widths {
    /// One byte.
    pub const BYTE: Self = Self(1);
    /// Two bytes.
    pub const WORD: Self = Self(2);
    /// Four bytes.
    pub const LONG: Self = Self(4);
    /// Eight bytes, which only guest-physical addresses can be accessed by.
    pub const QUAD: Self = Self(8);
    /// All of them.
    pub const ANY: Self = Self(1 | 2 | 4 | 8);

    /// These widths and those of `other`.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether an access of `width` bytes is among them.
    pub const fn contains(self, width: usize) -> bool {
        matches!(width, 1 | 2 | 4 | 8) && self.0 as usize & width != 0
    }
}

/// Why a claim was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A range without anything in it.
    #[error("the device {name} claims no {kind} at {base:#x}: its range is empty")]
    Empty {
        /// Who claims it.
        name: &'static str,
        /// Ports or addresses.
        kind: &'static str,
        /// Where it would begin.
        base: u64,
    },
    /// A range that goes on behind the last port or address.
    #[error("the device {name} claims {len:#x} {kind} from {base:#x} on, but the last of them is {last:#x}")]
    Wraps {
        /// Who claims it.
        name: &'static str,
        /// Ports or addresses.
        kind: &'static str,
        /// Where it begins.
        base: u64,
        /// How long it is.
        len: u64,
        /// The last port or address there is.
        last: u64,
    },
    /// A range of which somebody else owns a part.
    #[error(
        "the devices {owner} and {name} both claim {kind} {first:#x} to {last:#x}: move one of them to another place"
    )]
    Overlap {
        /// Who claims it now.
        name: &'static str,
        /// Who has it already.
        owner: &'static str,
        /// Ports or addresses.
        kind: &'static str,
        /// The first that both claim.
        first: u64,
        /// The last that both claim.
        last: u64,
    },
}
