//! The directory of a running VM: its name, what is in it, and that it goes away.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lodger::storage::tools::BlockHashes;
use lodger::storage::{Disk, DiskOptions};

use crate::support::{Finished, Running, Scratch, guest, program, wait_until};

const MIB: u64 = 1 << 20;

/// The program as somebody's session starts it.
fn in_session(runtime: &Path) -> Command {
    let mut command = program();
    command.env("XDG_RUNTIME_DIR", runtime).env_remove("TMPDIR");
    command
}

/// A session's directory, in `scratch`.
fn session(scratch: &Scratch) -> PathBuf {
    let path = PathBuf::from(scratch.at("runtime"));
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    path
}

/// The same without the socket, which is made when the guest runs.
fn kept(path: &Path) -> Vec<String> {
    listed(path).into_iter().filter(|name| name != "control.sock").collect()
}

fn listed(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A guest that has carried out `commands`, has printed something, and waits for input.
fn waiting(command: &mut Command, commands: &str) -> (Running, impl Sized + use<>) {
    let mut running = Running::start(command.args(guest(commands)).stdin(Stdio::piped()));
    let stdin = running.stdin();
    let mut stdout = BufReader::new(running.stdout());
    let mut line = String::new();
    // The prompt comes when all commands are done.
    while !line.ends_with("> ") {
        let mut byte = [0];
        if stdout.read(&mut byte).unwrap() == 0 {
            panic!("it has ended: {line} {:?}", running.finish());
        }
        line.push(char::from(byte[0]));
    }
    (running, (stdin, stdout))
}

fn run(command: &mut Command, commands: &str) -> Finished {
    Running::start(command.args(guest(commands))).finish()
}

/// A template with something in it.
fn template(scratch: &Scratch) -> String {
    let path = scratch.at("template.raw");
    let bytes: Vec<u8> = (0..4 * MIB).map(|at| (at / 1000) as u8).collect();
    fs::write(&path, bytes).unwrap();
    path
}

fn hash(path: &str) -> String {
    let disk = Disk::open(path.as_ref(), &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
    BlockHashes::compute(&disk, &mut |_, _| {}).unwrap().whole()
}

#[test]
fn a_vm_has_its_name_alone_for_as_long_as_it_runs() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let named = || {
        let mut command = in_session(&runtime);
        command.args(["--name", "one"]);
        command
    };
    let (running, _pipes) = waiting(&mut named(), "");
    let directory = runtime.join("lodger/one");
    assert_eq!(fs::read_to_string(directory.join("pid")).unwrap(), format!("{}\n", running.id()));
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    let holder = format!("process {} (lodger)", running.id());
    run(&mut named(), "exit 3").refused(&["a VM called one already", &holder, "--name"]);
    run(in_session(&runtime).args(["--name", "two"]), "exit 3").with(3).silent();
    assert_eq!(listed(&runtime.join("lodger")), ["one"]);
    running.signal(libc::SIGTERM);
    running.finish().with(143).silent();
    assert_eq!(listed(&runtime.join("lodger")), [""; 0]);
    run(&mut named(), "exit 3").with(3).silent();
}

#[test]
fn what_is_no_name_is_refused_as_usage() {
    for name in ["", "a/b", ".", "-x", &"x".repeat(65)] {
        let finished = Running::start(program().arg(format!("--name={name}"))).finish().with(2);
        assert!(finished.stderr.contains("a name has 1 to 64 letters"), "{finished:?}");
    }
}

#[test]
fn a_vm_that_keeps_nothing_and_has_no_name_has_a_directory_soon_and_leaves_nothing() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let root = runtime.join("lodger");
    let (running, _pipes) = waiting(&mut in_session(&runtime), "");
    let name = format!("vm-{}", running.id());
    wait_until("it has a control socket", || root.join(&name).join("control.sock").exists());
    running.signal(libc::SIGTERM);
    running.finish().with(143).silent();
    assert_eq!(listed(&root), [""; 0]);
    // One that is through before it can have one.
    run(&mut in_session(&runtime), "exit 3").with(3).silent();
    assert_eq!(listed(&root), [""; 0]);
}

#[test]
fn where_no_directory_can_be_made_a_vm_without_a_name_runs_and_says_so() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    File::create(runtime.join("lodger")).unwrap();
    let said = scratch.at("said");
    let (running, _pipes) = waiting(in_session(&runtime).stderr(File::create(&said).unwrap()), "");
    wait_until("it says so", || {
        let said = fs::read_to_string(&said).unwrap();
        said.contains("the VM has no control socket") && said.contains("no directory")
    });
    running.signal(libc::SIGTERM);
    running.finish().with(143);
}

