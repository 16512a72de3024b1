use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vm_memory::VolatileSlice;

use super::*;
use crate::devices::Collected;
use crate::hv::fake::{FakeHypervisor, FakeVm};
use crate::saved;
use crate::storage::testing::TempDir;
use crate::storage::{Disk, DiskOptions, Format, Storage, tools};
use crate::threads::lock;
use crate::vm::{Completion, Config, Machine};

const MIB: u64 = 1 << 20;

/// A machine that was not started, and so rests, with these disks.
fn machine(disks: &[DiskSpec]) -> Machine<FakeVm> {
    let config = Config { disks: disks.to_vec(), completion: Completion::Off, ..Config::default() };
    Machine::new(&FakeHypervisor::new([]), &config, Arc::new(Collected::default())).unwrap()
}

/// Where a snapshot is being written, and what is beside it.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: TempDir::new() };
        fs::create_dir(scene.draft()).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn draft(&self) -> PathBuf {
        self.path(".one.new")
    }

    /// An image with something in it.
    fn image(&self, name: &str, format: Format) -> PathBuf {
        let path = self.path(name);
        tools::create(&path, format, 4 * MIB, false).unwrap();
        put(&Disk::open(&path, &DiskOptions::default()).unwrap(), MIB, 0x11);
        path
    }

    fn overlay(&self, name: &str, base: &Path, format: Format) -> PathBuf {
        let path = self.path(name);
        tools::create_overlay(&path, base, Some(format), None, false).unwrap();
        path
    }
}

fn spec(text: &str) -> DiskSpec {
    text.parse().unwrap()
}

fn put(disk: &dyn Storage, offset: u64, filling: u8) {
    disk.write(offset, &[VolatileSlice::from(&mut [filling; 4096][..])]).unwrap();
}

fn byte(disk: &dyn Storage, offset: u64) -> u8 {
    let mut bytes = [0; 1];
    disk.read(offset, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes[0]
}

/// The disk as the device has it.
fn attached(machine: &Machine<FakeVm>, number: usize) -> Arc<dyn Storage> {
    machine.images.lock().unwrap()[number].storage()
}

fn capture(
    machine: &Machine<FakeVm>,
    scene: &Scene,
    mode: impl Into<Option<DiskMode>>,
    stops: bool,
) -> SavedDisks {
    counted(machine, scene, mode, stops).saved
}

fn counted(
    machine: &Machine<FakeVm>,
    scene: &Scene,
    mode: impl Into<Option<DiskMode>>,
    stops: bool,
) -> KeptDisks {
    let KeptDisks { saved: mut disks, copied } = machine.capture_disks(mode, &scene.draft(), stops).unwrap();
    disks.add_checksums(&scene.draft()).unwrap();
    let decoded = saved::decode::<SavedDisks>(&saved::encode(&disks)).unwrap();
    assert_eq!((saved::encode(&decoded), decoded.look()), (saved::encode(&disks), disks.look()));
    KeptDisks { saved: disks, copied }
}

fn refusal(machine: &Machine<FakeVm>, scene: &Scene, mode: DiskMode, stops: bool) -> String {
    machine.capture_disks(mode, &scene.draft(), stops).unwrap_err().to_string()
}

fn reopened(disks: &SavedDisks, scene: &Scene, described: &[DiskSpec]) -> Result<Vec<DiskSpec>, DisksError> {
    disks.specs(&scene.draft(), described, &Reopening::default())
}

fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
}

#[test]
fn each_way_is_printed_as_it_is_written() {
    for mode in [DiskMode::Copy, DiskMode::Overlay, DiskMode::Reference] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
        assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
    }
    assert!("link".parse::<DiskMode>().unwrap_err().to_string().contains("copy, overlay and reference"));
}

#[test]
fn without_a_word_files_are_named_if_nobody_writes_and_copied_otherwise() {
    use DiskMode::{Copy, Reference};
    for (disk, goes_on, stops) in [
        ("disk.img", Copy, Reference),
        ("disk.img,ro", Reference, Reference),
        ("disk.img,overlay", Copy, Copy),
        ("disk.img,overlay=x.qcow2", Copy, Reference),
        ("ephemeral,size=1M", Copy, Copy),
        ("ephemeral,size=1M,ro", Copy, Copy),
    ] {
        let default = |stops| DiskMode::default_for(&spec(disk), stops);
        assert_eq!((default(false), default(true)), (goes_on, stops), "{disk}");
    }
}

