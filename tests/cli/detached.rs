//! Guests without a terminal, and the commands that ask something of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Running, Screen, Session, guest, is_gone, wait_until};

#[test]
fn a_detached_guest_runs_without_a_terminal_and_is_listed() {
    let session = Session::new();
    session.detach("one", "");
    let rows = session.json(&["ps"]);
    let row = &rows[0];
    assert_eq!((&row["name"], &row["state"], &row["cpus"]), (&"one".into(), &"running".into(), &1.into()));
    assert_eq!((&row["pid"], &row["memory"]), (&session.pid("one").into(), &(64 << 20).into()));
    let table = session.run(&["ps"]).with(0).silent();
    assert!(
        table.stdout.starts_with("NAME") && table.stdout.contains("one") && table.stdout.contains("64M"),
        "{table:?}"
    );
    // Nothing of what it was started on is open any longer.
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{fd}", session.pid("one"))).unwrap();
        let expected = if fd == 2 { session.directory("one").join("messages") } else { "/dev/null".into() };
        assert_eq!(target, expected);
    }
    session.wait_for_log("one", "lodger> ");
    session.run(&["kill", "one"]).with(0).silent();
    assert_eq!(session.states(), []);
    session.run(&["rm", "one"]).with(0).silent();
    assert!(!session.directory("one").exists());
}

#[test]
fn without_a_name_a_detached_guest_prints_the_one_it_has() {
    let session = Session::new();
    let mut command = session.command(&["run", "-d"]);
    let finished = Running::start(command.args(guest(""))).finish().with(0).silent();
    let name = finished.stdout.trim().to_owned();
    assert_eq!(name, format!("vm-{}", session.pid(&name)));
    assert_eq!(session.state(&name), "running");
}

#[test]
fn a_start_that_fails_is_the_failure_of_the_command_that_was_typed() {
    let session = Session::new();
    session.run(&["run", "--detach", "/nowhere/kernel"]).refused(&["/nowhere/kernel"]);
    session.run(&["run", "--detach", "--cpus=9999"]).refused(&["9999"]);
    session.detach("one", "");
    session.run(&["run", "--detach", "--name=one"]).refused(&["a VM called one already"]);
    assert_eq!(session.states().len(), 1);
}

#[test]
fn the_log_has_what_was_printed_and_goes_on_to_the_end() {
    let session = Session::new();
    session.detach("one", "echo first");
    session.wait_for_log("one", "first");
    let mut following = Running::start(&mut session.command(&["logs", "-f", "one"]));
    let mut lines = BufReader::new(following.stdout());
    let mut line = String::new();
    while !line.contains("first") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    let mut attached = session.command(&["attach", "one"]);
    let mut attached = Running::start(attached.stdin(Stdio::piped()));
    attached.stdin().write_all(b"echo second\rhalt\r").unwrap();
    let rest: String = lines.lines().map(Result::unwrap).collect();
    assert!(rest.contains("second"), "{rest}");
    following.finish().with(0).silent();
    let attached = attached.finish().with(0);
    assert!(
        attached.stdout.contains("second") && attached.stderr.contains("the VM one has ended"),
        "{attached:?}"
    );
}

#[test]
fn a_log_has_a_bounded_size_and_the_newest_output() {
    let session = Session::new();
    session.detach("one", "burst 350000;echo and now the end");
    session.wait_for_log("one", "and now the end");
    let size = |name| fs::metadata(session.directory("one").join(name)).unwrap().len();
    assert!(size("console.log") + size("console.log.1") <= (256 << 10) * 2 + 8192);
    assert!(size("console.log.1") >= 256 << 10);
    let log = session.run(&["logs", "one"]).with(0).silent().stdout;
    assert!(log.len() as u64 >= 256 << 10);
    assert!(log.matches("and now the end").count() >= 1);
}

