//! A server with a machine of the fake hypervisor, and clients of every kind.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::line::LONGEST;
use super::*;
use crate::console::{Audience, Output, Shown};
use crate::hv::fake::{FakeHypervisor, FakeVm, Step};
use crate::snapshot::Snapshot;
use crate::storage::testing::TempDir;
use crate::vm::description::Description;
use crate::vm::driver::{Driver, DriverThread, Origin, Request, State};
use crate::vm::inspect::RestoredFrom;
use crate::vm::{Completion, Config, Machine, SavedDescription};

/// A machine that runs and is served.
struct Vm {
    server: Server,
    driver: DriverThread<FakeVm>,
    socket: PathBuf,
    audience: Arc<Audience>,
}

fn vm(script: &[Step]) -> Vm {
    let config =
        Config { completion: Completion::Off, balloon: Some(Default::default()), ..Config::default() };
    let audience = Arc::new(Audience::default());
    let shown = Shown { output: Arc::new(Output::discard()), audience: Arc::clone(&audience) };
    let hypervisor = Arc::new(FakeHypervisor::new(script.to_vec()));
    let machine = Machine::new(&*hypervisor, &config, Arc::new(shown)).unwrap();
    let driver = Driver::new(machine).unwrap().spawn().unwrap();
    driver.handle().request(Request::Start, Origin::Owner).unwrap();
    let handle = driver.handle().clone();
    let socket = handle.machine().make_directory().unwrap().join(SOCKET);
    let served = Served {
        handle,
        audience: Arc::clone(&audience),
        hypervisor,
        description: Description { config, ..Description::default() },
        restored_from: Some(RestoredFrom { directory: "/before".to_owned(), id: "f00d".to_owned() }),
        has_log: false,
    };
    Vm { server: Server::start(served).unwrap(), driver, socket, audience }
}

impl Vm {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn state(&self) -> State {
        self.driver.handle().state()
    }
}

fn line(stream: &mut UnixStream) -> Option<Value> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return None;
        }
        line.push(byte[0]);
    }
    Some(serde_json::from_slice(&line).unwrap())
}

fn ask(stream: &mut UnixStream, request: Value) -> Value {
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    line(stream).expect("an answer")
}

fn method(name: &str) -> Value {
    json!({ "id": 1, "method": name })
}

#[test]
fn every_method_answers() {
    let vm = vm(&[]);
    let mut client = vm.connect();
    let mut result = |name: &str| ask(&mut client, method(name))["result"].clone();
    assert_eq!(result("version")["protocol"], PROTOCOL);
    assert_eq!(result("ping")["program"], "lodger");
    let status = result("status");
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &json!(std::process::id())));
    assert_eq!(status["restored-from"], json!({ "directory": "/before", "id": "f00d" }));
    assert_eq!(result("pause"), json!({ "state": "paused" }));
    assert_eq!(result("inspect")["state"], "paused");
    assert_eq!(result("pause"), json!({ "state": "paused" }));
    assert_eq!(result("resume"), json!({ "state": "running" }));
    let balloon = ask(&mut client, json!({ "id": "b", "method": "balloon", "params": { "target": 8192 } }));
    assert_eq!(balloon, json!({ "id": "b", "result": { "target": 8192, "actual": 0 } }));
    let refused = ask(&mut client, json!({ "method": "balloon", "params": { "target": u64::MAX } }));
    assert_eq!(refused["error"]["code"], "params");
    assert_eq!(ask(&mut client, method("logs"))["error"]["code"], "state");
    assert_eq!(ask(&mut client, method("kill"))["result"]["state"], "stopped");
    let ending = ask(&mut client, method("wait"));
    assert_eq!(ending["result"]["status"], 137);
    assert_eq!(
        ask(&mut client, method("resume"))["error"]["message"],
        "a VM that has stopped cannot be resumed"
    );
}

/// The lines before the answer, and that.
fn snapshot(client: &mut UnixStream, params: Value) -> (Vec<Value>, Value) {
    let request = json!({ "id": "s", "method": "snapshot", "params": params });
    client.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut told = Vec::new();
    loop {
        let line = line(client).unwrap();
        if line.get("progress").is_none() {
            return (told, line);
        }
        told.push(line);
    }
}

