//! The keyboard controller, an i8042 with nothing plugged in.
//!
//! It is there because kernels reset the machine through it, and because Linux takes it for granted on a PC and
//! waits half a second for each answer that does not come. Both ports exist and both are empty: what is sent to
//! the keyboard or the mouse is answered at once as the controller answers when a device does not react.
//!
//! The comments name what Linux 6.1 expects (functions of `drivers/input/serio/i8042.c` unless said otherwise).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{Error, InterruptLine};
use crate::bus::{Action, Claim, Device, Widths};
use crate::saved::Saved;
use crate::threads::lock;

/// The interrupt of the keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// The interrupt of the mouse, or whatever is in the auxiliary port.
pub const MOUSE_IRQ: u32 = 12;

/// The command that resets the machine: it pulses the lowest line of the output port.
pub const PULSE_RESET: u8 = 0xfe;

const NAME: &str = "i8042";
const DATA_CLAIM: Claim<u16> = Claim { name: NAME, base: 0x60, len: 1, widths: Widths::BYTE };
/// The port that takes commands.
pub const COMMAND_CLAIM: Claim<u16> = Claim { name: NAME, base: 0x64, len: 1, widths: Widths::BYTE };

/// How many answers wait for the guest at most. `i8042_flush` takes a port that still has bytes after sixteen
/// for one without a controller.
const ANSWERS: usize = 8;

// The status register.
const STATUS_ANSWER: u8 = 0x01;
const STATUS_TESTED: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
/// `i8042_controller_init` warns of a locked keyboard when this is clear.
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_FROM_MOUSE: u8 = 0x20;
const STATUS_TIMEOUT: u8 = 0x40;

// The control register.
const CONTROL_KEYBOARD_INTERRUPT: u8 = 0x01;
const CONTROL_MOUSE_INTERRUPT: u8 = 0x02;
const CONTROL_TESTED: u8 = 0x04;
const CONTROL_KEYBOARD_OFF: u8 = 0x10;
const CONTROL_MOUSE_OFF: u8 = 0x20;
const CONTROL_TRANSLATE: u8 = 0x40;
/// What a BIOS leaves behind that found neither keyboard nor mouse. Translation is on: without it
/// `i8042_controller_init` drives the keyboard port in a mode meant for special machines.
const CONTROL_INITIAL: u8 = CONTROL_TESTED | CONTROL_KEYBOARD_OFF | CONTROL_MOUSE_OFF | CONTROL_TRANSLATE;

// The output port: its low two bits are the reset line and the A20 gate, which is open for good.
const OUTPUT_NO_RESET: u8 = 0x01;
const OUTPUT_INITIAL: u8 = 0x03;

const TEST_PASSED: u8 = 0x55;
const PORT_WORKS: u8 = 0x00;
/// "Resend", which with [`STATUS_TIMEOUT`] means that the device did not react.
const NO_DEVICE: u8 = 0xfe;

/// A byte that the guest is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    byte: u8,
    from_mouse: bool,
    timeout: bool,
}

/// A command whose parameter has not been written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Awaited {
    Control,
    OutputPort,
    KeyboardLoop,
    MouseLoop,
    Mouse,
}

/// The keyboard controller.
pub struct I8042 {
    state: Mutex<State>,
    keyboard: Arc<dyn InterruptLine>,
    mouse: Arc<dyn InterruptLine>,
}

struct State {
    control: u8,
    output_port: u8,
    /// Never longer than [`ANSWERS`].
    answers: VecDeque<Answer>,
    /// What the data port shows when nothing new is in it.
    last_read: u8,
    awaited: Option<Awaited>,
    /// Whether the last byte was written to the command port.
    command_last: bool,
}

impl I8042 {
    /// A controller whose interrupts go to these two lines.
    pub fn new(keyboard: Arc<dyn InterruptLine>, mouse: Arc<dyn InterruptLine>) -> Self {
        let state = State {
            control: CONTROL_INITIAL,
            output_port: OUTPUT_INITIAL,
            answers: VecDeque::with_capacity(ANSWERS),
            last_read: 0,
            awaited: None,
            command_last: false,
        };
        Self { state: Mutex::new(state), keyboard, mouse }
    }

