//! The power button: how a guest is asked to end.
//!
//! It is one of ACPI's control methods (ACPI 6.5, section 4.8.2.2.1.2), announced by the interrupt of a generic event
//! device (section 5.6.9) as hardware-reduced ACPI has it. The interrupt is an edge and has no other use, so that there
//! is nothing to read or to acknowledge, and nothing for a snapshot to keep.

use std::sync::Arc;

use super::InterruptLine;

/// Its interrupt: that of the numeric coprocessor in PCs, which has had none of its own since the 486.
pub const IRQ: u32 = 13;

/// The button.
pub struct PowerButton {
    line: Arc<dyn InterruptLine>,
}

impl PowerButton {
    /// A button on this wire.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line }
    }

    /// Presses it once. What the guest makes of that is its own affair.
    pub fn press(&self) {
        self.line.pulse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::CountingLine;

    #[test]
    fn each_press_is_one_edge() {
        let line = Arc::new(CountingLine::default());
        let button = PowerButton::new(line.clone());
        (0..3).for_each(|_| button.press());
        assert_eq!(line.take(), 3);
    }
}