#[test]
fn copies_are_what_overlays_lie_on_afterwards() {
    let scene = Scene::new();
    let (raw, base) = (scene.image("a.img", Format::Raw), scene.image("base.qcow2", Format::Qcow2));
    let disks = [
        spec(&format!("{},serial=one,iops=5", raw.display())),
        spec(&format!("{},overlay", base.display())),
        spec("ephemeral,size=1M"),
        spec(&format!("{},ro", base.display())),
    ];
    let machine = machine(&disks);
    (0..3).for_each(|number| put(&*attached(&machine, number), 8192, 0x50 + number as u8));
    let KeptDisks { saved, copied } = counted(&machine, &scene, DiskMode::Copy, false);
    let modes: Vec<_> = saved.look().iter().map(|disk| disk.mode).collect();
    use DiskMode::{Copy, Reference};
    assert_eq!(modes, [Copy, Copy, Copy, Reference]);
    // But for what the file system shares: the first is one raw file, as is the third.
    assert!((8192..1 << 20).contains(&copied), "{copied}");
    // The machine goes on, and what it writes is not in the copies.
    (0..3).for_each(|number| put(&*attached(&machine, number), 8192, 0xff));
    let specs = reopened(&saved, &scene, &disks).unwrap();
    assert_eq!(
        specs[0].to_string(),
        format!("{},format=raw,overlay,iops=5,serial=one", scene.draft().join("disks/0.raw").display())
    );
    assert_eq!(specs[3].to_string(), format!("{},format=qcow2,ro", base.display()));
    let restored = self::machine(&specs);
    for number in 0..3 {
        let disk = attached(&restored, number);
        assert_eq!(byte(&*disk, 8192), 0x50 + number as u8);
        put(&*disk, 8192, 1);
    }
    assert_eq!(byte(&*attached(&restored, 1), MIB), 0x11);
    drop(restored);
    // Any number of times.
    assert_eq!(byte(&*attached(&self::machine(&specs), 0), 8192), 0x50);
}

