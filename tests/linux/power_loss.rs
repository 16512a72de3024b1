//! The machine's power is lost while its guest writes: `lodger` is killed by SIGKILL, at any moment.
//!
//! What dies is the process, not the host. The host's page cache survives, so that this does not test whether a flush
//! reaches the host's disk (it is an `fdatasync`; that is the host's promise). It tests all that is this program's own:
//! a flush that was answered before everything it promises had left the process, metadata of images kept back in
//! memory, and written in an order in which a death between two writes leaves an image that contradicts itself;
//! requests that were half done; locks that survive their holder.
//!
//! The guest carries out numbered steps and tells of each when it is flushed (`load.c`). After each kill the image is
//! checked by `lodger disk check`, a copy of it by e2fsck, and the files of that copy are read and compared with what
//! the last step that the guest counted says of them. The next round goes on with the image as it was left: its journal
//! is recovered by the guest's own kernel, and damage would add up. Now and then a round begins afresh.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::support::{LIMIT, Linux, Scratch, USER_SPACE, e2fs, lodger, rounds, tiny};

/// How often power is lost; if it is not set, so often that every moment has its turn.
const ROUNDS: &str = "LODGER_POWER_LOSS_ROUNDS";
const FEW_ROUNDS: u32 = 4;
/// After so many rounds with one image comes a fresh one.
const ROUNDS_TO_FRESH: u32 = 5;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

// As in load.c.
const SECTOR: usize = 512;
const FILES: u64 = 32;
const LOG_SECTORS: u64 = 8192;
const PAGES: u64 = 64;
const SECTORS_OF_PAGE: usize = 8;
const BEGINS: &str = "load: begins at ";
const FLUSHED: &str = "load: flushed ";

/// What the guest has done before the moment of the kill is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// It is about to mount its file system, and so to recover it.
    Mount,
    /// It is about to write.
    Load,
    /// It has told of a step, however slow the host is: without such rounds nothing might be flushed in a whole test.
    Flush,
}

impl Moment {
    fn of_round(round: u32) -> Self {
        match round % 4 {
            0 | 2 => Self::Flush,
            1 => Self::Load,
            _ => Self::Mount,
        }
    }

    /// What the guest prints then.
    fn line(self) -> &'static str {
        match self {
            Self::Mount => USER_SPACE,
            Self::Load => BEGINS,
            Self::Flush => FLUSHED,
        }
    }

    /// How long after that the power is lost at the latest.
    fn longest(self) -> Duration {
        // From user space to the first step it takes a fifth of a second where the kernel runs in software.
        Duration::from_millis(if self == Self::Mount { 400 } else { 2500 })
    }
}

/// Moments that are others each time.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[test]
fn what_was_flushed_to_an_overlay_is_there_after_a_kill() {
    let scratch = Scratch::new();
    let template = scratch.at("template.raw");
    e2fs::make(&template, SIZE, None);
    let hash = || lodger(["disk", "hash", "--no-keep", &template], "").with(0).stdout;
    let before = hash();
    let overlay = scratch.at("overlay.qcow2");
    let disk = format!("{template},overlay={overlay}");
    lose_power(&scratch, rounds(ROUNDS, FEW_ROUNDS), &disk, &overlay, || {
        fs::remove_file(&overlay).unwrap();
    });
    assert_eq!(hash(), before, "the template has changed");
}

#[test]
fn what_was_flushed_to_a_raw_disk_is_there_after_a_kill() {
    let scratch = Scratch::new();
    let disk = scratch.at("disk.raw");
    e2fs::make(&disk, SIZE, None);
    lose_power(&scratch, rounds(ROUNDS, FEW_ROUNDS).div_ceil(4), &disk, &disk, || {
        e2fs::make(&disk, SIZE, None)
    });
}

/// Boots with `disk` and kills what runs it, again and again; `renew` has `image` begin afresh.
fn lose_power(scratch: &Scratch, rounds: u32, disk: &str, image: &str, renew: impl Fn()) {
    let mut counted = 0;
    for round in 0..rounds {
        if round % ROUNDS_TO_FRESH == 0 && round > 0 {
            renew();
            counted = 0;
        }
        let moment = Moment::of_round(round);
        let flushed = lose_power_once(disk, moment, counted).unwrap_or(counted);
        let survived = check(scratch, image);
        println!("round {round}, {moment:?}: {counted} before, {flushed} told, {survived} survived");
        assert!(survived >= flushed, "step {flushed} was flushed, but the last that is there is {survived}");
        assert!(moment != Moment::Flush || survived > counted, "the guest told of a step and did none");
        counted = survived;
    }
}

