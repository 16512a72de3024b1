//! Snapshots of machines of the fake hypervisor that others use meanwhile.

use std::sync::mpsc;
use std::{fs, thread};

use super::*;
use crate::devices::Collected;
use crate::hv::fake::{FakeHypervisor, FakeVm};
use crate::snapshot::Snapshot;
use crate::storage::testing::TempDir;
use crate::vm::driver::{Driver, DriverThread, News, Subscription};
use crate::vm::{Completion, Config, Machine};

struct Vm {
    hypervisor: Arc<FakeHypervisor>,
    driver: DriverThread<FakeVm>,
    dir: TempDir,
}

/// A machine that was asked for all this.
fn vm(requests: &[Request]) -> Vm {
    let hypervisor = FakeHypervisor::new([]);
    let config = Config { completion: Completion::Off, ..Config::default() };
    let machine = Machine::new(&hypervisor, &config, Arc::new(Collected::default())).unwrap();
    let driver = Driver::new(machine).unwrap().spawn().unwrap();
    for &request in requests {
        driver.handle().request(request, Origin::Control).unwrap();
    }
    Vm { hypervisor: Arc::new(hypervisor), driver, dir: TempDir::new() }
}

impl Vm {
    fn order(&self, stop: bool) -> Order {
        let description = Some(SavedDescription { text: "described".to_owned() });
        Order { place: self.dir.path().join("snapshot"), base: None, disks: None, description, stop }
    }

    fn take(&self, stop: bool, mut tell: impl FnMut(Step)) -> Result<Taken, SnapshotError> {
        self.driver.handle().snapshot(&self.hypervisor, &self.order(stop), &mut tell)
    }

    fn ask(&self, request: Request) -> Result<State, Refusal> {
        self.driver.handle().request(request, Origin::Control)
    }

    fn state(&self) -> State {
        self.driver.handle().state()
    }

    /// The id of the snapshot that is there.
    fn found(&self) -> Option<String> {
        let snapshot = Snapshot::open(&self.order(false).place).ok()?;
        snapshot.check().unwrap();
        Some(snapshot.info().id_in_hex())
    }

    /// No draft is left over.
    fn is_tidy(&self) -> bool {
        fs::read_dir(self.dir.path()).unwrap().all(|entry| entry.unwrap().file_name() == "snapshot")
    }
}

/// Each event in a word or two.
fn told(subscription: &Subscription) -> Vec<String> {
    std::iter::from_fn(|| subscription.next())
        .map(|news| match news {
            News::Event(event) => match event.what {
                What::State { from, to, by, .. } => format!("{from} {to} by {by}"),
                What::Snapshot { id, .. } => id,
            },
            News::Lost(count) => panic!("{count} are lost"),
        })
        .collect()
}

#[test]
fn a_machine_does_afterwards_what_it_did_before() {
    for (requests, state) in [
        (&[][..], State::Created),
        (&[Request::Start], State::Running),
        (&[Request::Start, Request::Pause], State::Paused),
    ] {
        let vm = vm(requests);
        let (_, subscription) = vm.driver.handle().subscribe().unwrap();
        let taken = vm.take(false, |_| ()).unwrap();
        let id = taken.info.id_in_hex();
        assert_eq!((taken.state, vm.state()), (state, state));
        assert!(taken.size > 0 && taken.size < 1 << 20, "{taken:?}");
        assert_eq!((told(&subscription), vm.found()), (vec![id.clone()], Some(id)));
        let snapshot = Snapshot::open(&taken.directory).unwrap();
        let description = SavedDescription::of(&snapshot).unwrap().map(|description| description.text);
        assert_eq!(description.as_deref(), Some("described"));
    }
}

#[test]
fn a_machine_that_ends_has_nothing_to_go_on_with() {
    let stop = Request::Stop { patience: Duration::from_secs(60) };
    for (requests, state) in
        [([Request::Start, stop], State::Stopping), ([Request::Start, Request::Kill], State::Stopped)]
    {
        let vm = vm(&requests);
        let error = vm.take(false, |_| ()).unwrap_err();
        assert!(matches!(error, SnapshotError::Refused(refusal) if refusal.state == state), "{error}");
        assert_eq!((vm.found(), vm.is_tidy()), (None, true));
    }
}

