//! The seam between the VMM and whatever runs guest code.
//!
//! Three traits ([`Hypervisor`], [`Vm`], [`Vcpu`]) and the [`Exit`] enum are all that the rest of the program
//! knows of a hypervisor. [`kvm`] is the real one; [`fake`] replays scripted exits, so that run loop, bus and
//! devices are tested without `/dev/kvm`. Nothing here knows what a device or a boot protocol is; `vcpu/` and
//! `vm/` rely on it, `x86/` and `boot/` use its register types.

mod exit;
pub mod fake;
pub mod kvm;
mod state;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use exit::{Direction, Exit, ExitKind, InternalError, Mmio, Pio};
pub use state::{
    CpuidEntry, DescriptorTable, Exception, Msr, Registers, SavedClock, SavedInterrupts, SavedVcpu, Segment,
    SpecialRegisters, TIME_STAMP_COUNTER, Vectors,
};

/// Why the hypervisor could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor's device node cannot be opened.
    #[error("cannot open {path}: {source}{}", open_advice(.source))]
    Open {
        /// The device node.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The hypervisor speaks another version of the interface.
    #[error("this KVM speaks API version {found}, lodger needs version {expected}")]
    ApiVersion {
        /// What it says it speaks.
        found: i32,
        /// What lodger was written for.
        expected: i32,
    },
    /// Something that lodger cannot do without is missing.
    #[error("this KVM lacks {name}, which is needed {purpose}; `lodger doctor` lists what else is there")]
    MissingCapability {
        /// The capability's name in the kernel's documentation.
        name: &'static str,
        /// What lodger uses it for.
        purpose: &'static str,
    },
    /// More processors were asked for than this hypervisor can create.
    #[error("{asked} processors were asked for, but this KVM can give a guest at most {most}")]
    TooManyVcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// A call to the hypervisor failed.
    #[error("cannot {what}: {source}")]
    Call {
        /// What was being done, as in "create a virtual machine".
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The guest relies on a frequency that the host does not have.
    #[error(
        "the guest's time stamp counter counts at {saved} kHz and this host's at {host} kHz, which its KVM cannot change: \
         restore it on a host with that frequency, or start the guest with --cpu host,-invtsc"
    )]
    Frequency {
        /// The guest's.
        saved: u32,
        /// The host's.
        host: u32,
    },
    /// The hypervisor took only some of the model-specific registers.
    #[error("the model-specific register {index:#x} could not be set")]
    MsrRefused {
        /// The first register that was refused.
        index: u32,
    },
}

fn open_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "; add yourself to the group kvm (`sudo usermod -aG kvm $USER`, then log in again)"
        }
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "; this machine offers no KVM: load kvm_intel or kvm_amd, enable virtualization in the firmware \
             set-up, or pass the device into the container"
        }
        Some(libc::ENOTTY) => "; that is some other device",
        _ => "",
    }
}

/// The result of talking to a hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// Something that can create virtual machines.
pub trait Hypervisor {
    /// The virtual machines it creates.
    type Vm: Vm;

    /// Creates a virtual machine without memory, processors or interrupt controller.
    fn create_vm(&self) -> Result<Self::Vm>;

    /// The CPUID leaves that a guest can be offered here.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>>;

    /// Whether the processor itself runs guests, as far as that can be told without running one. It is a hint:
    /// what takes longer later can be prepared by it.
    fn is_in_hardware(&self) -> bool;

    /// How many processors one guest can have.
    fn max_vcpus(&self) -> u32;

    /// The model-specific registers whose values belong to a vCPU's saved state.
    fn saved_msrs(&self) -> Result<Vec<u32>>;
}

/// The part of a local APIC's page that holds registers.
///
/// A 32-bit register at each multiple of 16.
pub type LocalApic = [u8; 1024];

/// How many addresses the processor compares at once: it has so many debug registers for them.
pub const MOST_BREAKPOINTS: usize = 4;

/// Where a guest can ring a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// A port.
    Port(u16),
    /// A guest-physical address.
    Address(u64),
    /// A guest-physical address, where only this value of 32 bits rings it.
    Value {
        /// The address.
        address: u64,
        /// The value.
        value: u32,
    },
}

/// One virtual machine.
pub trait Vm: Send + Sync + 'static {
    /// Its processors.
    type Vcpu: Vcpu;

    /// Makes `size` bytes at `host` the guest's memory from `guest` on.
    ///
    /// Must be called before [`Vm::create_interrupt_controller`]: on some hosts each call costs milliseconds
    /// once an interrupt controller or doorbell exists.
    ///
    /// # Safety
    /// The host memory must stay mapped, and be used only through volatile or atomic accesses, for as long as
    /// this virtual machine exists.
    unsafe fn map_memory(&self, slot: u32, guest: u64, host: *mut u8, size: u64) -> Result<()>;

    /// Creates PIC, IOAPIC, PIT and, for each vCPU created afterwards, a local APIC.
    fn create_interrupt_controller(&self) -> Result<()>;

    /// Creates the processor with the APIC id `id`.
    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu>;

    /// Raises or lowers an interrupt line.
    fn set_interrupt_line(&self, line: u32, high: bool) -> Result<()>;

    /// Lets writes to `at` signal `event` without leaving the kernel.
    fn register_doorbell(&self, at: Doorbell, event: &EventFd) -> Result<()>;

    /// Lets `event` raise an interrupt without a call of its own.
    fn register_interrupt_event(&self, event: &EventFd, line: u32) -> Result<()>;

    /// Makes guest writes to these model-specific registers exits, and only to these.
    ///
    /// Should be called before [`Vm::map_memory`]: on some hosts it costs 15 ms later.
    fn trap_msr_writes(&self, indices: &[u32]) -> Result<()>;

    /// Reads the state of PIC, IOAPIC and PIT.
    fn save_interrupts(&self) -> Result<SavedInterrupts>;

    /// Puts back what [`Vm::save_interrupts`] read.
    fn restore_interrupts(&self, saved: &SavedInterrupts) -> Result<()>;

    /// Reads the guest's clock.
    fn save_clock(&self) -> Result<SavedClock>;

    /// Lets the guest's clock go on from what [`Vm::save_clock`] read. If the time since then `counts`, by the host's
    /// clock, it is added; never less than none.
    fn restore_clock(&self, saved: &SavedClock, counts: bool) -> Result<()>;
}

