//! Disks that are kept in snapshots while a guest writes to them, and what a guest finds that goes on.
//!
//! The guest overwrites its disk from the beginning to the end, so each state of the disk is known by how far it came:
//! what it has not written is as it was filled here, and nothing in between is missing but what was not yet taken from
//! the queue.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lodger::devices::Collected;
use lodger::hv::kvm::KvmVm;
use lodger::snapshot::Snapshot;
use lodger::storage::{Disk, DiskOptions, Format, Repair, Storage, tools};
use lodger::vm::{
    CannotSave, Config, DiskMode, DiskSpec, Error, Machine, MemorySpec, Reopening, SavedDisks, Timeline,
};
use vm_memory::VolatileSlice;

use crate::support::{Random, Scratch, kvm, within};

const LIMIT: Duration = Duration::from_secs(300);
const SIZE: u64 = 8 << 20;
const BLOCK: usize = 512;
const BLOCKS: usize = SIZE as usize / BLOCK;
const DEPTH: usize = 8;
const BEFORE: u8 = 0xa5;

/// An image that is filled.
fn filled(scratch: &Scratch, name: &str, format: Format) -> PathBuf {
    let (raw, path) = (scratch.path("filled.raw"), scratch.path(name));
    fs::write(&raw, vec![BEFORE; SIZE as usize]).unwrap();
    let source = open(&raw, Format::Raw);
    tools::convert(&source, &path, format, false, &mut |_, _| {}).unwrap();
    path
}

fn open(path: &Path, format: Format) -> Disk {
    let options = DiskOptions { read_only: true, format: Some(format), ..DiskOptions::default() };
    Disk::open(path, &options).unwrap()
}