#[test]
fn a_user_s_image_is_frozen_where_it_is_and_the_machine_goes_on_beside_it() {
    for format in [Format::Raw, Format::Qcow2] {
        let scene = Scene::new();
        let path = scene.image("a.img", format);
        let disks = [spec(&format!("{},format={format}", path.display()))];
        let machine = machine(&disks);
        put(&*attached(&machine, 0), 8192, 0x21);
        let KeptDisks { saved, copied } = counted(&machine, &scene, DiskMode::Overlay, false);
        assert_eq!(copied, 0);
        let beside = scene.path("a.img.after-one.qcow2");
        assert_eq!(saved.look()[0].went_on_in.as_deref(), Some(&*beside.canonicalize().unwrap()));
        assert_eq!(machine.disk_images()[0].behind.len(), 1);
        // What describes it now is what it goes on with.
        let now = format!("{},format={format},overlay={}", path.display(), beside.display());
        assert_eq!(machine.disk_specs(), [spec(&now)]);
        put(&*attached(&machine, 0), 8192, 0x22);
        // Both run at once.
        let restored = self::machine(&reopened(&saved, &scene, &disks).unwrap());
        assert_eq!((byte(&*attached(&restored, 0), 8192), byte(&*attached(&restored, 0), MIB)), (0x21, 0x11));
        assert_eq!((byte(&*attached(&machine, 0), 8192), byte(&*attached(&machine, 0), MIB)), (0x22, 0x11));
        // A name that is taken is no obstacle, and neither is a chain.
        let again = capture(&machine, &scene, DiskMode::Overlay, false);
        assert_eq!(machine.disk_images()[0].behind.len(), 2);
        let now = machine.disk_specs()[0].to_string();
        assert!(now.starts_with(&format!("{},format=qcow2,overlay=", beside.display())), "{now}");
        put(&*attached(&machine, 0), 8192, 0x23);
        drop((restored, machine));
        let went_on_in = again.look()[0].went_on_in.clone().unwrap();
        assert_eq!(byte(&Disk::open(&went_on_in, &DiskOptions::default()).unwrap(), 8192), 0x23);
        for (saved, expected) in [(&saved, 0x21), (&again, 0x22)] {
            let restored = self::machine(&reopened(saved, &scene, &disks).unwrap());
            assert_eq!(byte(&*attached(&restored, 0), 8192), expected);
        }
        // Who writes to it after all is noticed.
        put(
            &Disk::open(&path, &DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap(),
            0,
            1,
        );
        let error = reopened(&saved, &scene, &disks).unwrap_err().to_string();
        assert!(error.contains("a.img was written to since"), "{error}");
    }
}

#[test]
fn images_of_the_machine_s_own_that_are_elsewhere_are_copied_and_counted() {
    use std::os::unix::fs::MetadataExt;
    let scene = Scene::new();
    let machine = machine(&[spec("ephemeral,size=1M")]);
    put(&*attached(&machine, 0), 8192, 1);
    let own = lock(&machine.images)[0].disk().layers()[0].identity().device;
    let is_elsewhere = fs::metadata(scene.draft()).unwrap().dev() != own;
    let kept = counted(&machine, &scene, DiskMode::Overlay, false);
    assert_eq!(kept.copied, if is_elsewhere { 4096 } else { 0 });
}

#[test]
fn a_machine_s_own_images_outlive_it_in_the_snapshot() {
    let scene = Scene::new();
    let base = scene.image("base.img", Format::Raw);
    let disks = [spec("ephemeral,size=1M"), spec(&format!("{},format=raw,overlay", base.display()))];
    let machine = machine(&disks);
    let put_all = |filling| (0..2).for_each(|number| put(&*attached(&machine, number), 8192, filling));
    put_all(1);
    let first = capture(&machine, &scene, DiskMode::Overlay, false);
    put_all(2);
    fs::rename(scene.draft(), scene.path("first")).unwrap();
    fs::create_dir(scene.draft()).unwrap();
    let second = capture(&machine, &scene, DiskMode::Overlay, true);
    put_all(3);
    assert!(machine.disk_images().iter().all(|image| image.forgotten));
    drop(machine);
    for (saved, place, expected) in [(&first, scene.path("first"), 1), (&second, scene.draft(), 2)] {
        let specs = saved.specs(&place, &disks, &Reopening::default()).unwrap();
        let restored = self::machine(&specs);
        for number in 0..2 {
            assert_eq!(byte(&*attached(&restored, number), 8192), expected, "{number}");
        }
        assert_eq!(byte(&*attached(&restored, 1), MIB), 0x11);
    }
    // The second needs nothing of the first, and both need the base.
    fs::remove_dir_all(scene.path("first")).unwrap();
    reopened(&second, &scene, &disks).unwrap();
    fs::remove_file(base).unwrap();
    let error = reopened(&second, &scene, &disks).unwrap_err().to_string();
    assert!(error.contains("base.img, which lies behind it, is not there"), "{error}");
}

#[test]
fn what_is_named_is_written_to_only_when_that_is_asked_for_and_only_once() {
    let scene = Scene::new();
    let base = scene.image("base.img", Format::Raw);
    let overlay = scene.overlay("top.qcow2", &base, Format::Raw);
    let image = scene.image("own.qcow2", Format::Qcow2);
    let disks = [
        spec(&format!("{},format=raw,overlay={}", base.display(), overlay.display())),
        spec(&image.display().to_string()),
    ];
    let machine = machine(&disks);
    (0..2).for_each(|number| put(&*attached(&machine, number), 8192, 7));
    assert!(
        refusal(&machine, &scene, DiskMode::Reference, false)
            .contains("the VM goes on writing to it; end the VM with its snapshot (--stop), or")
    );
    let saved = capture(&machine, &scene, None, true);
    assert!(saved.look().iter().all(|disk| disk.mode == DiskMode::Reference));
    assert!(!scene.draft().join("disks").exists());
    // What the machine leaves behind when it ends is what was kept.
    drop(machine);
    for _ in 0..2 {
        let restored = self::machine(&reopened(&saved, &scene, &disks).unwrap());
        for number in 0..2 {
            assert_eq!(byte(&*attached(&restored, number), 8192), 7);
            put(&*attached(&restored, number), 8192, 8);
        }
    }
    let writing = Reopening { write_references: true, ..Reopening::default() };
    let specs = saved.specs(&scene.draft(), &disks, &writing).unwrap();
    let restored = self::machine(&specs);
    put(&*attached(&restored, 1), 8192, 9);
    drop(restored);
    for reopening in [writing, Reopening::default()] {
        let error = saved.specs(&scene.draft(), &disks, &reopening).unwrap_err().to_string();
        assert!(error.contains("own.qcow2 was written to since the snapshot was taken"), "{error}");
    }
}

#[test]
fn a_copy_is_never_written_to_however_much_that_is_wanted() {
    let scene = Scene::new();
    let image = scene.image("own.qcow2", Format::Qcow2).display().to_string();
    let disks = [spec(&image), spec("ephemeral,size=4M")];
    let saved = capture(&machine(&disks), &scene, Some(DiskMode::Copy), false);
    let mut writing = Reopening { write_references: true, ..Reopening::default() };
    let error = saved.specs(&scene.draft(), &disks, &writing).unwrap_err().to_string();
    assert!(error.contains("was kept by copy") && error.contains("--overlay vda=FILE"), "{error}");
    // What was to be forgotten is forgotten.
    writing.overlays = vec![(0, scene.path("new.qcow2"))];
    saved.specs(&scene.draft(), &disks, &writing).unwrap();
}

#[test]
fn the_file_itself_is_no_copy_of_what_it_was() {
    let scene = Scene::new();
    let image = scene.image("own.img", Format::Raw);
    let disks = [spec(&format!("{},format=raw", image.display()))];
    let machine = machine(&disks);
    let saved = capture(&machine, &scene, Some(DiskMode::Reference), true);
    drop(machine);
    let copy = scene.path("copy.img");
    fs::copy(&image, &copy).unwrap();
    put(
        &Disk::open(&image, &DiskOptions { format: Some(Format::Raw), ..DiskOptions::default() }).unwrap(),
        0,
        9,
    );
    let at = |path: &Path| Reopening { replaced: vec![(0, path.to_owned())], ..Reopening::default() };
    let error = saved.specs(&scene.draft(), &disks, &at(&image)).unwrap_err().to_string();
    assert!(error.contains("own.img was written to since the snapshot was taken"), "{error}");
    saved.specs(&scene.draft(), &disks, &at(&copy)).unwrap();
}

#[test]
fn what_cannot_be_kept_so_is_refused_with_what_can() {
    let scene = Scene::new();
    let base = scene.image("base.img", Format::Raw);
    let machine = machine(&[spec("ephemeral,size=1M")]);
    let error = refusal(&machine, &scene, DiskMode::Reference, true);
    assert!(
        error.contains("vda (ephemeral) cannot be kept by reference: it goes away with the VM"),
        "{error}"
    );
    drop(machine);
    let disk = Disk::open(&base, &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
    tools::BlockHashes::compute(&disk, &mut |_, _| {}).unwrap().save(&base).unwrap();
    drop(disk);
    let machine = self::machine(&[spec(&format!("{},overlay,verify", base.display()))]);
    let error = refusal(&machine, &scene, DiskMode::Overlay, false);
    assert!(error.contains("verified") && error.contains("by copy"), "{error}");
    drop(machine);
    // What would vanish with the older snapshot.
    let inside = scene.path("one");
    fs::create_dir(&inside).unwrap();
    let image = scene.image("one/0.raw", Format::Raw);
    let machine = self::machine(&[spec(&format!("{},format=raw,overlay", image.display()))]);
    let error = refusal(&machine, &scene, DiskMode::Overlay, false);
    assert!(error.contains("one/0.raw, which is in the snapshot that this one is to replace"), "{error}");
    capture(&machine, &scene, DiskMode::Copy, false);
}

#[test]
fn nothing_is_exchanged_if_one_of_several_disks_cannot_be_kept() {
    let scene = Scene::new();
    let (one, two) = (scene.image("one.img", Format::Raw), scene.image("two.img", Format::Raw));
    let machine = machine(&[&one, &two].map(DiskSpec::new));
    fs::rename(&two, scene.path("away.img")).unwrap();
    let error = refusal(&machine, &scene, DiskMode::Overlay, false);
    assert!(error.contains("two.img"), "{error}");
    assert!(machine.disk_images().iter().all(|image| image.behind.is_empty()));
    assert!(!scene.path("one.img.after-one.qcow2").exists());
    fs::rename(scene.path("away.img"), &two).unwrap();
    capture(&machine, &scene, DiskMode::Overlay, false);
    assert!(scene.path("one.img.after-one.qcow2").exists());
}

#[test]
fn who_looks_at_a_machine_does_not_wait_for_copies_of_its_disks() {
    let scene = Scene::new();
    let path = scene.path("a.qcow2");
    tools::create(&path, Format::Qcow2, 64 * MIB, false).unwrap();
    let disk = Disk::open(&path, &DiskOptions::default()).unwrap();
    for number in 0..32 {
        disk.write(number * MIB, &[VolatileSlice::from(&mut vec![1; MIB as usize][..])]).unwrap();
    }
    drop(disk);
    let machine = machine(&[DiskSpec::new(&path)]);
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| capture(&machine, &scene, DiskMode::Copy, false));
        while !scene.draft().join("disks/0.raw").exists() && !copying.is_finished() {
            std::thread::yield_now();
        }
        assert!(machine.images.try_lock().is_ok());
        assert_eq!(machine.disk_images().len(), 1);
        copying.join().unwrap();
    });
}

