//! Guest memory: its layout in the guest and its mapping in this process.
//!
//! Memory is anonymous and not reserved: the host pays for a page when somebody touches it, so a guest may be given
//! more than the host has. It can also begin as an image in a file, of which it is a copy on write. Which of its pages
//! are written can be asked for. `boot/` writes kernels into it, devices read and write it through `vm-memory`, `vm/`
//! hands it to the hypervisor. Relies on nothing but `vm-memory`.

mod dirty;
mod host;
mod image;
mod layout;
mod pages;

use std::io;

pub use dirty::Untracked;
pub use host::{GuestMemory, Options};
pub use image::{Image, Overlay};
pub use layout::{HOLE_END, HOLE_START, Layout, MIN_SIZE, PAGE_SIZE, Region, SavedLayout};
pub use pages::PageSet;

/// Why a guest cannot have the memory that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too little for any guest.
    #[error("{} of memory is too little, a machine has at least 1M", told(*.size))]
    TooSmall {
        /// What was asked for.
        size: u64,
    },
    /// Not a multiple of the page size.
    #[error("{size} bytes of memory is not a whole number of 4 KiB pages")]
    NotWholePages {
        /// What was asked for.
        size: u64,
    },
    /// More than the guest could address.
    #[error(
        "{} of memory is more than a guest can address here: {address_bits}-bit physical addresses allow {}",
        told(*.size),
        told(*.most)
    )]
    TooLarge {
        /// What was asked for.
        size: u64,
        /// What the address width allows.
        most: u64,
        /// The address width.
        address_bits: u8,
    },
    /// The host has no such address space left, or does not overcommit.
    #[error("cannot map {} of guest memory: {source}{}", told(*.size), map_advice(*.hugetlb, .source))]
    Map {
        /// What was to be mapped.
        size: u64,
        /// Whether it was to come from the host's reserved huge pages.
        hugetlb: bool,
        /// What the operating system said.
        source: io::Error,
    },
    /// The host does not give transparent huge pages.
    #[error(
        "huge pages were asked for, but {path} says {setting:?}: write \"madvise\" to it, or leave `hugepages` out"
    )]
    NoHugePages {
        /// The host's switch.
        path: &'static str,
        /// What it is set to.
        setting: String,
    },
    /// The host's kernel knows nothing of equal pages.
    #[error(
        "memory was to be mergeable, but this host's kernel has no KSM (CONFIG_KSM): leave `mergeable` out"
    )]
    NoPageSharing,
    /// Reserved huge pages cannot be split.
    #[error("{size} bytes of memory is not a whole number of 2 MiB pages, as hugetlb needs")]
    NotWholeHugePages {
        /// What was asked for.
        size: u64,
    },
    /// More memory shall be filled in beforehand than the host has left.
    #[error(
        "cannot prefault {} of guest memory: the host has only {} MiB available; leave `prefault` out, and the host \
         pays only for what the guest touches",
        told(*.size),
        .available >> 20
    )]
    PrefaultTooMuch {
        /// What was to be prefaulted.
        size: u64,
        /// What the host could give without evicting anything.
        available: u64,
    },
    /// The memory could not be filled in beforehand.
    #[error("cannot prefault {} of guest memory: {source}{}", told(*.size), prefault_advice(.source))]
    Prefault {
        /// What was to be prefaulted.
        size: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// No such range is in guest memory.
    #[error("{length} bytes at {address:#x} are not in guest memory")]
    NotMemory {
        /// Where the range begins.
        address: u64,
        /// How long it is.
        length: u64,
    },
    /// The host does not take memory back.
    #[error("cannot give {} of guest memory back to the host: {source}", told(*.length))]
    GiveBack {
        /// How much.
        length: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// An image of the memory cannot be read.
    #[error("cannot read the image of guest memory: {0}")]
    Fill(io::Error),
    /// A saved layout contradicts itself.
    #[error("the saved memory layout is not one that a machine can have")]
    Inconsistent,
}

fn map_advice(hugetlb: bool, error: &io::Error) -> &'static str {
    match (hugetlb, error.raw_os_error()) {
        (true, _) => "; reserve huge pages first (/proc/sys/vm/nr_hugepages, 2 MiB each)",
        (false, Some(libc::ENOMEM)) => {
            "; more than this host's address space or its overcommit policy (vm.overcommit_memory) allows"
        }
        _ => "",
    }
}

fn prefault_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => "; it needs Linux 5.14 or later on the host",
        _ => "",
    }
}

/// A size within a sentence.
fn told(size: u64) -> String {
    match size % 1024 {
        0 if size > 0 => human(size),
        _ => format!("{size} bytes"),
    }
}

/// A size as people write it: exact, with the largest unit that divides it.
pub fn human(size: u64) -> String {
    for (shift, unit) in [(60, "E"), (50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if size != 0 && size.is_multiple_of(1 << shift) {
            return format!("{}{unit}", size >> shift);
        }
    }
    format!("{size}")
}