#[test]
fn a_guest_that_is_paused_does_nothing_and_goes_on_when_it_is_resumed() {
    let session = Session::new();
    session.detach("one", "burst 100000000");
    let exits = || {
        let tree = session.json(&["inspect", "one"]);
        let exits = tree["processors"][0]["exits"].as_array().unwrap().clone();
        exits.iter().filter_map(|exit| exit["count"].as_u64()).sum::<u64>()
    };
    for _ in 0..5 {
        session.run(&["pause", "one"]).with(0).silent();
        assert_eq!(session.state("one"), "paused");
        let before = exits();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(exits(), before);
        session.run(&["resume", "one"]).with(0).silent();
        assert_eq!(session.state("one"), "running");
        wait_until("it goes on", || exits() > before);
    }
    // Many times by one connection.
    let mut socket = session.socket("one");
    let mut answers = BufReader::new(socket.try_clone().unwrap());
    for round in 0..1000 {
        let method = if round % 2 == 0 { "pause" } else { "resume" };
        writeln!(socket, "{{\"method\":\"{method}\"}}").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert!(line.contains("\"state\""), "{line}");
    }
    let before = exits();
    wait_until("it goes on", || exits() > before);
}

/// The embedded guest checks what its devices give it, and its status says whether all was well.
#[test]
fn devices_lose_nothing_while_a_guest_is_paused_and_resumed_all_the_time() {
    let session = Session::new();
    let mut command = session.command(&["run", "-d", "--name=one", "--rng", "--balloon", "--memory=64M"]);
    command.args(["--disk=ephemeral,size=4M"]).args(guest("virtio test;disk write 4096 4 500;exit"));
    Running::start(&mut command).finish().with(0).silent();
    let waiting = Running::start(&mut session.command(&["wait", "one"]));
    let mut socket = session.socket("one");
    let mut answers = BufReader::new(socket.try_clone().unwrap()).lines();
    let mut pauses = 0;
    while socket.write_all(b"{\"method\":\"pause\"}\n{\"method\":\"resume\"}\n").is_ok() {
        let (Some(Ok(paused)), Some(Ok(resumed))) = (answers.next(), answers.next()) else { break };
        if paused.contains("error") || resumed.contains("error") {
            break;
        }
        pauses += 1;
        std::thread::sleep(Duration::from_micros(500));
    }
    waiting.finish().with(0).silent();
    assert!(pauses > 20, "it was paused {pauses} times only");
}

#[test]
fn everything_that_happens_is_told_as_an_event() {
    let session = Session::new();
    session.detach("one", "");
    let mut events = Running::start(&mut session.command(&["events", "one", "--json"]));
    let mut lines = BufReader::new(events.stdout()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["state"], "running");
    session.run(&["pause", "one"]).with(0);
    session.run(&["resume", "one"]).with(0);
    session.run(&["kill", "one"]).with(0);
    let told: Vec<_> = (0..3).map(|_| next()).collect();
    assert_eq!(
        told.iter().map(|event| event["to"].as_str().unwrap()).collect::<Vec<_>>(),
        ["paused", "running", "stopped"]
    );
    assert_eq!((&told[2]["by"], &told[2]["end"]["status"]), (&"control".into(), &137.into()));
    events.finish().with(0).silent();
}

