//! A machine: its parts, and what can be done with all of them. `build` puts it together.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::capture::Shared;
use super::devices::Devices;
use super::directory::{DirectoryError, Ended, Files, Name};
use super::disks::{Attached, DiskImage};
use super::ear::Ear;
use super::end::End;
use super::saved::Parts;
use super::watch::{self, Watch};
use super::{Error, Outcome};
use crate::bus::Bus;
use crate::console::Line as PortLine;
use crate::devices::ByteSink;
use crate::devices::serial::Serial;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::mmio::Mmio;
use crate::hv::{self, Doorbell, Vcpu, Vm};
use crate::memory::GuestMemory;
use crate::threads::lock;
use crate::vcpu::{Interval, Profiler, VcpuThread};
use crate::x86::complete::gaps::Gaps;

/// A virtual machine, ready to run or running.
///
/// Dropping it stops the processors, waits for their threads and frees everything.
pub struct Machine<V: Vm> {
    // Dropped first: threads end before anything they use.
    pub(super) vcpus: Vec<VcpuThread<V::Vcpu>>,
    pub(super) bus: Arc<Bus>,
    pub(super) devices: Devices,
    pub(super) virtio: Vec<Arc<Mmio>>,
    pub(super) disks: Vec<Arc<Blk>>,
    /// What the disks are in, of the same number.
    pub(super) images: Mutex<Vec<Attached>>,
    /// Whoever keeps the disks has this for as long as that takes, so that one does it after the other. What the disks
    /// are in can be read meanwhile.
    pub(super) keeping: Mutex<()>,
    pub(super) balloon: Option<Arc<Balloon>>,
    pub(super) virtio_console: Option<Arc<Console>>,
    /// Whether the guest listens there, and not at the serial port.
    pub(super) listens_at_virtio: bool,
    /// Where the ports lead, and the virtio console last.
    pub(super) lines: Vec<PortLine>,
    pub(super) console: Arc<dyn ByteSink>,
    pub(super) end: Arc<End>,
    pub(super) gaps: Gaps,
    pub(super) watch: Watch,
    /// What a snapshot says of it.
    pub(super) parts: Parts,
    pub(super) board: Arc<Board<V>>,
    /// What its next snapshot can build on.
    pub(super) since: Shared,
    /// Dropped last: until then others see that it runs.
    pub(super) files: Files,
}

/// The hypervisor's machine together with the memory it was given: one must not outlive the other.
pub(super) struct Board<V> {
    pub vm: V,
    /// Freed after `vm`: fields are dropped in order.
    pub memory: Arc<GuestMemory>,
}

impl<V: Vm> Machine<V> {
    /// Lets all processors run, for the first time or after a pause.
    pub fn resume(&self) {
        self.lines.iter().for_each(PortLine::start);
        self.virtio.iter().for_each(|device| device.resume());
        self.vcpus.iter().for_each(VcpuThread::resume);
    }

    /// Pauses all processors and then all devices; when this returns, none is inside the guest, no access is half done
    /// and no request under way. The guest's clocks go on; its kernel finds out that it did not run.
    pub fn pause(&self) {
        self.bring_to_rest(VcpuThread::request_pause);
        for vcpu in &self.vcpus {
            if let Err(error) = vcpu.while_at_rest(Vcpu::tell_stopped) {
                log::debug!("the guest may complain about its pause: {error}");
            }
        }
        self.virtio.iter().for_each(|device| device.pause());
    }

    /// Stops all processors for good, and then the devices. What the guest has sent through ports is still carried to
    /// whoever takes it.
    pub fn stop(&self) {
        self.bring_to_rest(VcpuThread::request_stop);
        self.virtio.iter().for_each(|device| device.pause());
        self.lines.iter().for_each(PortLine::ask_to_end);
        self.lines.iter().for_each(PortLine::end);
    }

    /// Asks all processors before waiting for the first, and lets none wait for a slow console meanwhile.
    fn bring_to_rest(&self, request: fn(&VcpuThread<V::Vcpu>)) {
        self.console.release_waiters(true);
        self.vcpus.iter().for_each(request);
        self.vcpus.iter().for_each(VcpuThread::wait_at_rest);
        self.console.release_waiters(false);
    }

    /// Waits until the machine has ended, and stops what still runs.
    pub fn wait(&self) -> &Outcome {
        let outcome = loop {
            match self.end.wait(watch::INTERVAL) {
                Some(outcome) => break outcome,
                None => self.look_after(),
            }
        };
        self.stop();
        outcome
    }

