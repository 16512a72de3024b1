//! `lodger run --print-config`: the description of a guest, and no guest.

use std::io::{self, Write};

use lodger::vm::description::Description;

use super::AnyError;
use super::say::shown;

/// Prints it as `--config` reads it, wherever that file is put then.
pub fn print(mut description: Description) -> Result<(), AnyError> {
    description.make_absolute().map_err(|error| format!("cannot make paths absolute: {error}"))?;
    let text = description.to_toml()?;
    let mut output = io::stdout();
    shown("the description", output.write_all(text.as_bytes()).and_then(|()| output.flush())).map(drop)
}
