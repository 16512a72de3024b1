//! A hypervisor without hardware: its processors replay scripted exits and remember what they were answered.
//!
//! With it, run loop, bus, devices and the machine's life are tested on hosts without `/dev/kvm`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{
    Activity, CpuidEntry, Direction, Doorbell, Error, Exception, Exit, Hypervisor, InternalError, Kick,
    LocalApic, Mmio, Msr, Pio, Registers, Result, SavedClock, SavedInterrupts, SavedVcpu, SpecialRegisters,
    Vcpu, Vectors, Vm,
};
use crate::threads::lock;

/// One thing that a scripted processor does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes to a port: one element per `width` bytes.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes per element.
        width: u8,
        /// All elements.
        data: Vec<u8>,
    },
    /// Reads `length` bytes from a port in elements of `width`; the answer is remembered.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes per element.
        width: u8,
        /// Bytes altogether.
        length: usize,
    },
    /// Writes to an address.
    MemoryWrite {
        /// The guest-physical address.
        address: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Reads from an address; the answer is remembered.
    MemoryRead {
        /// The guest-physical address.
        address: u64,
        /// How many bytes.
        length: usize,
    },
    /// Writes to a model-specific register whose writes are exits.
    MsrWrite(Msr),
    /// Reaches the breakpoint.
    Breakpoint,
    /// Runs inside the guest until it is kicked.
    Spin,
    /// `hlt`, with these flags, in a machine with interrupt controllers: sleeps inside the guest until it is
    /// kicked, and again.
    Sleep {
        /// The flags register.
        rflags: u64,
    },
    /// Waits for another processor to start it, which never happens.
    AwaitStart,
    /// Is interrupted before it does anything.
    Interrupted,
    /// Is interrupted when it has accepted an exception or an interrupt, and has not delivered it yet.
    Accept {
        /// Where it was to go on.
        at: u64,
    },
    /// Delivers an exception or an interrupt, which is one step.
    Deliver {
        /// Where its handler is.
        handler: u64,
    },
    /// `hlt` in a machine without interrupt controller.
    Halt,
    /// A triple fault.
    Shutdown,
    /// The hypervisor gives up.
    InternalError(InternalError),
    /// The processor refuses the guest's state.
    FailedEntry,
    /// An exit nobody knows.
    Unexpected(u32),
    /// The hypervisor's call fails with this error number.
    Fail(i32),
}

/// Hands out virtual machines whose processors all follow the same script, then spin.
#[derive(Debug, Clone, Default)]
pub struct FakeHypervisor {
    in_hardware: bool,
    script: Vec<Step>,
    log: Arc<Mutex<FakeLog>>,
}

/// What the fake machine was told.
#[derive(Debug, Default)]
pub struct FakeLog {
    /// Answers to reads, in order.
    pub answers: Vec<Vec<u8>>,
    /// Memory regions as (guest address, size).
    pub memory: Vec<(u64, u64)>,
    /// Changes of interrupt lines.
    pub interrupts: Vec<(u32, bool)>,
    /// What happened before the interrupt controller was created and after it.
    pub order: Vec<&'static str>,
    /// Model-specific registers whose writes were made exits, each time.
    pub trapped_msrs: Vec<Vec<u32>>,
    /// Breakpoints that processors were given, each time.
    pub breakpoints: Vec<Vec<u64>>,
    /// Whether processors were to single-step, each time.
    pub single_steps: Vec<bool>,
    /// How many writes to model-specific registers were refused.
    pub refused_msrs: usize,
    /// What processors were told about exchanging registers at every exit.
    pub exchanging: Vec<bool>,
    /// Exceptions that processors were to deliver.
    pub exceptions: Vec<Exception>,
    /// Model-specific registers that were set.
    pub msrs: Vec<Msr>,
    /// How often processors were put to sleep.
    pub halts: usize,
    /// How often they were told that they had not run.
    pub stops: usize,
}

impl FakeHypervisor {
    /// Processors of its machines do what `script` says.
    pub fn new(script: impl Into<Vec<Step>>) -> Self {
        Self { in_hardware: true, script: script.into(), log: Arc::default() }
    }

    /// The same, but it says of itself that it runs guests in software.
    pub fn in_software(self) -> Self {
        Self { in_hardware: false, ..self }
    }

    /// What machines and processors were told so far.
    pub fn log(&self) -> MutexGuard<'_, FakeLog> {
        lock(&self.log)
    }
}

impl Hypervisor for FakeHypervisor {
    type Vm = FakeVm;

    fn create_vm(&self) -> Result<FakeVm> {
        Ok(FakeVm { script: self.script.clone(), log: Arc::clone(&self.log) })
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        Ok(vec![CpuidEntry { function: 0, eax: 1, ..Default::default() }])
    }

    fn is_in_hardware(&self) -> bool {
        self.in_hardware
    }

    fn max_vcpus(&self) -> u32 {
        4
    }

    fn saved_msrs(&self) -> Result<Vec<u32>> {
        Ok(vec![])
    }
}

