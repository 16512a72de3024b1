//! Virtio devices as a driver finds them: the embedded guest's `virtio test` in machines that offer different things.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use crate::support::{Scratch, guest, lodger, wait_until};

const SECTOR: usize = 512;
const SIZE: usize = 4 << 20;
/// What disks hold at first.
const BEFORE: u8 = 0x5a;

/// What a machine with one queue, and every other feature, does not offer.
const ONE_QUEUE: &[&str] =
    &["disk feature MQ alone", "disk feature RO alone", "disk refuses writes if read-only"];
const SEVERAL_QUEUES: &[&str] = &["disk feature RO alone", "disk refuses writes if read-only"];
const READ_ONLY: &[&str] = &[
    "disk discard",
    "disk feature DISCARD alone",
    "disk feature MQ alone",
    "disk feature WRITE_ZEROES alone",
    "disk misuse: half a range",
    "disk ranges behind the end",
    "disk ranges that are too long",
    "disk ranges with unknown flags",
    "disk several ranges",
    "disk too many ranges",
    "disk write",
    "disk write zeroes",
];
const NO_REPORTING: &[&str] = &[
    "balloon feature PAGE_POISON alone",
    "balloon feature PAGE_REPORTING alone",
    "balloon misuse: a report of no memory",
    "balloon misuse: a report that is to be read",
    "balloon poisoned pages stay",
    "balloon reported pages are gone",
    "balloon reports of parts of pages",
];

/// Has the guest test its devices; every check passes but those of what is `not_offered`. The names of those that pass.
#[track_caller]
fn passes(arguments: &[&str], test: &str, not_offered: &[&str]) -> BTreeSet<String> {
    let arguments = arguments.iter().map(|&argument| argument.to_owned());
    let finished = lodger(arguments.chain(guest(&format!("{test}; exit"))), "").with(0);
    let named = |word| {
        let names = finished.lines().filter_map(move |line| line.strip_prefix(word));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let (passed, missing) = (named("ok "), named("-- "));
    let expected: Vec<_> = not_offered.iter().map(|name| format!("{name}: not offered")).collect();
    assert_eq!(sorted(&missing), sorted(&expected), "{finished:#?}");
    let sum = format!("{} ok, 0 failed, {} not offered", passed.len(), missing.len());
    // Around them the guest's name, the sum, and nothing.
    let lines: Vec<_> = finished.lines().collect();
    assert_eq!(lines[lines.len() - 2], sum, "{finished:#?}");
    assert_eq!(lines.len(), passed.len() + missing.len() + 3, "{finished:#?}");
    let names: BTreeSet<_> = passed.iter().cloned().collect();
    assert_eq!(names.len(), passed.len(), "two checks of the same name");
    // What the guest did wrong on purpose is told in our own words only, which are bounded.
    let others: Vec<_> =
        finished.stderr.lines().filter(|line| !line.contains("guest's driver misuse")).collect();
    assert!(others.is_empty(), "{others:#?}");
    names
}

fn sorted(names: &[String]) -> Vec<&str> {
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// What the guest's checks leave on a disk with so many queues (firmware/virtio/checks/disk.rs and ranges.rs).
fn written(serial: &str, queues: usize) -> Vec<u8> {
    let mut disk = vec![BEFORE; SIZE];
    disk[2 * SECTOR..3 * SECTOR].fill(0);
    disk[2 * SECTOR..][..serial.len()].copy_from_slice(serial.as_bytes());
    let single = (400..400 + queues).chain(512..512 + 85).chain([11, SIZE / SECTOR - 1]);
    let pieces = [(8, 8), (100, 8), (1024, 1020), (300, 8), (350, 16)].into_iter();
    for (sector, sectors) in pieces.chain(single.map(|sector| (sector, 1))) {
        let words = disk[sector * SECTOR..][..sectors * SECTOR].chunks_exact_mut(8);
        for (index, word) in words.enumerate() {
            let number = (sector << 32 | index) as u64;
            word.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
    }
    for (sector, sectors) in [(128, 128), (302, 3), (351, 1), (358, 2)] {
        disk[sector * SECTOR..][..sectors * SECTOR].fill(0);
    }
    disk
}

/// Makes an image of what disks hold at first.
fn image(scratch: &Scratch) -> String {
    scratch.file("disk.raw", &vec![BEFORE; SIZE])
}

#[track_caller]
fn has(path: &str, expected: &[u8]) {
    let found = fs::read(path).unwrap();
    assert_eq!(found.len(), expected.len());
    let differs =
        found.chunks(SECTOR).zip(expected.chunks(SECTOR)).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "the first sector of {path} with something else");
}

/// What a guest would find in an image.
fn contents(scratch: &Scratch, image: &str) -> String {
    let raw = scratch.at("contents.raw");
    lodger(["disk", "convert", image, &raw], "").with(0);
    raw
}

#[test]
fn a_raw_disk_passes_and_holds_what_was_written() {
    let scratch = Scratch::new();
    let path = image(&scratch);
    passes(&["--disk", &format!("{path},serial=serial number 7")], "virtio test", ONE_QUEUE);
    has(&path, &written("serial number 7", 1));
}

#[test]
fn a_direct_disk_with_several_queues_passes_and_holds_what_was_written() {
    let scratch = Scratch::new();
    let path = image(&scratch);
    let arguments = ["--disk", &format!("{path},direct,queues=4,serial=x")];
    let names = passes(&arguments, "virtio test", SEVERAL_QUEUES);
    // Each check passes on some machine.
    let only_here = ONE_QUEUE.iter().filter(|name| !SEVERAL_QUEUES.contains(name));
    assert!(only_here.into_iter().all(|&name| names.contains(name)), "{names:?}");
    has(&path, &written("x", 4));
}

#[test]
fn a_qcow2_disk_passes_and_holds_what_was_written() {
    let scratch = Scratch::new();
    let (raw, path) = (image(&scratch), scratch.at("disk.qcow2"));
    lodger(["disk", "convert", &raw, &path], "").with(0);
    passes(&["--disk", &path], "virtio test own", ONE_QUEUE);
    has(&contents(&scratch, &path), &written("", 1));
}

#[test]
fn an_overlay_passes_and_holds_what_was_written_above_an_image_that_stays() {
    let scratch = Scratch::new();
    let (path, overlay) = (image(&scratch), scratch.at("overlay.qcow2"));
    passes(&["--disk", &format!("{path},format=raw,overlay={overlay}")], "virtio test own", ONE_QUEUE);
    has(&path, &[BEFORE; SIZE]);
    has(&contents(&scratch, &overlay), &written("", 1));
}

#[test]
fn an_overlay_that_is_forgotten_passes_and_its_image_stays() {
    let scratch = Scratch::new();
    let path = image(&scratch);
    passes(&["--disk", &format!("{path},overlay,queues=2")], "virtio test own", SEVERAL_QUEUES);
    has(&path, &[BEFORE; SIZE]);
}

#[test]
fn a_disk_that_is_only_read_passes_and_stays_as_it_is() {
    let scratch = Scratch::new();
    let path = image(&scratch);
    let names = passes(&["--disk", &format!("{path},ro")], "virtio test", READ_ONLY);
    assert!(SEVERAL_QUEUES.iter().all(|&name| names.contains(name)), "{names:?}");
    has(&path, &[BEFORE; SIZE]);
}

#[test]
fn an_ephemeral_disk_passes() {
    passes(&["--disk", "ephemeral,size=2M"], "virtio test own", ONE_QUEUE);
}

#[test]
fn an_ephemeral_disk_can_be_one_that_is_only_read() {
    const READ_ONLY: u64 = 1 << 5;
    let disk = ["--disk", "ephemeral,size=2M,ro"].map(str::to_owned);
    let finished = lodger(disk.into_iter().chain(guest("virtio; exit")), "").with(0);
    let (_, features) = finished.stdout.split_once("features 0x").unwrap();
    assert_ne!(u64::from_str_radix(features.trim(), 16).unwrap() & READ_ONLY, 0, "{finished:#?}");
}

#[test]
fn a_balloon_passes() {
    passes(&["--balloon=16M"], "virtio test", &[]);
    passes(&["--balloon=0,no-reporting"], "virtio test", NO_REPORTING);
}

/// Connects to a socket as soon as there is one, and gives back whatever comes.
fn echo(path: String) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut connected = None;
        wait_until("there is a socket", || {
            connected = UnixStream::connect(&path).ok();
            connected.is_some()
        });
        let (mut stream, mut buffer) = (connected.unwrap(), [0; 700]);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..count]).unwrap();
        }
    })
}

