//! What one program writes, the other reads.

use crate::support::Place;

#[test]
fn qemu_finds_our_images_sound_and_reads_what_is_in_them() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 5_000_192, 1);
    place.disk("convert source.raw copy.qcow2");
    place.qemu_img("check copy.qcow2");
    place.qemu_img("compare -f raw -F qcow2 source.raw copy.qcow2");
    place.disk("create empty.qcow2 --size 3G");
    place.qemu_img("check empty.qcow2");
    assert!(place.qemu_img("info --output=json empty.qcow2").contains("3221225472"));
}

#[test]
fn we_read_what_qemu_writes_whatever_its_options() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 3 << 20, 2);
    for (number, options) in [
        "",
        "-c",
        "-o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o refcount_bits=1",
        "-o refcount_bits=64,cluster_size=4k",
        "-o lazy_refcounts=on",
        "-o preallocation=metadata",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{number}.qcow2");
        place.qemu_img(&format!("convert -f raw -O qcow2 {options} source.raw {name}"));
        let (status, text) = place.try_disk(&format!("diff source.raw {name}"));
        assert_eq!(status, Some(0), "{options}: {text}");
        let check = place.disk(&format!("check {name} --json"));
        assert!(check.contains("\"corruptions\":0,\"leaks\":0"), "{options}: {check}");
    }
}

#[test]
fn what_we_cannot_read_says_what_to_do() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 1 << 20, 2);
    for (format, options) in [
        ("vmdk", ""),
        ("vdi", ""),
        ("vhdx", ""),
        ("qcow2", "-c -o compression_type=zstd"),
        ("qcow2", "-o extended_l2=on"),
        ("qcow2", "-o data_file=elsewhere"),
    ] {
        place.qemu_img(&format!("convert -f raw -O {format} {options} source.raw other"));
        let (status, text) = place.try_disk("convert other copy.raw");
        assert_eq!(status, Some(1), "{format} {options}");
        assert!(text.contains("qemu-img convert") && text.lines().count() == 1, "{format} {options}: {text}");
        std::fs::remove_file(place.path("other")).unwrap();
    }
}

#[test]
fn qemu_reads_our_overlays_and_we_read_its() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("base.raw", 4 << 20, 3);
    place.disk("create ours.qcow2 --backing base.raw");
    place.qemu_io("ours.qcow2", "write -P 7 1M 200k; write -z 2M 64k; discard 3M 64k");
    place.qemu_img("create -f qcow2 -b ours.qcow2 -F qcow2 theirs.qcow2");
    place.qemu_io("theirs.qcow2", "write -P 9 1100k 100k");
    place.disk("create top.qcow2 --backing theirs.qcow2");
    place.qemu_img("convert -O raw top.qcow2 all.raw");
    assert_eq!(place.try_disk("diff top.qcow2 all.raw").0, Some(0));
    let info = place.disk("info top.qcow2 --json");
    assert_eq!(info.matches("\"path\"").count(), 4, "{info}");
}

#[test]
fn qemu_agrees_with_what_the_tools_did() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("base.raw", 4 << 20, 4);
    place.sample("other.raw", 3 << 20, 5);
    place.disk("create top.qcow2 --backing base.raw");
    place.qemu_io("top.qcow2", "write -P 1 100k 700k; write -z 1M 128k; write -P 2 3M 1M");
    place.qemu_img("convert -O raw top.qcow2 before.raw");
    place.disk("rebase top.qcow2 --backing other.raw");
    place.qemu_img("check top.qcow2");
    place.qemu_img("compare top.qcow2 before.raw");
    place.disk("rebase top.qcow2 --backing base.raw");
    place.disk("resize top.qcow2 +1M");
    place.qemu_img("check top.qcow2");
    place.qemu_io("top.qcow2", "read -P 0 4M 1M; write -P 6 4500k 10k");
    place.disk("commit top.qcow2");
    place.qemu_img("check top.qcow2");
    place.qemu_img("compare -f raw -F qcow2 base.raw top.qcow2");
    place.qemu_io("base.raw", "read -P 6 4500k 10k; read -P 0 1M 128k");
    place.disk("rebase top.qcow2 --none");
    std::fs::remove_file(place.path("base.raw")).unwrap();
    place.qemu_io("top.qcow2", "read -P 6 4500k 10k; read -P 2 3M 1M");
}

#[test]
fn a_check_agrees_with_qemus_and_repairs_what_it_finds() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 3 << 20, 6);
    place.disk("convert source.raw image.qcow2");
    // QEMU says where the blocks of reference counts are: the third cluster of an image of ours.
    let path = place.path("image.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() / 65536;
    for cluster in [6, 8] {
        bytes[2 * 65536 + cluster * 2 + 1] = 0;
    }
    bytes[2 * 65536 + (end + 3) * 2 + 1] = 1;
    std::fs::write(&path, bytes).unwrap();
    let (status, text) = place.try_disk("check image.qcow2 --json");
    assert_eq!(status, Some(1));
    assert!(text.contains("\"leaks\":1"), "{text}");
    place.disk("check image.qcow2 --repair");
    place.qemu_img("check image.qcow2");
    assert_eq!(place.try_disk("diff image.qcow2 source.raw").0, Some(0));
}

#[test]
fn snapshots_inside_an_image_are_no_leaks_and_stay() {
    let Some(place) = Place::with_qemu() else { return };
    place.sample("source.raw", 2 << 20, 7);
    place.disk("convert source.raw image.qcow2");
    place.qemu_img("snapshot -c first image.qcow2");
    let check = place.disk("check image.qcow2 --json");
    assert!(check.contains("\"corruptions\":0,\"leaks\":0"), "{check}");
    // We write into what the snapshot shares.
    place.sample("changed.raw", 2 << 20, 8);
    place.disk("sync changed.raw image.qcow2");
    place.qemu_img("check image.qcow2");
    let check = place.disk("check image.qcow2 --json");
    assert!(check.contains("\"corruptions\":0,\"leaks\":0"), "{check}");
    place.qemu_img("compare -f raw -F qcow2 changed.raw image.qcow2");
    place.qemu_img("snapshot -a first image.qcow2");
    place.qemu_img("compare -f raw -F qcow2 source.raw image.qcow2");
    assert!(place.try_disk("resize image.qcow2 +1M").1.contains("snapshot"));
}

#[test]
fn locks_are_seen_by_both() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let Some(place) = Place::with_qemu() else { return };
    place.disk("create base.qcow2 --size 1M");
    place.disk("create image.qcow2 --backing base.qcow2");
    let mut holder = Command::new("qemu-io")
        .arg("image.qcow2")
        .current_dir(place.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.take().unwrap();
    // Once it has answered, it has the image.
    writeln!(input, "length").unwrap();
    let mut answer = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    for line in
        ["check image.qcow2 --repair", "resize image.qcow2 2M", "resize base.qcow2 2M", "commit image.qcow2"]
    {
        let (status, text) = place.try_disk(line);
        assert_eq!(status, Some(1), "{line}: {text}");
        let named = format!("process {} (qemu-io)", holder.id());
        assert!(text.contains("is in use by") && text.contains(&named), "{line}: {text}");
    }
    place.disk("info image.qcow2");
    place.disk("create second.qcow2 --backing base.qcow2");
    drop(input);
    holder.wait().unwrap();
    place.disk("resize image.qcow2 2M");
}
