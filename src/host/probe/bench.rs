//! A guest of 1 MiB that runs a few bytes of machine code and tells what became of them.
//!
//! Every run gets a processor of its own, so that nothing of one run is left for the next, and a limit on its
//! time: on some hosts an instruction never ends. The code reports values through ports. In 64-bit mode every
//! exception ends the run with its frame, as the table that catches them is the bench's own.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::code;
use crate::bus::{Action, Bus, BusBuilder, Claim, Device, Widths};
use crate::hv::kvm::{Kvm, KvmVm};
use crate::hv::{self, CpuidEntry, Hypervisor, InternalError, Vcpu, Vm};
use crate::memory::{GuestMemory, Layout, MIN_SIZE, Options};
use crate::threads::lock;
use crate::vcpu::{Cause, Ending, FatalReport, Surroundings, VcpuThread};
use crate::x86::complete::Gaps;
use crate::x86::complete::transition::TRAPPED;
use crate::x86::cpuid::{VcpuIdentity, guest_cpuid};

/// Enough for every run but one that counts instructions, even where code is interpreted on a busy host.
pub(super) const ORDINARY: Duration = Duration::from_millis(250);
/// For what would be a grave finding if only the host were busy.
pub(super) const PATIENT: Duration = Duration::from_secs(1);
/// All runs together.
const TOTAL: Duration = Duration::from_millis(1500);
/// How many values one run may report; more are not kept.
const MOST_REPORTS: usize = 32;

/// Machine code and the mode it is written for.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub mode: Mode,
    /// Runs first, in ring 0. Nothing in real mode.
    pub setup: Vec<u8>,
    /// Runs next.
    pub code: Vec<u8>,
}

/// The mode in which code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// 16-bit real mode.
    Real,
    /// 64-bit mode, privileged.
    Ring0,
    /// 64-bit mode, unprivileged, but allowed to use ports.
    Ring3,
}

/// What a run came to.
#[derive(Debug)]
pub(super) struct Run {
    pub outcome: Outcome,
    /// The values that it reported, and when.
    pub reports: Vec<(u32, Instant)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The code came to its end with this status.
    Done(u8),
    /// An exception.
    Exception(Exception),
    /// KVM gave up at an instruction: so many bytes after the start of the code, if it was in there.
    CannotRun(Option<usize>),
    /// Anything else that ends a guest, in plain words.
    Died(String),
    /// It did not end in time.
    Hung,
    /// It never began.
    NotRun(String),
}

/// What the processor told about an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub vector: u8,
    /// The instruction to return to.
    pub rip: u64,
    /// The privilege level that it came from.
    pub ring: u8,
}

/// A machine without processors.
pub(super) struct Bench {
    // Dropped first: it must not outlive its memory.
    vm: KvmVm,
    memory: Arc<GuestMemory>,
    supported: Vec<CpuidEntry>,
    next: u32,
    gaps: Gaps,
    /// One on which gaps are filled: a machine has to be made for it.
    completing: Option<Box<Self>>,
    end: Instant,
}

impl Bench {
    /// A machine with 1 MiB of memory.
    pub(super) fn new(kvm: &Kvm) -> Result<Self, String> {
        Self::with_time(kvm, TOTAL)
    }

    /// One on which all runs together take no longer than `time`.
    pub(super) fn with_time(kvm: &Kvm, time: Duration) -> Result<Self, String> {
        let supported = kvm.supported_cpuid().map_err(|error| error.to_string())?;
        let end = Instant::now() + time;
        let completing = Self::build(kvm, &supported, end, Gaps::ALL).ok().map(Box::new);
        Ok(Self { completing, ..Self::build(kvm, &supported, end, Gaps::default())? })
    }

    fn build(kvm: &Kvm, supported: &[CpuidEntry], end: Instant, gaps: Gaps) -> Result<Self, String> {
        let layout = Layout::new(MIN_SIZE, 32).map_err(|error| error.to_string())?;
        let memory = GuestMemory::map(layout, Options::default()).map_err(|error| error.to_string())?;
        let vm = kvm.create_vm().map_err(|error| error.to_string())?;
        if gaps.syscall {
            vm.trap_msr_writes(&TRAPPED).map_err(|error| error.to_string())?;
        }
        for (region, host) in memory.host_regions() {
            // SAFETY: `vm` is dropped before `memory`, and so is every processor; this process touches the
            // memory through `vm-memory` only.
            unsafe { vm.map_memory(0, region.start, host, region.size) }
                .map_err(|error| error.to_string())?;
        }
        let memory = Arc::new(memory);
        let supported = supported.to_vec();
        Ok(Self { vm, memory, supported, next: 0, gaps, completing: None, end })
    }

    /// What a processor is told of itself if nothing is hidden.
    pub(super) fn cpuid(&self) -> Vec<CpuidEntry> {
        guest_cpuid(&self.supported, VcpuIdentity::single(self.next))
    }

    /// Runs `program` on a new processor.
    pub(super) fn run(&mut self, program: &Program) -> Run {
        self.run_with(program, &self.cpuid(), ORDINARY)
    }

    /// The same, with everything done in KVM's place that can be.
    pub(super) fn run_completed(&mut self, program: &Program) -> Run {
        match &mut self.completing {
            Some(bench) => bench.run(program),
            None => Run {
                outcome: Outcome::NotRun("KVM does not tell of writes to registers".to_owned()),
                reports: Vec::new(),
            },
        }
    }

