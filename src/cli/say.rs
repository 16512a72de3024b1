//! What is told on standard error.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to standard error. Whoever has closed it, or let its disk run full, does not want to know; that is no
/// reason to end with another status, let alone to panic as `eprintln!` does.
pub fn to_standard_error(text: Arguments<'_>) {
    super::detach::keep_messages_short();
    let _: io::Result<()> = io::stderr().write_fmt(text);
}

/// Tells one line on standard error.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::say::to_standard_error(format_args!("{}\n", format_args!($($part)*)))
    };
}

pub(crate) use say;
