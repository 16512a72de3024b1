//! `lodger snapshot`: what it says of a snapshot that is kept for the tests, and of what is none.

use std::fs;

use serde_json::Value;

use crate::support::{Scratch, lodger};

const STORED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/v1");

#[test]
fn info_says_what_the_header_says() {
    let finished = lodger(["snapshot", "info", STORED], "").with(0).silent();
    assert!(finished.stdout.lines().any(|line| line == "memory        2 MiB"), "{finished:?}");
    assert!(finished.stdout.lines().any(|line| line.starts_with("section       vcpu/0 ")), "{finished:?}");
    let finished = lodger(["snapshot", "info", STORED, "--json"], "").with(0).silent();
    let info: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&info["format"], &info["memory-size"]), (&1.into(), &(2 << 20).into()));
    assert_eq!(info["sections"][0]["name"], "machine");
}

#[test]
fn info_needs_the_header_only_and_check_reads_everything() {
    let scratch = Scratch::new();
    for name in ["state", "memory"] {
        fs::copy(format!("{STORED}/{name}"), scratch.at(name)).unwrap();
    }
    let place = scratch.path().to_str().unwrap();
    lodger(["snapshot", "check", place], "").with(0).silent();
    let mut memory = fs::read(scratch.at("memory")).unwrap();
    memory[0x12_3456] ^= 1;
    fs::write(scratch.at("memory"), memory).unwrap();
    let finished = lodger(["snapshot", "check", place], "").with(1);
    assert!(finished.stderr.contains("the MiB at 0x100000 is not what was written"), "{finished:?}");
    let finished = lodger(["snapshot", "check", place, "--json"], "").with(1).silent();
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["sound"], false);
    fs::remove_file(scratch.at("memory")).unwrap();
    lodger(["snapshot", "info", place], "").with(0).silent();
}

#[test]
fn what_is_no_snapshot_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let place = scratch.path().to_str().unwrap();
    for command in ["info", "check"] {
        let finished = lodger(["snapshot", command, place], "").with(1);
        assert!(
            finished.stderr.contains("it has no file `state`; `lodger snapshot NAME DIR` takes one"),
            "{finished:?}"
        );
    }
    scratch.file(
        "state",
        b"LODGSNAP\x02\0\0\0 and whatever comes with version 2, which is more than a header is long: \
                            that has 128 bytes, of which this one knows but the first twelve",
    );
    let finished = lodger(["snapshot", "info", place], "").with(1);
    assert!(finished.stderr.contains("version 2 of the snapshot format"), "{finished:?}");
}