    /// Runs `program` on a new processor that is told `cpuid` of itself, for at most `limit`.
    pub(super) fn run_with(&mut self, program: &Program, cpuid: &[CpuidEntry], limit: Duration) -> Run {
        let limit = limit.min(self.end.saturating_duration_since(Instant::now()));
        if limit.is_zero() {
            let reason = "the examination took too long already".to_owned();
            return Run { outcome: Outcome::NotRun(reason), reports: Vec::new() };
        }
        let ear = Arc::new(Ear::default());
        let outcome = match self.start_and_wait(program, cpuid, limit, &ear) {
            Ok(Some(ending)) => self.judge(program, ending, &ear),
            Ok(None) => Outcome::Hung,
            Err(reason) => Outcome::NotRun(reason),
        };
        Run { outcome, reports: ear.take().reports }
    }

    /// The ending, or nothing if it did not come in time.
    fn start_and_wait(
        &mut self,
        program: &Program,
        cpuid: &[CpuidEntry],
        limit: Duration,
        ear: &Arc<Ear>,
    ) -> Result<Option<Ending>, String> {
        let vcpu = self.processor(program, cpuid).map_err(|error| error.to_string())?;
        let surroundings = Surroundings {
            bus: Arc::new(bus(ear)?),
            memory: Arc::clone(&self.memory),
            gaps: self.gaps,
            kernel: None,
        };
        let (sender, endings) = channel();
        let thread = VcpuThread::spawn(self.next, vcpu, surroundings, move |ending| {
            // Nobody listens any more once the limit is over.
            let _: Result<(), _> = sender.send(ending);
        })
        .map_err(|error| error.to_string())?;
        thread.resume();
        // Dropping the thread stops it, wherever it is.
        match endings.recv_timeout(limit) {
            Ok(ending) => Ok(Some(ending)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("its thread ended without a word".to_owned()),
        }
    }

    fn processor(&mut self, program: &Program, cpuid: &[CpuidEntry]) -> hv::Result<impl Vcpu + use<>> {
        code::write(&self.memory, program)?;
        let vcpu = self.vm.create_vcpu(self.next)?;
        self.next += 1;
        vcpu.set_cpuid(cpuid)?;
        let (general, special) = code::registers(program.mode, &vcpu.special_registers()?);
        vcpu.set_special_registers(&special)?;
        vcpu.set_registers(&general)?;
        Ok(vcpu)
    }

    fn judge(&self, program: &Program, ending: Ending, ear: &Ear) -> Outcome {
        match ending {
            Ending::Guest(Action::Exit(status)) => Outcome::Done(status),
            Ending::Guest(_) => self
                .exception(ear)
                .map_or_else(|| Outcome::Died("its stack is not readable".to_owned()), Outcome::Exception),
            Ending::Halted => Outcome::Died("it halted".to_owned()),
            Ending::Fatal(report) => fatal(program, &report),
            Ending::Failed(error) => Outcome::Died(error.to_string()),
            Ending::Stopped | Ending::Panicked => Outcome::Died("its thread was ended".to_owned()),
        }
    }

    /// The exception whose frame lies where the handler said.
    fn exception(&self, ear: &Ear) -> Option<Exception> {
        let stack = u64::from(ear.take().frame?);
        let word = |number: u64| {
            self.memory.mapped().read_obj::<u64>(GuestAddress(stack.checked_add(number * 8)?)).ok()
        };
        let vector = word(0)? as u8;
        let frame = if code::has_error_code(vector) { 2 } else { 1 };
        Some(Exception { vector, rip: word(frame)?, ring: (word(frame + 1)? & 3) as u8 })
    }
}

fn fatal(program: &Program, report: &FatalReport) -> Outcome {
    match &report.cause {
        Cause::InternalError(InternalError { suberror: 1, .. }) => {
            let rip = report.registers.as_ref().ok().map(|(general, _)| general.rip);
            let inside = rip.and_then(|rip| rip.checked_sub(code::start(program)));
            let inside = inside.and_then(|offset| usize::try_from(offset).ok());
            Outcome::CannotRun(inside.filter(|&offset| offset < program.code.len()))
        }
        Cause::InternalError(error) | Cause::Beyond { error, .. } => {
            Outcome::Died(format!("KVM gave up with internal error {}", error.suberror))
        }
        Cause::TripleFault => Outcome::Died("it ended in a triple fault".to_owned()),
        Cause::FailedEntry { reason, .. } => {
            Outcome::Died(format!("the processor refused to enter it (reason {reason:#x})"))
        }
        Cause::Unexpected { reason } => Outcome::Died(format!("KVM returned the exit reason {reason}")),
    }
}

/// Listens to what the code has to say.
#[derive(Default)]
struct Ear(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    reports: Vec<(u32, Instant)>,
    frame: Option<u32>,
}

impl Ear {
    fn take(&self) -> Heard {
        let mut heard = lock(&self.0);
        Heard { reports: std::mem::take(&mut heard.reports), frame: heard.frame }
    }
}

impl Device for Ear {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        0
    }

    fn write(&self, offset: u64, _width: u8, value: u64) -> Action {
        let mut heard = lock(&self.0);
        match u16::try_from(offset).map(|offset| code::PORTS + offset) {
            Ok(code::DONE) => return Action::Exit(value as u8),
            Ok(code::EXCEPTION) => {
                heard.frame = Some(value as u32);
                return Action::PowerOff;
            }
            Ok(code::REPORT) if heard.reports.len() < MOST_REPORTS => {
                heard.reports.push((value as u32, Instant::now()));
            }
            _ => {}
        }
        Action::None
    }
}

fn bus(ear: &Arc<Ear>) -> Result<Bus, String> {
    let mut builder = BusBuilder::new();
    let widths = Widths::BYTE.and(Widths::LONG);
    let claim = Claim { name: "ear", base: code::PORTS, len: code::PORT_COUNT, widths };
    builder.claim_ports(claim, Arc::clone(ear) as Arc<dyn Device>).map_err(|error| error.to_string())?;
    Ok(builder.build())
}