/// A virtual machine that only remembers.
#[derive(Debug)]
pub struct FakeVm {
    script: Vec<Step>,
    log: Arc<Mutex<FakeLog>>,
}

impl Vm for FakeVm {
    type Vcpu = FakeVcpu;

    unsafe fn map_memory(&self, _slot: u32, guest: u64, _host: *mut u8, size: u64) -> Result<()> {
        let mut log = lock(&self.log);
        log.memory.push((guest, size));
        log.order.push("memory");
        Ok(())
    }

    fn create_interrupt_controller(&self) -> Result<()> {
        lock(&self.log).order.push("interrupt controller");
        Ok(())
    }

    fn create_vcpu(&self, _id: u32) -> Result<FakeVcpu> {
        lock(&self.log).order.push("vcpu");
        Ok(FakeVcpu {
            script: self.script.clone().into(),
            log: Arc::clone(&self.log),
            kick: Arc::default(),
            buffer: Vec::new(),
            reading: false,
            activity: Activity::Running,
            delivering: false,
            state: Mutex::default(),
        })
    }

    fn set_interrupt_line(&self, line: u32, high: bool) -> Result<()> {
        lock(&self.log).interrupts.push((line, high));
        if high {
            // A call takes its time, in which other threads do what nothing keeps them from.
            thread::sleep(Duration::from_micros(10));
        }
        Ok(())
    }

    fn register_doorbell(&self, _at: Doorbell, _event: &EventFd) -> Result<()> {
        Ok(())
    }

    fn register_interrupt_event(&self, _event: &EventFd, _line: u32) -> Result<()> {
        Ok(())
    }

    fn trap_msr_writes(&self, indices: &[u32]) -> Result<()> {
        let mut log = lock(&self.log);
        log.trapped_msrs.push(indices.to_vec());
        log.order.push("trapped registers");
        Ok(())
    }

    fn save_interrupts(&self) -> Result<SavedInterrupts> {
        Ok(SavedInterrupts::default())
    }

    fn restore_interrupts(&self, _saved: &SavedInterrupts) -> Result<()> {
        Ok(())
    }

    fn save_clock(&self) -> Result<SavedClock> {
        Ok(SavedClock::default())
    }

    fn restore_clock(&self, _saved: &SavedClock, _counts: bool) -> Result<()> {
        Ok(())
    }
}

/// A processor that follows a script.
#[derive(Debug)]
pub struct FakeVcpu {
    script: VecDeque<Step>,
    log: Arc<Mutex<FakeLog>>,
    kick: Arc<FakeKick>,
    buffer: Vec<u8>,
    reading: bool,
    activity: Activity,
    delivering: bool,
    state: Mutex<SavedVcpu>,
}

#[derive(Debug, Default)]
struct FakeKick {
    leave: Mutex<bool>,
    changed: Condvar,
}

impl Kick for FakeKick {
    fn set(&self, leave: bool) {
        *lock(&self.leave) = leave;
        self.changed.notify_all();
    }
}