#[test]
fn what_is_missing_other_or_damaged_is_named() {
    let scene = Scene::new();
    let (one, two) = (scene.image("one.img", Format::Raw), scene.image("two.img", Format::Raw));
    let disks = [spec(&format!("{},serial=x", one.display())), DiskSpec::new(&two)];
    let machine = machine(&disks);
    let copied = capture(&machine, &scene, DiskMode::Copy, false);
    let named = capture(&machine, &scene, DiskMode::Reference, true);
    drop(machine);
    let said =
        |saved: &SavedDisks, disks: &[DiskSpec]| reopened(saved, &scene, disks).unwrap_err().to_string();
    assert!(said(&named, &disks[..1]).contains("with 2 disks, and this one is to have 1"));
    let other = |disk: &str| [spec(&format!("{},{disk}", one.display())), disks[1].clone()];
    let error = said(&named, &other("serial=y"));
    assert!(error.contains("vda (") && error.contains("the serial number \"x\""), "{error}");
    let error = said(&named, &other("serial=x,ro"));
    assert!(error.contains("was one that can be written to when"), "{error}");
    // Copies.
    let copy = scene.draft().join("disks/1.raw");
    fs::File::options().write(true).open(&copy).unwrap().set_len(4 * MIB - 512).unwrap();
    let error = said(&copied, &disks);
    assert!(error.contains("vdb (") && error.contains("1.raw holds a disk of 4193792 bytes"), "{error}");
    fs::remove_file(&copy).unwrap();
    let error = said(&copied, &disks);
    assert!(
        error.contains("1.raw is not there; put it back, or say where it is by now (--disk vdb=FILE)"),
        "{error}"
    );
    // The user's own: exchanged, longer, gone, and elsewhere.
    touch(&one);
    let error = said(&named, &disks);
    assert!(error.contains("vda (") && error.contains("one.img was written to since"), "{error}");
    let moved = scene.path("moved.img");
    fs::copy(&one, &moved).unwrap();
    fs::remove_file(&one).unwrap();
    let error = said(&named, &disks);
    assert!(error.starts_with("vda (") && error.contains("one.img is not there; put it back"), "{error}");
    let replaced =
        |number, path: &Path| Reopening { replaced: vec![(number, path.to_owned())], ..Reopening::default() };
    let found = named.specs(&scene.draft(), &disks, &replaced(0, &moved)).unwrap();
    assert!(
        found[0].to_string().starts_with(&format!("{},format=raw,overlay", moved.display())),
        "{}",
        found[0]
    );
    fs::File::options().write(true).open(&moved).unwrap().set_len(5 * MIB).unwrap();
    let error = named.specs(&scene.draft(), &disks, &replaced(0, &moved)).unwrap_err().to_string();
    assert!(error.contains("moved.img holds a disk of 5242880 bytes, and held 4194304"), "{error}");
    let error = named.specs(&scene.draft(), &disks, &replaced(2, &moved)).unwrap_err().to_string();
    assert!(error.contains("has no disk vdc: the last is vdb"), "{error}");
}