#[test]
fn a_snapshot_is_answered_when_it_is_there_and_told_as_an_event() {
    let vm = vm(&[]);
    let dir = TempDir::new();
    let place = dir.path().join("snapshot");
    let (mut client, mut listening) = (vm.connect(), vm.connect());
    ask(&mut listening, method("events"));
    let (progress, answer) = snapshot(&mut client, json!({ "directory": place }));
    assert!(progress.iter().all(|line| line["id"] == "s"), "{progress:?}");
    let phases: Vec<_> = progress.iter().map(|line| line["progress"]["phase"].as_str().unwrap()).collect();
    assert!(phases.starts_with(&["memory"]) && phases.ends_with(&["disk"]), "{phases:?}");
    assert!(
        progress.iter().all(|line| line["progress"]["done"].as_u64() <= line["progress"]["total"].as_u64())
    );
    let (found, result) = (Snapshot::open(&place).unwrap(), &answer["result"]);
    assert_eq!(result["directory"], json!(place));
    assert_eq!((&result["id"], &result["state"]), (&json!(found.info().id_in_hex()), &json!("running")));
    let text = SavedDescription::of(&found).unwrap().unwrap().text;
    assert!(Description::from_toml(&text).unwrap().config.balloon.is_some(), "{text}");
    let event = line(&mut listening).unwrap();
    for field in ["directory", "id", "stopped-for-us"] {
        assert_eq!(event[field], result[field], "{event}");
    }
    // A second one in that place, with which the machine ends.
    let (_, answer) = snapshot(&mut client, json!({ "directory": place, "stop": true }));
    assert_eq!(answer["result"]["state"], "stopped");
    assert!(Snapshot::open(&place).unwrap().info().id_in_hex() != event["id"].as_str().unwrap());
    let (_, answer) = snapshot(&mut client, json!({ "directory": place }));
    assert_eq!(answer["error"]["code"], "state");
}

#[test]
fn a_snapshot_is_completed_for_a_client_that_goes_away() {
    let vm = vm(&[]);
    let dir = TempDir::new();
    let place = dir.path().join("snapshot");
    let request = json!({ "method": "snapshot", "params": { "directory": place, "stop": true } });
    vm.connect().write_all(format!("{request}\n").as_bytes()).unwrap();
    assert_eq!(ask(&mut vm.connect(), method("wait"))["result"]["status"], 0);
    Snapshot::open(&place).unwrap().check().unwrap();
}

#[test]
fn why_there_can_be_no_snapshot_is_answered() {
    let vm = vm(&[]);
    let dir = TempDir::new();
    std::fs::write(dir.path().join("letter"), "").unwrap();
    let mut client = vm.connect();
    let (_, answer) = snapshot(&mut client, json!({ "directory": dir.path() }));
    assert_eq!(answer["error"]["code"], "failed");
    let said = answer["error"]["message"].as_str().unwrap();
    assert!(said.contains("is no snapshot, so it is not replaced"), "{said}");
    assert_eq!(vm.state(), State::Running);
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let vm = vm(&[]);
    let mut client = vm.connect();
    let requests: String =
        (0..100).map(|id| format!("{}\n", json!({ "id": id, "method": "ping" }))).collect();
    client.write_all(requests.as_bytes()).unwrap();
    for id in 0..100 {
        assert_eq!(line(&mut client).unwrap()["id"], id);
    }
}

#[test]
fn whoever_waits_or_listens_is_told_the_end() {
    let mut vm = vm(&[]);
    let (mut waiting, mut listening) = (vm.connect(), vm.connect());
    waiting.write_all(b"{\"id\":1,\"method\":\"wait\"}\n").unwrap();
    assert_eq!(ask(&mut listening, method("events"))["result"]["state"], "running");
    let handle = vm.driver.handle();
    handle.request(Request::Pause, Origin::Control).unwrap();
    handle.request(Request::Kill, Origin::Signal(15)).unwrap();
    vm.server.close();
    assert_eq!(line(&mut waiting).unwrap()["result"]["status"], 143);
    let event = line(&mut listening).unwrap();
    assert_eq!(
        (&event["number"], &event["to"], &event["by"]),
        (&json!(2), &json!("paused"), &json!("control"))
    );
    let event = line(&mut listening).unwrap();
    assert_eq!((&event["to"], &event["end"]["status"]), (&json!("stopped"), &json!(143)));
    assert_eq!(line(&mut listening), None);
    assert!(!vm.socket.exists());
}

#[test]
fn lines_without_end_are_refused_and_cost_their_client_its_connection() {
    let vm = vm(&[]);
    let mut client = vm.connect();
    // The server may hang up before it has read all of it.
    let _ = client.write_all(&vec![b'x'; 2 * LONGEST]);
    if let Some(answer) = line(&mut client) {
        assert_eq!(answer["error"]["code"], "parse");
        assert_eq!(line(&mut client), None);
    }
    assert_eq!(ask(&mut vm.connect(), method("ping"))["id"], 1);
}

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// What somebody may send who wants no good: bytes, and requests that are nearly right.
fn garbage(chance: &mut Chance) -> Vec<u8> {
    const PIECES: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\n",
        "\\u0000",
        "null",
        "1e999",
        "-0",
        "\"id\"",
        "\"method\"",
        "\"params\"",
        "\"pause\"",
        "\"resume\"",
        "\"inspect\"",
        "\"events\"",
        "\"attach\"",
        "\"balloon\"",
        "\"target\"",
        "{\"method\":\"status\"}\n",
        "{\"id\":1,\"method\":\"ping\",\"params\":{}}\n",
    ];
    let mut bytes = Vec::new();
    for _ in 0..chance.below(40) {
        match chance.below(4) {
            0 => bytes.extend((0..chance.below(30)).map(|_| chance.next() as u8)),
            _ => bytes.extend(PIECES[chance.below(PIECES.len())].bytes()),
        }
    }
    bytes
}

