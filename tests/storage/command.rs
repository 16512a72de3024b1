//! `lodger disk` as somebody at a shell uses it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::Place;

#[test]
fn every_subcommand_explains_itself_with_examples() {
    let place = Place::new();
    let names = ["create", "info", "convert", "commit", "rebase", "resize", "check", "hash", "diff", "sync"];
    for name in names {
        let help = place.disk(&format!("{name} --help"));
        assert!(help.contains("Example") && help.contains("--json"), "{name}: {help}");
    }
}

#[test]
fn results_are_json_where_that_is_asked_for() {
    let place = Place::new();
    place.sample("a.raw", 1 << 20, 1);
    for line in [
        "create b.qcow2 --backing a.raw --json",
        "info b.qcow2 --json",
        "convert b.qcow2 c.raw --json",
        "check b.qcow2 --json",
        "hash b.qcow2 --json",
        "diff b.qcow2 c.raw --json",
        "sync a.raw c.raw --json",
        "resize b.qcow2 2M --json",
        "rebase b.qcow2 --none --json",
        "create d.qcow2 --backing b.qcow2 --json",
        "commit d.qcow2 --json",
    ] {
        let text = place.disk(line);
        serde_json::from_str::<serde_json::Value>(&text)
            .unwrap_or_else(|error| panic!("{line}: {error}: {text}"));
    }
}

#[test]
fn wrong_usage_is_status_2_and_what_cannot_be_done_is_1() {
    let place = Place::new();
    for line in ["create x", "create x --size much", "rebase x", "resize x", "frobnicate"] {
        assert_eq!(place.try_disk(line).0, Some(2), "{line}");
    }
    for line in
        ["info none", "create nowhere/x --size 1M", "create . --size 1M", "check none", "create x --size 8E"]
    {
        let (status, text) = place.try_disk(line);
        assert_eq!(status, Some(1), "{line}: {text}");
        assert_eq!(text.lines().count(), 1, "{line}: {text}");
    }
}

#[test]
fn sizes_are_read_as_those_of_memory() {
    let place = Place::new();
    place.disk("create x.raw --size 1.5M");
    place.disk("resize x.raw +0.25M");
    assert_eq!(std::fs::metadata(place.path("x.raw")).unwrap().len(), 1792 << 10);
    let (_, text) = place.try_disk("create y.raw --size much");
    assert!(text.contains("\"much\" is not a size") && text.contains("3.5G"), "{text}");
}

#[test]
fn nothing_is_overwritten_without_force() {
    let place = Place::new();
    place.sample("a.raw", 1 << 20, 1);
    for line in ["create a.raw --size 1M", "convert a.raw a.raw", "create a.raw --backing a.raw"] {
        assert_eq!(place.try_disk(line).0, Some(1), "{line}");
    }
    place.sample("b.raw", 1 << 20, 2);
    place.disk("convert a.raw b.raw --force");
    assert_eq!(std::fs::read(place.path("a.raw")).unwrap(), std::fs::read(place.path("b.raw")).unwrap());
    // Into itself.
    place.disk("create o.qcow2 --backing a.raw");
    for (line, said) in [
        ("convert a.raw a.raw --force", "are the same"),
        ("convert o.qcow2 a.raw --force", "lies on it"),
        ("create a.raw --backing a.raw --force", "are the same"),
        ("sync a.raw ./a.raw", "are the same"),
    ] {
        let (status, text) = place.try_disk(line);
        assert!(status == Some(1) && text.contains(said), "{line}: {text}");
    }
}

#[test]
fn a_conversion_that_is_killed_leaves_nothing_half_made() {
    let place = Place::new();
    place.sample("a.raw", 200 << 20, 1);
    for milliseconds in [5, 20, 60, 100] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lodger"))
            .args(["disk", "convert", "a.raw", "b.qcow2"])
            .current_dir(place.dir())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let there: Vec<_> =
            std::fs::read_dir(place.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if status.signal().is_some() {
            assert_eq!(there, ["a.raw"], "after {milliseconds} ms");
        } else {
            // It was faster.
            std::fs::remove_file(place.path("b.qcow2")).unwrap();
        }
    }
}

#[test]
fn a_template_is_proved_unchanged_by_its_hash() {
    let place = Place::new();
    place.sample("template.raw", 2 << 20, 1);
    let before = place.disk("hash template.raw");
    place.disk("create vm.qcow2 --backing template.raw");
    place.sample("other.raw", 2 << 20, 2);
    place.disk("sync other.raw vm.qcow2");
    assert_eq!(place.disk("hash template.raw --verify"), before);
    let mut bytes = std::fs::read(place.path("template.raw")).unwrap();
    bytes[1 << 20] ^= 1;
    std::fs::write(place.path("template.raw"), bytes).unwrap();
    let (status, text) = place.try_disk("hash template.raw --verify");
    assert_eq!(status, Some(1));
    assert!(text.contains("not what was hashed"), "{text}");
}

