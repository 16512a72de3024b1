//! Why the processor came back from the guest.

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_WRMSR,
};

use super::KvmVcpu;
use crate::hv::kvm::vm::malformed;
use crate::hv::{Direction, Exit, InternalError, Mmio, Msr, Pio, Result};

impl KvmVcpu {
    /// What the kernel left in `struct kvm_run`. kvm-ioctls' own exit type merges the elements of string I/O
    /// and carries no data of internal errors, so the structure is read here.
    pub(super) fn exit(&mut self) -> Result<Exit<'_>> {
        let run_size = self.run_size;
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason tells which member of the union the kernel filled.
                let io = unsafe { run.__bindgen_anon_1.io };
                let length = usize::from(io.size) * io.count as usize;
                let offset = io.data_offset as usize;
                if offset.checked_add(length).is_none_or(|end| end > run_size) {
                    return Err(malformed("read what the guest wrote to a port"));
                }
                // SAFETY: `run_size` bytes are mapped from the start of `run` on, and the check above keeps
                // the slice inside; it borrows `self`, so it ends before the next entry.
                let data = unsafe {
                    std::slice::from_raw_parts_mut((&raw mut *run).cast::<u8>().add(offset), length)
                };
                Ok(Exit::Pio(Pio {
                    port: io.port,
                    width: io.size,
                    direction: pio_direction(io.direction),
                    data,
                }))
            }
            KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                let length = (mmio.len as usize).min(mmio.data.len());
                let direction = if mmio.is_write == 0 { Direction::Read } else { Direction::Write };
                Ok(Exit::Mmio(Mmio { address: mmio.phys_addr, direction, data: &mut mmio.data[..length] }))
            }
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: as above.
                let msr = unsafe { run.__bindgen_anon_1.msr };
                Ok(Exit::MsrWrite(Msr { index: msr.index, value: msr.data }))
            }
            KVM_EXIT_DEBUG => Ok(Exit::Breakpoint),
            KVM_EXIT_HLT => Ok(Exit::Halt),
            KVM_EXIT_SHUTDOWN => Ok(Exit::Shutdown),
            KVM_EXIT_INTR => Ok(Exit::Interrupted),
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                let count = (internal.ndata as usize).min(internal.data.len());
                let data = internal.data[..count].to_vec();
                Ok(Exit::InternalError(InternalError { suberror: internal.suberror, data }))
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                Ok(Exit::FailedEntry { reason: entry.hardware_entry_failure_reason, cpu: entry.cpu })
            }
            reason => Ok(Exit::Unexpected { reason }),
        }
    }
}

fn pio_direction(direction: u8) -> Direction {
    if u32::from(direction) == KVM_EXIT_IO_OUT { Direction::Write } else { Direction::Read }
}
