//! `lodger run --print-config`: the description of a guest, and no guest.

use std::io::{self, ErrorKind, Write};

use lodger::vm::description::Description;

use super::AnyError;

/// Prints it as `--config` reads it, wherever that file is put then.
pub fn print(mut description: Description) -> Result<(), AnyError> {
    description.make_absolute().map_err(|error| format!("cannot make paths absolute: {error}"))?;
    let text = description.to_toml()?;
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write the description: {error}").into())
        }
        _ => Ok(()),
    }
}