    /// The two ports to put on the bus. What lies between them (0x61, the speaker) belongs to others.
    pub fn ports(self: &Arc<Self>) -> [(Claim<u16>, Arc<dyn Device>); 2] {
        [(DATA_CLAIM, Arc::new(DataPort(self.clone()))), (COMMAND_CLAIM, Arc::new(CommandPort(self.clone())))]
    }

    /// What a snapshot keeps of it.
    pub fn save(&self) -> SavedI8042 {
        let State { control, output_port, answers, last_read, awaited, command_last } = &*lock(&self.state);
        SavedI8042 {
            control: *control,
            output_port: *output_port,
            answers: answers.iter().copied().collect(),
            last_read: *last_read,
            awaited: *awaited,
            command_last: *command_last,
        }
    }

    /// Puts back what [`I8042::save`] read, and raises the interrupt again that may have been pending.
    pub fn restore(&self, saved: &SavedI8042) -> Result<(), Error> {
        let SavedI8042 { control, output_port, answers, last_read, awaited, command_last } = saved;
        if answers.len() > ANSWERS {
            return Err(Error::Inconsistent {
                device: NAME,
                reason: "more bytes are waiting than it can hold",
            });
        }
        let mut restored = VecDeque::with_capacity(ANSWERS);
        restored.extend(answers);
        self.change(|state| {
            *state = State {
                control: *control,
                output_port: *output_port,
                answers: restored,
                last_read: *last_read,
                awaited: *awaited,
                command_last: *command_last,
            };
            (Action::None, state.interrupt())
        });
        Ok(())
    }

    /// Changes the state under the lock, then gives the interrupt that came of it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> (R, Option<Interrupt>)) -> R {
        let (result, interrupt) = change(&mut lock(&self.state));
        match interrupt {
            Some(Interrupt::Keyboard) => self.keyboard.pulse(),
            Some(Interrupt::Mouse) => self.mouse.pulse(),
            None => {}
        }
        result
    }
}

/// Port 0x60.
struct DataPort(Arc<I8042>);

impl Device for DataPort {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        self.0.change(State::take_answer).into()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        self.0.change(|state| state.watched(|state| state.take_data(value as u8)))
    }
}

/// Port 0x64.
struct CommandPort(Arc<I8042>);