impl FakeVcpu {
    /// Does nothing until it is kicked; what it was at, it will be at then.
    fn rest(&mut self, activity: Activity, step: Step) -> Result<Exit<'_>> {
        self.activity = activity;
        self.script.push_front(step);
        self.spin();
        Ok(Exit::Interrupted)
    }

    fn spin(&self) {
        let leave = lock(&self.kick.leave);
        drop(self.kick.changed.wait_while(leave, |leave| !*leave));
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        if std::mem::take(&mut self.reading) {
            lock(&self.log).answers.push(self.buffer.clone());
        }
        if *lock(&self.kick.leave) {
            return Ok(Exit::Interrupted);
        }
        self.activity = Activity::Running;
        let Some(step) = self.script.pop_front() else {
            self.spin();
            return Ok(Exit::Interrupted);
        };
        match step {
            Step::PortWrite { port, width, data } => {
                self.buffer = data;
                Ok(Exit::Pio(Pio { port, width, direction: Direction::Write, data: &mut self.buffer }))
            }
            Step::PortRead { port, width, length } => {
                self.reading = true;
                self.buffer = vec![0; length];
                Ok(Exit::Pio(Pio { port, width, direction: Direction::Read, data: &mut self.buffer }))
            }
            Step::MemoryWrite { address, data } => {
                self.buffer = data;
                Ok(Exit::Mmio(Mmio { address, direction: Direction::Write, data: &mut self.buffer }))
            }
            Step::MemoryRead { address, length } => {
                self.reading = true;
                self.buffer = vec![0; length];
                Ok(Exit::Mmio(Mmio { address, direction: Direction::Read, data: &mut self.buffer }))
            }
            Step::MsrWrite(msr) => Ok(Exit::MsrWrite(msr)),
            Step::Breakpoint => Ok(Exit::Breakpoint),
            Step::Spin => {
                self.spin();
                Ok(Exit::Interrupted)
            }
            Step::Sleep { rflags } => {
                lock(&self.state).registers.rflags = rflags;
                self.rest(Activity::Halted, step)
            }
            Step::AwaitStart => self.rest(Activity::NotStarted, step),
            Step::Interrupted => Ok(Exit::Interrupted),
            Step::Accept { at } => {
                self.delivering = true;
                lock(&self.state).registers.rip = at;
                Ok(Exit::Interrupted)
            }
            Step::Deliver { handler } => {
                self.delivering = false;
                lock(&self.state).registers.rip = handler;
                Ok(Exit::Breakpoint)
            }
            Step::Halt => Ok(Exit::Halt),
            Step::Shutdown => Ok(Exit::Shutdown),
            Step::InternalError(error) => Ok(Exit::InternalError(error)),
            Step::FailedEntry => Ok(Exit::FailedEntry { reason: 0x8000_0021, cpu: 1 }),
            Step::Unexpected(reason) => Ok(Exit::Unexpected { reason }),
            Step::Fail(number) => {
                Err(Error::Call { what: "run the guest", source: io::Error::from_raw_os_error(number) })
            }
        }
    }

    fn kick_handle(&self) -> Result<Arc<dyn Kick>> {
        let kick: Arc<FakeKick> = Arc::clone(&self.kick);
        Ok(kick)
    }

    fn registers(&self) -> Result<Registers> {
        Ok(lock(&self.state).registers)
    }

    fn set_registers(&self, registers: &Registers) -> Result<()> {
        lock(&self.state).registers = *registers;
        Ok(())
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        Ok(lock(&self.state).special)
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        lock(&self.state).special = *registers;
        Ok(())
    }

    fn read_vectors(&self, vectors: &mut Vectors) -> Result<()> {
        vectors.0.iter_mut().zip(&lock(&self.state).xsave).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn set_vectors(&self, vectors: &Vectors) -> Result<()> {
        lock(&self.state).xsave = vectors.0.to_vec();
        Ok(())
    }

    fn enabled_state(&self) -> Result<u64> {
        let state = lock(&self.state);
        Ok(state.xcrs.iter().find(|(number, _)| *number == 0).map_or(0, |&(_, value)| value))
    }

    fn msr(&self, index: u32) -> Result<Option<u64>> {
        Ok(lock(&self.state).msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value))
    }

    fn set_msr(&self, msr: Msr) -> Result<bool> {
        let mut state = lock(&self.state);
        state.msrs.retain(|other| other.index != msr.index);
        state.msrs.push(msr);
        lock(&self.log).msrs.push(msr);
        Ok(true)
    }

    fn set_msrs(&self, msrs: &[Msr]) -> Result<usize> {
        msrs.iter().try_for_each(|msr| self.set_msr(*msr).map(|_| ()))?;
        Ok(msrs.len())
    }

    fn raise(&self, exception: Exception) -> Result<()> {
        lock(&self.log).exceptions.push(exception);
        Ok(())
    }

    fn set_debug_status(&self, bits: u64) -> Result<()> {
        lock(&self.state).debug[4] |= bits;
        Ok(())
    }

    fn set_single_step(&self, on: bool) -> Result<()> {
        lock(&self.log).single_steps.push(on);
        Ok(())
    }

    fn set_breakpoints(&self, at: &[u64]) -> Result<()> {
        lock(&self.log).breakpoints.push(at.to_vec());
        Ok(())
    }

    fn refuse_msr_write(&mut self) {
        lock(&self.log).refused_msrs += 1;
    }

    fn exchange_registers(&mut self, on: bool) {
        lock(&self.log).exchanging.push(on);
    }

    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()> {
        lock(&self.state).cpuid = entries.to_vec();
        Ok(())
    }

    fn cpuid(&self) -> Result<Vec<CpuidEntry>> {
        Ok(lock(&self.state).cpuid.clone())
    }

    fn local_apic(&self) -> Result<LocalApic> {
        let mut registers = [0; size_of::<LocalApic>()];
        registers.iter_mut().zip(&lock(&self.state).lapic).for_each(|(register, byte)| *register = *byte);
        Ok(registers)
    }

    fn set_local_apic(&self, registers: &LocalApic) -> Result<()> {
        lock(&self.state).lapic = registers.to_vec();
        Ok(())
    }

    fn activity(&self) -> Result<Activity> {
        Ok(self.activity)
    }

    fn halt(&mut self) -> Result<()> {
        self.activity = Activity::Halted;
        lock(&self.log).halts += 1;
        Ok(())
    }

    /// As the script has it; exceptions that are raised are logged, and delivered by nobody.
    fn is_delivering(&self) -> Result<bool> {
        Ok(self.delivering)
    }

    fn last_interrupt(&self) -> Result<Option<u8>> {
        Ok(None)
    }

    fn tsc_khz(&self) -> Option<u32> {
        lock(&self.state).tsc_khz
    }

    fn save(&self, _msrs: &[u32]) -> Result<SavedVcpu> {
        Ok(lock(&self.state).clone())
    }

    fn restore(&self, saved: &SavedVcpu) -> Result<()> {
        *lock(&self.state) = saved.clone();
        Ok(())
    }

    fn tell_stopped(&self) -> Result<()> {
        lock(&self.log).stops += 1;
        Ok(())
    }
}
