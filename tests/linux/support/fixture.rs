//! Guests that are at their shell from the start: booted once, and restored for each test.

use std::path::{Path, PathBuf};
use std::process::Command;

use lodger::console::Place;
use lodger::vm::{BalloonSpec, Clock, Config, DiskSpec, Kernel, MemorySpec, PortSpec};

use super::cache::{self, Kept};
use super::{Files, Shell, program};

const MIB: u64 = 1 << 20;

/// The size of the disks of [`Fixture::equipped`].
pub const DISK_SIZE: u64 = 16 * MIB;
/// Its disk that can be written, and the one that cannot, in the order in which the guest finds them.
const WRITABLE: usize = 0;
const READ_ONLY: usize = 1;
/// The names of its ports.
pub const PORTS: [&str; 3] = ["org.lodger.agent", "second", "third"];

/// A guest that will be at its shell: the machine as it was saved, and what a test puts in place of that.
pub struct Fixture {
    cache: PathBuf,
    saved: Config,
    config: Config,
}

impl Fixture {
    /// One processor, 64 MiB, and a serial port.
    pub fn bare(files: &Files) -> Self {
        Self::of(files, bare(files))
    }

    /// As many processors as this kernel is for, 128 MiB, two disks, a source of random numbers, a balloon, and ports.
    /// The disks are empty ones, unless a test names others, and the ports lead nowhere.
    pub fn equipped(files: &Files) -> Self {
        let is_smp = files.get("variant") == "smp";
        let disk = |options| -> DiskSpec {
            let disk = format!("ephemeral,size={DISK_SIZE}{options}");
            disk.parse().unwrap()
        };
        let port = |name: &&str| PortSpec { name: (*name).to_owned(), place: Place::Pty };
        let config = Config {
            memory: MemorySpec::of_size(128 * MIB),
            cpus: if is_smp { 2.into() } else { 1.into() },
            disks: vec![disk(if is_smp { ",queues=2" } else { "" }), disk(",ro")],
            rng: true,
            balloon: Some(BalloonSpec { target: 0, reporting: true }),
            ports: PORTS.iter().map(port).collect(),
            ..bare(files)
        };
        Self::of(files, config)
    }

    fn of(files: &Files, config: Config) -> Self {
        // Beside that of the kernels.
        let cache = Path::new(files.path("vmlinux")).ancestors().nth(3).unwrap().join("fixtures");
        Self { cache, saved: config.clone(), config }
    }

    /// `/dev/vda` is this, as `--disk` describes it: 16 MiB.
    pub fn disk(self, disk: &str) -> Self {
        self.with_disk(WRITABLE, disk)
    }

    /// `/dev/vdb` is this, and can only be read.
    pub fn read_only_disk(self, disk: &str) -> Self {
        self.with_disk(READ_ONLY, &format!("{disk},ro"))
    }

    fn with_disk(mut self, number: usize, disk: &str) -> Self {
        let saved = &self.saved.disks[number];
        // The guest knows how many queues there are.
        self.config.disks[number] = DiskSpec { queues: saved.queues, ..disk.parse().unwrap() };
        self
    }

    /// The port `/dev/vport4pN` leads to this place; `number` is that N. (Theirs is the fifth device.)
    pub fn port(mut self, number: usize, place: Place) -> Self {
        self.config.ports[number - 1].place = place;
        self
    }

    /// What is described, but for what is in it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The guest at its shell, in a machine of its own.
    #[track_caller]
    pub fn shell(&self) -> Shell {
        Shell::restore(&self.config, self.kept().snapshot())
    }

    /// The same in a process of its own: `lodger restore`, to which options can be added. The snapshot has to stay.
    pub fn command(&self) -> (Kept, Command) {
        let kept = self.kept();
        let mut command = program();
        command.arg("restore").arg(kept.snapshot().directory());
        (kept, command)
    }

    /// The snapshot from which that goes on.
    pub fn kept(&self) -> Kept {
        cache::kept(&self.cache, &self.saved, |place| {
            let mut shell = Shell::boot(&self.saved);
            // A disk may be another one after this: what was read of the first, to look for partitions, is forgotten.
            shell.run("mkdir -p /mnt; echo 3 >/proc/sys/vm/drop_caches").ok();
            shell.save(&self.saved, place);
        })
    }
}

fn bare(files: &Files) -> Config {
    Config {
        memory: MemorySpec::of_size(64 * MIB),
        kernel: Kernel::File(files.path("vmlinux").into()),
        initrds: vec![files.path("initramfs").into()],
        cmdline: Some(files.get("cmdline").to_owned()),
        // The kernels have periodic ticks, and would make up for the time in the cache tick by tick.
        clock: Clock::Stopped,
        ..Config::default()
    }
}
