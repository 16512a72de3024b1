//! `--port` and `--console virtio`: what becomes of sockets, terminals and files, and of who waits at them.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use crate::support::{Running, Scratch, ended, guest, lodger, program, wait_until};

/// Starts the embedded guest with these ports; it waits for input.
fn start(ports: &[&str]) -> Running {
    let mut command = program();
    command.arg("run").args(ports.iter().flat_map(|port| ["--port", port])).args(guest(""));
    Running::start(command.stdin(Stdio::piped()))
}

fn is_socket(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[test]
fn a_socket_is_its_owners_while_the_guest_runs_and_gone_afterwards() {
    let scratch = Scratch::new();
    let path = scratch.at("agent");
    let mut running = start(&[&format!("agent,socket={path}")]);
    wait_until("the socket is there", || is_socket(&path));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    running.stdin().write_all(b"exit 31\n").unwrap();
    running.finish().with(31);
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_signal_takes_the_sockets_away_as_well() {
    let scratch = Scratch::new();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (one, two) = (scratch.at("one"), scratch.at("two"));
        let mut running = start(&[&format!("one,socket={one}"), &format!("two,socket={two}")]);
        wait_until("the sockets are there", || is_socket(&one) && is_socket(&two));
        running.wait_until_attentive();
        running.signal(signal);
        assert_eq!(ended(running.wait()), 128 + signal);
        assert_eq!([&one, &two].map(|path| Path::new(path).exists()), [false, false]);
    }
}

#[test]
fn what_a_killed_process_left_is_replaced_and_what_is_in_use_is_not() {
    let scratch = Scratch::new();
    let path = scratch.at("used");
    let port = format!("agent,socket={path}");
    let mut first = start(&[&port]);
    let _input = first.stdin();
    wait_until("the socket is there", || is_socket(&path));
    let refused = |port: &str, words: &[&str]| lodger(["run", "--port", port], "").refused(words);
    refused(&port, &["the port agent", "another process listens at", "used", "choose another path"]);
    UnixStream::connect(&path).expect("the first one listens as before");
    first.signal(libc::SIGKILL);
    first.wait();
    assert!(is_socket(&path));
    lodger(["run", "--port", &port], "exit 9\n").with(9).silent();
    assert!(!Path::new(&path).exists());
}

#[test]
fn what_is_somebody_elses_stays_as_it_is() {
    let scratch = Scratch::new();
    let refused = |place: &str, words: &[&str]| {
        lodger(["run", "--port", &format!("agent,{place}")], "").refused(words);
    };
    let file = scratch.file("file", b"precious");
    refused(&format!("socket={file}"), &["the port agent", "is no socket", "remove it"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let link = scratch.at("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    refused(&format!("socket={link}"), &["is no socket"]);
    assert!(fs::read_link(&link).is_ok());
    let listened = scratch.at("listened");
    let listener = UnixListener::bind(&listened).unwrap();
    listener.set_nonblocking(true).unwrap();
    refused(&format!("socket={listened}"), &["another process listens at"]);
    // It has not noticed that somebody asked.
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    refused(&format!("socket={}", scratch.at("none/x")), &["cannot listen at", "none does not exist"]);
    refused(&format!("socket={}", scratch.at(&"x".repeat(108))), &["too long for a socket"]);
    refused(&format!("file={}", scratch.path().display()), &["the port agent", "a directory"]);
    lodger(["run", "--port", "a,pty", "--port", "a,pty"], "").refused(&["two ports are called a"]);
    // Nor does a socket stay behind if another port is what cannot be had.
    let made = scratch.at("made");
    let ports = [format!("one,socket={made}"), format!("two,file={}", scratch.path().display())];
    lodger(["run", "--port", &ports[0], "--port", &ports[1]], "").refused(&["the port two"]);
    assert!(!Path::new(&made).exists());
}

/// By the configuration where that names it, or else by the locks that images have.
#[test]
fn a_file_that_a_vm_needs_is_never_emptied() {
    let scratch = Scratch::new();
    let content = vec![7; 1 << 20];
    let (disk, initrd) = (scratch.file("disk.raw", &content), scratch.file("initrd", &content));
    let overlay = scratch.at("overlay.qcow2");
    lodger(["disk", "create", &overlay, "--backing", &disk, "--backing-format", "raw"], "").with(0);
    let link = scratch.at("link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let refused = |disk: &str, file: &str, words: &[&str]| {
        for output in [format!("--console=file={file}"), format!("--port=log,file={file}")] {
            for arguments in [["--disk", disk, &output, "--rng"], [&output, "--rng", "--disk", disk]] {
                lodger(["run"].into_iter().chain(arguments), "").refused(words);
            }
        }
        assert!(fs::read(file).unwrap() == content, "{file}");
    };
    refused(&disk, &disk, &[&disk, "a disk of this VM", "choose another file"]);
    refused(&disk, &link, &["a disk of this VM"]);
    refused(&format!("{disk},format=raw,overlay"), &disk, &["a disk of this VM"]);
    refused(&overlay, &disk, &["cannot write", "an image that a VM or another program uses"]);
    let embedded = ["run", "--initrd", &initrd, "--port", &format!("log,file={initrd}")];
    lodger(embedded, "").refused(&["the port log cannot write to", "an initial file system of this VM"]);
    assert!(fs::read(&initrd).unwrap() == content);
    // Another VM's.
    let mut command = program();
    let arguments = ["run", "--disk", &overlay, "--port", "screen,pty"];
    let mut other = Running::start(command.args(arguments).stdin(Stdio::piped()));
    let _input = other.stdin();
    BufReader::new(other.stderr()).read_line(&mut String::new()).unwrap();
    refused("ephemeral,size=1M", &disk, &["an image that a VM or another program uses"]);
    other.signal(libc::SIGKILL);
    other.wait();
    // One that cannot start for another reason has lost nothing either.
    let log = scratch.file("log", &content);
    let console = format!("--console=file={log}");
    lodger(["run", &scratch.at("none"), &console], "").refused(&["none"]);
    assert!(fs::read(&log).unwrap() == content);
    lodger(guest("exit 3").into_iter().chain([console]), "").with(3).silent();
    assert!(fs::read(&log).unwrap().len() < 1000);
}

#[test]
fn clients_of_a_guest_that_never_listens_hold_nothing_up() {
    let scratch = Scratch::new();
    let path = scratch.at("agent");
    let mut running = start(&[&format!("agent,socket={path}"), "screen,pty"]);
    let mut said = String::new();
    BufReader::new(running.stderr()).read_line(&mut said).unwrap();
    let terminal = said.trim_end().strip_prefix("lodger: the port screen is on ").expect("a path");
    let mut user = fs::File::options().read(true).write(true).open(terminal).unwrap();
    user.write_all(b"is anybody there\n").unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut written = 0;
    // As much as a port and a socket hold, and then no more.
    let error = loop {
        match client.write(&[b'x'; 4096]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
        assert!(written < 64 << 20, "it is taken without end");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let _others: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
    running.stdin().write_all(b"exit 32\n").unwrap();
    running.finish().with(32);
    // It was told that this is the end.
    client.set_nonblocking(false).unwrap();
    assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[test]
fn the_embedded_guest_listens_at_the_serial_port_also_with_a_virtio_console() {
    let finished = lodger(["run", "--console", "virtio"], "virtio\nexit 33\n").with(33).silent();
    assert!(finished.lines().any(|line| line.contains("console          features")), "{finished:?}");
    let scratch = Scratch::new();
    let path = scratch.at("console");
    let place = format!("virtio,file={path}");
    let arguments = guest("echo words;exit 34").into_iter().chain(["--console".to_owned(), place]);
    lodger(arguments, "").with(34);
    assert!(fs::read_to_string(path).unwrap().contains("words"));
}
