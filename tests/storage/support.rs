//! Running both programs in a directory that goes away.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory for one test.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lodger-images-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A place, unless there is no QEMU to compare with.
    pub fn with_qemu() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: no qemu-img; install qemu-utils");
            return None;
        }
        Some(Self::new())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    fn output(&self, program: &str, line: &str) -> Output {
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).current_dir(&self.0).output().unwrap()
    }

    /// `lodger disk …`: has to work; returns what it prints.
    pub fn disk(&self, line: &str) -> String {
        let output = self.output(env!("CARGO_BIN_EXE_lodger"), &format!("disk {line}"));
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `lodger disk …`: its status and both outputs.
    pub fn try_disk(&self, line: &str) -> (Option<i32>, String) {
        let output = self.output(env!("CARGO_BIN_EXE_lodger"), &format!("disk {line}"));
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    }

    /// `qemu-img …`: has to work.
    pub fn qemu_img(&self, line: &str) -> String {
        let output = self.output("qemu-img", line);
        assert!(output.status.success(), "qemu-img {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Commands for `qemu-io`, separated by semicolons.
    pub fn qemu_io(&self, image: &str, commands: &str) {
        let mut command = Command::new("qemu-io");
        for one in commands.split(';') {
            command.args(["-c", one.trim()]);
        }
        let output = command.arg(image).current_dir(&self.0).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let good = output.status.success() && !text.contains("verification failed");
        assert!(good, "qemu-io {image} {commands}: {output:?}");
    }

    /// Makes a raw image with something at several places.
    pub fn sample(&self, name: &str, len: usize, seed: u64) {
        let mut bytes = vec![0; len];
        let mut state = seed | 1;
        for piece in bytes.chunks_mut(50_000).step_by(3) {
            for byte in piece {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
        }
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