#[test]
fn a_fresh_overlay_is_small_takes_what_the_guest_writes_and_goes_with_it() {
    let scratch = Scratch::new();
    let (runtime, template) = (session(&scratch), template(&scratch));
    let before = hash(&template);
    let disk = format!("{template},overlay");
    let overlay = runtime.join("lodger/one/disk0.qcow2");
    let started = |commands| waiting(in_session(&runtime).args(["--name", "one", "--disk", &disk]), commands);
    let size = || fs::metadata(&overlay).unwrap().blocks() * 512;

    let (running, pipes) = started("");
    assert!(size() <= 512 << 10 && fs::metadata(&overlay).unwrap().len() <= 512 << 10);
    running.signal(libc::SIGTERM);
    running.finish().with(143);
    drop(pipes);

    let (running, _pipes) = started("disk write 65536 4 64 seq");
    assert!(size() >= 4 * MIB, "nothing was written: {}", size());
    assert_eq!(hash(&template), before, "the template has changed");
    running.signal(libc::SIGINT);
    running.finish().with(130).silent();
    assert_eq!(listed(&runtime.join("lodger")), [""; 0]);
    assert_eq!(hash(&template), before, "the template has changed");
}

#[test]
fn vms_without_names_have_an_overlay_each() {
    let scratch = Scratch::new();
    let (runtime, template) = (session(&scratch), template(&scratch));
    let disk = format!("{template},overlay");
    let arguments = ["--disk", &disk, "--disk", "ephemeral,size=1M", "--disk", &disk];
    let all: Vec<_> = (0..2).map(|_| waiting(in_session(&runtime).args(arguments), "")).collect();
    let mut names: Vec<_> = all.iter().map(|(running, _)| format!("vm-{}", running.id())).collect();
    names.sort();
    let root = runtime.join("lodger");
    assert_eq!(listed(&root), names);
    for name in &names {
        assert_eq!(kept(&root.join(name)), ["disk0.qcow2", "disk2.qcow2", "pid"]);
    }
    for (running, _pipes) in all {
        running.signal(libc::SIGHUP);
        running.finish().with(129);
    }
    assert_eq!(listed(&root), [""; 0]);
}

#[test]
fn what_a_killed_vm_leaves_is_cleared_away_by_the_next_one() {
    let scratch = Scratch::new();
    let (runtime, template) = (session(&scratch), template(&scratch));
    let disk = format!("{template},overlay");
    let root = runtime.join("lodger");
    let (alive, _pipes) = waiting(in_session(&runtime).args(["--name", "alive", "--disk", &disk]), "");
    // By a start of the same name, and of another.
    for (name, next) in [("dead", "dead"), ("dead", "next")] {
        let (killed, pipes) = waiting(in_session(&runtime).args(["--name", name, "--disk", &disk]), "");
        killed.signal(libc::SIGKILL);
        assert_eq!(killed.finish().status.signal(), Some(libc::SIGKILL));
        drop(pipes);
        assert_eq!(kept(&root.join("dead")), ["disk0.qcow2", "pid"]);
        run(in_session(&runtime).args(["--name", next]), "exit 3").with(3).silent();
        assert_eq!(listed(&root), ["alive"]);
    }
    assert_eq!(kept(&root.join("alive")), ["disk0.qcow2", "pid"]);
    alive.signal(libc::SIGTERM);
    alive.finish().with(143);
}

#[test]
fn many_that_start_at_once_and_are_killed_at_any_moment_do_not_disturb_each_other() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let root = runtime.join("lodger");
    let start = |name: &str, status: i32| {
        let mut command = in_session(&runtime);
        Running::start(command.args(["--name", name, "--memory=2M"]).args(guest(&format!("exit {status}"))))
    };
    for round in 0..4 {
        let killed: Vec<_> = (0..4).map(|number| start(&format!("killed-{number}"), 3)).collect();
        let others: Vec<_> = (0..4).map(|number| start(&format!("other-{number}"), 10 + number)).collect();
        // One name for two; which of them has it is open, and both may, one after the other.
        let rivals = [start("rival", 7), start("rival", 7)];
        std::thread::sleep(std::time::Duration::from_micros(1500 * round));
        killed.iter().for_each(|running| running.signal(libc::SIGKILL));
        for (status, running) in (10..).zip(others) {
            running.finish().with(status).silent();
        }
        let rivals = rivals.map(Running::finish);
        let won = rivals.iter().filter(|rival| rival.status.code() == Some(7)).count();
        let lost = rivals.iter().filter(|rival| rival.stderr.contains("a VM called rival already")).count();
        assert!(won >= 1 && won + lost == 2, "{rivals:#?}");
        drop(killed);
    }
    run(in_session(&runtime).args(["--name", "last"]), "exit 3").with(3).silent();
    assert_eq!(listed(&root), [""; 0]);
}

