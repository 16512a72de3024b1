//! Virtio disks, as Linux uses them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use crate::support::{
    Answer, DISK_SIZE, Fixture, Linux, Running, Scratch, e2fs, has_line, lodger, program, smp, tiny,
};

const MIB: u64 = 1 << 20;

fn disk(scratch: &Scratch, name: &str, size: u64) -> String {
    let path = scratch.at(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn run(fixture: Fixture, script: &str) -> Answer {
    fixture.shell().run(script).ok()
}

#[test]
fn a_file_system_on_a_disk_keeps_what_was_written_from_one_run_to_the_next() {
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk", DISK_SIZE);
    run(
        Fixture::equipped(tiny()).disk(&path),
        "mke2fs /dev/vda >/dev/null && mount /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=64k count=12 && \
         md5sum /mnt/file >/mnt/sum && umount /mnt",
    );
    // Through several queues that share limits, with several processors, found by ACPI instead of the command line.
    let answer = run(
        Fixture::equipped(smp()).disk(&format!("{path},bps=8M+64K,iops=1000+10")),
        "mount /dev/vda /mnt && md5sum -c /mnt/sum && echo more >/mnt/more && umount /mnt",
    );
    has_line(&answer, "/mnt/file: OK");
    let answer = run(
        Fixture::equipped(tiny()).read_only_disk(&path),
        "mount -o ro /dev/vdb /mnt && md5sum -c /mnt/sum && cat /mnt/more",
    );
    has_line(&answer, "/mnt/file: OK");
    has_line(&answer, "more");
}

#[test]
fn disks_come_in_the_order_in_which_they_were_given() {
    let scratch = Scratch::new();
    let options: Vec<_> = (1..=3)
        .flat_map(|number| {
            let path = disk(&scratch, &format!("disk{number}"), number * MIB);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(format!("disk {number}\n").as_bytes())
                .unwrap();
            ["--disk".to_owned(), format!("{path},serial=number {number}")]
        })
        .collect();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let linux = Linux::new(tiny()).options(&options);
    let finished = linux.run_script(
        "for d in a b c; do cat /sys/block/vd$d/size /sys/block/vd$d/serial; echo; head -n 1 /dev/vd$d; done",
    );
    let finished = finished.with(0);
    let output: Vec<_> = finished.lines().map(str::trim_end).collect();
    for number in 1..=3_u64 {
        let wanted = [(number * 2048).to_string(), format!("number {number}"), format!("disk {number}")];
        assert!(output.windows(3).any(|lines| lines == wanted), "{wanted:?} is not in {finished:?}");
    }
}

#[test]
fn an_overlay_holds_what_a_guest_writes_and_its_template_stays_as_it_was() {
    let scratch = Scratch::new();
    let (template, contents) = (scratch.at("template"), scratch.at("contents"));
    fs::create_dir(&contents).unwrap();
    fs::write(format!("{contents}/who"), "template\n").unwrap();
    e2fs::make(&template, DISK_SIZE, Some(&contents));
    let before = fs::read(&template).unwrap();
    let overlay = scratch.at("overlay.qcow2");
    let kept = format!("{template},overlay={overlay}");
    let script = "mount /dev/vda /mnt && cat /mnt/who && echo changed >/mnt/who && umount /mnt";
    for who in ["template", "changed"] {
        has_line(&run(Fixture::equipped(tiny()).disk(&kept), script), who);
    }
    assert!(fs::read(&template).unwrap() == before, "the template has changed");
    assert!(fs::metadata(&overlay).unwrap().len() < 2 * MIB);
    let other = disk(&scratch, "other", MIB);
    let wrong = format!("{other},overlay={overlay}");
    let said = Linux::new(tiny()).options(&["--disk", &wrong]).run("exit:42").with(1).stderr;
    assert!(said.contains("is no overlay of"), "{said}");
}

#[test]
fn a_disk_without_a_file_is_empty_and_goes_away() {
    for _ in 0..2 {
        let script =
            "head -c 4 /dev/vda | od -An -tx1; echo full | dd of=/dev/vda conv=fsync; head -c 4 /dev/vda";
        let answer = run(Fixture::equipped(tiny()), script);
        has_line(&answer, " 00 00 00 00");
        assert!(answer.text.contains("full"), "{answer:?}");
    }
}

#[test]
fn two_machines_cannot_write_to_one_disk() {
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk", MIB);
    // The guest that is part of the program prints at once, and waits for input then.
    let mut first = Running::start(program().args(["run", "--disk", &path]).stdin(Stdio::piped()));
    let _input = first.stdin();
    let mut output = first.stdout();
    output.read_exact(&mut [0]).unwrap();
    let said = lodger(["run", "--disk", &path], "").with(1).stderr;
    assert!(said.contains(&format!("in use by process {}", first.id())), "{said}");
    first.signal(libc::SIGKILL);
    first.wait();
    lodger(["run", "--disk", &path], "").with(0);
}

#[test]
fn what_a_guest_may_only_read_stays_as_it_was() {
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk", DISK_SIZE);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let script = "cat /sys/block/vdb/ro; dd if=/dev/zero of=/dev/vdb bs=512 count=1 || echo refused";
    let answer = run(Fixture::equipped(tiny()).read_only_disk(&path), script);
    has_line(&answer, "1");
    has_line(&answer, "refused");
}

#[test]
fn a_disk_that_shrinks_gives_its_guest_errors_and_nothing_else() {
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk", DISK_SIZE);
    // The guest asks for it by a mark on the disk, and goes on when the mark is gone.
    let shrinks = File::options().read(true).write(true).open(&path).unwrap();
    let shrinking = std::thread::spawn(move || {
        crate::support::wait_until("the guest leaves its mark", || {
            let mut mark = [0; 4];
            shrinks.read_exact_at(&mut mark, MIB).is_ok() && &mark == b"MARK"
        });
        shrinks.set_len(2 * MIB).unwrap();
        shrinks.write_all_at(b"GONE", MIB).unwrap();
    });
    let answer = run(
        Fixture::equipped(tiny()).disk(&path),
        "echo MARK | dd of=/dev/vda bs=512 seek=2048 count=1 conv=fsync; \
         until dd if=/dev/vda bs=512 skip=2048 count=1 iflag=direct | grep -q GONE; do true; done; \
         dd if=/dev/vda of=/dev/null bs=512 skip=6000 count=1 iflag=direct || echo lost; \
         dd if=/dev/vda of=/dev/null bs=512 skip=1000 count=1 iflag=direct && echo kept",
    );
    shrinking.join().unwrap();
    has_line(&answer, "lost");
    has_line(&answer, "kept");
}

#[test]
fn random_numbers_come_from_the_host() {
    let answer = run(
        Fixture::equipped(tiny()),
        "cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | wc -c; head -c 64 /dev/hwrng | md5sum",
    );
    has_line(&answer, "virtio_rng.0");
    has_line(&answer, "4096");
}
