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
    /// An exit within the last step was answered, and the step has not ended yet.
    is_open: bool,
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
            is_open: false,
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
        if !self.stepping {
            context.help.registers_are_needed(vcpu);
            vcpu.set_single_step(true)?;
            self.stepping = true;
        }
        if self.is_to_be_continued(vcpu)?
            && let Some(left) = self.single_step(vcpu, context)?
        {
            return Ok(Some(left));
        }
        while !self.phase.is_over() {
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
            if let Some(left) = self.single_step(vcpu, context)? {
                return Ok(Some(left));
            }
        }
        vcpu.set_single_step(false)?;
        Ok(None)
    }

    /// Has KVM execute one instruction, and answers what comes of it.
    fn single_step<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        loop {
            match context.enter(vcpu)? {
                Entered::Stopped => {
                    self.is_open = false;
                    return Ok(None);
                }
                Entered::Answered => self.is_open = true,
                Entered::Left(left) => return Ok(Some(left)),
            }
        }
    }

    /// Whether the last step was interrupted when the processor slept, or had accepted an exception or an interrupt.
    /// Only the hypervisor knows of it, and the instructions here must not overtake it. KVM does not tell of
    /// exceptions that instructions raise on purpose, as `int3` does.
    fn is_to_be_continued<V: Vcpu>(&self, vcpu: &V) -> Result<bool> {
        Ok(self.is_open || vcpu.activity()? != Activity::Running || vcpu.is_delivering()?)
    }

    /// Executes what can be executed here; afterwards the vCPU is at an instruction for KVM.
    fn execute<V: Vcpu, H>(&mut self, vcpu: &mut V, context: &mut Context<'_, H>) -> Result<Entered> {
        let special = vcpu.special_registers()?;
        let mut general = vcpu.registers()?;
        let mut served = Entered::Answered;
        self.at_instruction = false;
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
                // Not as a step: KVM's interpreter remembers the `hlt` it has stepped over, and puts the processor
                // to sleep at a later instruction, if an interrupt comes between even in the handler.
                Some(Leave::Halt) => {
                    general.rip = general.rip.wrapping_add(1);
                    vcpu.halt()?;
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