#[test]
fn who_waits_ends_with_the_status_of_the_guest() {
    let session = Session::new();
    session.detach("one", "");
    let waiting = Running::start(&mut session.command(&["wait", "one", "--json"]));
    std::thread::sleep(Duration::from_millis(50));
    let mut attached = session.command(&["attach", "one"]);
    let mut attached = Running::start(attached.stdin(Stdio::piped()));
    attached.stdin().write_all(b"exit 7\r").unwrap();
    let finished = waiting.finish().with(7).silent();
    assert_eq!(serde_json::from_str::<Value>(&finished.stdout).unwrap()["status"], 7);
    attached.finish();
    let said = "the guest ended the process with status 7";
    assert!(finished.stdout.contains(said), "{finished:?}");
    // Who comes later is told the same.
    let later = session.run(&["wait", "one", "--json"]).with(7).silent();
    assert_eq!(later.stdout, finished.stdout);
    session.run(&["rm", "one"]).with(0).silent();
    let finished = session.run(&["wait", "one"]).with(127);
    assert!(finished.stdout.is_empty() && finished.stderr.contains("there is no VM called one"));
    let finished = session.run(&["wait", "one", "--json"]).with(127).silent();
    assert!(finished.stdout.contains("there is no VM called one"));
    session.detach("one", "");
    let waiting = Running::start(&mut session.command(&["wait", "one"]));
    std::thread::sleep(Duration::from_millis(50));
    session.kill_process("one");
    for finished in [waiting.finish(), session.run(&["wait", "one"])] {
        let finished = finished.with(137);
        assert!(finished.stdout.is_empty() && finished.stderr.contains("the VM one is dead"), "{finished:?}");
    }
    let told: Value =
        serde_json::from_str(&session.run(&["wait", "one", "--json"]).with(137).stdout).unwrap();
    assert_eq!(told["status"], 137);
}

#[test]
fn what_is_done_to_a_guest_is_told_as_json_to_who_wants_that() {
    let session = Session::new();
    session.detach("one", "echo hello");
    session.wait_for_log("one", "hello");
    assert_eq!(session.json(&["pause", "one"])["state"], "paused");
    assert_eq!(session.json(&["resume", "one"])["state"], "running");
    assert!(session.json(&["logs", "one"])["text"].as_str().unwrap().contains("hello"));
    assert_eq!(session.json(&["kill", "one"])["status"], 137);
    assert!(session.json(&["logs", "one"])["messages"].is_string());
    session.detach("one", "");
    session.wait_for_log("one", "lodger> ");
    assert_eq!(session.json(&["stop", "one"])["status"], 0);
}

#[test]
fn what_one_printed_and_said_and_how_it_ended_is_known_afterwards() {
    let session = Session::new();
    session.detach("one", "");
    session.wait_for_log("one", "lodger> ");
    let mut events = Running::start(&mut session.command(&["events", "one"]));
    let mut told = BufReader::new(events.stdout()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "running");
    let mut attached = session.command(&["attach", "one"]);
    let mut attached = Running::start(attached.stdin(Stdio::piped()));
    attached.stdin().write_all(b"echo last words\rcrash triple\r").unwrap();
    attached.finish().with(0);
    wait_until("it has ended", || session.states().is_empty());
    // A line each, and no report.
    let told: Vec<_> = told.map(Result::unwrap).collect();
    assert!(told.len() == 1 && told[0].starts_with("running -> stopped, by guest: "), "{told:?}");
    events.finish().with(0).silent();
    let rows = session.json(&["ps", "-a"]);
    assert_eq!((&rows[0]["name"], &rows[0]["state"]), (&"one".into(), &"ended".into()));
    assert_eq!((&rows[0]["ended"]["status"], &rows[0]["memory"]), (&101.into(), &(64 << 20).into()));
    let table = session.run(&["ps", "--all"]).with(0).silent().stdout;
    assert!(table.contains("ENDED") && table.contains("s ago, status 101"), "{table}");
    assert_eq!(table.lines().count(), 2, "{table}");
    let logs = session.run(&["logs", "-f", "one"]).with(0);
    assert!(logs.stdout.contains("last words"), "{logs:?}");
    assert!(logs.stderr.contains("triple fault") && logs.stderr.contains("rip"), "{logs:?}");
    let tree = session.json(&["inspect", "one"]);
    assert_eq!((&tree["state"], &tree["ended"]["status"]), (&"ended".into(), &101.into()));
    assert_eq!(tree["messages"].as_str().unwrap(), logs.stderr);
    let text = session.run(&["inspect", "one"]).with(0).silent().stdout;
    assert!(text.contains("state: ended") && text.contains("triple fault"), "{text}");
    let waited = session.run(&["wait", "one"]).with(101).silent();
    assert!(waited.stdout.contains("triple fault"), "{waited:?}");
    for command in ["attach", "pause", "resume", "stop", "kill", "events", "balloon"] {
        session.run(&[command, "one"]).refused(&["the VM one has ended with status 101: "]);
    }
    // The next one of that name takes its place.
    session.detach("one", "");
    let rows = session.json(&["ps", "-a"]);
    assert_eq!((rows.as_array().unwrap().len(), &rows[0]["state"]), (1, &"running".into()));
}

