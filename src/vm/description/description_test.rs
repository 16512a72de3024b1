use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::*;
use crate::boot::{Entry, Flat, Mode};
use crate::console::Place;
use crate::devices::virtio::{Limits, Rate};
use crate::memory::Options;
use crate::storage::Format;
use crate::storage::testing::{Numbers, TempDir};
use crate::vm::{
    BalloonSpec, Changes, Clock, Completion, CpusSpec, DiskSource, DiskSpec, MemorySpec, PortSpec,
};

/// Has every key, and all forms of those that have several.
const LONG: &str = r#"
name = "web"                       # a comment
memory = { size = "512M", hugepages = true, prefault = true }
cpus = { count = 8, threads = 2 }
cpu = { model = "baseline", flags = ["+aes", "-rdtscp"] }
rng = true
balloon = { size = "64M", reporting = false }
console = { virtio = true, file = "console, or \"not\".log" }
completion = "missing"
clock = "stopped"

[kernel]
path = "vmlinuz"
initrd = ["root.cpio", 'more.cpio']
cmdline = """console=hvc0 \
             quiet"""
append = ["a", "b\nc"]
entry = "linux64"
flat = { address = 0x7c00, mode = "real" }

[[disk]]
path = "root,ro.img"
format = "raw"
overlay = "changes.qcow2"
verify = true
direct = true
queues = 2
serial = "ROOT"
bps = { rate = "20M", burst = "100M" }
iops = 500

[[disk]]
ephemeral = "1G"
ro = true
bps = "20M+100M"

[[port]]
name = "agent"
socket = "agent.sock"

[[port]]
name = "log"
file = "agent.log"

[[port]]
name = "terminal"
pty = true
"#;

