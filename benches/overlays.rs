//! What it costs to start from a template: to create an overlay on an image of 1 GiB, and to boot from it. Beside it
//! the same by `qemu-img`, where that is installed, and a boot from the image itself.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process};

use criterion::{Criterion, criterion_group, criterion_main};
use support::process::Contender;
use support::{median, rounds};

const ROUNDS: usize = 25;
const LODGER: &str = env!("CARGO_BIN_EXE_lodger");

/// The directory that all files are in, and the template.
struct Files {
    directory: PathBuf,
    template: PathBuf,
}

impl Files {
    fn make() -> Self {
        let directory = env::temp_dir().join(format!("lodger-bench-overlays-{}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let raw = directory.join("content");
        let template = directory.join("template.qcow2");
        let size = 1 << 30;
        let file = File::create(&raw).unwrap();
        file.set_len(size).unwrap();
        // A little everywhere, so that the template has tables for all of it.
        for offset in (0..size).step_by(16 << 20) {
            file.write_all_at(&[0x5a; 64 << 10], offset).unwrap();
        }
        let arguments = [Path::new("disk"), Path::new("convert"), &raw, &template];
        let done = Command::new(LODGER).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(done.unwrap().success());
        fs::remove_file(raw).unwrap();
        Self { directory, template }
    }

    fn overlay(&self) -> PathBuf {
        self.directory.join("overlay.qcow2")
    }

    /// Creates an overlay in a process of its own; how long that took, and what the overlay occupies.
    fn create(&self, mut command: Command) -> (Duration, u64) {
        let _ = fs::remove_file(self.overlay());
        let start = Instant::now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let duration = start.elapsed();
        assert!(status.success());
        (duration, fs::metadata(self.overlay()).unwrap().blocks() * 512)
    }

    fn by_lodger(&self) -> (Duration, u64) {
        let mut command = Command::new(LODGER);
        command.args(["disk", "create"]).arg(self.overlay()).arg("--backing").arg(&self.template);
        self.create(command)
    }

    fn by_qemu(&self) -> (Duration, u64) {
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&self.template)
            .arg(self.overlay());
        self.create(command)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Left behind at worst: files in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn overlays(criterion: &mut Criterion) {
    let files = Files::make();
    let has_qemu = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_ok();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds(ROUNDS) {
        ours.push(files.by_lodger());
        if has_qemu {
            theirs.push(files.by_qemu());
        }
    }
    println!("an overlay on an image of 1 GiB, processes of their own, median of interleaved runs:");
    for (name, runs) in [("lodger disk create", &ours), ("qemu-img create", &theirs)] {
        if let Some((_, size)) = runs.first() {
            let time = median(runs.iter().map(|run| run.0.as_secs_f64() * 1e3));
            println!("  {name:<28} {time:6.2} ms, {} KiB", size >> 10);
        }
    }

    let template = files.template.display();
    let boots = [
        ("boot without a disk", None),
        ("boot, the image read", Some(format!("{template},ro"))),
        ("boot, a fresh overlay", Some(format!("{template},overlay"))),
    ];
    let boots = boots.map(|(name, disk)| {
        let disk = disk.as_deref().map_or(vec!["run"], |disk| vec!["run", "--disk", disk]);
        Contender::lodger(name, &disk)
    });
    let mut times = vec![Vec::new(); boots.len()];
    for _ in 0..rounds(ROUNDS) {
        for (boot, times) in boots.iter().zip(&mut times) {
            times.push(boot.time_to_first_byte().0.as_secs_f64() * 1e3);
        }
    }
    println!("process start to the embedded guest's first byte, median of interleaved runs:");
    for (boot, times) in boots.iter().zip(&times) {
        println!("  {:<28} {:6.2} ms", boot.name, median(times.iter().copied()));
    }

    let mut group = criterion.benchmark_group("overlays");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    let create = |count| (0..count).map(|_| files.by_lodger().0).sum();
    group.bench_function("create", |bencher| bencher.iter_custom(create));
    let boot = |count| (0..count).map(|_| boots[2].time_to_first_byte().0).sum();
    group.bench_function("boot", |bencher| bencher.iter_custom(boot));
    group.finish();
}

criterion_group!(benches, overlays);
criterion_main!(benches);