/// How many blocks of a disk the guest has overwritten, which are those up to a certain one.
fn overwritten(path: &Path) -> usize {
    let format = if path.extension().is_some_and(|end| end == "qcow2") { Format::Qcow2 } else { Format::Raw };
    let disk = open(path, format);
    let mut bytes = vec![1; SIZE as usize];
    disk.read(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    let is_old = |block: &[u8]| block.iter().all(|byte| *byte == BEFORE);
    let is_new = |block: &[u8]| !block.contains(&BEFORE);
    assert!(bytes.chunks(BLOCK).all(|block| is_old(block) || is_new(block)), "a block was torn");
    let count = bytes.chunks(BLOCK).filter(|block| is_new(block)).count();
    let last = bytes.chunks(BLOCK).rposition(is_new).map_or(0, |last| last + 1);
    assert!(last - count <= DEPTH, "{}: {count} blocks up to {last}", path.display());
    count
}

/// The embedded guest with this disk.
fn writer(disk: DiskSpec) -> Config {
    let work = format!("quiet run=disk write {BLOCK} {DEPTH} {BLOCKS} seq; exit 5");
    Config {
        disks: vec![disk],
        memory: MemorySpec::of_size(32 << 20),
        cmdline: Some(work),
        ..Config::default()
    }
}

fn build(config: &Config) -> (Machine<KvmVm>, Arc<Collected>) {
    let output = Arc::new(Collected::default());
    (Machine::new(&kvm(), config, output.clone()).unwrap(), output)
}

/// Writes a snapshot of a machine that rests; none if it has ended.
fn snapshot(machine: &Machine<KvmVm>, mode: DiskMode, place: &Path, stops: bool) -> Option<SavedDisks> {
    let mut drafted = match machine.draft_snapshot(&kvm(), place) {
        Err(Error::Save(CannotSave::Ended(_))) => return None,
        drafted => drafted.unwrap(),
    };
    let disks = machine.capture_disks(mode, drafted.directory(), stops).unwrap().saved;
    drafted.add_disks(&disks);
    drafted.finish().unwrap();
    Some(disks)
}

/// Goes on as what was saved, to the end.
fn go_on(config: &Config, place: &Path, reopening: &Reopening) -> usize {
    let snapshot = Snapshot::open(place).unwrap();
    let disks = SavedDisks::of(&snapshot).unwrap().unwrap();
    let disks = disks.specs(place, &config.disks, reopening).unwrap();
    let config = Config { disks, ..config.clone() };
    let output = Arc::new(Collected::default());
    let machine =
        Machine::restore(&kvm(), &config, &snapshot, output.clone(), &mut Timeline::start()).unwrap();
    finish(machine, &output);
    config.disks.len()
}

fn finish(machine: Machine<KvmVm>, output: &Arc<Collected>) {
    let text = Arc::clone(output);
    within(LIMIT, move || assert_eq!(machine.run().status(), 5, "{}", text.text()));
    // What was printed before the snapshot is another machine's output.
    assert!(output.text().contains(" 0 failed"), "{}", output.text());
}

fn is_sound(image: &Path) {
    let report = tools::check(image, Repair::No, &mut |_, _| {}).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{}", image.display());
    if let Ok(output) = Command::new("qemu-img").arg("check").arg(image).output() {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_guest_writes_on_while_its_disk_goes_from_overlay_to_overlay() {
    for (format, options) in [
        (Format::Raw, ""),
        (Format::Qcow2, ",queues=2"),
        (Format::Raw, ",direct"),
        (Format::Qcow2, ",overlay"),
    ] {
        let scratch = Scratch::new();
        let image = filled(&scratch, &format!("disk.{format}"), format);
        let disk = format!("{},format={format}{options},iops=1000000", image.display());
        let config = writer(disk.parse().unwrap());
        let forgotten = options == ",overlay";
        let (machine, output) = build(&config);
        let limits = machine.disks()[0].limits();
        let mut random = Random::new(format as u64 + options.len() as u64);
        let (mut kept, mut rested) = (Vec::new(), Duration::ZERO);
        while kept.len() < 12 {
            machine.resume();
            random.dawdle(20_000);
            machine.pause();
            let place = scratch.path(format!("snapshot-{}", kept.len()));
            let start = Instant::now();
            if snapshot(&machine, DiskMode::Overlay, &place, false).is_none() {
                break;
            }
            rested += start.elapsed();
            kept.push(place);
        }
        assert_eq!(machine.disks()[0].limits(), limits);
        let last = machine.disk_images().remove(0);
        assert_eq!((last.behind.len(), last.forgotten), (kept.len() + usize::from(forgotten), forgotten));
        println!(
            "{} switches of {disk}, {:?} each with its snapshot",
            kept.len(),
            rested / kept.len() as u32
        );
        finish(machine, &output);
        let mut images = Vec::new();
        let mut before = 0;
        for place in &kept {
            let saved = SavedDisks::of(&Snapshot::open(place).unwrap()).unwrap().unwrap();
            let image = place.join(&saved.look()[0].images[0]);
            let count = overwritten(&image);
            assert!(before <= count, "{before} blocks, and {count} afterwards");
            before = count;
            images.push(image);
        }
        println!("{before} of {BLOCKS} blocks were overwritten when the last one was taken");
        if !forgotten {
            images.extend(last.path);
            assert_eq!(overwritten(images.last().unwrap()), BLOCKS);
        }
        images.iter().filter(|image| image.extension().unwrap() == "qcow2").for_each(|image| is_sound(image));
        // Any of them goes on.
        let end = scratch.path("end.qcow2");
        let reopening = Reopening { overlays: vec![(0, end.clone())], ..Reopening::default() };
        go_on(&config, &kept[kept.len() / 2], &reopening);
        assert_eq!(overwritten(&end), BLOCKS);
    }
}

#[test]
fn a_guest_goes_on_with_its_disk_however_that_was_kept() {
    for (mode, stops, disk) in [
        (DiskMode::Copy, false, ""),
        (DiskMode::Copy, true, ",overlay"),
        (DiskMode::Overlay, false, ""),
        (DiskMode::Overlay, true, ""),
        (DiskMode::Overlay, true, ",overlay"),
        (DiskMode::Reference, true, ""),
    ] {
        let scratch = Scratch::new();
        let image = filled(&scratch, "disk.qcow2", Format::Qcow2);
        let config = writer(format!("{}{disk}", image.display()).parse().unwrap());
        let place = scratch.path("snapshot");
        let (machine, output) = build(&config);
        let mut random = Random::new(mode as u64 + 10);
        machine.resume();
        assert!(output.wait_for("times write", LIMIT));
        random.dawdle(20_000);
        machine.pause();
        let taken = snapshot(&machine, mode, &place, stops);
        let Some(disks) = taken else { panic!("the guest was through too soon: {}", output.text()) };
        assert_eq!(disks.look()[0].mode, mode);
        drop(machine);
        // Twice without touching anything, and once with the end kept.
        go_on(&config, &place, &Reopening::default());
        let end = scratch.path("end.qcow2");
        go_on(&config, &place, &Reopening { overlays: vec![(0, end.clone())], ..Reopening::default() });
        assert_eq!(overwritten(&end), BLOCKS);
        is_sound(&end);
        if mode == DiskMode::Reference {
            go_on(&config, &place, &Reopening { write_references: true, ..Reopening::default() });
            assert_eq!(overwritten(&image), BLOCKS);
            let error = disks.specs(&place, &config.disks, &Reopening::default()).unwrap_err().to_string();
            assert!(error.contains("was written to since the snapshot was taken"), "{error}");
        }
    }
}

#[test]
fn a_snapshot_takes_the_place_of_the_one_that_its_machine_came_from() {
    let scratch = Scratch::new();
    let image = filled(&scratch, "disk.raw", Format::Raw);
    let mut config = writer(format!("{},format=raw", image.display()).parse().unwrap());
    let place = scratch.path("snapshot");
    let (mut machine, mut output) = build(&config);
    let (mut random, mut moves) = (Random::new(3), 0);
    loop {
        machine.resume();
        random.dawdle(10_000);
        machine.pause();
        if moves == 8 || snapshot(&machine, DiskMode::Copy, &place, false).is_none() {
            break;
        }
        drop(machine);
        moves += 1;
        let taken = Snapshot::open(&place).unwrap();
        let disks = SavedDisks::of(&taken).unwrap().unwrap();
        config.disks = disks.specs(&place, &config.disks, &Reopening::default()).unwrap();
        output = Arc::new(Collected::default());
        machine = Machine::restore(&kvm(), &config, &taken, output.clone(), &mut Timeline::start()).unwrap();
    }
    assert!(moves > 1, "{moves}");
    finish(machine, &output);
    // The user's own has what was written before the first.
    assert!(overwritten(&image) < BLOCKS);
    assert!(overwritten(&place.join("disks/0.raw")) > 0);
}
