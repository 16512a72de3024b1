//! `lodger run`: boots a guest and connects it to the terminal.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use lodger::boot::{Entry, Flat};
use lodger::vm::description::Description;
use lodger::vm::{
    BalloonSpec, Clock, Completion, ConsoleSpec, CpusSpec, DiskSpec, Kernel, Machine, MemorySpec, Name,
    PortSpec, Timeline,
};

use super::AnyError;
use super::describe;
use super::flags::{self, CpuChoice};
use super::guest::{self, Guest, ShownArgs};

/// Boot a guest in this process.
#[derive(Args)]
#[command(group(ArgGroup::new("booted").args(["kernel", "config"]).multiple(true)))]
pub struct RunArgs {
    /// What to boot: an ELF kernel, a bzImage or a flat image, told apart by content [default: the embedded guest]
    kernel: Option<PathBuf>,

    /// Read the guest's description from FILE, as --print-config writes it (vm.toml)
    ///
    /// KERNEL and options take the place of what FILE says, and those that may be given several times add to it.
    /// Relative paths in FILE begin at its directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the description of the guest that these options and --config make, and start nothing
    ///
    /// It is TOML, with what differs from the default and with absolute paths, and is what --config reads.
    #[arg(long, conflicts_with = "detach")]
    print_config: bool,

    /// What the VM is called while it runs: letters, digits, and -, _ or . [default: vm-PID]
    ///
    /// No two VMs of a user have the same name. While it runs, a VM has a directory, with a socket by which the other commands
    /// reach it: $XDG_RUNTIME_DIR/lodger/NAME, or /tmp/lodger-UID/NAME where there is no such variable.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,

    /// Return when the guest runs, and leave it without a terminal; prints the VM's name
    ///
    /// What a console on stdio would print is kept in the VM's directory, the newest quarter MiB at least: `lodger logs` shows
    /// it, and `lodger attach` is the console. If the guest cannot be started, this command fails with the reason.
    #[arg(long, short)]
    detach: bool,

    /// How much memory the guest has, and how the host backs it [default: 256M]
    ///
    /// A size in bytes, or in K, M, G, T, P or E, as in 512M or 3.5G, and after commas:
    ///   hugepages  ask for transparent 2 MiB pages
    ///   hugetlb    take 2 MiB pages from the reserved pool
    ///   prefault   touch all of it now
    ///   mergeable  let the host keep equal pages once (KSM), also among several guests
    /// The host pays for memory when the guest touches it, so it may be more than the host has.
    #[arg(short, long, value_name = "SIZE[,OPTION…]", verbatim_doc_comment)]
    pub(super) memory: Option<MemorySpec>,

    /// How many processors the guest has: N, and after commas sockets=S, cores=C, threads=T [default: 1]
    ///
    /// N is sockets × cores × threads. What is not given follows from N: the cores of one socket, without
    /// threads; without N it is 1.
    #[arg(short, long, value_name = "N[,LEVEL=N…]")]
    cpus: Option<CpusSpec>,

    /// What the processors can do: host or baseline, then +FLAG to show, -FLAG to hide; help lists the flags [default: host]
    ///
    ///   host      everything that this host's KVM offers
    ///   baseline  what servers have had since 2009 (Intel) or 2011 (AMD), so that the guest can move
    /// Flags are named as in /proc/cpuinfo, as in baseline,+aes,-rdtscp. Showing one shows what it builds on,
    /// hiding one hides what builds on it.
    #[arg(long, value_name = "MODEL[,±FLAG…]", verbatim_doc_comment)]
    cpu: Option<CpuChoice>,

    /// The kernel's command line, in place of the default
    ///
    /// By default Linux gets `console=ttyS0 reboot=k panic=-1`: it talks to the serial port, and its reset or panic
    /// ends this process. With --console virtio it gets `earlycon=uart8250,io,0x3f8 console=hvc0` in place of the
    /// first: it talks to the serial port until it has found the virtio console. Other kernels get nothing. A bzImage
    /// is Linux, an ELF kernel if its notes say so.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,

