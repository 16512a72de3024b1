//! The keyboard controller as Linux probes it, through a bus, and as hostile guests write to it.

use super::super::testing::CountingLine;
use super::*;
use crate::bus::testing::Random;
use crate::bus::{Bus, BusBuilder};
use crate::hv::Direction;
use crate::saved;

struct Machine {
    bus: Bus,
    controller: Arc<I8042>,
    keyboard: Arc<CountingLine>,
    mouse: Arc<CountingLine>,
}

impl Machine {
    fn new() -> Self {
        let (keyboard, mouse) = (Arc::<CountingLine>::default(), Arc::<CountingLine>::default());
        let controller = Arc::new(I8042::new(keyboard.clone(), mouse.clone()));
        let mut builder = BusBuilder::new();
        for (claim, port) in controller.ports() {
            builder.claim_ports(claim, port).unwrap();
        }
        Self { bus: builder.build(), controller, keyboard, mouse }
    }

    fn read(&self, port: u16) -> u8 {
        let mut data = [0];
        self.bus.port_access(port, 1, Direction::Read, &mut data);
        data[0]
    }

    fn write(&self, port: u16, value: u8) -> Action {
        self.bus.port_access(port, 1, Direction::Write, &mut [value])
    }

    fn status(&self) -> u8 {
        self.read(0x64)
    }

    /// Sends a command with its parameters, ready or not.
    fn send(&self, command: u8, parameters: &[u8]) {
        assert_eq!(self.status() & 0x02, 0, "the controller is never busy");
        assert_eq!(self.write(0x64, command), Action::None);
        for parameter in parameters {
            assert_eq!(self.write(0x60, *parameter), Action::None);
        }
    }

    /// Sends a command and reads its answer, which must be there at once.
    fn ask(&self, command: u8, parameters: &[u8]) -> u8 {
        self.send(command, parameters);
        assert_eq!(self.status() & STATUS_ANSWER, STATUS_ANSWER, "Linux waits half a second for this");
        self.read(0x60)
    }

    /// Reads what waits, up to one byte more than `i8042_flush` does, and counts it.
    fn flush(&self) -> usize {
        let mut count = 0;
        while self.status() & STATUS_ANSWER != 0 && count < 17 {
            self.read(0x60);
            count += 1;
        }
        count
    }

    fn interrupts(&self) -> (usize, usize) {
        (self.keyboard.take(), self.mouse.take())
    }
}

#[test]
fn linux_finds_a_controller_with_two_ports_without_waiting() {
    let machine = Machine::new();
    assert_eq!(machine.flush(), 0);
    // i8042_controller_selftest, i8042_controller_init
    assert_eq!(machine.ask(0xaa, &[]), 0x55);
    let control = machine.ask(0x20, &[]);
    assert_eq!(machine.ask(0x20, &[]), control);
    assert_ne!(control & CONTROL_TRANSLATE, 0);
    assert_ne!(machine.status() & STATUS_UNLOCKED, 0);
    machine.send(0x60, &[control]);
    // i8042_check_aux: loop, switch off and on, interrupt
    machine.send(0xd3, &[0x5a]);
    assert_eq!(machine.status() & (STATUS_ANSWER | STATUS_FROM_MOUSE), STATUS_ANSWER | STATUS_FROM_MOUSE);
    assert_eq!(machine.read(0x60), 0x5a);
    machine.send(0xa7, &[]);
    assert_ne!(machine.ask(0x20, &[]) & CONTROL_MOUSE_OFF, 0);
    machine.send(0xa8, &[]);
    assert_eq!(machine.ask(0x20, &[]) & CONTROL_MOUSE_OFF, 0);
    machine.send(0x60, &[(control | CONTROL_MOUSE_INTERRUPT) & !CONTROL_MOUSE_OFF]);
    assert_eq!(machine.interrupts(), (0, 0));
    machine.send(0xd3, &[0xa5]);
    assert_eq!(machine.interrupts(), (0, 1), "Linux waits a quarter of a second for this");
    assert_eq!((machine.status() & STATUS_FROM_MOUSE, machine.read(0x60)), (STATUS_FROM_MOUSE, 0xa5));
    // i8042_check_mux
    assert_eq!([0xf0, 0x56, 0xa4].map(|byte| machine.ask(0xd3, &[byte])), [0xf0, 0x56, 0xa4]);
    assert_eq!(machine.flush(), 0);
}

#[test]
fn devices_that_are_not_there_are_reported_at_once() {
    let machine = Machine::new();
    machine.send(0x60, &[CONTROL_KEYBOARD_INTERRUPT | CONTROL_MOUSE_INTERRUPT]);
    machine.interrupts();
    machine.write(0x60, 0xf2);
    assert_eq!(machine.interrupts(), (1, 0));
    let status = STATUS_ANSWER | STATUS_TIMEOUT | STATUS_UNLOCKED;
    assert_eq!((machine.status(), machine.read(0x60)), (status, 0xfe));
    machine.send(0xd4, &[0xf2]);
    assert_eq!(machine.interrupts(), (0, 1));
    assert_eq!((machine.status(), machine.read(0x60)), (status | STATUS_FROM_MOUSE, 0xfe));
    assert_eq!((machine.status(), machine.read(0x60)), (STATUS_UNLOCKED, 0xfe), "the last byte stays");
}

