//! What is told on standard error, and what becomes of standard output.

use std::fmt::Arguments;
use std::io::{self, Write};

use super::AnyError;

/// Writes to standard error. Whoever has closed it, or let its disk run full, does not want to know; that is no
/// reason to end with another status, let alone to panic as `eprintln!` does.
pub fn to_standard_error(text: Arguments<'_>) {
    super::detach::keep_messages_short();
    let _: io::Result<()> = io::stderr().write_fmt(text);
}

/// What came of writing to standard output: whether anybody reads it. A reader that went away wants no more of it.
pub fn shown(what: &str, written: io::Result<()>) -> Result<bool, AnyError> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("cannot print {what}: {error}").into()),
    }
}

/// Tells one line on standard error.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::say::to_standard_error(format_args!("{}\n", format_args!($($part)*)))
    };
}

pub(crate) use say;