    /// Add to the kernel's command line, be it the default or --cmdline; may be given several times
    #[arg(long, value_name = "TEXT")]
    append: Vec<String>,

    /// The initial file system that is handed to the kernel
    ///
    /// May be given several times: the guest sees all files as one, in this order, as Linux unpacks them.
    #[arg(long, value_name = "FILE")]
    initrd: Vec<PathBuf>,

    /// A disk of the guest; may be given several times
    ///
    /// An image or block device, and after commas:
    ///   ro             the guest may only read it
    ///   format=FORMAT  raw or qcow2 [default: as its content says]
    ///   overlay=FILE   changes go to FILE, which is made if it is not there; the image stays as it is
    ///   overlay        changes go to a file in the VM's directory, and are forgotten at the end
    ///   verify         what is read of the image is compared with what `lodger disk hash` kept
    ///   direct         past the host's page cache
    ///   queues=N       so many queues, each with a thread [default: 1]
    ///   serial=TEXT    the serial number that the guest can ask for
    ///   bps=SIZE       at most so many bytes a second, read, written or zeroed; bps=20M+100M: and 100M at once
    ///                  after a rest [default: a tenth of a second's worth]
    ///   iops=N         at most so many requests a second; iops=500+2000: and 2000 at once after a rest
    /// Or ephemeral,size=SIZE: zeroes at first, and forgotten at the end; in $TMPDIR, or /var/tmp without it.
    /// Linux calls them /dev/vda, /dev/vdb and so on.
    #[arg(long, value_name = "FILE[,OPTION…]", verbatim_doc_comment)]
    disk: Vec<DiskSpec>,

    /// Give the guest a source of random numbers
    #[arg(long)]
    rng: bool,

    /// Give the guest a balloon: memory that it is asked to do without, and gives back to the host
    ///
    /// SIZE is what the guest is asked for from the start [default: 0]. It also reports what is free without being
    /// asked, and the host has it back within seconds; SIZE,no-reporting has it not do that. The guest takes memory out
    /// of its balloon when it has none left.
    #[arg(long, value_name = "SIZE[,OPTION]", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    balloon: Option<BalloonSpec>,

    /// How the kernel is entered: auto, pvh, linux64 or image [default: auto]
    ///
    /// pvh and linux64 insist on that protocol. auto takes linux64 for Linux, which can be given a seed for its random
    /// numbers that way, and for others pvh if they have it. The kernel in a bzImage is unpacked by lodger and entered
    /// like any ELF kernel; image has the bzImage's own code do that inside the guest, as auto has it where lodger
    /// cannot.
    #[arg(long, value_name = "PROTOCOL")]
    entry: Option<Entry>,

    /// Take KERNEL for a flat image: where it is loaded, and whether it starts in real or long mode
    ///
    /// Without this, whatever is neither ELF nor bzImage is loaded at 0x100000 and starts in long mode.
    #[arg(long, value_name = "ADDRESS[,real|long]", requires = "booted")]
    flat: Option<Flat>,

    /// Where the guest's console is: stdio, pty, file=PATH or none; virtio, or virtio and a place, for hvc0 [default: stdio]
    ///
    ///   stdio      this process's standard input and output
    ///   pty        a new pseudo-terminal, whose path is printed
    ///   file=PATH  output to a file, no input
    ///   none       nowhere
    /// It is the serial port; with virtio (on stdio), virtio,pty and so on it is a virtio console, which Linux calls
    /// hvc0: it costs the guest less, and knows the terminal's size. Input goes there, and output of both is shown.
    /// (The embedded guest listens at the serial port in any case.)
    #[arg(long, value_name = "[virtio,]WHERE", verbatim_doc_comment)]
    console: Option<ConsoleSpec>,