#[test]
fn each_waiting_byte_raises_its_own_interrupt_when_it_comes_to_the_front() {
    let machine = Machine::new();
    machine.send(0x60, &[CONTROL_KEYBOARD_INTERRUPT | CONTROL_MOUSE_INTERRUPT]);
    machine.send(0xd2, &[1]);
    machine.send(0xd3, &[2]);
    machine.send(0xd2, &[3]);
    assert_eq!(machine.interrupts(), (1, 0));
    assert_eq!((machine.read(0x60), machine.interrupts()), (1, (0, 1)));
    assert_eq!((machine.read(0x60), machine.interrupts()), (2, (1, 0)));
    assert_eq!((machine.read(0x60), machine.interrupts()), (3, (0, 0)));
}

#[test]
fn enabling_an_interrupt_raises_it_for_a_byte_that_waits() {
    let machine = Machine::new();
    machine.send(0xd2, &[1]);
    assert_eq!(machine.interrupts(), (0, 0));
    machine.send(0x60, &[CONTROL_MOUSE_INTERRUPT]);
    assert_eq!(machine.interrupts(), (0, 0));
    machine.send(0x60, &[CONTROL_KEYBOARD_INTERRUPT]);
    assert_eq!(machine.interrupts(), (1, 0));
}

#[test]
fn the_machine_is_reset_by_a_pulse_or_by_the_output_port() {
    let machine = Machine::new();
    for command in 0xf0..=0xff {
        let expected = if command & 1 == 0 { Action::Reset } else { Action::None };
        assert_eq!(machine.write(0x64, command), expected);
    }
    machine.send(0xd1, &[0xdf]);
    assert_eq!(machine.ask(0xd0, &[]), 0xdf);
    machine.write(0x64, 0xd1);
    assert_eq!(machine.write(0x60, 0xfe), Action::Reset);
    assert_eq!(machine.write(0x60, 0xfe), Action::None, "the parameter of nothing goes to the keyboard");
}

#[test]
fn the_other_commands_answer_as_a_working_controller() {
    let machine = Machine::new();
    assert_eq!([0xa9, 0xab, 0xc0].map(|command| machine.ask(command, &[])), [0x00, 0x00, 0x80]);
    machine.send(0xae, &[]);
    assert_eq!(machine.ask(0x20, &[]) & CONTROL_KEYBOARD_OFF, 0);
    machine.send(0xad, &[]);
    assert_ne!(machine.ask(0x20, &[]) & CONTROL_KEYBOARD_OFF, 0);
    assert_eq!(machine.status() & STATUS_COMMAND, STATUS_COMMAND);
    // A new command takes the place of one that waits for its parameter.
    machine.write(0x64, 0x60);
    assert_eq!(machine.ask(0xaa, &[]), 0x55);
}

#[test]
fn what_is_never_read_does_not_pile_up() {
    let machine = Machine::new();
    for _ in 0..1000 {
        machine.send(0xaa, &[0xed]);
    }
    assert_eq!(machine.flush(), ANSWERS, "Linux gives a controller up that has more than sixteen");
}

#[test]
fn the_ports_between_belong_to_others() {
    let machine = Machine::new();
    let owners = [0x5f, 0x60, 0x61, 0x63, 0x64, 0x65].map(|port| machine.bus.owner_of_port(port).is_some());
    assert_eq!(owners, [false, true, false, false, true, false]);
}

fn restored(saved: &SavedI8042) -> Machine {
    let machine = Machine::new();
    machine.controller.restore(&saved::decode(&saved::encode(saved)).unwrap()).unwrap();
    machine
}

#[test]
fn a_restored_controller_goes_on_in_the_middle_of_a_command() {
    let machine = Machine::new();
    machine.send(0x60, &[CONTROL_MOUSE_INTERRUPT]);
    machine.send(0xd3, &[7]);
    machine.write(0x64, 0xd1);
    let twin = restored(&machine.controller.save());
    assert_eq!(twin.interrupts(), (0, 1));
    assert_eq!(twin.read(0x60), 7);
    assert_eq!(twin.write(0x60, 0), Action::Reset);
}

#[test]
fn a_saved_state_with_too_many_answers_is_refused() {
    let machine = Machine::new();
    let good = machine.controller.save();
    let answer = Answer { byte: 0, from_mouse: false, timeout: false };
    let bad = SavedI8042 { answers: vec![answer; ANSWERS + 1], ..good.clone() };
    assert!(machine.controller.restore(&bad).is_err());
    assert_eq!(machine.controller.save(), good);
}

#[test]
fn generated_accesses_do_no_harm_and_every_state_can_be_saved() {
    let mut random = Random::new(5);
    let mut machine = Machine::new();
    for _ in 0..20_000 {
        let port = random.pick(&[0x60, 0x64]);
        if random.below(4) == 0 {
            machine.read(port);
        } else {
            let any = random.byte();
            machine.write(port, random.pick(&[any, 0x60, 0xd1, 0xd2, 0xd3, 0xd4, 0x03]));
        }
        let saved = machine.controller.save();
        let twin = restored(&saved);
        assert_eq!(twin.controller.save(), saved);
        assert_eq!(twin.status(), machine.status());
        if random.below(8) == 0 {
            machine = twin;
        }
    }
}
