//! The kernels and initramfs that `scripts/linux` builds, once, and caches.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What `scripts/linux --paths` printed: `name=value` lines.
pub struct Files(HashMap<String, String>);

impl Files {
    /// The value called `name`.
    #[track_caller]
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("scripts/linux --paths says nothing of {name}"))
    }

    /// The same, for those that are paths.
    #[track_caller]
    pub fn path(&self, name: &str) -> &str {
        let path = self.get(name);
        assert!(std::path::Path::new(path).is_file(), "{path} is not there");
        path
    }
}

/// One processor, no ACPI.
pub fn tiny() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| built("tiny"))
}

/// Several processors, found by ACPI.
pub fn smp() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| built("smp"))
}

/// Has it built if it is not in the cache, which takes minutes; what goes on is seen on standard error.
fn built(variant: &str) -> Files {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/linux"));
    command.args(["--variant", variant, "--paths"]).stderr(Stdio::inherit());
    let output = command.output().expect("scripts/linux can be started");
    assert!(output.status.success(), "scripts/linux --variant {variant}: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("paths are text");
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Files(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