/// Boots, and kills after a while; gives the last step that the guest told of. It has to begin where it was.
fn lose_power_once(disk: &str, moment: Moment, counted: u64) -> Option<u64> {
    let mut running = Linux::new(tiny()).options(&["--disk", disk]).start("load");
    let lines = lines_of(running.stdout());
    let mut said = Vec::new();
    while !said.iter().any(|line: &String| line.starts_with(moment.line())) {
        let line = lines.recv_timeout(LIMIT);
        said.push(line.unwrap_or_else(|_| panic!("the guest did not get so far as {moment:?}: {said:#?}")));
    }
    thread::sleep(moment.longest().mul_f64(random_share()));
    running.signal(libc::SIGKILL);
    assert_eq!(running.wait().signal(), Some(libc::SIGKILL), "it ended by itself: {said:#?}");
    said.extend(lines);
    // An error on the console: of the file system, of the disk, or of the load.
    let bad = said.iter().find(|line| ["error", "cannot"].iter().any(|word| line.contains(word)));
    assert_eq!(bad, None, "{said:#?}");
    if let Some(begins) = number_behind(&said, BEGINS) {
        assert_eq!(begins, counted + 1, "the guest does not find what was there: {said:#?}");
    }
    number_behind(&said, FLUSHED)
}

/// The lines as they come; the last one only if it is whole.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) && line.ends_with(b"\n") {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// What the last line that begins with `start` goes on with.
fn number_behind(lines: &[String], start: &str) -> Option<u64> {
    lines.iter().rev().find_map(|line| line.strip_prefix(start)?.parse().ok())
}

/// Checks an image and what is in it, in a copy; gives the number of the last step that the guest counted.
fn check(scratch: &Scratch, image: &str) -> u64 {
    let copy = scratch.at("copy.raw");
    if image.ends_with(".qcow2") {
        let report = lodger(["disk", "check", image, "--json"], "").with(0).stdout;
        assert!(report.contains("\"corruptions\":0"), "{report}");
    }
    lodger(["disk", "convert", "--force", image, &copy], "").with(0);
    e2fs::recover(&copy);
    e2fs::check(&copy);
    let files = scratch.at("files");
    fs::create_dir(&files).unwrap();
    e2fs::extract(&copy, &files);
    let counted = check_files(Path::new(&files));
    fs::remove_dir_all(&files).unwrap();
    counted
}

fn check_files(files: &Path) -> u64 {
    let read = |name: &str| fs::read(files.join(name)).unwrap_or_default();
    let counted = match &read("count")[..] {
        [] => 0,
        count => step_of(count, 0).expect("the counter is whole"),
    };
    for place in 0..FILES {
        let Some(expected) = last_step_at(counted, place, FILES) else { continue };
        let file = read(&format!("file-{place:02}"));
        let step = step_of(&file, 0);
        assert!(may_be(step, expected, counted), "file {place}: {step:?} instead of {expected}");
        let sectors = 1 + step.unwrap_or_default() * 37 % 96;
        assert_eq!(file.len() as u64, sectors * SECTOR as u64, "file {place} of step {step:?}");
        let whole = file.chunks(SECTOR).enumerate().all(|(index, sector)| step_of(sector, index) == step);
        assert!(whole, "file {place} of step {step:?} is not whole");
    }
    let log = read("log");
    for place in 0..LOG_SECTORS {
        let Some(expected) = last_step_at(counted, place, LOG_SECTORS) else { continue };
        let step = log.chunks(SECTOR).nth(place as usize).and_then(|sector| step_of(sector, 0));
        assert!(may_be(step, expected, counted), "the log at {place}: {step:?} instead of {expected}");
    }
    let pages = read("pages");
    for place in 0..PAGES {
        let Some(expected) = last_step_at(counted, place, PAGES) else { continue };
        for index in 0..SECTORS_OF_PAGE {
            let sector = pages.chunks(SECTOR).nth(place as usize * SECTORS_OF_PAGE + index);
            let step = sector.and_then(|sector| step_of(sector, index));
            assert!(
                may_be(step, expected, counted),
                "page {place}, sector {index}: {step:?} instead of {expected}"
            );
        }
    }
    counted
}

/// Whether what was flushed is there, or what the step under way put in its place.
fn may_be(step: Option<u64>, expected: u64, counted: u64) -> bool {
    step == Some(expected) || step == Some(counted + 1)
}

/// The last of the steps 1 to `counted` that wrote at `place`, when all write at their number modulo `places`.
fn last_step_at(counted: u64, place: u64, places: u64) -> Option<u64> {
    let back = (counted + places - place) % places;
    counted.checked_sub(back).filter(|step| *step > 0)
}

/// The step that wrote this sector, the one at `index` within what it wrote; none if any byte of it is another's.
fn step_of(sector: &[u8], index: usize) -> Option<u64> {
    let words: Vec<_> =
        sector.as_chunks().0.iter().take(SECTOR / 8).map(|word| u64::from_le_bytes(*word)).collect();
    let step = *words.first()?;
    let first = (index * SECTOR / 8) as u64;
    let follows = |(place, word): (u64, &u64)| {
        *word == (step.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place)
    };
    (words.len() == SECTOR / 8 && (first..).zip(&words).skip(1).all(follows)).then_some(step)
}
