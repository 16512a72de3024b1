//! Linux that is saved at its shell and goes on in other machines.

use std::thread;
use std::time::{Duration, Instant};

use lodger::vm::{Config, DiskSpec};

use crate::support::{Files, Fixture, LIMIT, Scratch, Shell, complaints, e2fs, smp, tiny};

const MIB: u64 = 1 << 20;

fn config(files: &Files) -> Config {
    Fixture::bare(files).config().clone()
}

#[test]
fn a_shell_that_was_saved_answers_in_every_machine_that_goes_on_with_it() {
    let fixture = Fixture::bare(tiny());
    let kept = fixture.kept();
    for number in 0..3 {
        let start = Instant::now();
        let mut shell = Shell::restore(fixture.config(), kept.snapshot());
        assert_eq!(shell.answer(&format!("echo sum $(({number} + 40))")), format!("sum {}\n", number + 40));
        println!("a shell answered {:?} after its restore began", start.elapsed());
        assert_eq!(shell.answer("sleep 0.2; cat /proc/uptime | wc -l").trim(), "1");
        assert_eq!(shell.complaints(), "");
    }
}

#[test]
fn a_counter_goes_on_through_many_machines() {
    let fixture = Fixture::bare(tiny());
    let scratch = Scratch::new();
    let next = scratch.path().join("next");
    let mut shell = fixture.shell();
    shell.answer("(i=0; while true; do i=$((i+1)); echo $i >/count; done) & true");
    let mut last = 0;
    for _ in 0..4 {
        let start = Instant::now();
        let count = loop {
            // Between two of its numbers the file is empty.
            match shell.answer("cat /count 2>/dev/null; true").trim().parse::<u64>() {
                Ok(count) if count > last => break count,
                Ok(count) => assert_eq!(count, last, "it went back"),
                Err(_) => {}
            }
            assert!(start.elapsed() < LIMIT, "the counter stands at {last}");
        };
        last = count;
        assert!(shell.travel(fixture.config(), &next));
    }
    assert_eq!(shell.complaints(), "");
}

/// From its first instruction to its last, with everything that a kernel does only while it starts.
fn journey_of(config: Config, end: &str) {
    let scratch = Scratch::new();
    let place = scratch.path().join("next");
    let mut guest = Shell::start(&config);
    let start = Instant::now();
    let mut moves = 0;
    loop {
        // Longer and longer, so that a slow machine comes to an end, too.
        thread::sleep(Duration::from_millis(10 + 4 * moves));
        if !guest.travel(&config, &place) {
            break;
        }
        moves += 1;
        assert!(start.elapsed() < LIMIT, "{}", guest.text());
    }
    println!("{moves} moves in {:?}", start.elapsed());
    let text = guest.text();
    assert!(text.contains(end), "{text}");
    assert_eq!(guest.machine().wait().status(), 37, "{text}");
    assert_eq!(complaints(&text), "", "{text}");
}

#[test]
fn linux_starts_works_and_ends_while_it_changes_machines() {
    let line = format!("{} lodger.run=\"md5sum -c /sum 2>/dev/null; dmesg; exit 37\"", tiny().get("cmdline"));
    journey_of(Config { cmdline: Some(line), ..config(tiny()) }, "the script ended with status 37");
}

#[test]
fn linux_with_two_processors_starts_works_and_ends_while_it_changes_machines() {
    let line = format!("{} lodger.run=\"nproc; dmesg; exit 37\"", smp().get("cmdline"));
    let config = Config { cpus: 2.into(), cmdline: Some(line), ..config(smp()) };
    journey_of(config, "\n2\r\n");
}

#[test]
fn a_file_that_is_being_written_is_whole_in_the_end() {
    let scratch = Scratch::new();
    let image = scratch.at("disk");
    e2fs::make(&image, 32 * MIB, None);
    let line = format!(
        "{} lodger.run=\"mkdir -p /mnt; mount /dev/vda /mnt; \
         for i in 1 2; do dd if=/dev/urandom of=/mnt/file bs=64k count=8; md5sum /mnt/file >/mnt/sum; sync; \
         echo 3 >/proc/sys/vm/drop_caches; md5sum -c /mnt/sum || exit 1; done; umount /mnt; dmesg; exit 37\"",
        tiny().get("cmdline")
    );
    let config = Config { disks: vec![DiskSpec::new(&image)], cmdline: Some(line), ..config(tiny()) };
    journey_of(config, "/mnt/file: OK");
    e2fs::check(&image);
}
