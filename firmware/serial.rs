//! The first serial port: all text goes out here and all input comes in.
//!
//! Output is gathered and written in runs of bytes; an emulated UART takes them at any speed, so nothing waits for
//! its transmitter. Input is announced by an interrupt (traps.s sets a flag), and looked for regularly where one is
//! missed.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{port, ring0};

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO_CONTROL: u16 = DATA + 2;
const INTERRUPT_IDENTITY: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const MODEM_CONTROL: u16 = DATA + 4;
const SCRATCH: u16 = DATA + 7;

const ON_DATA_AND_MODEM_STATUS: u8 = 0x09;
const FIFO_ON: u8 = 0x01; // and no bit that would drop what was received already
const EIGHT_BITS_NO_PARITY: u8 = 0x03;
const READY_WITH_INTERRUPTS: u8 = 0x0b; // DTR, RTS, OUT2
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
        if self.used > 0 {
            ring0::write_run(DATA, &self.bytes[..self.used]);
            self.used = 0;
        }
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

fn with_output<R>(work: impl FnOnce(&mut Gathered) -> R) -> R {
    // SAFETY: one thread, and neither formatting our own types nor writing to the port prints anything, so this is
    // the only reference.
    work(unsafe { &mut *OUTPUT.0.get() })
}

/// Prints formatted text; what `print!` and `println!` call.
pub fn print(text: fmt::Arguments) {
    with_output(|output| {
        let _ = output.write_fmt(text); // cannot fail
        output.flush();
    });
}

/// Gathers bytes as they are, to be written when there is a good number of them or at [`flush`].
pub fn write(bytes: &[u8]) {
    with_output(|output| bytes.iter().for_each(|&byte| output.push(byte)));
}

/// Writes what has been gathered.
pub fn flush() {
    with_output(Gathered::flush);
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

/// Takes what was received: how many bytes. Nothing means that nothing will come any more: the other side of the
/// line drops its carrier behind the last byte.
pub fn receive(into: &mut [u8]) -> Option<usize> {
    match ring0::receive(into) {
        (0, status) if status & CARRIER == 0 => None,
        (count, _) => Some(count),
    }
}

/// Whether the port interrupted since the last call.
pub fn wants_attention() -> bool {
    serial_wants.swap(false, Ordering::Relaxed)
}