#[test]
fn garbage_harms_nobody() {
    let vm = vm(&[]);
    let mut chance = Chance(0x1234_5678_9abc_def1);
    for round in 0..2000 {
        let mut client = vm.connect();
        client.set_nonblocking(true).unwrap();
        let _ = client.write_all(&garbage(&mut chance));
        if round % 100 == 0 {
            let mut client = vm.connect();
            assert_eq!(ask(&mut client, method("ping"))["result"]["protocol"], PROTOCOL);
            assert!(matches!(vm.state(), State::Running | State::Paused));
        }
    }
}

#[test]
fn clients_that_do_not_read_hold_up_nobody_and_not_the_end() {
    let write = |value| Step::PortWrite { port: 0x3f8, width: 1, data: vec![value; 4096] };
    let script: Vec<_> = (0..200).map(|_| write(b'x')).collect();
    let mut vm = vm(&script);
    let mut stuck: Vec<_> = (0..8).map(|_| vm.connect()).collect();
    for (number, client) in stuck.iter_mut().enumerate() {
        let request = if number % 2 == 0 { method("attach") } else { method("inspect") };
        client.set_nonblocking(true).unwrap();
        // As much as finds room, of which no answer is read.
        while client.write_all(format!("{request}\n").as_bytes()).is_ok() && number % 2 == 1 {}
    }
    let mut client = vm.connect();
    for _ in 0..20 {
        assert_eq!(ask(&mut client, method("pause"))["result"]["state"], "paused");
        assert_eq!(ask(&mut client, method("resume"))["result"]["state"], "running");
    }
    assert_eq!(ask(&mut client, method("kill"))["result"]["state"], "stopped");
    let start = Instant::now();
    vm.server.close();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn of_too_many_clients_the_idlest_is_parted_with_and_those_at_work_stay() {
    let vm = vm(&[]);
    let mut working = vm.connect();
    ask(&mut working, method("events"));
    let mut idle: Vec<_> = (0..MOST_CLIENTS + 20).map(|_| vm.connect()).collect();
    let mut last = idle.pop().unwrap();
    assert_eq!(ask(&mut last, method("ping"))["id"], 1);
    ask(&mut last, method("pause"));
    assert_eq!(line(&mut working).unwrap()["to"], "paused");
    assert_eq!(line(&mut idle[0]), None);
    drop(idle);
}

#[test]
fn those_who_stay_leave_room_for_those_who_ask() {
    let vm = vm(&[]);
    let mut staying: Vec<_> = (0..MOST_CLIENTS - 1)
        .map(|number| {
            let mut client = vm.connect();
            (ask(&mut client, method(["events", "attach"][number % 2])), client)
        })
        .collect();
    let refused = staying.split_off(MOST_STAYING);
    assert!(staying.iter().all(|(answer, _)| answer.get("error").is_none()), "{staying:?}");
    for (answer, mut client) in refused {
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!("busy")), "{answer}");
        // It may ask for something else.
        assert_eq!(ask(&mut client, method("status"))["result"]["state"], "running");
    }
    assert_eq!(ask(&mut vm.connect(), method("pause"))["result"]["state"], "paused");
    // Who goes leaves a place.
    staying.pop();
    let start = Instant::now();
    while ask(&mut vm.connect(), method("events")).get("error").is_some() {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn who_has_it_killed_learns_how_it_ended_however_many_listen() {
    let vm = vm(&[]);
    let staying: Vec<_> = (0..MOST_STAYING)
        .map(|_| {
            let mut client = vm.connect();
            assert!(ask(&mut client, method("events")).get("error").is_none());
            client
        })
        .collect();
    let mut client = vm.connect();
    assert_eq!(ask(&mut client, method("wait"))["error"]["code"], "busy");
    assert_eq!(ask(&mut client, method("kill"))["result"]["state"], "stopped");
    assert_eq!(ask(&mut client, method("wait"))["result"]["status"], 137);
    drop(staying);
}

#[test]
fn several_that_are_attached_all_hear_the_guest_and_are_heard() {
    let vm = vm(&[]);
    let mut clients: Vec<_> = (0..3).map(|_| vm.connect()).collect();
    for client in &mut clients {
        ask(client, method("attach"));
    }
    vm.audience.push(b"hello");
    for client in &mut clients {
        let mut heard = [0; 5];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
    let serial = vm.driver.handle().machine().serial();
    let room = serial.input_space();
    clients[0].write_all(b"one").unwrap();
    clients[2].write_all(b"two").unwrap();
    let start = Instant::now();
    while serial.input_space() > room - 6 {
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(1));
    }
    // Who leaves takes nobody along.
    drop(clients.remove(0));
    vm.audience.push(b"again");
    let mut heard = [0; 5];
    clients[0].read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"again");
}
