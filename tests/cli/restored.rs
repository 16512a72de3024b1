//! `lodger snapshot` and `lodger restore`: guests that go on where they were, whatever became of the process that ran
//! them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use lodger::hv::kvm::Kvm;
use lodger::hv::{Hypervisor, SavedClock};
use lodger::saved::Saved;
use lodger::snapshot::{Draft, Section, Snapshot};
use lodger::vm::description::Description;
use lodger::vm::{Kernel, SavedDescription};
use serde_json::Value;

use crate::support::{Running, Screen, Session, guest, wait_until};

/// What the guest has counted, as far as whole lines tell.
fn counted(log: &str) -> Vec<u64> {
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.strip_prefix("count ")?.parse().ok()).collect()
}

/// Waits until a machine has counted to `number`; what it has counted.
#[track_caller]
fn wait_for_count(session: &Session, name: &str, number: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    wait_until("it counts", || {
        numbers = counted(&session.run(&["logs", name]).stdout);
        numbers.last().is_some_and(|&last| last >= number)
    });
    numbers
}

#[track_caller]
fn assert_no_gap(numbers: &[u64]) {
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// Restores without a terminal.
#[track_caller]
fn restore(session: &Session, place: &str, more: &[&str]) -> String {
    let line = [&["restore", place, "--detach"], more].concat();
    session.run(&line).with(0).silent().stdout.trim().to_owned()
}

#[test]
fn a_guest_goes_on_where_it_was_when_its_process_was_killed() {
    let session = Session::new();
    let place = session.at("counting");
    session.detach("one", "count");
    wait_for_count(&session, "one", 5);
    let taken = session.json(&["snapshot", "one", &place]);
    assert_eq!((&taken["directory"], &taken["state"]), (&place.as_str().into(), &"running".into()));
    assert_eq!(taken["memory-size"], 64 << 20);
    let size = taken["size"].as_u64().unwrap();
    assert!((4096..16 << 20).contains(&size), "{taken}");
    assert!(taken["stopped-for-us"].as_u64().unwrap() < 5_000_000, "{taken}");
    assert_eq!(session.json(&["snapshot", "info", &place])["id"], taken["id"]);
    session.run(&["snapshot", "check", &place]).with(0).silent();
    // It goes on, as if nothing had been.
    let last = *counted(&session.run(&["logs", "one"]).stdout).last().unwrap();
    let before = wait_for_count(&session, "one", last + 10);
    assert_no_gap(&before);
    session.kill_process("one");
    // However its place is written, it is told in one way.
    assert_eq!(restore(&session, &format!("{place}/"), &[]), "one");
    let after = wait_for_count(&session, "one", before[0] + 20);
    assert_no_gap(&after);
    assert!(after[0] > before[0] && after[0] <= before.last().unwrap() + 1, "{after:?} after {before:?}");
    let rows = session.json(&["ps"]);
    assert_eq!(rows[0]["restored-from"]["id"], taken["id"]);
    assert_eq!(rows[0]["restored-from"]["directory"], place.as_str());
    let table = session.run(&["ps"]).with(0).silent().stdout;
    assert!(table.contains("RESTORED FROM") && table.contains(&place), "{table}");
    assert_eq!(session.json(&["inspect", "one"])["restored-from"]["id"], taken["id"]);
}

/// On standard output, where nothing is lost: the two together printed what one would have.
#[test]
fn a_guest_that_is_stopped_with_its_snapshot_prints_nothing_twice_and_nothing_not_at_all() {
    let session = Session::new();
    let place = session.at("stopped");
    let mut text = String::new();
    let mut command = session.command(&["run", "--name=one", "--memory=64M"]);
    let mut running = Running::start(command.args(guest("count 1")));
    for round in 0..5 {
        let mut output = BufReader::new(running.stdout());
        wait_until("it has a control socket", || session.directory("one").join("control.sock").exists());
        for _ in 0..20 {
            output.read_line(&mut text).unwrap();
        }
        let words = session.run(&["snapshot", "one", &place, "--stop"]).with(0).silent().stdout;
        assert!(words.contains("the guest stood still for") && words.contains(", and has ended"), "{words}");
        output.read_to_string(&mut text).unwrap();
        let finished = running.finish().with(0);
        assert!(finished.stderr.contains("its snapshot was taken"), "{round}: {finished:?}");
        assert_eq!(session.states(), []);
        running = Running::start(&mut session.command(&["restore", &place]));
    }
    drop(running);
    // It was stopped in the middle of a line, as in the rounds before.
    let (whole, _) = text.rsplit_once('\n').unwrap();
    let numbers: Vec<u64> = whole
        .lines()
        // What the guest says of itself.
        .skip(1)
        .map(|line| {
            line.trim_end().strip_prefix("count ").and_then(|number| number.parse().ok()).expect(line)
        })
        .collect();
    assert!(numbers[0] == 1 && numbers.len() >= 100, "{text}");
    assert_no_gap(&numbers);
}

#[test]
fn fifty_times_in_a_row_it_is_killed_and_restored_from_the_snapshot_before() {
    let session = Session::new();
    let place = session.at("chain");
    session.detach("one", "count 1");
    let mut last = 0;
    for round in 0..50 {
        // A log begins anew, perhaps a little behind the snapshot: what was on its way into the older one died with it.
        let numbers = wait_for_count(&session, "one", last + 1);
        assert_no_gap(&numbers);
        assert!(numbers[0] > last, "{round}: {numbers:?} after {last}");
        let is_paused = round % 3 == 0;
        if is_paused {
            session.run(&["pause", "one"]).with(0).silent();
        }
        last = numbers[0];
        let taken = session.json(&["snapshot", "one", &place]);
        assert_eq!(taken["state"], if is_paused { "paused" } else { "running" });
        session.kill_process("one");
        assert_eq!(restore(&session, &place, &[]), "one");
    }
    assert!(last > 50, "{last}");
    session.run(&["snapshot", "check", &place]).with(0).silent();
}

#[test]
fn a_chain_of_diffs_is_restored_like_a_full_snapshot() {
    let session = Session::new();
    let place = |number: u32| session.at(&format!("diff{number}"));
    session.detach("one", "count 1");
    wait_for_count(&session, "one", 3);
    session.run(&["snapshot", "one", &place(0), "--diff"]).refused(&["take a full one first"]);
    let full = session.json(&["snapshot", "one", &place(0)])["size"].as_u64().unwrap();
    if session.run(&["snapshot", "one", &place(1), "--diff"]).stderr.contains("take a full snapshot") {
        eprintln!("this host does not tell which pages change: there are no diffs");
        return;
    }
    session.run(&["snapshot", "one", &place(1), "--diff"]).refused(&["would replace what it builds on"]);
    let mut last = 0;
    for number in 2..6 {
        last = wait_for_count(&session, "one", last + 1)[0];
        let taken = session.json(&["snapshot", "one", &place(number), "--diff"]);
        assert!(taken["size"].as_u64().unwrap() <= full, "{taken}");
        session.kill_process("one");
        restore(&session, &place(number), &["--check"]);
    }
    assert!(wait_for_count(&session, "one", last + 1)[0] > last);
    // One that is not the last is none that it is known of what changed since.
    let wrong = format!("--diff={}", place(2));
    session.run(&["snapshot", "one", &place(9), &wrong]).refused(&["is not the last snapshot"]);
    session.run(&["snapshot", "one", &place(9), &format!("--diff={}", place(5))]).with(0).silent();
    // What it builds on may be moved, if that is said.
    session.kill_process("one");
    fs::rename(place(5), session.at("moved")).unwrap();
    session.run(&["restore", &place(9)]).refused(&["diff5"]);
    restore(&session, &place(9), &["--base", &session.at("moved")]);
    assert!(wait_for_count(&session, "one", last + 1)[0] > last);
    // However far below.
    session.kill_process("one");
    fs::rename(place(3), session.at("deep")).unwrap();
    let line = ["restore", &place(9), "--base", &session.at("moved")];
    session.run(&line).refused(&["diff3", "(--base DIR)"]);
    let bases = ["--base", &session.at("deep"), "--base", &session.at("moved")];
    session.run(&[&["snapshot", "check", &place(9)], &bases[..]].concat()).with(0).silent();
    restore(&session, &place(9), &bases);
}

#[test]
fn a_snapshot_is_restored_several_times_at_once_under_different_names() {
    let session = Session::new();
    let place = session.at("template");
    session.detach("one", "count");
    wait_for_count(&session, "one", 3);
    session.run(&["snapshot", "one", &place]).with(0).silent();
    session.run(&["restore", &place, "--detach"]).refused(&["a VM called one already", "--name"]);
    for name in ["two", "three", "four"] {
        assert_eq!(restore(&session, &place, &["--name", name]), name);
    }
    let begun: Vec<_> =
        ["two", "three", "four"].map(|name| wait_for_count(&session, name, 20)[0]).into_iter().collect();
    assert!(begun.windows(2).all(|pair| pair[0] == pair[1]), "{begun:?}");
    // Each has memory of its own, and may be the origin of the next.
    let again = session.at("again");
    session.run(&["snapshot", "two", &again]).with(0).silent();
    session.run(&["kill", "two"]).with(0);
    assert_eq!(restore(&session, &again, &[]), "two");
    wait_for_count(&session, "two", 21);
    session.run(&["snapshot", "check", &place]).with(0).silent();
}

#[test]
fn a_guest_that_is_restored_paused_runs_when_it_is_resumed() {
    let session = Session::new();
    let place = session.at("held");
    session.detach("one", "count 1");
    wait_for_count(&session, "one", 3);
    session.run(&["snapshot", "one", &place, "--stop"]).with(0);
    restore(&session, &place, &["--paused"]);
    assert_eq!(session.state("one"), "paused");
    assert_eq!(session.json(&["ps"])[0]["uptime"], Value::Null);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(session.run(&["logs", "one"]).stdout, "");
    // It is where it was, and can be written down there again.
    session.run(&["snapshot", "one", &place]).with(0).silent();
    session.run(&["resume", "one"]).with(0).silent();
    assert_no_gap(&wait_for_count(&session, "one", 10));
}

#[test]
fn a_restored_guest_is_attended_like_any_other() {
    let session = Session::new();
    let place = session.at("shell");
    session.detach("one", "");
    session.wait_for_log("one", "lodger> ");
    session.run(&["snapshot", "one", &place, "--stop"]).with(0);
    // On a pipe, with a status of its own.
    let mut command = session.command(&["restore", &place, "--timing", "--stats", "--check"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    running.stdin().write_all(b"echo hello\rexit 7\r").unwrap();
    let finished = running.finish().with(7);
    assert!(finished.stdout.contains("\nhello"), "{finished:?}");
    assert!(finished.stderr.contains("snapshot opened") && finished.stderr.contains("vcpu0 exits"));
    // On a terminal.
    let mut screen = Screen::new();
    let mut running = Running::start(screen.show(&mut session.command(&["restore", &place])));
    screen.wait_until_raw();
    screen.type_in("echo to all\r");
    screen.expect("\nto all");
    screen.type_in("\x01x");
    assert_eq!(running.wait().code(), Some(0));
    assert!(!screen.modes().are_raw());
}

#[test]
fn devices_and_ports_go_on_and_lead_where_they_are_told() {
    let session = Session::new();
    let place = session.at("devices");
    let disk = session.at("disk.img");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let (first, second) = (session.at("first.sock"), session.at("second.sock"));
    let mut command =
        session.command(&["run", "--detach", "--name=one", "--memory=64M", "--rng", "--balloon"]);
    command.args(["--console=virtio", "--disk", &disk, "--port", &format!("agent,socket={first}")]);
    Running::start(command.args(guest("count"))).finish().with(0).silent();
    wait_for_count(&session, "one", 3);
    session.run(&["snapshot", "one", &place]).with(0).silent();
    session.kill_process("one");
    let _listening = UnixListener::bind(&second).unwrap();
    let port = format!("agent,socket={second}");
    session
        .run(&["restore", &place, "--port", &port])
        .refused(&["another process listens", "--port agent,WHERE"]);
    session.run(&["restore", &place, "--port", "log,pty"]).refused(&["no port log", "agent"]);
    session.run(&["restore", &place, "--disk", "vdb=x"]).refused(&["no disk vdb"]);
    // The disk was copied, so that its image is not needed.
    fs::rename(&disk, session.at("elsewhere.img")).unwrap();
    restore(&session, &place, &[]);
    assert_no_gap(&wait_for_count(&session, "one", 20));
    let tree = session.json(&["inspect", "one"]);
    let names: Vec<_> =
        tree["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    // And from there once more, with its image named and moved.
    let again = session.at("again");
    session.run(&["snapshot", "one", &again, "--disks=copy"]).with(0).silent();
    session.run(&["kill", "one"]).with(0).silent();
    let image = session.at("elsewhere.img");
    let mut command = session.command(&["run", "--detach", "--name=two", "--disk", &image]);
    Running::start(command.args(guest("count"))).finish().with(0).silent();
    wait_for_count(&session, "two", 3);
    session.run(&["snapshot", "two", &again, "--stop"]).with(0).silent();
    fs::rename(&image, session.at("moved.img")).unwrap();
    session.run(&["restore", &again]).refused(&[
        "vda (",
        "elsewhere.img is not there; put it back",
        "--disk vda=FILE",
    ]);
    let moved = format!("vda={}", session.at("moved.img"));
    let overlay = format!("vda={}", session.at("changes.qcow2"));
    session.run(&["restore", &again, "--detach", "--disk", &moved, "--overlay", &overlay]).with(0);
    assert_no_gap(&wait_for_count(&session, "two", 10));
    assert!(fs::metadata(session.at("changes.qcow2")).is_ok());
}

#[test]
fn a_copy_of_a_disk_that_was_damaged_is_found_by_those_who_check() {
    let session = Session::new();
    let (disk, other, place) = (session.at("disk.img"), session.at("other.img"), session.at("place"));
    [&disk, &other].iter().for_each(|disk| fs::write(disk, vec![7; 1 << 20]).unwrap());
    let mut command = session.command(&["run", "--detach", "--name=one", "--disk", &disk]);
    command.args(["--disk", &format!("{other},ro")]);
    Running::start(command.args(guest("count"))).finish().with(0).silent();
    session.run(&["snapshot", "one", &place]).with(0).silent();
    session.run(&["kill", "one"]).with(0).silent();
    let said = session.run(&["snapshot", "check", &place]).with(0).silent().stdout;
    let words = format!("{other} is there and was not written to since; its content was not compared\n");
    assert_eq!(said, format!("{place} is sound\n{words}"));
    let report = session.json(&["snapshot", "check", &place]);
    assert_eq!((&report["sound"], &report["not-read"][0]), (&true.into(), &other.as_str().into()));
    let copy = format!("{place}/disks/0.raw");
    let mut bytes = fs::read(&copy).unwrap();
    bytes[0x54321] ^= 4;
    fs::write(&copy, &bytes).unwrap();
    session.run(&["snapshot", "check", &place]).refused(&["disks/0.raw is not what was written"]);
    let report = session.run(&["snapshot", "check", &place, "--json"]).with(1).silent().stdout;
    assert!(report.contains("\"sound\":false") && report.contains("0.raw is not"), "{report}");
    session.run(&["restore", &place, "--check"]).refused(&["disks/0.raw is not what was written"]);
    fs::write(&copy, &bytes[..1 << 19]).unwrap();
    session.run(&["snapshot", "check", &place]).refused(&["0.raw", "524288 bytes"]);
    bytes[0x54321] ^= 4;
    fs::write(&copy, &bytes).unwrap();
    session.run(&["snapshot", "check", &place]).with(0).silent();
    fs::write(&other, b"other").unwrap();
    session.run(&["snapshot", "check", &place]).refused(&["other.img"]);
}

#[test]
fn a_disk_that_goes_on_in_an_overlay_is_told_of() {
    let session = Session::new();
    let (disk, place) = (session.at("disk.img"), session.at("one.snapshot"));
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let mut command = session.command(&["run", "--detach", "--name=one", "--disk", &disk]);
    Running::start(command.args(guest("count"))).finish().with(0).silent();
    let said = session.run(&["snapshot", "one", &place, "--disks=overlay"]).with(0).silent().stdout;
    let overlay = session.at("disk.img.after-one.snapshot.qcow2");
    assert!(said.ends_with(&format!("\nvda goes on in {overlay}\n")), "{said}");
    assert!(fs::metadata(&overlay).is_ok());
    // What it is in now is told in its configuration, too.
    let tree = session.json(&["inspect", "one"]);
    assert_eq!(
        (&tree["configuration"]["disk"][0]["overlay"], &tree["disks"][0]["path"]),
        (&overlay.as_str().into(), &overlay.as_str().into())
    );
    let text = session.run(&["inspect", "one"]).with(0).silent().stdout;
    assert!(text.contains("  guest: 256 MiB\n") && text.contains("  vda\n"), "{text}");
    assert!(!text.contains("\n  -"), "{text}");
    let info = session.run(&["snapshot", "info", &place]).with(0).silent().stdout;
    assert!(info.contains(&format!("vda, 1 MiB, by overlay: {disk}")), "{info}");
    let taken = session.json(&["snapshot", "one", &session.at("copied")]);
    assert_eq!(taken["disks"][0]["mode"], "copy");
    assert!(taken["size"].as_u64().unwrap() > 1 << 20, "{taken}");
}

#[test]
fn what_cannot_be_taken_is_refused_and_the_guest_goes_on() {
    let session = Session::new();
    let place = session.at("none");
    session.run(&["snapshot", "nobody", &place]).refused(&["there is no VM called nobody"]);
    session.detach("one", "count");
    fs::create_dir(&place).unwrap();
    fs::write(session.at("none/letter"), "dear all").unwrap();
    for stop in [&[][..], &["--stop"]] {
        let line = [&["snapshot", "one", &place], stop].concat();
        session.run(&line).refused(&["is no snapshot, so it is not replaced"]);
        assert_eq!(session.state("one"), "running");
    }
    session.run(&["snapshot", "one", &session.at("no/such/place")]).refused(&["no/such", "make it first"]);
    session.run(&["snapshot", "one"]).with(2);
    session.run(&["snapshot", "one", "/"]).refused(&["/ is there and is no snapshot"]);
    let mut command = session.command(&["run", "--detach", "--name=two", "--disk=ephemeral,size=1M"]);
    Running::start(command.args(guest(""))).finish().with(0).silent();
    let line = ["snapshot", "two", &session.at("two"), "--disks=reference"];
    session.run(&line).refused(&["cannot be kept by reference"]);
    session.run(&["snapshot", "two", &session.at("two"), "--disks=all"]).with(2);
    // Relative places are relative to whoever asks.
    let mut command = session.command(&["snapshot", "one", "here"]);
    Running::start(command.current_dir(session.path())).finish().with(0).silent();
    session.run(&["snapshot", "info", &session.at("here")]).with(0).silent();
    assert_eq!(session.states().len(), 2);
}

#[test]
fn what_cannot_be_restored_is_said_before_anything_runs() {
    let session = Session::new();
    let place = session.at("sound");
    session.detach("one", "count");
    session.run(&["snapshot", "one", &place, "--stop"]).with(0);
    let words =
        ["there is no snapshot in", "nowhere: there is no such directory", "`lodger snapshot NAME DIR`"];
    session.run(&["restore", &session.at("nowhere")]).refused(&words);
    session.run(&["restore", session.path().to_str().unwrap()]).refused(&["it has no file `state`"]);
    session.run(&["restore"]).with(2);
    let stored = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/v1");
    session.run(&["restore", stored]).refused(&["does not say how its machine was described"]);
    let state = fs::read(format!("{place}/state")).unwrap();
    let damaged = |at: usize, value: u8, words: &[&str]| {
        let mut bytes = state.clone();
        bytes[at] = value;
        fs::write(format!("{place}/state"), bytes).unwrap();
        session.run(&["restore", &place]).refused(words);
    };
    damaged(8, 9, &["version 9 of the snapshot format", "a newer one"]);
    damaged(30, state[30] ^ 1, &["damaged", "checksum of its header"]);
    damaged(state.len() - 1, state[state.len() - 1] ^ 1, &["damaged"]);
    fs::write(format!("{place}/state"), &state[..state.len() - 1]).unwrap();
    session.run(&["restore", &place]).refused(&["cut short"]);
    fs::write(format!("{place}/state"), &state).unwrap();
    let memory = fs::OpenOptions::new().write(true).open(format!("{place}/memory")).unwrap();
    memory.set_len(1 << 20).unwrap();
    session.run(&["restore", &place]).refused(&["memory", "cut short"]);
    assert_eq!(session.states(), []);
}

#[test]
fn places_are_told_without_detours_and_no_snapshot_is_inside_of_another() {
    let session = Session::new();
    let (place, other) = (session.at("k1"), session.at("k2"));
    session.detach("one", "count");
    [&place, &other].iter().for_each(|place| fs::create_dir(place).unwrap());
    // An empty directory will do.
    let detour = format!("{other}/../k1/");
    assert_eq!(session.json(&["snapshot", "one", &detour])["directory"], place.as_str());
    session
        .run(&["snapshot", "one", &session.at("k1/inner")])
        .refused(&["inside of the snapshot", "/k1, which"]);
    session.run(&["snapshot", "check", &place]).with(0).silent();
    let diff = session.run(&["snapshot", "one", &format!("{place}/../k3/"), &format!("--diff={detour}")]);
    if diff.status.success() {
        assert_eq!(session.json(&["snapshot", "info", &session.at("k2/../k3")])["path"], session.at("k3"));
        assert_eq!(session.json(&["snapshot", "info", &session.at("k3")])["base"]["path"], place.as_str());
    }
    session.run(&["kill", "one"]).with(0).silent();
    restore(&session, &detour, &[]);
    assert_eq!(session.json(&["ps"])[0]["restored-from"]["directory"], place.as_str());
}

/// Puts the same snapshot to another place, as if it had been taken so many seconds earlier, of a guest with a kernel of
/// its own.
fn make_older(place: &str, other: &str, seconds: u64) {
    let snapshot = Snapshot::open(Path::new(place)).unwrap();
    let mut found = snapshot.sections().unwrap();
    let mut clock: SavedClock = found.take(SavedClock::NAME).unwrap();
    clock.host -= seconds * 1_000_000_000;
    let mut described: SavedDescription = found.take(SavedDescription::NAME).unwrap();
    let mut description = Description::from_toml(&described.text).unwrap();
    description.config.kernel = Kernel::File("/boot/kernel".into());
    described.text = description.to_toml().unwrap();
    let mut sections =
        vec![Section::of(SavedClock::NAME, &clock), Section::of(SavedDescription::NAME, &described)];
    let names = snapshot.info().sections.iter().map(|entry| &entry.name);
    sections.extend(names.filter_map(|name| found.take_section(name).ok()));
    let size = snapshot.info().memory_size;
    let memory = fs::read(format!("{place}/memory")).unwrap();
    let mut draft = Draft::begin(Path::new(other), size).unwrap();
    draft.put(0, &memory[..size as usize]).unwrap();
    draft.finish(sections).unwrap();
}

#[test]
fn clocks_that_are_put_forward_far_are_told_of_where_that_may_take_long() {
    let session = Session::new();
    let (place, older) = (session.at("place"), session.at("older"));
    session.detach("one", "count");
    session.run(&["snapshot", "one", &place, "--stop"]).with(0);
    make_older(&place, &older, 1000);
    let interprets = !Kvm::open().unwrap().is_in_hardware();
    let finished = session.run(&["restore", &older, "--detach"]).with(0);
    let words = ["clocks are put forward by 16 min", "periodic ticks", "--clock stopped"];
    let is_told = words.iter().all(|words| finished.stderr.contains(words));
    assert_eq!((is_told, finished.stderr.is_empty()), (interprets, !interprets), "{finished:?}");
    assert_eq!(finished.stdout, "one\n");
    wait_for_count(&session, "one", 5);
    session.run(&["kill", "one"]).with(0).silent();
    restore(&session, &older, &["--clock=stopped"]);
}

#[test]
fn a_vm_that_is_called_like_a_subcommand_can_be_meant() {
    let session = Session::new();
    session.detach("info", "");
    let place = session.at("place");
    session.run(&["snapshot", "--", "info", &place]).with(0).silent();
    session.run(&["snapshot", "info", &place]).with(0).silent();
}

#[test]
fn progress_is_shown_to_people_only() {
    let session = Session::new();
    session.detach("one", "");
    let place = session.at("place");
    session.run(&["snapshot", "one", &place]).with(0).silent();
    let mut socket = session.socket("one");
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    let request = serde_json::json!({ "id": 1, "method": "snapshot", "params": { "directory": place } });
    writeln!(socket, "{request}").unwrap();
    let mut phases = Vec::new();
    let answer = loop {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["id"], 1);
        let Some(progress) = line.get("progress") else { break line };
        assert!(progress["done"].as_u64().unwrap() <= progress["total"].as_u64().unwrap(), "{line}");
        phases.push(progress["phase"].as_str().unwrap().to_owned());
    };
    phases.dedup();
    assert_eq!(phases, ["memory", "disk"]);
    assert_eq!(answer["result"]["state"], "running");
}