#[test]
fn an_overlay_that_the_user_names_is_kept() {
    let scene = Scene::new();
    let disks =
        [spec("ephemeral,size=1M"), spec(&format!("{},ro", scene.image("a.img", Format::Raw).display()))];
    let machine = machine(&disks);
    put(&*attached(&machine, 0), 0, 4);
    let saved = capture(&machine, &scene, None, false);
    let kept = scene.path("kept.qcow2");
    let reopening = |number| Reopening { overlays: vec![(number, kept.clone())], ..Reopening::default() };
    let specs = saved.specs(&scene.draft(), &disks, &reopening(0)).unwrap();
    let restored = self::machine(&specs);
    put(&*attached(&restored, 0), 4096, 5);
    drop(restored);
    let disk = attached(&self::machine(&specs), 0);
    assert_eq!((byte(&*disk, 0), byte(&*disk, 4096)), (4, 5));
    let error = saved.specs(&scene.draft(), &disks, &reopening(1)).unwrap_err().to_string();
    assert!(error.contains("kept.qcow2: it is only read"), "{error}");
    let nowhere = Reopening { overlays: vec![(0, scene.path("no/kept.qcow2"))], ..Reopening::default() };
    let error = saved.specs(&scene.draft(), &disks, &nowhere).unwrap_err().to_string();
    assert!(error.contains("no/kept.qcow2: its directory is not there"), "{error}");
}