#[test]
fn one_that_is_to_end_stands_still_from_the_snapshot_on_and_has_ended_well() {
    for requests in [&[][..], &[Request::Start], &[Request::Start, Request::Pause]] {
        let vm = vm(requests);
        let running = vm.state() == State::Running;
        let (before, subscription) = vm.driver.handle().subscribe().unwrap();
        let mut waiting = None;
        let taken = vm.take(true, |step| waiting = (step.phase == Phase::Disk).then(|| vm.state())).unwrap();
        let held = if running { State::Paused } else { before };
        assert_eq!((waiting, taken.state, vm.state()), (Some(held), State::Stopped, State::Stopped));
        let ending = vm.driver.handle().ending().unwrap();
        assert_eq!(
            (ending.status, ending.reason.as_str()),
            (0, "its snapshot was taken, and it ended there")
        );
        let stopped = format!("{held} stopped by snapshot");
        let paused = running.then(|| "running paused by snapshot".to_owned());
        let expected: Vec<_> = paused.into_iter().chain([taken.info.id_in_hex(), stopped]).collect();
        assert_eq!(told(&subscription), expected);
    }
}

#[test]
fn one_that_somebody_lets_run_on_meanwhile_is_not_ended() {
    let vm = vm(&[Request::Start]);
    let error = vm.take(true, |step| {
        if step.phase == Phase::Disk {
            vm.ask(Request::Resume).unwrap();
            vm.ask(Request::Pause).unwrap();
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("is complete, but somebody has let the VM run on"), "{error}");
    assert_eq!((vm.state(), vm.found().is_some()), (State::Paused, true));
    // It may just as well be ended by somebody else.
    let killed = vm.take(true, |step| {
        if step.phase == Phase::Disk {
            vm.ask(Request::Kill).unwrap();
        }
    });
    assert_eq!(killed.unwrap().state, State::Stopped);
}

#[test]
fn others_are_answered_while_the_disk_is_waited_for_and_a_second_snapshot_is_refused() {
    let vm = vm(&[Request::Start]);
    let (at_disk, waiting) = mpsc::channel();
    let (go_on, told_to) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let vm = &vm;
        let first = scope.spawn(move || {
            vm.take(false, |step| {
                if step.phase == Phase::Disk {
                    at_disk.send(()).unwrap();
                    told_to.recv().unwrap();
                }
            })
        });
        waiting.recv().unwrap();
        assert_eq!(vm.ask(Request::Pause), Ok(State::Paused));
        assert_eq!(vm.ask(Request::Resume), Ok(State::Running));
        assert!(matches!(vm.take(false, |_| ()), Err(SnapshotError::Busy)));
        assert_eq!(vm.ask(Request::Kill), Ok(State::Stopped));
        go_on.send(()).unwrap();
        assert_eq!(first.join().unwrap().unwrap().state, State::Stopped);
    });
    assert!(vm.found().is_some());
    // Whoever failed has given the turn back.
    for _ in 0..2 {
        assert!(matches!(vm.take(false, |_| ()), Err(SnapshotError::Refused(_))));
    }
}

#[test]
fn a_machine_goes_on_when_there_can_be_no_snapshot_in_that_place() {
    let vm = vm(&[Request::Start]);
    fs::create_dir(vm.order(false).place).unwrap();
    fs::write(vm.order(false).place.join("letter"), "dear all").unwrap();
    for stop in [false, true] {
        let error = vm.take(stop, |_| ()).unwrap_err().to_string();
        assert!(error.contains("is no snapshot, so it is not replaced"), "{error}");
        assert_eq!(vm.state(), State::Running);
    }
    // What comes there at the last moment is no reason to stop either.
    fs::remove_file(vm.order(false).place.join("letter")).unwrap();
    let late = vm.take(true, |step| {
        if step.phase == Phase::Disk {
            fs::write(vm.order(false).place.join("letter"), "dear all").unwrap();
        }
    });
    assert!(late.is_err());
    assert_eq!((vm.state(), vm.is_tidy()), (State::Running, true));
}

#[test]
fn a_snapshot_takes_the_place_of_an_older_one() {
    let vm = vm(&[Request::Start]);
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let id = vm.take(false, |_| ()).unwrap().info.id_in_hex();
            assert_eq!(vm.found().as_ref(), Some(&id));
            id
        })
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && vm.is_tidy());
}
