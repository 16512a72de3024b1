//! What a disk costs: blocks read and written through virtio, by a guest that does nothing else, beside the same blocks
//! of the same file read and written by a process of the host. And peers with the same guest, where some are named,
//! each with `{guest}`, `{disk}` and `{work}` where the files and the guest's command line belong:
//!
//! `LODGER_BENCH_DISK_PEERS='qemu-system-x86_64 … -kernel {guest} -append {work} -drive file={disk},…' cargo bench
//! --bench disks`

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process};

use criterion::{Criterion, criterion_group, criterion_main};
use io_uring::{IoUring, opcode, types};
use lodger::boot::embedded::EMBEDDED_GUEST;
use support::{median, rounds};

const SIZE: u64 = 512 << 20;
const DEPTH: u64 = 32;
const ROUNDS: usize = 9;
const PEERS: &str = "LODGER_BENCH_DISK_PEERS";

/// What is done.
struct Work {
    name: &'static str,
    block: u64,
    times: u64,
    writes: bool,
    direct: bool,
    sequential: bool,
}

const RANDOM: Work =
    Work { name: "", block: 4096, times: 400_000, writes: false, direct: false, sequential: false };
const SEQUENTIAL: Work = Work { block: 128 << 10, times: 20_000, sequential: true, ..RANDOM };

const WORKS: [Work; 6] = [
    Work { name: "random 4 KiB, cached", ..RANDOM },
    Work { name: "random 4 KiB, direct", direct: true, times: 40_000, ..RANDOM },
    Work { name: "sequential 128 KiB, cached", ..SEQUENTIAL },
    Work { name: "random 4 KiB written", writes: true, times: 100_000, ..RANDOM },
    Work { name: "random 4 KiB written, direct", writes: true, direct: true, times: 20_000, ..RANDOM },
    Work { name: "sequential 128 KiB written", writes: true, times: 4_000, ..SEQUENTIAL },
];

/// The same places as the guest's.
struct Places {
    state: u64,
    count: u64,
    sequential: bool,
}

impl Places {
    fn of(work: &Work) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, count: SIZE / work.block, sequential: work.sequential }
    }

    fn next(&mut self) -> u64 {
        if self.sequential {
            self.state = (self.state + 1) % self.count;
            return self.state;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((u128::from(self.state) * u128::from(self.count)) >> 64) as u64
    }
}

/// Files that are there while the benchmark runs.
struct Files {
    directory: PathBuf,
    disk: PathBuf,
    guest: PathBuf,
}

