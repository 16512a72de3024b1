//! Running the guest's kernel in the software processor, until the guest has user space.
//!
//! On a host whose KVM interprets guest kernels, `x86/soft` runs them many times as fast. This is the loop
//! around it: each instruction that is not for the software processor is executed by KVM, alone, by single-stepping,
//! which also delivers the interrupts that wait. Ports that belong to the machine's own devices are served without
//! KVM.
//!
//! It ends for the whole machine when the first processor is about to enter ring 3. From then on KVM keeps
//! tables of its own made from the guest's page tables, and follows changes of those only as long as it executes
//! the guest's stores itself. Before, it has none, since it runs ring 3 alone by the processor's own paging. A machine
//! whose state is restored may have had user space already, and gets no [`KernelPhase`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::completion::Help;
use super::counters::Counters;
use super::history::Record;
use super::run::{Context, Entered, Left};
use crate::bus::Action;
use crate::hv::{Activity, Direction, ExitKind, Registers, Result, SpecialRegisters, Vcpu};
use crate::memory::GuestMemory;
use crate::x86::mode::CR0_PE;
use crate::x86::soft::{Leave, PortAccess, Soft};

/// Instructions in a mode that is not the software processor's, after which this is no kernel for it.
const PATIENCE: u32 = 20_000;
/// How many stretches of vector code are executed before KVM is entered, which delivers interrupts and notices
/// requests.
const WITHOUT_KVM: u32 = 16;
/// Accesses to own ports in a row, after which interrupts are looked for.
const PORTS_AT_ONCE: u32 = 16;

/// Whether the guest has user space yet; shared by the processors of a machine.
#[derive(Debug, Default)]
pub struct KernelPhase {
    over: AtomicBool,
    /// Processors that are executing instructions right now.
    busy: AtomicU32,
}

impl KernelPhase {
    /// Lets a processor execute instructions, unless it is too late.
    fn enter(&self) -> bool {
        self.busy.fetch_add(1, Ordering::SeqCst);
        let open = !self.over.load(Ordering::SeqCst);
        if !open {
            self.leave();
        }
        open
    }

    fn leave(&self) {
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// Ends it, and waits until no other processor executes instructions: that takes microseconds, as they never
    /// wait for anything in between.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) > 0 {
            std::hint::spin_loop();
        }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// A vCPU's software processor.
pub(super) struct Kernel {
    soft: Soft,
    phase: Arc<KernelPhase>,
    stepping: bool,
    strange: u32,
    /// The last batch ended at an instruction that is not the software processor's.
    at_instruction: bool,
    /// That instruction is `hlt`.
    at_halt: bool,
    /// It was executed. The step that does so returns at once; it is in the next one that the processor sleeps.
    sleeping: bool,
    /// How many times in a row vector instructions were executed without KVM.
    without_kvm: u32,
}

impl Kernel {
    pub(super) fn new(memory: Arc<GuestMemory>, phase: Arc<KernelPhase>) -> Self {
        Self {
            soft: Soft::new(memory),
            phase,
            stepping: false,
            strange: 0,
            at_instruction: false,
            at_halt: false,
            sleeping: false,
            without_kvm: 0,
        }
    }

    /// Has the software processor come back soon while `wish` is set, so that a sample is taken where the guest
    /// is and not where it next needs KVM. What was interrupted is noticed at the next entry of KVM.
    pub(super) fn leaving_at(mut self, wish: Arc<AtomicBool>) -> Self {
        self.soft.leave_at(wish);
        self
    }

    /// Runs the guest until the loop is to be left, or, without a reason to, until the guest's kernel is no longer
    /// run here.
    pub(super) fn run<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        // Also where a request came between `hlt` and its sleep.
        self.sleeping |= vcpu.activity()? == Activity::Halted;
        if !self.stepping {
            context.help.registers_are_needed(vcpu);
            vcpu.set_single_step(true)?;
            self.stepping = true;
        }
        while !self.phase.is_over() {
            if self.sleeping {
                if let Some(left) = single_step(vcpu, context)? {
                    return Ok(Some(left));
                }
                self.sleeping = vcpu.activity()? == Activity::Halted;
                continue;
            }
            if let Entered::Left(left) = self.execute(vcpu, context)? {
                return Ok(Some(left));
            }
            if self.phase.is_over() {
                break;
            }
            if self.at_instruction && self.without_kvm < WITHOUT_KVM && context.help.vectors(vcpu)? {
                self.without_kvm += 1;
                continue;
            }
            self.without_kvm = 0;
            if let Some(left) = single_step(vcpu, context)? {
                return Ok(Some(left));
            }
            self.sleeping = self.at_halt && vcpu.activity()? == Activity::Halted;
        }
        vcpu.set_single_step(false)?;
        Ok(None)
    }

    /// Executes what can be executed here; afterwards the vCPU is at an instruction for KVM.
    fn execute<V: Vcpu, H>(&mut self, vcpu: &mut V, context: &mut Context<'_, H>) -> Result<Entered> {
        let special = vcpu.special_registers()?;
        let mut general = vcpu.registers()?;
        let mut served = Entered::Answered;
        self.at_instruction = false;
        self.at_halt = false;
        for _ in 0..PORTS_AT_ONCE {
            match self.batch(&mut general, &special, context.counters) {
                Some(Leave::Port(access)) if context.bus.owner_of_port(access.port).is_some() => {
                    served = serve(&mut general, &access, context).into();
                    if matches!(served, Entered::Left(_)) {
                        break;
                    }
                }
                Some(Leave::Step) => {
                    self.at_instruction = true;
                    break;
                }
                Some(Leave::Halt) => {
                    self.at_halt = true;
                    break;
                }
                Some(Leave::ToUser) => {
                    self.phase.end();
                    break;
                }
                Some(Leave::Mode) if in_user_space(&special) || self.strange > PATIENCE => {
                    self.phase.end();
                    break;
                }
                _ => break,
            }
        }
        vcpu.set_registers(&general)?;
        Ok(served)
    }

    /// Executes instructions in a row, unless another processor has ended that meanwhile.
    fn batch(
        &mut self,
        general: &mut Registers,
        special: &SpecialRegisters,
        counters: &Counters,
    ) -> Option<Leave> {
        if !self.phase.enter() {
            return None;
        }
        let before = self.soft.executed();
        let leave = self.soft.run(general, special);
        self.phase.leave();
        counters.add_kernel_instructions(self.soft.executed() - before);
        self.strange = if leave == Leave::Mode { self.strange + 1 } else { 0 };
        Some(leave)
    }
}

fn in_user_space(special: &SpecialRegisters) -> bool {
    special.cr0 & CR0_PE != 0 && special.ss.dpl == 3
}

/// Serves an access to a port of the machine's own, as the run loop does after an exit.
fn serve<H>(general: &mut Registers, access: &PortAccess, context: &mut Context<'_, H>) -> Action {
    let kind = match access.direction {
        Direction::Read => ExitKind::PioRead,
        Direction::Write => ExitKind::PioWrite,
    };
    access.carry_out(general, |data| {
        let action = context.bus.port_access(access.port, access.width(), access.direction, data);
        context.history.push(Record::access(kind, access.port.into(), data));
        action
    })
}

/// Has KVM execute one instruction, and answers what comes of it.
fn single_step<V: Vcpu, H: Help<V>>(vcpu: &mut V, context: &mut Context<'_, H>) -> Result<Option<Left>> {
    loop {
        match context.enter(vcpu)? {
            Entered::Stopped => return Ok(None),
            Entered::Answered => {}
            Entered::Left(left) => return Ok(Some(left)),
        }
    }
}