#[test]
fn ports_pass_and_carry_what_the_guest_says() {
    let scratch = Scratch::new();
    let (log, socket) = (scratch.at("log.txt"), scratch.at("echo"));
    let peer = echo(socket.clone());
    let arguments = ["--port", &format!("log,file={log}"), "--port", &format!("echo,socket={socket}")];
    passes(&arguments, "virtio test", &[]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "lodger: port 1\n");
    peer.join().unwrap();
}

/// A console by itself is of the simple kind. Its output and that of the serial port are shown together.
#[test]
fn a_console_passes_and_shows_what_the_guest_says() {
    let scratch = Scratch::new();
    let shown = scratch.at("console.txt");
    let arguments = ["--console".to_owned(), format!("virtio,file={shown}")];
    lodger(arguments.into_iter().chain(guest("virtio test; exit")), "").with(0);
    let shown = fs::read_to_string(&shown).unwrap();
    assert!(shown.contains("lodger: one port\n"), "{shown}");
}

#[test]
fn a_measurement_whose_requests_fail_has_failed() {
    for (options, status) in [(",ro", 1), ("", 0)] {
        let disk = ["--disk".to_owned(), format!("ephemeral,size=1M{options}")];
        lodger(disk.into_iter().chain(guest("disk write 4096 1 4; exit")), "").with(status).silent();
    }
}

/// So much that the rings' indices begin anew, too.
#[test]
fn random_numbers_pass_for_longer() {
    let names = passes(&["--rng"], "virtio test long", &[]);
    assert!(names.contains("rng ring indices wrap around"));
}

#[test]
fn a_machine_without_devices_fails_the_test() {
    let finished = lodger(guest("virtio test; exit"), "").with(1).silent();
    let said = ["there is no device; virtio lists what there is", "0 ok, 1 failed, 0 not offered"];
    assert!(said.iter().all(|said| finished.lines().any(|line| line == *said)), "{finished:#?}");
}