#[test]
fn an_overlay_that_was_written_to_does_not_go_with_the_snapshot_s_memory() {
    let scene = Scene::new();
    let image = scene.image("a.img", Format::Raw);
    let disks = [spec(&format!("{},format=raw", image.display()))];
    let machine = machine(&disks);
    let saved = capture(&machine, &scene, DiskMode::Copy, false);
    drop(machine);
    let copy = scene.draft().join("disks/0.raw");
    let specs = |overlay: &Path| {
        let overlays = vec![(0, overlay.to_owned())];
        saved.specs(&scene.draft(), &disks, &Reopening { overlays, ..Reopening::default() })
    };
    // As a restore leaves it that came to nothing.
    let fresh = scene.overlay("fresh.qcow2", &copy, Format::Raw);
    let machines: Vec<_> = [fresh.clone(), scene.path("new.qcow2")]
        .iter()
        .map(|overlay| self::machine(&specs(overlay).unwrap()))
        .collect();
    let error = specs(&fresh).unwrap_err().to_string();
    assert!(error.contains("fresh.qcow2 is in use by"), "{error}");
    drop(machines);
    specs(&fresh).unwrap();
    let refused = |overlay: &Path, reason: &str| {
        let error = specs(overlay).unwrap_err().to_string();
        assert!(error.contains(overlay.to_str().unwrap()) && error.contains(reason), "{error}");
    };
    // What was taken back shows as zeroes, and is a change as well.
    let change = |overlay: &Path, change: &dyn Fn(&Disk)| {
        let disk = Disk::open(overlay, &DiskOptions::default()).unwrap();
        change(&disk);
        disk.flush().unwrap();
    };
    change(&fresh, &|disk| put(disk, 3 * MIB, 0));
    refused(&fresh, "it was written to, and what is in it does not go with the snapshot's memory");
    change(&scene.path("new.qcow2"), &|disk| disk.write_zeroes(MIB, MIB, true).unwrap());
    refused(&scene.path("new.qcow2"), "name a file that is not there yet");
    // And others, be they fresh or not.
    refused(&scene.overlay("other.qcow2", &image, Format::Raw), "no overlay of what the snapshot has");
    tools::create_overlay(&scene.path("large.qcow2"), &copy, Some(Format::Raw), Some(8 * MIB), false)
        .unwrap();
    refused(&scene.path("large.qcow2"), "no overlay of what the snapshot has");
    refused(&scene.image("none.qcow2", Format::Qcow2), "no overlay of what the snapshot has");
    refused(&image, "a.img");
    refused(&scene.draft(), "it is no file");
}

