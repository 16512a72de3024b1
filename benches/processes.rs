//! What a guest costs as a process: from the start of the process to the guest's first byte, booted and restored,
//! memory, and processor time per byte of a burst of output. Beside it a bare `KVM_RUN` loop in a process of its own,
//! with interrupt controllers, that writes each byte with one system call; and peers, where some are named:
//!
//! `LODGER_BENCH_PEERS='alioth boot --pvh guest.elf -m size=128M' cargo bench --bench processes`

mod support;

use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::time::Duration;
use std::{env, fs};

use criterion::{Criterion, criterion_group};
use support::bare::Bare;
use support::guests;
use support::process::{BARE, Contender, lodger, resident_memory};
use support::{median, rounds};

const STARTS: usize = 41;
const BURSTS: usize = 11;

/// Where the guest files lie while the benchmark runs.
struct Guests {
    directory: std::path::PathBuf,
}

impl Guests {
    fn write() -> Self {
        let directory = env::temp_dir().join(format!("lodger-bench-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hello"), guests::hello()).unwrap();
        fs::write(directory.join("burst"), guests::burst()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// The embedded guest in the middle of a burst of output: it prints as soon as it goes on.
    fn snapshot(&self) -> String {
        let (name, place) = (format!("bench-{}", std::process::id()), self.path("snapshot"));
        let endless = "run=burst 1000000000000";
        lodger(&["run", "--detach", "--name", &name, "--memory", "128M", "--cmdline", endless]);
        lodger(&["snapshot", &name, &place, "--stop"]);
        place
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        // Left behind at worst: a few bytes in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn start(criterion: &mut Criterion) {
    let guests = Guests::write();
    let hello = guests.path("hello");
    let mut contenders = vec![
        Contender::bare("bare loop", &hello),
        Contender::lodger("lodger, one-byte guest", &["run", &hello, "--memory", "128M"]),
        Contender::lodger("lodger, embedded guest", &["run", "--memory", "128M"]),
    ];
    let snapshot = guests.snapshot();
    contenders.push(Contender::lodger("lodger, restored", &["restore", &snapshot]));
    contenders.extend(Contender::peers());
    let mut times = vec![Vec::new(); contenders.len()];
    let mut peaks = vec![0; contenders.len()];
    for _ in 0..rounds(STARTS) {
        for (index, contender) in contenders.iter().enumerate() {
            let (duration, peak) = contender.time_to_first_byte();
            times[index].push(duration.as_secs_f64() * 1e3);
            peaks[index] = peak;
        }
    }
    println!("process start to the guest's first byte, median of interleaved runs:");
    for (contender, (times, peak)) in contenders.iter().zip(times.iter().zip(peaks)) {
        let middle = median(times.iter().copied());
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        println!("  {:<28} {middle:6.2} ms (least {least:.2}), peak memory {peak} KiB", contender.name);
    }
    let (all, ours) = resident_memory(128);
    println!("at the embedded guest's prompt: {all} KiB resident, {ours} KiB of it not the guest's");

    let mut group = criterion.benchmark_group("start");
    group.sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    for contender in &contenders {
        let measure = |count| (0..count).map(|_| contender.time_to_first_byte().0).sum();
        group.bench_function(&contender.name, |bencher| bencher.iter_custom(measure));
    }
    group.finish();
}

fn burst(criterion: &mut Criterion) {
    let guests = Guests::write();
    let (hello, burst) = (guests.path("hello"), guests.path("burst"));
    let file = guests.path("output");
    let ours =
        |guest: &str| Contender::lodger("lodger", &["run", guest, "--memory", "2M", "--flat", "0x10000"]);
    let bare = |guest: &str| Contender::bare("bare", guest);
    let count = guests::BURST as f64;
    println!(
        "processor time per byte of a burst of {} bytes, median of {BURSTS} interleaved runs:",
        guests::BURST
    );
    for output in ["/dev/null", file.as_str(), "pipe"] {
        // What a process costs that prints one byte is no cost of the burst.
        let per_byte = |contender: &Contender, base: &Contender| {
            let (whole, bytes) = contender.processor_time(output);
            assert!(output != "pipe" || bytes as u64 == guests::BURST, "{bytes} bytes came");
            (whole.as_secs_f64() - base.processor_time(output).0.as_secs_f64()) * 1e6 / count
        };
        let rounds: Vec<_> = (0..rounds(BURSTS))
            .map(|_| (per_byte(&bare(&burst), &bare(&hello)), per_byte(&ours(&burst), &ours(&hello))))
            .collect();
        let bare = median(rounds.iter().map(|round| round.0));
        let ours = median(rounds.iter().map(|round| round.1));
        let ratio = median(rounds.iter().map(|round| round.1 / round.0));
        let to = if output == file { "a file" } else { output };
        println!("  to {to:<12} bare {bare:6.3} µs   lodger {ours:6.3} µs   ratio {ratio:.3}");
    }
    let mut group = criterion.benchmark_group("burst");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(200));
    for (name, contender) in [("bare", bare(&burst)), ("lodger", ours(&burst))] {
        let measure = |count| (0..count).map(|_| contender.processor_time("/dev/null").0).sum();
        group.bench_function(name, |bencher| bencher.iter_custom(measure));
    }
    group.finish();
}

/// The bare loop as a process: prints what the guest writes to the serial port, a byte at a time.
fn be_the_bare_loop(guest: &str) {
    let code = fs::read(guest).expect("the guest's file");
    // Not Rust's own standard output, which gathers what is written to it.
    // SAFETY: standard output is open, and is not closed here.
    let mut output = ManuallyDrop::new(unsafe { File::from_raw_fd(libc::STDOUT_FILENO) });
    Bare::without_doorbell(&code, 0).serve(|byte| output.write_all(&[byte]).expect("standard output"));
}

criterion_group!(benches, start, burst);

fn main() {
    match env::var(BARE) {
        Ok(guest) => be_the_bare_loop(&guest),
        Err(_) => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
