//! Linux whose root file system is on a disk: it boots from it, lives on it, and finds at the next boot what it left.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::support::{Finished, Linux, Scratch, e2fs, has_line, lodger, tiny};

const MIB: u64 = 1 << 20;

/// A raw image with what is in the test guest's initramfs, as ext4.
fn template(scratch: &Scratch) -> String {
    let (path, contents) = (scratch.at("template.raw"), scratch.at("contents"));
    fs::create_dir(&contents).unwrap();
    let archive = File::open(tiny().path("initramfs")).unwrap();
    let mut unpack = Command::new("cpio");
    unpack.args(["--extract", "--make-directories", "--quiet"]).current_dir(&contents).stdin(archive);
    assert!(unpack.stderr(Stdio::inherit()).status().expect("there is cpio").success());
    e2fs::make(&path, 32 * MIB, Some(&contents));
    path
}

/// Boots from the disk, without an initial file system.
fn boot(disk: &str, script: &str) -> Finished {
    let linux = Linux::new(tiny()).parameters("root=/dev/vda rw init=/init").options(&["--disk", disk]);
    linux.run_script_from_disk(script).with(0)
}

#[test]
fn a_root_file_system_on_an_overlay_outlives_reboots_and_leaves_its_template_alone() {
    let scratch = Scratch::new();
    let template = template(&scratch);
    let hash = || lodger(["disk", "hash", "--no-keep", &template], "").with(0).stdout;
    let before = hash();
    let overlay = scratch.at("overlay.qcow2");
    lodger(["disk", "create", &overlay, "--backing", &template], "").with(0);
    let born = fs::metadata(&overlay).unwrap();
    assert!(born.len() <= 512 << 10 && born.blocks() * 512 <= 512 << 10, "{born:?}");

    // Until the first process has heard of the wish the script has to last.
    let script =
        "grep ' / ' /proc/mounts; echo kept >/root/file; md5sum /bin/busybox >/root/sum; reboot; sleep 1000";
    let finished = boot(&overlay, script).silent();
    assert!(finished.lines().any(|line| line.starts_with("/dev/root / ext4 rw")), "{finished:?}");
    let finished = boot(&overlay, "cat /root/file; md5sum -c /root/sum; reboot; sleep 1000").silent();
    has_line(&finished, "kept");
    has_line(&finished, "/bin/busybox: OK");
    lodger(["disk", "check", &overlay], "").with(0);

    // Changes that are forgotten: those that were kept are not there, and neither are its own the next time.
    let forgotten = format!("{template},overlay");
    for _ in 0..2 {
        let finished = boot(
            &forgotten,
            "cat /root/file || echo nothing; echo lost >/root/file; sync; reboot; sleep 1000",
        );
        has_line(&finished.silent(), "nothing");
    }
    assert_eq!(hash(), before, "the template has changed");
}