#[test]
fn what_is_left_is_cleared_away_when_somebody_wants_it() {
    let session = Session::new();
    for name in ["dead", "ended", "living"] {
        session.detach(name, "");
    }
    session.run(&["kill", "ended"]).with(0).silent();
    session.kill_process("dead");
    let finished = session.run(&["rm", "nobody", "living", "dead"]).with(1);
    for said in ["there is no VM called nobody", "the VM living is run by process"] {
        assert!(finished.stderr.contains(said), "{finished:?}");
    }
    assert!(!session.directory("dead").exists());
    session.run(&["rm", "--all"]).with(0).silent();
    assert!(!session.directory("ended").exists());
    assert_eq!(session.state("living"), "running");
    session.run(&["rm"]).with(2);
}

#[test]
fn a_guest_that_does_not_listen_is_killed_when_its_time_is_over() {
    let session = Session::new();
    session.detach("one", "crash loop");
    let start = Instant::now();
    let finished = session.run(&["stop", "one", "--timeout", "0.3"]).with(0);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(finished.stderr.contains("did not end in the time"), "{finished:?}");
    assert_eq!(session.states(), []);
}

#[test]
fn the_embedded_guest_ends_at_its_prompt_when_it_is_asked() {
    let session = Session::new();
    session.detach("one", "");
    session.wait_for_log("one", "lodger> ");
    session.run(&["pause", "one"]).with(0);
    let waiting = Running::start(&mut session.command(&["wait", "one"]));
    std::thread::sleep(Duration::from_millis(50));
    session.run(&["stop", "one"]).with(0).silent();
    let finished = waiting.finish().with(0).silent();
    assert!(finished.stdout.contains("switched the power off"), "{finished:?}");
}

#[test]
fn a_killed_process_is_listed_as_dead_until_the_next_start() {
    let session = Session::new();
    session.detach("one", "echo last words");
    session.wait_for_log("one", "last words");
    session.detach("two", "");
    session.kill_process("one");
    assert_eq!(session.state("one"), "dead");
    assert_eq!(session.state("two"), "running");
    session.run(&["pause", "one"]).refused(&["the VM one is dead"]);
    // What it has left is there until then.
    assert!(session.run(&["logs", "one"]).with(0).stdout.contains("last words"));
    session.detach("three", "");
    let states: Vec<_> = session.states().into_iter().map(|(name, _)| name).collect();
    assert_eq!(states, ["three", "two"]);
}

/// The kernel frees the memory of a process before it gives up what the process has locked.
#[test]
fn the_name_and_the_disk_of_a_large_killed_one_are_free_at_once() {
    let session = Session::new();
    let disk = session.at("disk.raw");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let start = || {
        let mut command =
            session.command(&["run", "-d", "--name=one", "--memory=1G,prefault", "--disk", &disk]);
        Running::start(command.args(guest(""))).finish()
    };
    start().with(0).silent();
    for _ in 0..2 {
        // SAFETY: a process of this session.
        assert_eq!(unsafe { libc::kill(session.pid("one"), libc::SIGKILL) }, 0);
        start().with(0).silent();
    }
    // A living one keeps it.
    start().refused(&["a VM called one already"]);
}

#[test]
fn what_is_not_there_or_not_possible_is_said() {
    let session = Session::new();
    for command in ["inspect", "logs", "attach", "pause", "resume", "stop", "kill", "rm", "events", "balloon"]
    {
        session.run(&[command, "nobody"]).refused(&["there is no VM called nobody", "lodger ps"]);
        session.run(&[command, "no/name"]).with(2);
    }
    assert_eq!(session.json(&["ps"]), Value::Array(vec![]));
    session.detach("one", "");
    session.run(&["balloon", "one", "1M"]).refused(&["no balloon", "--balloon"]);
    session.run(&["stop", "one", "--timeout", "soon"]).with(2);
    session.run(&["run", "--detach", "--stats"]).with(2);
}