impl Device for CommandPort {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        lock(&self.0.state).status().into()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        self.0.change(|state| state.watched(|state| state.take_command(value as u8)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    Keyboard,
    Mouse,
}

impl State {
    /// The interrupt that the first answer raises, if it is enabled.
    fn interrupt(&self) -> Option<Interrupt> {
        let (interrupt, enabled) = match self.answers.front()?.from_mouse {
            false => (Interrupt::Keyboard, CONTROL_KEYBOARD_INTERRUPT),
            true => (Interrupt::Mouse, CONTROL_MOUSE_INTERRUPT),
        };
        (self.control & enabled != 0).then_some(interrupt)
    }

    /// Does `change` and tells which interrupt became due by it.
    fn watched(&mut self, change: impl FnOnce(&mut Self) -> Action) -> (Action, Option<Interrupt>) {
        let before = self.interrupt();
        let action = change(self);
        (action, self.interrupt().filter(|after| before != Some(*after)))
    }

    /// The status. Bit 1, "busy with what was written", never shows: everything is done at once.
    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if let Some(answer) = self.answers.front() {
            status |= STATUS_ANSWER;
            if answer.from_mouse {
                status |= STATUS_FROM_MOUSE;
            }
            if answer.timeout {
                status |= STATUS_TIMEOUT;
            }
        }
        if self.control & CONTROL_TESTED != 0 {
            status |= STATUS_TESTED;
        }
        if self.command_last {
            status |= STATUS_COMMAND;
        }
        status
    }

    /// Reads the data port; another byte that waits behind this one raises its interrupt.
    fn take_answer(&mut self) -> (u8, Option<Interrupt>) {
        let Some(answer) = self.answers.pop_front() else {
            return (self.last_read, None);
        };
        self.last_read = answer.byte;
        (answer.byte, self.interrupt())
    }

    /// Has a byte wait for the guest. What a guest lets pile up beyond the limit is dropped.
    fn answer(&mut self, answer: Answer) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back(answer);
        }
    }

    fn answer_command(&mut self, byte: u8) {
        self.answer(Answer { byte, from_mouse: false, timeout: false });
    }

    fn take_command(&mut self, command: u8) -> Action {
        self.command_last = true;
        self.awaited = None;
        match command {
            // `i8042_controller_init` reads it until two readings agree.
            0x20 => self.answer_command(self.control),
            0x60 => self.awaited = Some(Awaited::Control),
            // `i8042_toggle_aux` looks for these two in the control register: a port that cannot be switched
            // is taken for one that is not there.
            0xa7 => self.control |= CONTROL_MOUSE_OFF,
            0xa8 => self.control &= !CONTROL_MOUSE_OFF,
            // `i8042_check_aux` asks this only if the loop fails.
            0xa9 | 0xab => self.answer_command(PORT_WORKS),
            // `i8042_controller_selftest` tries five times, 50 ms apart, if it reads anything else.
            0xaa => {
                self.control |= CONTROL_TESTED;
                self.answer_command(TEST_PASSED);
            }
            0xad => self.control |= CONTROL_KEYBOARD_OFF,
            0xae => self.control &= !CONTROL_KEYBOARD_OFF,
            // The input port: bit 7 is the keyboard lock again.
            0xc0 => self.answer_command(0x80),
            0xd0 => self.answer_command(self.output_port),
            0xd1 => self.awaited = Some(Awaited::OutputPort),
            0xd2 => self.awaited = Some(Awaited::KeyboardLoop),
            0xd3 => self.awaited = Some(Awaited::MouseLoop),
            0xd4 => self.awaited = Some(Awaited::Mouse),
            // Pulses the output lines whose bits are clear; the lowest is the processor's reset
            // (`native_machine_emergency_restart` in arch/x86/kernel/reboot.c writes PULSE_RESET).
            0xf0..=0xff if command & OUTPUT_NO_RESET == 0 => return Action::Reset,
            _ => {}
        }
        Action::None
    }

    fn take_data(&mut self, byte: u8) -> Action {
        self.command_last = false;
        match self.awaited.take() {
            Some(Awaited::Control) => self.control = byte,
            Some(Awaited::OutputPort) if byte & OUTPUT_NO_RESET == 0 => return Action::Reset,
            Some(Awaited::OutputPort) => self.output_port = byte,
            Some(Awaited::KeyboardLoop) => self.answer_command(byte),
            // `i8042_check_aux` wants its byte back as if the mouse had sent it, then once more by an
            // interrupt, for which it waits 250 ms. `i8042_check_mux` wants the byte 0xa4 changed by a
            // controller for four mice, so unchanged it says that this is none.
            Some(Awaited::MouseLoop) => self.answer(Answer { byte, from_mouse: true, timeout: false }),
            // `ps2_do_sendbyte` (drivers/input/serio/libps2.c) waits 200 ms for an answer, and gives up on
            // this one after its second attempt.
            Some(Awaited::Mouse) => self.answer(Answer { byte: NO_DEVICE, from_mouse: true, timeout: true }),
            None => self.answer(Answer { byte: NO_DEVICE, from_mouse: false, timeout: true }),
        }
        Action::None
    }
}

/// The keyboard controller as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedI8042 {
    control: u8,
    output_port: u8,
    answers: Vec<Answer>,
    last_read: u8,
    awaited: Option<Awaited>,
    command_last: bool,
}

impl Saved for SavedI8042 {
    const NAME: &'static str = "i8042";
    const VERSION: u16 = 1;
}

#[cfg(test)]
#[path = "i8042_test.rs"]
mod tests;
