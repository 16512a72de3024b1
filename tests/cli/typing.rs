//! Talking to the embedded guest.

use crate::support::{Running, Screen, guest, program};

fn at_prompt() -> (Screen, Running) {
    let mut screen = Screen::new();
    let running = Running::start(screen.show(program().args(guest(""))));
    screen.expect("lodger> ");
    (screen, running)
}

#[test]
fn keys_are_echoed_one_by_one() {
    let (mut screen, mut running) = at_prompt();
    for key in ["e", "x", "i", "t", " ", "5"] {
        screen.type_in(key);
        assert_eq!(screen.expect(key), key);
    }
    screen.type_in("\r");
    assert_eq!(running.wait().code(), Some(5));
}

#[test]
fn backspace_takes_back_what_is_on_the_screen() {
    let (mut screen, mut running) = at_prompt();
    screen.type_in("exix\x7ft 6\r");
    screen.expect("exix\x08 \x08t 6\r\n");
    assert_eq!(running.wait().code(), Some(6));
}

#[test]
fn ctrl_c_gives_up_the_line_and_not_the_guest() {
    let (mut screen, mut running) = at_prompt();
    screen.type_in("reboot\x03");
    screen.expect("reboot^C\r\nlodger> ");
    screen.type_in("echo alive\r");
    screen.expect("\r\nalive\r\nlodger> ");
    screen.type_in("exit 7\r");
    assert_eq!(running.wait().code(), Some(7));
}

#[test]
fn the_up_key_brings_back_the_last_line() {
    let (mut screen, mut running) = at_prompt();
    screen.type_in("echo again\r");
    screen.expect("\r\nagain\r\nlodger> ");
    screen.type_in("\x1b[A\r");
    screen.expect("\r\nagain\r\nlodger> ");
    screen.type_in("\x04\x1a\x1cexit 8\r");
    assert_eq!(running.wait().code(), Some(8));
}

#[test]
fn a_pasted_text_arrives_whole() {
    let (mut screen, mut running) = at_prompt();
    let lines: String = (0..40).map(|number| format!("echo pasted {number}\r")).collect();
    screen.type_in(&lines);
    screen.expect("\r\npasted 39\r\n");
    screen.type_in("exit 9\r");
    assert_eq!(running.wait().code(), Some(9));
}

#[test]
fn what_the_guest_does_not_know_is_explained() {
    let (mut screen, mut running) = at_prompt();
    screen.type_in("hlep\r");
    screen.expect("there is no command hlep; help lists what there is\r\nlodger> ");
    screen.type_in("exit many\r");
    screen.expect("usage: exit [STATUS]\r\nlodger> ");
    screen.type_in("exit 10\r");
    assert_eq!(running.wait().code(), Some(10));
}