    /// A port between guest and host: NAME, and after a comma where it leads; may be given several times
    ///
    ///   NAME,socket=PATH  a Unix socket, for one client at a time; others wait for their turn
    ///   NAME,pty          a new pseudo-terminal, whose path is printed
    ///   NAME,file=PATH    output to a file, no input
    /// Linux calls them /dev/vportNp1, /dev/vportNp2 and so on, and with udev /dev/virtio-ports/NAME. N is the number of
    /// the virtio device: how many disks, --rng, --balloon and --console virtio there are. While no client is there, who
    /// writes in a Linux guest waits for one; what was under way to a client that leaves is lost.
    /// A file is emptied at the start. One that the VM needs, a disk for example, is refused.
    #[arg(long, value_name = "NAME,WHERE", verbatim_doc_comment)]
    port: Vec<PortSpec>,

    /// Do what the host's KVM cannot do for the guest in its place, where something is missing: auto, missing or off [default: auto]
    ///
    /// On ordinary hosts nothing is missing, and nothing is done. `lodger doctor` lists what this host lacks. With
    /// auto, a kernel on such a host also runs in a software processor, many times as fast as KVM interprets
    /// it; with missing it does not. With off, a guest that needs something ends with a report that shows where.
    #[arg(long, value_name = "WHEN")]
    completion: Option<Completion>,

    /// What the guest's clocks show when it goes on from a snapshot: host or stopped [default: host]
    ///
    /// With host they have gone on meanwhile. With stopped no time has passed for the guest: for kernels that make up for lost
    /// time tick by tick. `lodger restore` may say otherwise.
    #[arg(long, value_name = "WHICH")]
    clock: Option<Clock>,

    #[command(flatten)]
    shown: ShownArgs,
}

impl RunArgs {
    /// What the options describe, together with the file that they may name.
    fn description(&self) -> Result<Description, AnyError> {
        let mut description = match &self.config {
            Some(path) => Description::read(path)?,
            None => Description::default(),
        };
        let Description { config, console } = &mut description;
        if let Some(kernel) = &self.kernel {
            config.kernel = Kernel::File(kernel.clone());
        }
        if let Some(CpuChoice::Model(model)) = &self.cpu {
            config.cpu = model.clone();
        }
        if let Some(ConsoleSpec { virtio, place }) = &self.console {
            (config.virtio_console, *console) = (*virtio, place.clone());
        }
        replace(&mut config.memory, self.memory);
        replace(&mut config.cpus, self.cpus);
        replace(&mut config.entry, self.entry);
        replace(&mut config.completion, self.completion);
        replace(&mut config.clock, self.clock);
        config.name = self.name.clone().or(config.name.take());
        config.flat = self.flat.or(config.flat);
        config.cmdline = self.cmdline.clone().or(config.cmdline.take());
        config.balloon = self.balloon.or(config.balloon);
        config.rng |= self.rng;
        config.append.extend_from_slice(&self.append);
        config.initrds.extend_from_slice(&self.initrd);
        config.disks.extend_from_slice(&self.disk);
        config.ports.extend_from_slice(&self.port);
        if config.flat.is_some() && config.kernel == Kernel::Embedded {
            return Err(
                "--flat says how a kernel is loaded, and neither KERNEL nor --config names one".into()
            );
        }
        Ok(description)
    }
}

fn replace<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// Runs the guest to its end; returns the process's exit status.
pub fn run(arguments: &RunArgs, timeline: Timeline) -> Result<u8, AnyError> {
    if arguments.cpu == Some(CpuChoice::Help) {
        return flags::print().map(|()| 0);
    }
    let description = arguments.description()?;
    if arguments.print_config {
        return describe::print(description).map(|()| 0);
    }
    let guest = Guest {
        description,
        restored_from: None,
        detach: arguments.detach,
        paused: false,
        shown: &arguments.shown,
    };
    guest::host(&guest, timeline, |kvm, config, console, timeline| {
        Ok(Machine::build(kvm, config, console, timeline)?)
    })
}