fn read(text: &str) -> Description {
    Description::from_toml(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn refused(text: &str, line: usize, said: &str) {
    let error = Description::from_toml(text).expect_err(text);
    assert!(error.to_string().contains(said), "{text}: {error}");
    assert_eq!(error.line, line, "{text}: {error}");
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let Description { config, console } = read(LONG);
    let rate = |per_second: u64, burst: u64| Rate {
        per_second: NonZeroU64::new(per_second).unwrap(),
        burst: NonZeroU64::new(burst).unwrap(),
    };
    let bytes = Some(rate(20 << 20, 100 << 20));
    let first = DiskSpec {
        source: DiskSource::Image {
            path: "root,ro.img".into(),
            format: Some(Format::Raw),
            changes: Changes::Overlay("changes.qcow2".into()),
            verify: true,
        },
        read_only: false,
        direct: true,
        queues: 2,
        serial: Some("ROOT".to_owned()),
        limits: Limits { bytes, operations: Some(rate(500, 50)) },
    };
    let second = DiskSpec {
        source: DiskSource::Ephemeral { size: 1 << 30 },
        read_only: true,
        limits: Limits { bytes, operations: None },
        ..DiskSpec::ephemeral()
    };
    let port = |name: &str, place| PortSpec { name: name.to_owned(), place };
    let expected = Config {
        name: Some("web".parse().unwrap()),
        memory: MemorySpec {
            size: 512 << 20,
            options: Options { hugepages: true, prefault: true, ..Options::default() },
        },
        cpus: CpusSpec { sockets: 1, cores: 4, threads: 2 },
        cpu: "baseline,+aes,-rdtscp".parse().unwrap(),
        kernel: Kernel::File("vmlinuz".into()),
        entry: Entry::Linux64,
        flat: Some(Flat { address: 0x7c00, mode: Mode::Real }),
        cmdline: Some("console=hvc0 quiet".to_owned()),
        append: vec!["a".to_owned(), "b\nc".to_owned()],
        initrds: vec!["root.cpio".into(), "more.cpio".into()],
        disks: vec![first, second],
        rng: true,
        balloon: Some(BalloonSpec { target: 64 << 20, reporting: false }),
        virtio_console: true,
        ports: vec![
            port("agent", Place::Socket("agent.sock".into())),
            port("log", Place::File("agent.log".into())),
            port("terminal", Place::Pty),
        ],
        completion: Completion::Missing,
        clock: Clock::Stopped,
    };
    assert_eq!(config, expected);
    assert_eq!(console, console::Spec::File("console, or \"not\".log".into()));
}

#[test]
fn what_the_documentation_shows_is_understood() {
    let shown: String = include_str!("mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .skip_while(|line| *line != " ```toml")
        .skip(1)
        .take_while(|line| *line != " ```")
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(shown.contains("[[port]]"));
    let config = read(&shown).config;
    assert_eq!((config.disks.len(), config.ports.len(), config.cpus.cores), (2, 1, 4));
}

#[test]
fn nothing_is_the_default_machine() {
    assert_eq!(read(""), Description::default());
    assert_eq!(read(&Description::default().to_toml().unwrap()), Description::default());
    assert_eq!(Description::default().to_toml().unwrap(), "memory = \"256M\"\ncpus = 1\n");
}

#[test]
fn compact_texts_say_what_they_say_on_the_command_line() {
    let description = read(
        "memory = '1G,prefault'\ncpus = '8,sockets=2'\nconsole = 'virtio,file=a,b'\nkernel = 'vmlinux'\n\
         disk = ['x,ro', { path = 'y', overlay = true }, 'ephemeral,size=1M']\nport = 'agent,pty'\nballoon = '1M,no-reporting'",
    );
    let Config { memory, cpus, disks, ports, balloon, .. } = &description.config;
    assert_eq!(memory.to_string(), "1G,prefault");
    assert_eq!(*cpus, CpusSpec { sockets: 2, cores: 4, threads: 1 });
    let disks: Vec<_> = disks.iter().map(ToString::to_string).collect();
    assert_eq!(disks, ["x,ro", "y,overlay", "ephemeral,size=1M"]);
    assert_eq!(ports[0].to_string(), "agent,pty");
    assert!(!balloon.unwrap().reporting);
    assert_eq!(description.config.kernel, Kernel::File("vmlinux".into()));
    assert_eq!(description.console, console::Spec::File("a,b".into()));
    assert_eq!(read("memory = 1_048_576").config.memory, MemorySpec::of_size(1 << 20));
    assert_eq!(read("memory = 0x10_0000").config.memory, MemorySpec::of_size(1 << 20));
    assert_eq!(read("balloon = true").config.balloon, Some(BalloonSpec::default()));
    assert_eq!(read("balloon = false").config.balloon, None);
    assert_eq!(read("kernel.append = 'quiet'").config.append, ["quiet"]);
    assert_eq!(read("cpu.flags = '-avx'").config.cpu.to_string(), "host,-avx");
}

#[test]
fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
    refused("\n\nmemori = 1", 3, "line 3: unknown key `memori`: did you mean `memory`?");
    refused("[[disks]]\npath='x'", 1, "unknown key `disks`: did you mean `disk`?");
    refused("[kernal]\npath='x'", 1, "unknown key `kernal`: did you mean `kernel`?");
    refused("[[disk]]\npth = 'x'", 2, "unknown key `pth` in `disk`: did you mean `path`?");
    refused(
        "[[disk]]\npath='x'\nbps={ rate = 1,\n brust = 2 }",
        4,
        "`brust` in `disk.bps`: did you mean `burst`?",
    );
    refused("cpus.sokets = 2", 1, "unknown key `sokets` in `cpus`: did you mean `sockets`?");
    refused("rng=true\nteapot=1\nkettle=2", 2, "unknown key `teapot`; there are `kernel`, `console`, `name`");
    refused("memory={zize='1M'}\nrng=1", 1, "did you mean `size`?");
    refused("\"a\\u001bb\" = 1", 1, "unknown key `a\\u{1b}b`");
    let long = format!("{} = 1", "x".repeat(100_000));
    assert!(Description::from_toml(&long).unwrap_err().to_string().len() < 400);
}

#[test]
fn a_value_of_another_kind_is_refused_with_what_it_has_to_be() {
    refused("memory = true", 1, "`memory` is true or false, and has to be a size, as in \"512M\"");
    refused("memory = ['1M']", 1, "`memory` is a list, and has to be a size");
    refused("memory = 1.5", 1, "`memory` is a number with a point");
    refused("memory = 1979-05-27", 1, "`memory` is a date");
    refused("rng = 'yes'", 1, "`rng` is a text, and has to be true or false");
    refused("name = false", 1, "`name` is true or false, and has to be a word in quotes");
    refused("cpus = 1.0", 1, "has to be a number, a text");
    refused("kernel = true", 1, "`kernel` is true or false, and has to be a path");
    refused("[kernel]\npath = 1", 2, "`kernel.path` is a number, and has to be a text in quotes");
    refused("[kernel]\n\nappend = ['x',\n 1]", 4, "`kernel.append` is a number");
    refused("[[disk]]\npath='x'\noverlay = {}", 3, "`disk.overlay` is a table");
    refused("[[disk]]\npath='x'\nqueues = []", 3, "`disk.queues` is a list, and has to be a whole number");
    refused("disk = [['x']]", 1, "`disk` is a list");
}

#[test]
fn what_a_value_cannot_say_is_refused_where_it_stands() {
    for (text, line, said) in [
        ("memory = 64", 1, "`memory`: 64 is a number of bytes, and fewer than any guest can have: write 64M"),
        ("memory = { size = '64' }", 1, "`memory.size`: 64 is a number of bytes"),
        ("memory = 'much'", 1, "`memory`: \"much\" is not a size"),
        ("memory = -1", 1, "\"-1\" is not a size"),
        ("memory = 99999999999999999999999999999999999999999999", 1, "too large"),
        ("memory = { hugetlb = true, hugepages = true }", 1, "exclude each other"),
        ("name = 'a/b'", 1, "a name has 1 to 64"),
        ("cpus = { count = 8, sockets = 3 }", 1, "8 processors cannot be arranged"),
        ("cpus = -1", 1, "\"-1\" is not a number of processors"),
        ("cpu = 'host,+avx5'", 1, "no flag of a processor"),
        ("cpu = 'help'", 1, "write host or baseline"),
        ("console = { place = 'pty', file = 'x' }", 1, "exclude each other"),
        ("console = { place = 'teapot' }", 1, "`console.place`: \"teapot\" is not a console"),
        ("completion = 'on'", 1, "there are auto, missing and off"),
        ("clock = 'utc'", 1, "it is host or stopped"),
        ("[kernel]\nentry = 'xen'", 2, "xen"),
        ("[kernel]\npath = ''", 2, "leads nowhere"),
        ("kernel = ''", 1, "leads nowhere"),
        ("[kernel]\nflat = '0x7c00,real'", 1, "`flat` says how `path` is loaded"),
        ("[kernel]\npath='x'\nflat = { address = -1 }", 3, "-1"),
        ("[[disk]]\npath = 'x'\n[[disk]]\nro = true", 3, "has the `path` of an image"),
        ("[[disk]]\npath = 'x'\nephemeral = '1G'", 1, "exclude each other"),
        ("[[disk]]\nephemeral = '1G'\nformat = 'raw'", 3, "no option of such a disk"),
        ("[[disk]]\nephemeral = 513", 2, "no size of a disk"),
        ("[[disk]]\npath = 'x'\nqueues = 17", 3, "`disk.queues`: \"17\" is no number of queues: 1 to 16"),
        ("[[disk]]\npath = 'x'\nserial = ''", 3, "serial number"),
        ("[[disk]]\npath = 'x'\noverlay = ''", 3, "no option"),
        ("[[disk]]\npath = 'x'\nbps = 'fast'", 3, "`disk.bps`: bps=fast is no limit"),
        ("[[disk]]\npath = 'x'\niops = { burst = 1 }", 3, "has a `rate`"),
        ("[[disk]]\npath = 'x'\nro = true\noverlay = true", 1, "only read"),
        ("[[port]]\nsocket = 'x'", 1, "has a `name`"),
        ("[[port]]\nname = 'a b'\npty = true", 1, "no name of a port"),
        ("[[port]]\nname = 'a'", 1, "leads to one place"),
        ("[[port]]\nname = 'a'\npty = true\nfile = 'x'", 1, "leads to one place"),
        ("rng = true\nrng = true", 2, "not TOML: duplicate key"),
        ("\nmemory = ", 2, "not TOML"),
        ("\nmemory 512M", 2, "not TOML"),
        ("\u{0}", 1, "not TOML"),
        ("rng = true\na.b.c.d.e.f.g.h.i.j = 1", 2, "a key of so many parts"),
    ] {
        refused(text, line, said);
    }
}

#[test]
fn no_text_whatever_is_the_end() {
    for end in (0..=LONG.len()).filter(|&end| LONG.is_char_boundary(end)) {
        let _ = Description::from_toml(&LONG[..end]);
    }
    for at in 0..LONG.len() {
        for change in [1, 32, b'"' ^ LONG.as_bytes()[at], b'[' ^ LONG.as_bytes()[at]] {
            let mut bytes = LONG.as_bytes().to_vec();
            bytes[at] ^= change;
            if let Ok(text) = String::from_utf8(bytes)
                && let Err(error) = Description::from_toml(&text)
            {
                assert!((1..=1 + text.lines().count()).contains(&error.line), "{text}: {error}");
            }
        }
    }
    for (opening, closing) in [("[", ""), ("[", "]"), ("{a=", ""), ("{a=", "}"), ("\"", "\"")] {
        let half = LARGEST as usize / 4;
        let deep = format!("a={}{}", opening.repeat(half), closing.repeat(half));
        assert!(Description::from_toml(&deep).is_err());
    }
    let half = LARGEST as usize / 2;
    // Tables in tables, by long keys and by brackets.
    let nested = |length: usize, depth: usize| {
        let key = vec!["a"; length].join(".");
        format!("[{key}]\n{key}={}1{}", format!("{{{key}=").repeat(depth), "}".repeat(depth))
    };
    for text in [
        "a.".repeat(half) + "a=1",
        format!("[{}a]", "a.".repeat(half)),
        "a.b=".repeat(half / 2),
        "[[disk]]\n".repeat(half / 4),
        "disk.path=1\n[[disk]]\n".repeat(half / 10),
        "\"".repeat(half),
        "'''\\".repeat(half / 2),
        nested(9, 70),
        nested(9, 79),
        nested(9, 10_000),
        nested(79, 79),
        nested(1, 79),
    ] {
        assert!(Description::from_toml(&text).is_err());
    }
}

/// Makes up descriptions.
struct Maker(Numbers);

impl Maker {
    fn below(&mut self, end: u64) -> u64 {
        self.0.next() % end
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn perhaps<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.coin().then(|| make(self))
    }

    fn some<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(4)).map(|_| make(self)).collect()
    }

    fn choice<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    /// Of any size, round numbers among them.
    fn number(&mut self) -> u64 {
        let bits = self.below(64);
        let number = self.0.next() >> bits;
        if self.coin() { number & !0 << self.below(64) } else { number }
    }

    fn text(&mut self) -> String {
        const LETTERS: [&str; 22] = [
            "a",
            "B",
            "7",
            " ",
            ",",
            "=",
            "\"",
            "\"\"\"",
            "'",
            "\\",
            "\n",
            "\r",
            "\t",
            "\0",
            "\u{7f}",
            "\u{1b}",
            "\u{85}",
            "é",
            "\u{10ffff}",
            "\u{202e}",
            "#",
            "\\u0041",
        ];
        (0..=self.below(12)).map(|_| self.choice(&LETTERS)).collect()
    }

    fn path(&mut self) -> PathBuf {
        self.text().into()
    }

    fn memory(&mut self) -> MemorySpec {
        let mut options = Options {
            hugepages: self.coin(),
            hugetlb: self.coin(),
            prefault: self.coin(),
            mergeable: self.coin(),
        };
        if options.hugetlb {
            (options.hugepages, options.mergeable) = (false, false);
        }
        // Fewer bytes are refused where they have no unit.
        MemorySpec { size: self.number().max(1 << 20), options }
    }

    fn cpus(&mut self) -> CpusSpec {
        let [sockets, cores, threads] = [0; 3].map(|_| if self.coin() { 1 } else { self.number() as u32 });
        CpusSpec { sockets, cores, threads }
    }

    fn rate(&mut self) -> Rate {
        let mut number = || NonZeroU64::new(self.number()).unwrap_or(NonZeroU64::MAX);
        let (per_second, burst) = (number(), number());
        if self.coin() { Rate::new(per_second) } else { Rate { per_second, burst } }
    }

    fn disk(&mut self) -> DiskSpec {
        let mut read_only = self.coin();
        let source = if self.below(4) == 0 {
            DiskSource::Ephemeral { size: (1 + self.below(u64::MAX >> 9)) << 9 }
        } else {
            let changes = [Changes::Image, Changes::Forgotten, Changes::Overlay(self.path())];
            let changes = self.choice(&changes);
            read_only &= changes == Changes::Image;
            let verify = self.coin() && (read_only || changes != Changes::Image);
            let format = self.choice(&[None, Some(Format::Raw), Some(Format::Qcow2)]);
            let path = if self.coin() { self.path() } else { "ephemeral".into() };
            DiskSource::Image { path, format, changes, verify }
        };
        let serial = (0..=self.below(19)).map(|_| self.choice(&['a', '~', ' ', ',', '"', '\\', '=']));
        let serial = serial.collect::<Vec<_>>().into_iter().collect();
        DiskSpec {
            source,
            read_only,
            direct: self.coin(),
            queues: 1 + self.below(16) as u16,
            serial: self.perhaps(|_| serial),
            limits: Limits { bytes: self.perhaps(Self::rate), operations: self.perhaps(Self::rate) },
        }
    }

    fn port(&mut self) -> PortSpec {
        let places = [Place::Pty, Place::Socket(self.path()), Place::File(self.path())];
        PortSpec {
            name: self.choice(&["agent", "org.lodger.0", "a,b", "\\"]).to_owned(),
            place: self.choice(&places),
        }
    }

    fn description(&mut self) -> Description {
        let kernel = self.perhaps(|maker| Kernel::File(maker.path())).unwrap_or(Kernel::Embedded);
        let modes = [Mode::Long, Mode::Real];
        let flat = |maker: &mut Self| Flat { address: maker.number(), mode: maker.choice(&modes) };
        let config = Config {
            name: self.choice(&[None, Some("web".parse().unwrap()), Some("7.-_".parse().unwrap())]),
            memory: self.memory(),
            cpus: self.cpus(),
            cpu: self
                .choice(&["host", "baseline", "host,-avx,+avx", "baseline,+aes,-rdtscp"])
                .parse()
                .unwrap(),
            entry: self.choice(&[Entry::Auto, Entry::Pvh, Entry::Linux64, Entry::Image]),
            flat: if kernel == Kernel::Embedded { None } else { self.perhaps(flat) },
            kernel,
            cmdline: self.perhaps(Self::text),
            append: self.some(Self::text),
            initrds: self.some(Self::path),
            disks: self.some(Self::disk),
            rng: self.coin(),
            balloon: self.perhaps(|maker| BalloonSpec { target: maker.number(), reporting: maker.coin() }),
            virtio_console: self.coin(),
            ports: self.some(Self::port),
            completion: self.choice(&[Completion::Auto, Completion::Missing, Completion::Off]),
            clock: self.choice(&[Clock::Host, Clock::Stopped]),
        };
        let place = console::Spec::File(self.path());
        let places = [console::Spec::Stdio, console::Spec::Pty, console::Spec::None, place];
        Description { config, console: self.choice(&places) }
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let mut maker = Maker(Numbers(0x5eed));
    for _ in 0..1000 {
        let description = maker.description();
        let text = description.to_toml().unwrap_or_else(|error| panic!("{description:#?}: {error}"));
        let read = Description::from_toml(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(read, description, "{text}");
        assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{text:?}");
    }
}

#[test]
fn what_differs_from_the_default_is_written_as_people_write_it() {
    let text = "\
name = \"web\"
memory = { size = \"512M\", prefault = true }
cpus = 4
console = { virtio = true, file = \"log\" }

[kernel]
path = \"/vmlinuz\"
append = [\"quiet\", \"say=\\\"hi\\\"\"]

[[disk]]
path = \"/a,b\"
overlay = true
bps = \"20M+100M\"
iops = 500

[[disk]]
ephemeral = \"1G\"
iops = \"500+2000\"

[[port]]
name = \"agent\"
socket = \"/agent.sock\"
";
    assert_eq!(read(text).to_toml().unwrap(), text);
}

#[test]
fn what_no_text_can_say_is_an_error() {
    let of = |config| Description { config, console: console::Spec::Stdio }.to_toml().unwrap_err();
    let path = PathBuf::from(OsStr::from_bytes(b"/k\xffrnel"));
    let error = of(Config { kernel: Kernel::File(path.clone()), ..Config::default() });
    assert_eq!(error.to_string().matches("\"/k\\xFFrnel\" is not UTF-8").count(), 1, "{error}");
    assert_eq!(of(Config { initrds: vec![path.clone()], ..Config::default() }), CannotDescribe::Path(path));
    let bytes = Kernel::Bytes(Vec::new());
    assert_eq!(of(Config { kernel: bytes, ..Config::default() }), CannotDescribe::KernelInMemory);
    let disk = DiskSpec { queues: 0, ..DiskSpec::new("x") };
    let error = of(Config { disks: vec![disk], ..Config::default() });
    assert!(error.to_string().contains("no number of queues"), "{error}");
}

#[test]
fn paths_in_a_file_begin_where_the_file_is() {
    let directory = TempDir::new();
    let path = directory.path().join("vm.toml");
    std::fs::write(&path, LONG.replace("\"agent.log\"", "\"/agent.log\"")).unwrap();
    let read = Description::read(&path).unwrap();
    let here = |name: &str| directory.path().join(name);
    assert_eq!(read.config.kernel, Kernel::File(here("vmlinuz")));
    assert_eq!(read.config.initrds, [here("root.cpio"), here("more.cpio")]);
    let disk = read.config.disks[0].to_string();
    let expected =
        format!("{},format=raw,overlay={}", here("root,ro.img").display(), here("changes.qcow2").display());
    assert!(disk.starts_with(&expected), "{disk}");
    assert_eq!(read.config.ports[0].place, Place::Socket(here("agent.sock")));
    assert_eq!(read.config.ports[1].place, Place::File("/agent.log".into()));
    assert_eq!(read.console, console::Spec::File(here("console, or \"not\".log")));
    let mut absolute = Description::from_toml("kernel = 'vmlinuz'").unwrap();
    absolute.make_absolute().unwrap();
    assert_eq!(absolute.config.kernel, Kernel::File(std::env::current_dir().unwrap().join("vmlinuz")));
}

#[test]
fn a_file_that_is_no_description_is_refused_by_name() {
    let directory = TempDir::new();
    let path = directory.path().join("vm.toml");
    let said = |path: &Path| Description::read(path).unwrap_err().to_string();
    assert!(said(&path).contains("cannot read") && said(&path).contains("vm.toml"), "{}", said(&path));
    assert!(said(directory.path()).contains("cannot read"));
    std::fs::write(&path, b"rng = true\nname = \"\xff\"").unwrap();
    assert!(said(&path).contains("vm.toml, line 2: this is not text (UTF-8)"), "{}", said(&path));
    std::fs::write(&path, "rng = true\nmemori = 1").unwrap();
    assert!(said(&path).ends_with("vm.toml, line 2: unknown key `memori`: did you mean `memory`?"));
    std::fs::write(&path, "#".repeat(LARGEST as usize)).unwrap();
    Description::read(&path).unwrap();
    std::fs::write(&path, "#".repeat(LARGEST as usize + 1)).unwrap();
    assert!(said(&path).contains("larger than 1 MiB"), "{}", said(&path));
}