    /// Ends the machine if the guest has halted for good, on all processors and with interrupts off: the hypervisor
    /// does not tell. [`wait`](Self::wait) does this by itself; who waits for [`end_event`](Self::end_event) instead
    /// calls it now and then, every [`LOOK_INTERVAL`](super::LOOK_INTERVAL) as a rule. More often does no harm.
    pub fn look_after(&self) {
        if self.outcome().is_none() && self.watch.look(&self.vcpus) {
            self.end.set(Outcome::Halted);
        }
    }

    /// How the machine ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.end.outcome()
    }

    /// Runs the machine to its end.
    pub fn run(&self) -> &Outcome {
        self.resume();
        self.wait()
    }

    /// Becomes readable when the machine has ended, for those who wait for several things at once.
    pub fn end_event(&self) -> BorrowedFd<'_> {
        self.end.event()
    }

    /// Asks the guest to end itself, as somebody at a PC does with its button. Whether it hears, and does, is another
    /// question.
    pub fn press_power_button(&self) {
        self.devices.power_button.press();
    }

    /// Its serial port, to which console input is given.
    pub fn serial(&self) -> &Serial {
        &self.devices.serial
    }

    /// The last code that the guest wrote to the POST port.
    pub fn last_post_code(&self) -> Option<u8> {
        self.devices.post.last()
    }

    /// Its virtio devices, in the order in which the guest finds them.
    pub fn virtio(&self) -> &[Arc<Mmio>] {
        &self.virtio
    }

    /// Its disks, in the order in which they were described.
    pub fn disks(&self) -> &[Arc<Blk>] {
        &self.disks
    }

    /// What the disks are in at the moment: snapshots may have had them go on in overlays.
    pub fn disk_images(&self) -> Vec<DiskImage> {
        lock(&self.images).iter().map(Attached::look).collect()
    }

    /// Its balloon, if it has one.
    pub fn balloon(&self) -> Option<&Arc<Balloon>> {
        self.balloon.as_ref()
    }

    /// Its virtio console, if it has one.
    pub fn virtio_console(&self) -> Option<&Arc<Console>> {
        self.virtio_console.as_ref()
    }

    /// Where its ports lead, and its virtio console last.
    pub fn lines(&self) -> &[PortLine] {
        &self.lines
    }

    /// The directory that it has while it runs, if it has a name or something to keep there, or somebody has wanted it.
    pub fn directory(&self) -> Option<&Path> {
        self.files.path()
    }

    /// The same; one that was not there is made, under a name that tells the process.
    pub fn make_directory(&self) -> Result<&Path, DirectoryError> {
        self.files.make()
    }

    /// Has its directory stay when the machine goes, and tell how it ended; only what was printed and said stays with that.
    pub fn leave_record(&self, ended: Ended) {
        self.files.leave(ended);
    }

    /// What it is called, if it has a directory.
    pub fn name(&self) -> Option<&Name> {
        self.files.name()
    }

    /// Where its guest listens to what is typed.
    pub fn ear(&self) -> Ear<'_> {
        let port = self.virtio_console.as_ref().and_then(|device| device.console());
        match port.filter(|_| self.listens_at_virtio) {
            Some(port) => Ear::Virtio(port, &self.devices.serial),
            None => Ear::Serial(&self.devices.serial),
        }
    }

    /// All its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.board.memory
    }

    /// Its bus, with what it counted.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// What the host's KVM lacks and is done in its place.
    pub fn gaps(&self) -> Gaps {
        self.gaps
    }

    /// Its processors.
    pub fn vcpus(&self) -> &[VcpuThread<V::Vcpu>] {
        &self.vcpus
    }

    /// Begins to sample where its processors are, until the profiler is finished or dropped.
    pub fn profile(&self, interval: Interval) -> Result<Profiler, Error> {
        Profiler::start(&self.vcpus, interval).map_err(Error::Profiler)
    }

    /// Lets writes to `at` signal `event` without leaving the kernel.
    pub fn register_doorbell(&self, at: Doorbell, event: &EventFd) -> hv::Result<()> {
        self.board.vm.register_doorbell(at, event)
    }

    /// Lets `event` raise the interrupt `line` without a call of its own.
    pub fn register_interrupt_event(&self, event: &EventFd, line: u32) -> hv::Result<()> {
        self.board.vm.register_interrupt_event(event, line)
    }
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