#[test]
fn twenty_detached_guests_are_all_listed_and_all_answer() {
    let session = Session::new();
    let names: Vec<_> = (10..30).map(|number| format!("vm{number}")).collect();
    let started: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = session.command(&["run", "--detach", "--memory=16M", "--name", name]);
            Running::start(command.args(guest("")))
        })
        .collect();
    for running in started {
        running.finish().with(0).silent();
    }
    let expected: Vec<_> = names.iter().map(|name| (name.clone(), "running".to_owned())).collect();
    assert_eq!(session.states(), expected);
    for name in &names {
        assert_eq!(session.json(&["inspect", name])["name"], name.as_str());
    }
    let killed: Vec<_> = names[..10].iter().map(|name| session.pid(name)).collect();
    for &process in &killed {
        // SAFETY: a process of this session.
        assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
    }
    wait_until("they are dead", || {
        session.states().iter().filter(|(_, state)| state == "dead").count() == 10
    });
    // Until then they hold their directories.
    wait_until("they are gone", || killed.iter().all(|&process| is_gone(process)));
    session.detach("next", "");
    assert_eq!(session.states().len(), 11);
    for name in &names[10..] {
        session.run(&["kill", name]).with(0).silent();
    }
    assert_eq!(session.states().len(), 1);
}

#[test]
fn clients_that_do_not_read_or_write_garbage_disturb_nobody() {
    let session = Session::new();
    session.detach("one", "");
    let mut stuck: Vec<_> = (0..10).map(|_| session.socket("one")).collect();
    for client in &mut stuck {
        client.set_nonblocking(true).unwrap();
        while client.write_all(b"{\"method\":\"inspect\"}\n").is_ok() {}
    }
    for bytes in [&b"\0\xff\n"[..], b"{}\n", b"[[[[\n", &vec![b'x'; 200_000]] {
        let _ = session.socket("one").write_all(bytes);
    }
    for _ in 0..10 {
        session.run(&["pause", "one"]).with(0).silent();
        session.run(&["resume", "one"]).with(0).silent();
    }
    let start = Instant::now();
    session.run(&["kill", "one"]).with(0).silent();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn several_on_terminals_share_a_console_and_leave_without_ending_it() {
    let session = Session::new();
    session.detach("one", "");
    let mut screens: Vec<_> = (0..2)
        .map(|_| {
            let screen = Screen::new();
            let running = Running::start(screen.show(&mut session.command(&["attach", "one"])));
            screen.wait_until_raw();
            (screen, running)
        })
        .collect();
    screens[0].0.type_in("echo to all\r");
    for (screen, _) in &mut screens {
        screen.expect("\nto all");
    }
    screens[1].0.type_in("\x01h");
    screens[1].0.expect("the guest goes on");
    let (mut screen, mut running) = screens.remove(1);
    let raw = screen.modes();
    screen.type_in("\x01x");
    assert_eq!(running.wait().code(), Some(0));
    assert!(raw.are_raw() && !screen.modes().are_raw());
    assert_eq!(session.state("one"), "running");
    screens[0].0.type_in("halt\r");
    screens[0].0.expect("the VM one has ended");
}

#[test]
fn a_guest_on_a_terminal_can_be_asked_as_well() {
    let session = Session::new();
    let screen = Screen::new();
    let mut running = Running::start(screen.show(session.command(&["--name=one"]).args(guest(""))));
    wait_until("it has a control socket", || session.directory("one").join("control.sock").exists());
    assert_eq!(session.state("one"), "running");
    session.run(&["logs", "one"]).refused(&["keeps no log"]);
    session.run(&["kill", "one"]).with(0).silent();
    assert_eq!(running.wait().code(), Some(137));
    assert!(!screen.modes().are_raw());
}
