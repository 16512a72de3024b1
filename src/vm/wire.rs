//! Wires into a machine's interrupt controller.

use std::sync::{Arc, Mutex};

use super::machine::Board;
use crate::devices::InterruptLine;
use crate::hv::Vm;
use crate::threads::lock;

/// A wire into the machine's interrupt controller.
pub(super) struct Wire<V: Vm> {
    board: Arc<Board<V>>,
    number: u32,
    /// Held from the rise of a pulse to its fall: two that overlap would be one edge, and an interrupt be lost.
    pulsing: Mutex<()>,
}

impl<V: Vm> Wire<V> {
    pub fn new(board: Arc<Board<V>>, number: u32) -> Self {
        Self { board, number, pulsing: Mutex::new(()) }
    }
}

impl<V: Vm> InterruptLine for Wire<V> {
    fn set(&self, high: bool) {
        // Lines are numbered by this program, so the hypervisor has nothing to refuse.
        if let Err(error) = self.board.vm.set_interrupt_line(self.number, high) {
            log::error!("interrupt {} is lost: {error}", self.number);
        }
    }

    fn pulse(&self) {
        let _pulsing = lock(&self.pulsing);
        self.set(true);
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::hv::Hypervisor;
    use crate::hv::fake::FakeHypervisor;
    use crate::memory::{GuestMemory, Layout, Options};

    /// Two pulses that overlap are one edge to the interrupt controller, and one interrupt is lost.
    #[test]
    fn pulses_of_one_line_never_overlap() {
        const PULSES: usize = 100;
        let hypervisor = FakeHypervisor::new([]);
        let layout = Layout::new(1 << 20, 48).unwrap();
        let memory = Arc::new(GuestMemory::map(layout, Options::default()).unwrap());
        let board = Arc::new(Board { vm: hypervisor.create_vm().unwrap(), memory });
        // As devices have it: what a pulse is has to be the line's own affair also through the handle.
        let line: Arc<dyn InterruptLine> = Arc::new(Wire::new(board, 4));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..PULSES).for_each(|_| line.pulse()));
            }
        });
        let log = hypervisor.log();
        assert_eq!(log.interrupts.len(), 4 * PULSES);
        assert!(log.interrupts.chunks(2).all(|pulse| pulse == [(4, true), (4, false)]));
    }
}
