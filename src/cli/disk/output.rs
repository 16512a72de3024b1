//! How results and progress are shown.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use lodger::storage::tools::{Info, info};
use lodger::storage::{DEEPEST, Format};
use serde::Serialize;

use crate::cli::AnyError;
use crate::cli::say::{shown, to_standard_error};

/// Prints a result: as JSON, or in words.
pub fn print<T: Serialize>(json: bool, result: &T, words: impl FnOnce(&T) -> String) -> Result<(), AnyError> {
    let text = if json { serde_json::to_string(result)? } else { words(result) };
    if text.is_empty() {
        return Ok(());
    }
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{}", text.trim_end()).and_then(|()| output.flush());
    shown("the result", written).map(drop)
}

/// Tells what was made.
pub fn print_image(json: bool, path: &Path, format: Format) -> Result<(), AnyError> {
    let info = info(path, Some(format))?;
    print(json, &info, |info| format!("made {}", in_a_line(info)))
}

fn in_a_line(info: &Info) -> String {
    let image = &info.image;
    let behind = match &image.backing {
        Some(backing) => format!(" on {backing}"),
        None => String::new(),
    };
    let [format, disk] = [image.format.map(|format| format.to_string()), image.virtual_size.map(size)]
        .map(Option::unwrap_or_default);
    format!("{}: {format}, {disk}{behind}, takes {}", image.path.display(), size(image.allocated))
}

/// How long a chain of images is, and how to have a shorter one.
pub fn chain(images: usize) -> String {
    format!(
        "{images} images, and {DEEPEST} are the most; `lodger disk convert` copies what they show into one"
    )
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let unit = (bytes.ilog2() / 10) as usize;
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    let digits = if value.fract() == 0.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit - 1])
}

/// Shows on a terminal how far the work is, after a moment, and takes it away at the end.
pub struct Progress {
    shown: bool,
    next: Instant,
    enabled: bool,
}

impl Progress {
    /// Quiet unless standard error is a terminal.
    pub fn new(json: bool) -> Self {
        let enabled = !json && io::stderr().is_terminal();
        Self { shown: false, next: Instant::now() + Duration::from_millis(300), enabled }
    }

    /// What the work is to call.
    pub fn report(&mut self) -> impl FnMut(u64, u64) {
        |done, all| self.update(done, all)
    }

    fn update(&mut self, done: u64, all: u64) {
        if !self.enabled || all == 0 || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + Duration::from_millis(100);
        self.shown = true;
        let share = (u128::from(done) * 100 / u128::from(all)).min(100);
        to_standard_error(format_args!("\r{share:3} %\x1b[K"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            to_standard_error(format_args!("\r\x1b[K"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1024), "1 KiB");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1 << 40), "1 TiB");
        assert_eq!(size(u64::MAX), "16 EiB");
    }
}