#[test]
fn an_image_that_may_not_grow_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    place.sample("disk.raw", 8 << 20, 1);
    // In units of 1024 bytes.
    let line = format!(
        "ulimit -f 1024; {} disk convert disk.raw new.qcow2 --format qcow2",
        env!("CARGO_BIN_EXE_lodger")
    );
    let output = Command::new("bash").args(["-c", &line]).current_dir(place.dir()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert!(!place.path("new.qcow2").exists());
}

#[test]
fn why_an_image_cannot_be_opened_is_json_too() {
    let place = Place::new();
    place.disk("create good.qcow2 --size 1M");
    let good = std::fs::read(place.path("good.qcow2")).unwrap();
    let changed = |name: &str, at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        std::fs::write(place.path(name), bytes).unwrap();
    };
    changed("zstd.qcow2", 79, &[8]);
    changed("damaged.qcow2", 40, &[0x7f; 8]);
    changed("disk.vmdk", 0, b"KDMV");
    std::fs::write(place.path("short.qcow2"), &good[..80]).unwrap();
    place.disk("create disk.qcow2 --size 1M");
    place.disk("rebase disk.qcow2 --unsafe --backing /etc/passwd --backing-format raw");
    std::fs::rename(place.path("disk.qcow2"), place.path("disk.raw")).unwrap();
    for (name, format, said) in [
        ("zstd.qcow2", "qcow2", "zstd"),
        ("damaged.qcow2", "qcow2", "L1 table"),
        ("disk.vmdk", "", "VMDK"),
        ("short.qcow2", "qcow2", "ends in its header"),
        ("disk.raw", "qcow2", "/etc/passwd"),
    ] {
        let (status, text) = place.try_disk(&format!("info {name} --json"));
        assert_eq!(status, Some(1), "{text}");
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(info["format"].as_str().unwrap_or_default(), format, "{text}");
        assert!(info["problem"].as_str().is_some_and(|problem| problem.contains(said)), "{text}");
        let (status, text) = place.try_disk(&format!("info {name}"));
        assert!(status == Some(1) && text.contains("\nproblem ") && text.contains(said), "{text}");
    }
    let (status, text) = place.try_disk("resize zstd.qcow2 +1M");
    assert!(status == Some(1) && text.contains("zstd"), "{text}");
}

#[test]
fn errors_say_what_can_be_done() {
    let place = Place::new();
    place.sample("a.raw", 1 << 20, 1);
    std::fs::write(place.path("disk.vmdk"), b"KDMV".repeat(512)).unwrap();
    // A bit of the refcount table that has no meaning.
    place.disk("create bits.qcow2 --size 1M");
    let mut bytes = std::fs::read(place.path("bits.qcow2")).unwrap();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    bytes[table + 7] |= 1;
    std::fs::write(place.path("bits.qcow2"), bytes).unwrap();
    for (line, said) in [
        ("create nowhere/x --size 1M", "make the directory first"),
        ("create nowhere/x.qcow2 --backing a.raw", "make the directory first"),
        ("info nowhere/x", "makes an image"),
        ("rebase a.raw --none", "no qcow2 image; name one that is"),
        ("convert disk.vmdk x", "--from"),
        ("sync a.raw bits.qcow2", "`lodger disk check` tells"),
        ("create x --size 7E", "choose a smaller size"),
    ] {
        let (status, text) = place.try_disk(line);
        assert!(status == Some(1) && text.contains(said), "{line}: {text}");
    }
    for (line, said) in [
        ("create x --size 16E", "sizes are below 16E"),
        ("create x --size 0", "whole sectors"),
        ("create x --size 1000", "whole sectors"),
        ("resize a.raw 1000", "whole sectors"),
        ("resize a.raw +1", "whole sectors"),
    ] {
        let (status, text) = place.try_disk(line);
        assert!(status == Some(2) && text.contains(said), "{line}: {text}");
    }
}

#[test]
fn a_sync_says_what_it_cut_off() {
    let place = Place::new();
    for (name, size) in [("a.raw", 1), ("b.raw", 3)] {
        place.disk(&format!("create {name} --size {size}M"));
    }
    assert_eq!(
        place.disk("sync a.raw b.raw --shrink"),
        "moved 0 bytes of 1 MiB to b.raw, cut 2 MiB off its end\n"
    );
    assert_eq!(place.disk("sync a.raw b.raw --shrink"), "moved 0 bytes of 1 MiB to b.raw\n");
}
