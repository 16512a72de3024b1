//! Running the guest's kernel in the software processor, and its programs in the hypervisor.
//!
//! On a host whose KVM interprets guest kernels, `x86/soft` runs them many times as fast. This is the loop
//! around it: each instruction that is not for the software processor is executed by KVM, alone, by single-stepping,
//! which also delivers the interrupts that wait. Ports that belong to the machine's own devices are served without
//! KVM.
//!
//! Programs run in KVM, natively. It stops where a call, a fault or an interrupt has arrived in the kernel, as far as
//! there are breakpoints for it. What there are none for, KVM interprets until its next exit.
//!
//! Once there have been programs, KVM has tables of its own made from the guest's page tables, and follows changes of
//! those only if it executes the guest's stores itself. So every store over what may be such an entry is KVM's from
//! then on.

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

/// Whether the guest has run programs; shared by the processors of a machine.
#[derive(Debug, Default)]
pub struct Programs {
    begun: AtomicBool,
    /// Processors that are executing instructions of the kernel right now.
    busy: AtomicU32,
}

impl Programs {
    /// A processor is going to execute instructions of the kernel; whether there have been programs.
    fn enter(&self) -> bool {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.begun.load(Ordering::SeqCst)
    }

    fn leave(&self) {
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// Called before the first one runs, and every further one: waits until all processors know of it. That takes
    /// microseconds, as they never wait for anything in between.
    fn begin(&self) {
        if !self.begun.swap(true, Ordering::SeqCst) {
            while self.busy.load(Ordering::SeqCst) > 0 {
                std::hint::spin_loop();
            }
        }
    }
}

/// Where the guest is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// In the kernel.
    Kernel,
    /// In a program, or in something that is no kernel for the software processor.
    Elsewhere,
}

/// A vCPU's software processor.
pub(super) struct Kernel {
    soft: Soft,
    programs: Arc<Programs>,
    stepping: bool,
    strange: u32,
    /// The last batch ended at an instruction that is not the software processor's.
    at_instruction: bool,
    /// The hypervisor has begun something that it has to end before instructions are executed here: an exit within the
    /// last step was answered, or the processor was put to sleep.
    is_open: bool,
    /// How many times in a row vector instructions were executed without KVM.
    without_kvm: u32,
}

impl Kernel {
    pub(super) fn new(memory: Arc<GuestMemory>, programs: Arc<Programs>) -> Self {
        Self {
            soft: Soft::new(memory),
            programs,
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

    /// Runs the guest until the loop is to be left, or, without a reason to, until its kernel turns out to be none
    /// that can be run here.
    pub(super) fn run<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        context.help.registers_are_needed(vcpu);
        // A request may have come when the processor slept.
        self.is_open |= vcpu.activity()? != Activity::Running;
        loop {
            self.soft.forget();
            if let Some(left) = self.kernel(vcpu, context)? {
                return Ok(Some(left));
            }
            self.step_no_longer(vcpu)?;
            if self.is_strange() {
                return Ok(None);
            }
            if let Some(left) = self.program(vcpu, context)? {
                return Ok(Some(left));
            }
        }
    }

    /// Runs the kernel until it goes to a program, or turns out to be none that can be run here.
    fn kernel<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        if in_user_space(&vcpu.special_registers()?) {
            return Ok(None);
        }
        if self.is_to_be_continued(vcpu)?
            && let Some(left) = self.single_step(vcpu, context)?
        {
            return Ok(Some(left));
        }
        loop {
            match self.execute(vcpu, context)? {
                (Entered::Left(left), _) => return Ok(Some(left)),
                (_, Next::Kernel) => {}
                (_, Next::Elsewhere) => return Ok(None),
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
    }

    /// Runs a program until the kernel is needed.
    fn program<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        self.programs.begin();
        context.help.watch_for_kernel(vcpu)?;
        loop {
            match context.enter(vcpu)? {
                Entered::Left(left) => return Ok(Some(left)),
                Entered::Stopped => {
                    context.history.push(Record::plain(ExitKind::Breakpoint));
                    context.help.arrived(vcpu)?;
                    self.is_open = false;
                    return Ok(None);
                }
                Entered::Answered if in_user_space(&vcpu.special_registers()?) => {}
                Entered::Answered => {
                    self.is_open = true;
                    return Ok(None);
                }
            }
        }
    }

    /// Has KVM execute one instruction, and answers what comes of it.
    fn single_step<V: Vcpu, H: Help<V>>(
        &mut self,
        vcpu: &mut V,
        context: &mut Context<'_, H>,
    ) -> Result<Option<Left>> {
        if !self.stepping {
            vcpu.set_single_step(true)?;
            self.stepping = true;
        }
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

    fn step_no_longer(&mut self, vcpu: &impl Vcpu) -> Result<()> {
        if std::mem::take(&mut self.stepping) {
            vcpu.set_single_step(false)?;
        }
        Ok(())
    }

    /// Whether this has turned out to be no kernel for the software processor.
    fn is_strange(&self) -> bool {
        self.strange > PATIENCE
    }

    /// Whether the last step was interrupted when the processor slept, or had accepted an exception or an interrupt.
    /// Only the hypervisor knows of it, and the instructions here must not overtake it. KVM does not tell of
    /// exceptions that instructions raise on purpose, as `int3` does.
    fn is_to_be_continued<V: Vcpu>(&self, vcpu: &V) -> Result<bool> {
        Ok(self.is_open || vcpu.is_delivering()?)
    }

    /// Executes what can be executed here; afterwards the vCPU is at an instruction for KVM.
    fn execute<V: Vcpu, H>(&mut self, vcpu: &mut V, context: &mut Context<'_, H>) -> Result<(Entered, Next)> {
        let special = vcpu.special_registers()?;
        let mut general = vcpu.registers()?;
        let mut served = Entered::Answered;
        let mut next = Next::Kernel;
        self.at_instruction = false;
        for _ in 0..PORTS_AT_ONCE {
            match self.batch(&mut general, &special, context.counters) {
                Leave::Port(access) if context.bus.owner_of_port(access.port).is_some() => {
                    served = serve(&mut general, &access, context).into();
                    if matches!(served, Entered::Left(_)) {
                        break;
                    }
                    continue;
                }
                Leave::Step => self.at_instruction = true,
                // Not as a step: KVM's interpreter remembers the `hlt` it has stepped over, and puts the processor
                // to sleep at a later instruction, if an interrupt comes between even in the handler.
                Leave::Halt => {
                    general.rip = general.rip.wrapping_add(1);
                    vcpu.halt()?;
                    self.is_open = true;
                }
                Leave::ToUser => next = Next::Elsewhere,
                Leave::Mode if in_user_space(&special) || self.is_strange() => next = Next::Elsewhere,
                Leave::Mode | Leave::Port(_) | Leave::Interrupts => {}
            }
            break;
        }
        vcpu.set_registers(&general)?;
        Ok((served, next))
    }

    /// Executes instructions in a row.
    fn batch(&mut self, general: &mut Registers, special: &SpecialRegisters, counters: &Counters) -> Leave {
        self.soft.spare_entries(self.programs.enter());
        let before = self.soft.executed();
        let leave = self.soft.run(general, special);
        self.programs.leave();
        counters.add_kernel_instructions(self.soft.executed() - before);
        let is_strange = leave == Leave::Mode && !in_user_space(special);
        self.strange = if is_strange { self.strange + 1 } else { 0 };
        leave
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