#[test]
fn every_change_of_what_is_in_the_snapshot_is_found_by_a_check() {
    let scene = Scene::new();
    let (base, image) = (scene.image("base.img", Format::Raw), scene.image("a.img", Format::Raw));
    let disks = [
        spec("ephemeral,size=1M"),
        spec(&format!("{},format=raw,overlay", base.display())),
        spec(&format!("{},format=raw", image.display())),
    ];
    let machine = machine(&disks);
    (0..3).for_each(|number| put(&*attached(&machine, number), 8192, 1));
    for (mode, files) in [
        (DiskMode::Copy, &["0.raw", "1.raw", "2.raw"][..]),
        (DiskMode::Overlay, &["disk0.raw", "disk1.qcow2"]),
    ] {
        let saved = capture(&machine, &scene, mode, false);
        let check = || saved.check(&scene.draft(), &Reopening::default());
        check().unwrap();
        for name in files {
            let path = scene.draft().join("disks").join(name);
            // A copy may have no holes.
            let whole = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, &whole).unwrap();
            check().unwrap();
            for at in [8192, whole.len() - 1] {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                fs::write(&path, bytes).unwrap();
                let error = check().unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
            }
            fs::write(&path, &whole[..whole.len() - 512]).unwrap();
            let error = check().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("bytes"), "{error}");
            fs::write(&path, &whole).unwrap();
        }
        check().unwrap();
    }
    // A file that the user names has to be the same.
    let saved = capture(&machine, &Scene::new(), DiskMode::Copy, false);
    let elsewhere = scene.path("elsewhere.raw");
    let replaced = Reopening { replaced: vec![(2, elsewhere.clone())], ..Reopening::default() };
    let mut bytes = fs::read(scene.draft().join("disks/2.raw")).unwrap();
    fs::write(&elsewhere, &bytes).unwrap();
    saved.check(&scene.draft(), &replaced).unwrap();
    bytes[5] = 5;
    fs::write(&elsewhere, &bytes).unwrap();
    let error = saved.check(&scene.draft(), &replaced).unwrap_err().to_string();
    assert!(error.contains("elsewhere.raw is not what was written"), "{error}");
    // A restore compares it if that is asked for.
    let specs = |compare| saved.specs(&scene.draft(), &disks, &Reopening { compare, ..replaced.clone() });
    specs(false).unwrap();
    assert_eq!(specs(true).unwrap_err().to_string(), error);
}

#[test]
fn a_section_without_checksums_is_refused_by_its_version() {
    let scene = Scene::new();
    let machine = machine(&[spec("ephemeral,size=1M")]);
    let mut bytes = saved::encode(&capture(&machine, &scene, None, false));
    // Behind the kind, which is a string.
    let version = 1 + <SavedDisks as saved::Saved>::NAME.len();
    assert_eq!(bytes[version], 2);
    bytes[version] = 1;
    let error = saved::decode::<SavedDisks>(&bytes).unwrap_err().to_string();
    assert_eq!(error, "saved state of disks has version 1, this program reads version 2");
}

#[test]
fn a_section_with_names_that_lead_elsewhere_is_refused() {
    let scene = Scene::new();
    let disks = [spec("ephemeral,size=1M")];
    let machine = machine(&disks);
    let saved = capture(&machine, &scene, None, false);
    let bytes = saved::encode(&saved);
    let at = bytes.windows(5).position(|window| window == b"0.raw").unwrap();
    for name in [b"../aa", b"a/raw", b"0.img", b".raw."] {
        let mut other = bytes.clone();
        other[at..at + 5].copy_from_slice(name);
        let other = saved::decode::<SavedDisks>(&other).unwrap();
        let error = reopened(&other, &scene, &disks).unwrap_err().to_string();
        assert!(error.contains("contradicts itself"), "{error}");
    }
    for length in 0..bytes.len() {
        assert!(saved::decode::<SavedDisks>(&bytes[..length]).is_err());
    }
}
