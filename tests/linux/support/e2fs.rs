//! Ext4 file systems, made and checked by the host's e2fsprogs.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

/// Debian has them in `/usr/sbin`, which is not in everybody's path.
fn run(program: &str, arguments: &[&str]) -> Output {
    let path = ["/usr/sbin", "/sbin"].iter().map(|directory| Path::new(directory).join(program));
    let path = path.into_iter().find(|path| path.exists()).unwrap_or_else(|| program.into());
    let output = Command::new(&path).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{}: {error}; install e2fsprogs", path.display()))
}

/// Makes a file system of `size` bytes in a raw image, with what is in the directory `contents`.
#[track_caller]
pub fn make(image: &str, size: u64, contents: Option<&str>) {
    File::create(image).unwrap().set_len(size).unwrap();
    // What Linux would do in the background is done now, so that overlays hold what their guests write.
    let mut arguments =
        vec!["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"];
    arguments.extend(contents.iter().flat_map(|directory| ["-d", directory]));
    arguments.push(image);
    let output = run("mke2fs", &arguments);
    assert!(output.status.success(), "{output:?}");
}

/// Does what every start of a system does with a file system that was in use: recovers its journal. Damage that it
/// could not put right by itself fails.
#[track_caller]
pub fn recover(image: &str) {
    let output = run("e2fsck", &["-p", image]);
    // 1: something was changed, as by recovering.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
}

/// Checks all of it.
#[track_caller]
pub fn check(image: &str) {
    let output = run("e2fsck", &["-f", "-n", image]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Copies all its files into a directory.
#[track_caller]
pub fn extract(image: &str, directory: &str) {
    let output = run("debugfs", &["-R", &format!("rdump / {directory}"), image]);
    assert!(output.status.success(), "{output:?}");
}