/// Makes a vCPU leave the guest, from any thread.
pub trait Kick: Send + Sync {
    /// While `leave` is set, [`Vcpu::run`] completes what is pending and returns [`Exit::Interrupted`]
    /// instead of entering the guest. A vCPU that is inside the guest at this moment additionally needs a
    /// signal to its thread.
    fn set(&self, leave: bool);
}

/// What a processor does while it is not being run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// It executed `hlt` and waits for an interrupt.
    Halted,
    /// It waits for another processor to start it.
    NotStarted,
}

/// One processor of a virtual machine, to be run by one thread.
pub trait Vcpu: Send + 'static {
    /// Enters the guest and returns at the next event that this program has to deal with.
    ///
    /// What the previous exit asked for (a value to read) is handed to the guest first.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// The handle by which other threads make this vCPU leave the guest.
    fn kick_handle(&self) -> Result<Arc<dyn Kick>>;

    /// The general registers.
    fn registers(&self) -> Result<Registers>;

    /// Replaces the general registers.
    fn set_registers(&self, registers: &Registers) -> Result<()>;

    /// Segments, descriptor tables and control registers.
    fn special_registers(&self) -> Result<SpecialRegisters>;

    /// Replaces segments, descriptor tables and control registers.
    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()>;

    /// The vector and floating-point registers.
    fn read_vectors(&self, vectors: &mut Vectors) -> Result<()>;

    /// Replaces the vector and floating-point registers.
    fn set_vectors(&self, vectors: &Vectors) -> Result<()>;

    /// Which kinds of vector state the guest has enabled: XCR0.
    fn enabled_state(&self) -> Result<u64>;

    /// Reads a model-specific register, if the hypervisor has it.
    fn msr(&self, index: u32) -> Result<Option<u64>>;

    /// Sets a model-specific register; tells whether the hypervisor took it.
    fn set_msr(&self, msr: Msr) -> Result<bool>;

    /// Sets model-specific registers, passing over those that the hypervisor refuses; tells how many it took.
    fn set_msrs(&self, msrs: &[Msr]) -> Result<usize>;

    /// Delivers an exception before the next instruction. Registers have to be set first: setting them
    /// takes pending exceptions back.
    fn raise(&self, exception: Exception) -> Result<()>;

    /// Sets bits of DR6, by which a debug exception says why it was raised.
    fn set_debug_status(&self, bits: u64) -> Result<()>;

    /// Stops the processor, with [`Exit::Breakpoint`], before it executes an instruction at one of these linear
    /// addresses. Those behind the first [`MOST_BREAKPOINTS`] are not heeded.
    fn set_breakpoints(&self, at: &[u64]) -> Result<()>;

    /// Gives the guest a general protection fault for the write that was the last exit,
    /// [`Exit::MsrWrite`]: otherwise the guest believes that it was done.
    fn refuse_msr_write(&mut self);

    /// Makes reading and setting general registers, special registers and exceptions cheap at every exit, where
    /// the hypervisor can; each exit costs a little more then. For those who need them at most exits.
    fn exchange_registers(&mut self, on: bool);

    /// Stops the processor, with [`Exit::Breakpoint`], after each instruction.
    fn set_single_step(&self, on: bool) -> Result<()>;

    /// Decides what the guest's `cpuid` instruction answers.
    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()>;

    /// What the guest's `cpuid` instruction answers: not always what was decided, as there are hosts that show
    /// some of their features whatever they are told.
    fn cpuid(&self) -> Result<Vec<CpuidEntry>>;

    /// The registers of its local APIC, as they lie in the APIC's page.
    fn local_apic(&self) -> Result<LocalApic>;

    /// Replaces the registers of its local APIC.
    fn set_local_apic(&self, registers: &LocalApic) -> Result<()>;

    /// What it would do if it were run now.
    ///
    /// Only meaningful after [`Vcpu::run`] returned [`Exit::Interrupted`], or before the first run.
    fn activity(&self) -> Result<Activity>;

    /// Has it wait for an interrupt, as if it had just executed `hlt`.
    fn halt(&mut self) -> Result<()>;

    /// Whether it has accepted an exception or an interrupt and not delivered it yet: no instruction comes before
    /// that. Only meaningful when [`Vcpu::activity`] is.
    fn is_delivering(&self) -> Result<bool>;

    /// The vector of the interrupt that it accepted last, if there was one.
    fn last_interrupt(&self) -> Result<Option<u8>>;

    /// The frequency of the guest's time stamp counter in kHz, where it is known.
    fn tsc_khz(&self) -> Option<u32>;

    /// Everything that makes up this processor. `msrs` comes from [`Hypervisor::saved_msrs`].
    ///
    /// Only meaningful after [`Vcpu::run`] returned [`Exit::Interrupted`], or before the first run.
    fn save(&self, msrs: &[u32]) -> Result<SavedVcpu>;

    /// Puts back what [`Vcpu::save`] read.
    fn restore(&self, saved: &SavedVcpu) -> Result<()>;

    /// Lets the guest's kernel know, if it wants to, that it will not have run for a while: it is no reason to complain
    /// of work that was not done in time.
    fn tell_stopped(&self) -> Result<()>;
}