#[test]
fn an_overlay_is_on_a_disk_where_the_directory_is_in_memory() {
    let memory = PathBuf::from(format!("/dev/shm/cli-test-{}", std::process::id()));
    let scratch = Scratch::new();
    fs::create_dir(&memory).unwrap();
    fs::set_permissions(&memory, PermissionsExt::from_mode(0o700)).unwrap();
    let disk = format!("{},overlay", template(&scratch));
    let command = || {
        let mut command = in_session(&memory);
        command.env("TMPDIR", scratch.path()).args(["--name", "one", "--disk", &disk]);
        command
    };
    // SAFETY: only asks for a number.
    let user = unsafe { libc::geteuid() };
    let on_disk = scratch.path().join(format!("lodger-{user}"));
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGTERM] {
        let (running, _pipes) = waiting(&mut command(), "disk write 65536 4 16 seq");
        let link = memory.join("lodger/one/disk0.qcow2");
        assert_eq!(fs::read_link(&link).unwrap(), on_disk.join("one/disk0.qcow2"));
        assert!(fs::metadata(&link).unwrap().len() >= MIB);
        running.signal(signal);
        running.finish();
    }
    assert_eq!((listed(&memory.join("lodger")), listed(&on_disk)), (vec![], vec![]));
    fs::remove_dir_all(memory).unwrap();
}

#[test]
fn a_place_that_others_have_laid_out_is_refused() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let root = runtime.join("lodger");
    let named = || run(in_session(&runtime).args(["--name", "one"]), "exit 3");
    std::os::unix::fs::symlink("/etc", &root).unwrap();
    named().refused(&[root.to_str().unwrap(), "symbolic link"]);
    fs::remove_file(&root).unwrap();
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, PermissionsExt::from_mode(0o777)).unwrap();
    named().refused(&[root.to_str().unwrap(), "others may enter it", "777"]);
    fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
    named().with(3).silent();
    // SAFETY: only asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        std::os::unix::fs::chown(&root, Some(12345), None).unwrap();
        named().refused(&[root.to_str().unwrap(), "belongs to user 12345"]);
    }
    // Where it cannot be made at all.
    fs::remove_dir(&root).unwrap();
    File::create(&root).unwrap();
    named().refused(&[root.to_str().unwrap(), "no directory"]);
}

#[test]
fn a_session_that_is_not_ones_own_is_not_used() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    fs::set_permissions(&runtime, PermissionsExt::from_mode(0o777)).unwrap();
    let name = format!("cli-test-{}", std::process::id());
    // SAFETY: only asks for a number.
    let directory = PathBuf::from(format!("/tmp/lodger-{}/{name}", unsafe { libc::geteuid() }));
    for runtime in [&runtime, Path::new("/nowhere"), Path::new("relative"), Path::new("")] {
        let (running, _pipes) = waiting(in_session(runtime).args(["--name", &name]), "");
        assert!(directory.is_dir());
        running.signal(libc::SIGTERM);
        running.finish().with(143).silent();
        wait_until("it is gone", || !directory.exists());
    }
    assert_eq!(listed(&runtime), [""; 0]);
}

#[test]
fn an_ephemeral_disk_is_where_there_is_room() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let place = |named: Option<&Path>| {
        let mut command = in_session(&runtime);
        command.args(["--disk", "ephemeral,size=4M"]).envs(named.map(|path| ("TMPDIR", path)));
        let (running, _pipes) = waiting(&mut command, "");
        let open = fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap();
        let mut files = open.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        let disk = files.find(|path| path.to_string_lossy().ends_with(" (deleted)")).unwrap();
        running.signal(libc::SIGTERM);
        running.finish().with(143);
        disk.parent().unwrap().to_owned()
    };
    assert_eq!(place(None), Path::new("/var/tmp"));
    assert_eq!(place(Some(scratch.path())), scratch.path());
}

/// It has a lock on its directory, against those who clear up in `/tmp`.
#[test]
fn a_socket_can_be_in_the_vms_own_directory() {
    let scratch = Scratch::new();
    let runtime = session(&scratch);
    let path = runtime.join("lodger/one/agent.sock");
    let mut command = in_session(&runtime);
    command.args(["--name", "one", "--port", &format!("agent,socket={}", path.display())]);
    let (running, _pipes) = waiting(&mut command, "");
    assert!(path.exists());
    running.signal(libc::SIGTERM);
    running.finish();
    assert_eq!(listed(&runtime.join("lodger")), [""; 0]);
}
