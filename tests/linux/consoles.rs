//! The virtio console and its ports, as Linux uses them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lodger::console::Place;

use crate::support::{
    Files, Fixture, LIMIT, Running, Scratch, Screen, has_line, lodger, program, smp, tiny, wait_until,
};

/// The options for the test guest with the default command line.
fn defaults(files: &'static Files) -> Vec<&'static str> {
    vec!["run", files.path("vmlinux"), "--initrd", files.path("initramfs"), "--memory", "64M"]
}

fn connect(path: &str) -> UnixStream {
    // The file is there a moment before anybody listens.
    let mut connected = None;
    wait_until("somebody listens", || {
        connected = UnixStream::connect(path).ok();
        connected.is_some()
    });
    let stream = connected.unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn a_shell_on_the_virtio_console_has_input_and_output() {
    let script = "cat /proc/cmdline /proc/consoles; tty; echo sum $((40 + 2)); poweroff -f\n";
    for files in [tiny(), smp()] {
        let finished = lodger([&defaults(files)[..], &["--console", "virtio"]].concat(), script).with(0);
        let cmdline = "earlycon=uart8250,io,0x3f8 console=hvc0 reboot=k panic=-1";
        assert!(finished.lines().any(|line| line.starts_with(cmdline)), "{finished:?}");
        has_line(&finished, "/dev/hvc0");
        has_line(&finished, "sum 42");
        assert!(finished.lines().any(|line| line.starts_with("hvc0 ")), "{finished:?}");
        // The serial port showed what was printed before the console was there, and nothing after that.
        for line in ["Linux version 6.1", "Run /init as init process"] {
            assert_eq!(finished.stdout.matches(line).count(), 1, "{finished:?}");
        }
    }
}

#[test]
fn the_first_process_has_its_terminal_however_quickly_the_kernel_boots() {
    // Among ports, a console would be set up while the kernel goes on with its boot, and not every time be there.
    for files in [tiny(), smp(), tiny(), smp()] {
        let more = ["--console", "virtio", "--port", "other,pty", "--append", "quiet"];
        let finished = lodger([&defaults(files)[..], &more].concat(), "tty; poweroff -f\n").with(0);
        has_line(&finished, "/dev/hvc0");
        has_line(&finished, "init: user space reached");
    }
}

#[test]
fn the_guest_knows_the_size_of_the_terminal_and_hears_when_it_changes() {
    for ports in [&[][..], &["--port", "other,pty"]] {
        let mut screen = Screen::new();
        screen.resize(100, 31);
        let mut command = program();
        command.args(defaults(tiny())).args(["--console", "virtio"]).args(ports);
        let mut running = Running::start(screen.show(&mut command));
        screen.expect("/ # ");
        size_becomes(&mut screen, "31 100");
        screen.resize(132, 50);
        size_becomes(&mut screen, "50 132");
        screen.type_in("\x01x");
        assert_eq!(running.wait().code(), Some(0));
    }
}

/// Asks the guest until its terminal has that size.
#[track_caller]
fn size_becomes(screen: &mut Screen, wanted: &str) {
    for _ in 0..100 {
        screen.type_in("stty size; echo that  is all\r");
        if screen.expect("\nthat is all").contains(wanted) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the size never is {wanted}");
}

#[test]
fn a_mebibyte_goes_through_a_socket_in_both_directions() {
    let scratch = Scratch::new();
    let path = scratch.at("agent");
    for files in [tiny(), smp()] {
        let mut shell = Fixture::equipped(files).port(1, Place::Socket((&path).into())).shell();
        shell.ask(
            "cat /sys/class/virtio-ports/vport4p1/name; exec 3<>/dev/vport4p1; \
             head -c 1048576 <&3 >/tmp/all && md5sum /tmp/all && cat /tmp/all >&3",
        );
        let bytes: Vec<u8> = (0..1_u64 << 20).map(|index| ((index * 7919) >> 9) as u8).collect();
        let mut peer = connect(&path);
        let (mut writer, sent) = (peer.try_clone().unwrap(), bytes.clone());
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = vec![0; 1 << 20];
        peer.read_exact(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == bytes);
        let answer = shell.await_answer().ok();
        has_line(&answer, "org.lodger.agent");
        let file = scratch.file("sent", &bytes);
        let sum = Command::new("md5sum").arg(file).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap();
        has_line(&answer, &format!("{}  /tmp/all", sum.split_whitespace().next().unwrap()));
        drop(shell);
        assert!(!Path::new(&path).exists());
    }
}

#[test]
fn peers_take_turns_and_the_guest_notices() {
    let scratch = Scratch::new();
    let path = scratch.at("agent");
    let mut shell = Fixture::equipped(tiny()).port(1, Place::Socket((&path).into())).shell();
    shell.ask(
        "exec 3<>/dev/vport4p1; for i in 1 2 3; do \
         until read x <&3; do usleep 10000; done; echo hello $x >&3; \
         while read x <&3; do echo and $x >&3; done; echo gone $i; done",
    );
    for round in 1..4 {
        let mut peer = connect(&path);
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        writeln!(peer, "peer{round}").unwrap();
        assert_eq!(line(&mut reader), format!("hello peer{round}"));
        writeln!(peer, "more").unwrap();
        assert_eq!(line(&mut reader), "and more");
        drop((peer, reader));
        // Linux gives a reader the end of the file only while nobody is there: with the next peer it has forgotten.
        shell.expect(&format!("gone {round}\r\n"));
    }
    shell.await_answer().ok();
}

#[test]
fn ports_lead_to_terminals_and_files_and_none_holds_up_another() {
    let scratch = Scratch::new();
    let (stuck, log) = (scratch.at("stuck"), scratch.at("log"));
    let fixture = Fixture::equipped(smp()).port(1, Place::Socket((&stuck).into()));
    let mut shell = fixture.port(2, Place::File((&log).into())).port(3, Place::Pty).shell();
    shell.ask(
        // Writes to the first for as long as anybody would wait, behind the scenes.
        "cat /dev/zero >/dev/vport4p1 & \
         exec 3<>/dev/vport4p3; until read x <&3; do usleep 10000; done; echo got $x >&3; \
         head -c 300000 /dev/zero >/dev/vport4p2; echo done >/dev/vport4p2",
    );
    // A peer that never reads.
    let _peer = connect(&stuck);
    let terminal = shell.machine().lines()[2].pty_path().unwrap();
    let mut terminal = File::options().read(true).write(true).open(terminal).unwrap();
    writeln!(terminal, "some words").unwrap();
    assert_eq!(line(&mut BufReader::new(terminal)), "got some words");
    shell.await_answer().ok();
    drop(shell);
    let written = fs::read(log).unwrap();
    assert!(written[..300_000].iter().all(|&byte| byte == 0) && &written[300_000..] == b"done\n");
}

#[test]
fn clients_that_come_and_go_or_read_nothing_make_nothing_grow() {
    let scratch = Scratch::new();
    let (flood, talk) = (scratch.at("flood"), scratch.at("talk"));
    let (_kept, mut command) = Fixture::equipped(tiny()).command();
    command.args(["--port", &format!("org.lodger.agent,socket={flood}")]);
    command.args(["--port", &format!("second,socket={talk}")]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut keyboard = running.stdin();
    // The second port answers for as long as the guest is well.
    let script = "exec 4<>/dev/vport4p1; cat /dev/zero >&4 & \
        while true; do cat <&4 >/dev/null; usleep 50000; done & \
        exec 3<>/dev/vport4p2; until read x <&3; do usleep 10000; done; \
        while [ $x != end ]; do echo got $x >&3; read x <&3; done; reboot\n";
    keyboard.write_all(script.as_bytes()).unwrap();
    let mut talk = BufReader::new(connect(&talk));
    let mut ask = |word: &str| {
        writeln!(talk.get_mut(), "{word}").unwrap();
        assert_eq!(line(&mut talk), format!("got {word}"));
    };
    ask("first");
    let mut sizes = Vec::new();
    for round in 0..3 {
        for number in 0..12 {
            let mut client = connect(&flood);
            client.set_nonblocking(true).unwrap();
            // Some take nothing, some take a little, some send what nobody has room for.
            let _: io::Result<usize> = match number % 3 {
                0 => Ok(0),
                1 => client.read(&mut [0; 10_000]),
                _ => client.write(&[0; 100_000]),
            };
        }
        ask(&format!("round{round}"));
        sizes.push((heap(&running), entries(&running, "fd"), entries(&running, "task")));
    }
    writeln!(talk.get_mut(), "end").unwrap();
    running.finish().with(0);
    let ((first, ..), (last, files, threads)) = (sizes[0], sizes[2]);
    assert!(last < first + 1024, "KiB: {sizes:?}");
    // A client or two may not have been noticed to be gone.
    assert!(files <= sizes[0].1 + 2 && threads == sizes[0].2, "{sizes:?}");
}

/// How many KiB a process has on its heap and stacks. Mappings as large as the guest's memory are left out.
fn heap(running: &Running) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", running.id())).unwrap();
    let mut sizes = maps.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let number = rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        matches!(name, "Size" | "Anonymous").then_some(number)
    });
    let mut sum = 0;
    while let (Some(size), Some(anonymous)) = (sizes.next(), sizes.next()) {
        sum += if size < 32 << 10 { anonymous } else { 0 };
    }
    sum
}

fn entries(running: &Running, of: &str) -> usize {
    fs::read_dir(format!("/proc/{}/{of}", running.id())).unwrap().count()
}
