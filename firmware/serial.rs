//! The first serial port: all text goes out here and all input comes in.
//!
//! Output is gathered and written in runs of bytes; an emulated UART takes them at any speed, so nothing waits for
//! its transmitter. Input is announced by an interrupt (traps.s sets a flag), and by polling where one is missed.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::port;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO_CONTROL: u16 = DATA + 2;
const INTERRUPT_IDENTITY: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const MODEM_CONTROL: u16 = DATA + 4;
const LINE_STATUS: u16 = DATA + 5;
const MODEM_STATUS: u16 = DATA + 6;
const SCRATCH: u16 = DATA + 7;

const ON_DATA_AND_MODEM_STATUS: u8 = 0x09;
const FIFO_ON: u8 = 0x01; // and no bit that would drop what was received already
const EIGHT_BITS_NO_PARITY: u8 = 0x03;
const READY_WITH_INTERRUPTS: u8 = 0x0b; // DTR, RTS, OUT2
const DATA_READY: u8 = 0x01;
const CARRIER: u8 = 0x80;

/// Set by the interrupt handler; cleared before the port is asked.
#[unsafe(no_mangle)]
pub static serial_wants: AtomicBool = AtomicBool::new(false);
/// Counted by the interrupt handler.
#[unsafe(no_mangle)]
pub static serial_interrupts: AtomicU64 = AtomicU64::new(0);

struct Gathered {
    bytes: [u8; 1024],
    used: usize,
}

struct Output(UnsafeCell<Gathered>);

// SAFETY: there is one thread, and no interrupt handler prints.
unsafe impl Sync for Output {}

static OUTPUT: Output = Output(UnsafeCell::new(Gathered { bytes: [0; 1024], used: 0 }));

impl Gathered {
    fn push(&mut self, byte: u8) {
        if self.used == self.bytes.len() {
            self.flush();
        }
        self.bytes[self.used] = byte;
        self.used += 1;
    }

    fn flush(&mut self) {
        port::write_run(DATA, &self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Gathered {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// Prints formatted text; what `print!` and `println!` call.
pub fn print(text: fmt::Arguments) {
    // SAFETY: one thread, and formatting our own types never prints, so this is the only reference.
    let output = unsafe { &mut *OUTPUT.0.get() };
    let _ = output.write_fmt(text); // cannot fail
    output.flush();
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    port::write_run(DATA, bytes);
}

#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::serial::print(format_args!($($text)*)) };
}

#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Whether a UART answers at the port.
pub fn is_present() -> bool {
    [0x5a, 0xa5].into_iter().all(|pattern| {
        port::write8(SCRATCH, pattern);
        port::read8(SCRATCH) == pattern
    })
}

/// Which UART it is, by the FIFO bits of its interrupt identity.
pub fn model() -> &'static str {
    match port::read8(INTERRUPT_IDENTITY) >> 6 {
        3 => "16550A",
        0 => "16450 (no FIFO)",
        _ => "16550 (broken FIFO)",
    }
}

/// Sets the line up and lets it interrupt.
pub fn listen() {
    port::write8(LINE_CONTROL, EIGHT_BITS_NO_PARITY);
    port::write8(FIFO_CONTROL, FIFO_ON);
    port::write8(MODEM_CONTROL, READY_WITH_INTERRUPTS);
    port::write8(INTERRUPT_ENABLE, ON_DATA_AND_MODEM_STATUS);
}

/// The next received byte, if there is one.
pub fn received() -> Option<u8> {
    (port::read8(LINE_STATUS) & DATA_READY != 0).then(|| port::read8(DATA))
}

/// Whether anything can still come: the other side of the line drops its carrier behind the last byte.
pub fn has_carrier() -> bool {
    port::read8(MODEM_STATUS) & CARRIER != 0
}

/// Whether the port interrupted since the last call.
pub fn wants_attention() -> bool {
    serial_wants.swap(false, Ordering::Relaxed)
}