impl Files {
    fn make() -> Self {
        let directory = env::temp_dir().join(format!("lodger-bench-disks-{}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (disk, guest) = (directory.join("disk"), directory.join("guest.elf"));
        let mut file = File::create(&disk).unwrap();
        let mut block = vec![0_u8; 1 << 20];
        for number in 0..SIZE >> 20 {
            for (at, byte) in (0_u64..).zip(&mut block) {
                *byte = (at.wrapping_mul(0x9e37_79b9).wrapping_add(number) >> 7) as u8;
            }
            file.write_all(&block).unwrap();
        }
        file.sync_all().unwrap();
        fs::write(&guest, EMBEDDED_GUEST).unwrap();
        Self { directory, disk, guest }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Left behind at worst: files in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One thread of the host: calls where the page cache answers, a ring of the same depth where the disk does.
fn on_the_host(disk: &Path, work: &Work) -> Duration {
    let flags = if work.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(work.writes).custom_flags(flags).open(disk).unwrap();
    let mut places = Places::of(work);
    let mut memory = vec![0_u8; (work.block * (DEPTH + 1)) as usize];
    // Direct I/O wants aligned memory.
    let skip = memory.as_ptr().align_offset(4096);
    let buffers = &mut memory[skip..skip + (work.block * DEPTH) as usize];
    let start = Instant::now();
    if work.direct {
        ring(&file, buffers, work, &mut places);
    } else {
        for number in 0..work.times {
            let at = (number % DEPTH * work.block) as usize;
            let buffer = &mut buffers[at..at + work.block as usize];
            let offset = places.next() * work.block;
            match work.writes {
                true => file.write_all_at(buffer, offset).unwrap(),
                false => file.read_exact_at(buffer, offset).unwrap(),
            }
        }
    }
    start.elapsed()
}

fn ring(file: &File, buffers: &mut [u8], work: &Work, places: &mut Places) {
    let mut ring = IoUring::new(DEPTH as u32).unwrap();
    let mut begin = |ring: &mut IoUring, slot: u64| {
        let buffer = buffers[(slot * work.block) as usize..].as_mut_ptr();
        let (fd, length) = (types::Fd(file.as_raw_fd()), work.block as u32);
        let offset = places.next() * work.block;
        let entry = match work.writes {
            true => opcode::Write::new(fd, buffer, length).offset(offset).build(),
            false => opcode::Read::new(fd, buffer, length).offset(offset).build(),
        };
        let entry = entry.user_data(slot);
        // SAFETY: the buffer is used by this slot alone, and stays until the last request has ended.
        unsafe { ring.submission().push(&entry) }.unwrap();
    };
    (0..DEPTH).for_each(|slot| begin(&mut ring, slot));
    let (mut given, mut ended) = (DEPTH, 0);
    while ended < work.times {
        ring.submit_and_wait(1).unwrap();
        let done: Vec<_> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in done {
            assert_eq!(result, work.block as i32);
            ended += 1;
            if given < work.times {
                given += 1;
                begin(&mut ring, slot);
            }
        }
    }
}

fn guest_commands(work: &Work) -> String {
    let order = if work.sequential { " seq" } else { "" };
    let verb = if work.writes { "write" } else { "read" };
    format!("quiet run=disk {verb} {} {DEPTH} {}{order};halt", work.block, work.times)
}

/// The time between the lines that the guest prints before and after its work.
fn in_a_guest(mut command: Command) -> Duration {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.contains("disk of ")).expect("the guest finds its disk");
    let start = Instant::now();
    let end = lines.find(|line| line.contains("done in")).expect("the guest ends its work");
    let duration = start.elapsed();
    assert!(end.contains(" 0 failed"), "{end}");
    // Some go on when their guest has ended.
    let _ = child.kill();
    child.wait().unwrap();
    duration
}

fn lodger(disk: &Path, work: &Work) -> Duration {
    let direct = if work.direct { ",direct" } else { "" };
    let only_read = if work.writes { "" } else { ",ro" };
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["run", "--cmdline", &guest_commands(work)]);
    command.arg("--disk").arg(format!("{},format=raw{only_read}{direct}", disk.display()));
    in_a_guest(command)
}

fn peer(line: &str, files: &Files, work: &Work) -> Duration {
    let commands = guest_commands(work);
    let mut words = line.split_whitespace().map(|word| {
        let word = word.replace("{guest}", &files.guest.to_string_lossy());
        word.replace("{disk}", &files.disk.to_string_lossy()).replace("{work}", &commands)
    });
    let mut command = Command::new(words.next().expect("a command"));
    in_a_guest({
        command.args(words);
        command
    })
}

fn disks(criterion: &mut Criterion) {
    let files = Files::make();
    let peers = env::var(PEERS).unwrap_or_default();
    let peers: Vec<_> = peers.split(';').map(str::trim).filter(|line| !line.is_empty()).collect();
    for work in &WORKS {
        // All of it is in the page cache afterwards, and nothing has to be written back; direct work passes that by.
        File::open(&files.disk).unwrap().sync_all().unwrap();
        File::open(&files.disk).unwrap().read_to_end(&mut Vec::with_capacity(SIZE as usize)).unwrap();
        let mut host = Vec::new();
        let mut ours = Vec::new();
        let mut theirs = vec![Vec::new(); peers.len()];
        for _ in 0..rounds(ROUNDS) {
            host.push(on_the_host(&files.disk, work).as_secs_f64());
            ours.push(lodger(&files.disk, work).as_secs_f64());
            // How a peer is told to pass the page cache by is its own matter.
            for (line, times) in peers.iter().zip(&mut theirs).filter(|_| !work.direct) {
                times.push(peer(line, &files, work).as_secs_f64());
            }
        }
        let rate = |times: &[f64]| work.times as f64 / median(times.iter().copied());
        let share = median(host.iter().zip(&ours).map(|(host, ours)| host / ours));
        println!(
            "{:<28} host {:>9.0}/s   lodger {:>9.0}/s   lodger does {:.0} % of the host",
            work.name,
            rate(&host),
            rate(&ours),
            share * 100.0
        );
        for (line, times) in peers.iter().zip(&theirs).filter(|(_, times)| !times.is_empty()) {
            println!("{:<28} {:>9.0}/s", line.split_whitespace().next().unwrap_or_default(), rate(times));
        }
    }
    let mut group = criterion.benchmark_group("disks");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(200));
    let work = Work { times: 50_000, ..WORKS[0] };
    for (name, run) in [("host", on_the_host as fn(&Path, &Work) -> Duration), ("lodger", lodger)] {
        let measure = |count| (0..count).map(|_| run(&files.disk, &work)).sum();
        group.bench_function(name, |bencher| bencher.iter_custom(measure));
    }
    group.finish();
}

criterion_group!(benches, disks);
criterion_main!(benches);
