//! The real hypervisor: Linux KVM, through kvm-ioctls.

mod capability;
mod plain;
mod vcpu;
mod vm;

use std::arch::x86_64::__cpuid;
use std::ffi::CString;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use super::{CpuidEntry, Error, Hypervisor, Result};
pub use capability::{CAPABILITIES, Capability};
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;

/// Where KVM is found.
pub const DEVICE: &str = "/dev/kvm";

/// The memory type range registers (Intel SDM volume 4, "Architectural MSRs"): state that guests set, and that
/// kernels leave out of their list of what is to be saved (measured on 6.18).
const MEMORY_TYPE_RANGES: [RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// In ECX of CPUID leaf 1: the local APIC's timer can wait for a value of the time stamp counter.
const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;

/// An open `/dev/kvm` that speaks our version of the interface.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Opens `/dev/kvm` and makes sure that it has what no guest can do without.
    pub fn open() -> Result<Self> {
        let kvm = Self::open_at(Path::new(DEVICE))?;
        match CAPABILITIES.iter().find(|capability| capability.required && !capability.present(&kvm.fd)) {
            Some(Capability { name, purpose, .. }) => Err(Error::MissingCapability { name, purpose }),
            None => Ok(kvm),
        }
    }

    /// Opens the device node at `path` without asking for capabilities, for those who want to list them.
    pub fn open_at(path: &Path) -> Result<Self> {
        let failed = |source| Error::Open { path: path.display().to_string(), source };
        let node = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| failed(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let fd = kvm_ioctls::Kvm::new_with_path(&node).map_err(|error| failed(error.into()))?;
        let found = fd.get_api_version();
        if found < 0 {
            // Some other device node: it does not know the question.
            return Err(failed(io::Error::from_raw_os_error(libc::ENOTTY)));
        }
        let expected = KVM_API_VERSION as i32;
        if found != expected {
            return Err(Error::ApiVersion { found, expected });
        }
        Ok(Self { fd })
    }

    /// Every capability that lodger uses, and whether it is there.
    pub fn capabilities(&self) -> impl Iterator<Item = (&'static Capability, bool)> {
        CAPABILITIES.iter().map(|capability| (capability, capability.present(&self.fd)))
    }

    /// How many vCPUs KVM recommends for one guest.
    pub fn recommended_vcpus(&self) -> usize {
        self.fd.get_nr_vcpus()
    }

    /// How many pieces of memory one guest can have.
    pub fn memory_slots(&self) -> usize {
        self.fd.get_nr_memslots()
    }
}

impl Hypervisor for Kvm {
    type Vm = KvmVm;

    fn create_vm(&self) -> Result<KvmVm> {
        // The kernel may be interrupted while it sets up a machine; nothing is left behind then.
        let fd = loop {
            match self.fd.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(|error| call("create a virtual machine", error))?,
            }
        };
        KvmVm::new(fd)
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| call("ask which processor features a guest can have", error))?;
        let mut entries: Vec<_> = cpuid.as_slice().iter().map(CpuidEntry::from).collect();
        // Kernels before 6.14 tell this feature of their local APICs by a capability only.
        if self.fd.check_extension(Cap::TscDeadlineTimer) {
            let features = entries.iter_mut().filter(|entry| entry.function == 1);
            features.for_each(|entry| entry.ecx |= LEAF_1_ECX_TSC_DEADLINE);
        }
        Ok(entries)
    }

    /// KVM's modules for VT-x and AMD-V insist on these bits. The second leaf is there on every 64-bit processor:
    /// asking for the number of leaves first would be one question more, of 10 µs each inside another machine.
    fn is_in_hardware(&self) -> bool {
        const VMX: u32 = 1 << 5;
        const SVM: u32 = 1 << 2;
        __cpuid(1).ecx & VMX != 0 || __cpuid(0x8000_0001).ecx & SVM != 0
    }

    fn max_vcpus(&self) -> u32 {
        u32::try_from(self.fd.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    fn saved_msrs(&self) -> Result<Vec<u32>> {
        let list = self
            .fd
            .get_msr_index_list()
            .map_err(|error| call("list the model-specific registers to save", error))?;
        let unlisted = MEMORY_TYPE_RANGES.into_iter().flatten();
        let listed = list.as_slice().iter().copied();
        Ok(listed.chain(unlisted.filter(|index| !list.as_slice().contains(index))).collect())
    }
}

/// Turns a failed system call into an error that says what was being done.
fn call(what: &'static str, error: kvm_ioctls::Error) -> Error {
    Error::Call { what, source: error.into() }
}
