//! Boots a guest of ten bytes: it prints one letter on its serial port and ends the process with that status.
//!
//! `cargo run --example ten_bytes`

use std::sync::Arc;

use lodger::devices::Collected;
use lodger::hv::kvm::Kvm;
use lodger::vm::{Config, Error, Kernel, Machine};

const GUEST: [u8; 10] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'H', //             mov al, 'H'
    0xee, //                   out dx, al      print it
    0xe6, 0xf4, //             out 0xf4, al    end with this status
    0xf4, //                   hlt             never reached
];

fn boot() -> Result<(u8, String), Error> {
    let output = Arc::new(Collected::default());
    let config = Config { kernel: Kernel::Bytes(GUEST.to_vec()), ..Config::default() };
    let machine = Machine::new(&Kvm::open()?, &config, output.clone())?;
    Ok((machine.run().status(), output.text()))
}

fn main() -> Result<(), Error> {
    let (status, text) = boot()?;
    println!("the guest printed {text:?} and ended with status {status}");
    Ok(())
}

#[test]
fn the_guest_prints_its_letter_and_ends_with_it() {
    assert_eq!(boot().unwrap(), (b'H', "H".to_owned()));
}
