//! Machines of the fake hypervisor, driven from several sides at once.

use std::thread;

use super::*;
use crate::devices::Collected;
use crate::devices::power_button;
use crate::hv::fake::{FakeHypervisor, FakeVm, Step};
use crate::vm::Config;
use crate::x86::complete::gaps;

/// A machine whose guest follows `script` and then computes for ever.
fn machine(script: &[Step]) -> (FakeHypervisor, Machine<FakeVm>) {
    let answer = Step::PortWrite { port: gaps::REPORT, width: 1, data: vec![gaps::ALL_WORKS] };
    let script: Vec<_> = [answer.clone(), answer].into_iter().chain(script.iter().cloned()).collect();
    let hypervisor = FakeHypervisor::new(script);
    let machine = Machine::new(&hypervisor, &Config::default(), Arc::new(Collected::default())).unwrap();
    (hypervisor, machine)
}

fn driven(script: &[Step]) -> (FakeHypervisor, DriverThread<FakeVm>) {
    let (hypervisor, machine) = machine(script);
    (hypervisor, Driver::new(machine).unwrap().spawn().unwrap())
}

fn running(script: &[Step]) -> (FakeHypervisor, DriverThread<FakeVm>) {
    let (hypervisor, thread) = driven(script);
    ask(&thread, Request::Start).unwrap();
    (hypervisor, thread)
}

fn ask(thread: &DriverThread<FakeVm>, request: Request) -> Result<State, Refusal> {
    thread.handle().request(request, Origin::Control)
}

fn stop(milliseconds: u64) -> Request {
    Request::Stop { patience: Duration::from_millis(milliseconds) }
}

fn presses(hypervisor: &FakeHypervisor) -> usize {
    hypervisor.log().interrupts.iter().filter(|&&change| change == (power_button::IRQ, true)).count()
}

/// The transitions that a subscriber has been told of.
fn told(subscription: &Subscription) -> Vec<(State, State, String)> {
    std::iter::from_fn(|| subscription.next())
        .map(|news| match news {
            News::Event(Event { what: What::State { from, to, by, .. }, .. }) => (from, to, by),
            news => panic!("{news:?} is no transition"),
        })
        .collect()
}

fn wait_until_stopped(thread: &DriverThread<FakeVm>) -> Ending {
    let stopped = event::readable([Some(thread.handle().stopped_event())], Some(Duration::from_secs(20)));
    assert_eq!(stopped.unwrap(), [true], "it does not stop");
    thread.handle().ending().expect("it has stopped")
}

/// Brings a machine into a state.
fn in_state(state: State) -> (FakeHypervisor, DriverThread<FakeVm>) {
    let way: &[Request] = match state {
        State::Created => &[],
        State::Running => &[Request::Start],
        State::Paused => &[Request::Start, Request::Pause],
        State::Stopping => &[Request::Start, stop(60_000)],
        State::Stopped => &[Request::Start, Request::Kill],
    };
    let (hypervisor, thread) = driven(&[]);
    for &request in way {
        ask(&thread, request).unwrap();
    }
    assert_eq!(thread.handle().state(), state);
    (hypervisor, thread)
}

#[test]
fn every_request_in_every_state_has_the_answer_of_the_table() {
    for state in State::ALL {
        for request in [Request::Start, Request::Pause, Request::Resume, stop(60_000), Request::Kill] {
            let (_hypervisor, thread) = in_state(state);
            let expected = match answer(state, request.kind()) {
                Answer::Go(to) => Ok(to),
                Answer::Already => Ok(state),
                Answer::Refused => Err(Refusal { state, request: request.kind() }),
            };
            assert_eq!(ask(&thread, request), expected, "{request:?} when {state}");
            assert_eq!(thread.handle().state(), expected.unwrap_or(state));
        }
        let (_hypervisor, thread) = in_state(state);
        let done = thread.handle().at_rest(|_| 7);
        match answer(state, Kind::AtRest) {
            Answer::Go(_) => assert_eq!(done, Ok(7)),
            _ => assert_eq!(done, Err(Refusal { state, request: Kind::AtRest })),
        }
        assert_eq!(thread.handle().state(), state);
    }
}

#[test]
fn each_transition_is_told_in_order_with_who_wanted_it() {
    let (_hypervisor, thread) = driven(&[]);
    let (state, subscription) = thread.handle().subscribe().unwrap();
    assert_eq!(state, State::Created);
    let handle = thread.handle();
    handle.request(Request::Start, Origin::Owner).unwrap();
    handle.request(Request::Pause, Origin::Control).unwrap();
    // What is so already is no transition, and neither is what is refused.
    handle.request(Request::Pause, Origin::Control).unwrap();
    handle.request(Request::Start, Origin::Owner).unwrap_err();
    handle.request(Request::Resume, Origin::Control).unwrap();
    handle.request(Request::Kill, Origin::Signal(15)).unwrap();
    use State::{Created, Paused, Running, Stopped};
    let expected = [
        (Created, Running, "owner"),
        (Running, Paused, "control"),
        (Paused, Running, "control"),
        (Running, Stopped, "signal 15"),
    ];
    assert_eq!(told(&subscription), expected.map(|(from, to, by)| (from, to, by.to_owned())));
    assert_eq!(wait_until_stopped(&thread).status, 143);
    assert_eq!(handle.ended_by(), Some(Origin::Signal(15)));
}

#[test]
fn a_guest_that_ends_by_itself_ends_the_machine_with_its_status() {
    let (_hypervisor, thread) = running(&[Step::PortWrite { port: 0xf4, width: 1, data: vec![7] }]);
    let ending = wait_until_stopped(&thread);
    assert_eq!(ending, Ending { status: 7, reason: "the guest ended the process with status 7".to_owned() });
    assert_eq!(thread.handle().ended_by(), Some(Origin::Guest));
    assert_eq!(ask(&thread, Request::Kill), Ok(State::Stopped));
    assert!(ask(&thread, Request::Pause).is_err());
    assert!(thread.handle().at_rest(|_| ()).is_err());
}

#[test]
fn a_guest_that_does_not_listen_is_killed_when_its_time_is_over() {
    let (hypervisor, thread) = running(&[]);
    let start = Instant::now();
    assert_eq!(ask(&thread, stop(50)), Ok(State::Stopping));
    let ending = wait_until_stopped(&thread);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(ending.status, 137);
    assert!(ending.reason.contains("did not end in the time"), "{}", ending.reason);
    assert_eq!(presses(&hypervisor), 1);
    assert_eq!(thread.handle().ended_by(), Some(Origin::Timeout));
}

#[test]
fn a_second_request_to_stop_may_shorten_the_time_and_never_lengthens_it() {
    let (_hypervisor, thread) = running(&[]);
    ask(&thread, stop(60_000)).unwrap();
    ask(&thread, stop(u64::MAX)).unwrap();
    assert_eq!(thread.handle().state(), State::Stopping);
    ask(&thread, stop(0)).unwrap();
    assert_eq!(wait_until_stopped(&thread).status, 137);
}

#[test]
fn a_paused_guest_runs_on_to_hear_that_it_shall_end() {
    let (hypervisor, thread) = in_state(State::Paused);
    let (_, subscription) = thread.handle().subscribe().unwrap();
    ask(&thread, stop(60_000)).unwrap();
    assert_eq!(presses(&hypervisor), 1);
    assert_eq!(told(&subscription), [(State::Paused, State::Stopping, "control".to_owned())]);
}

#[test]
fn a_paused_guest_makes_no_step_and_a_resumed_one_does() {
    let write = |value| Step::PortWrite { port: 0x80, width: 1, data: vec![value] };
    let script: Vec<_> = (0..=255).cycle().take(20_000).map(write).collect();
    let (_hypervisor, thread) = running(&script);
    let done = |thread: &DriverThread<FakeVm>| thread.handle().machine().vcpus()[0].counters().total();
    let mut last = 0;
    for _ in 0..100 {
        ask(&thread, Request::Pause).unwrap();
        let now = done(&thread);
        thread::sleep(Duration::from_micros(100));
        assert_eq!(done(&thread), now);
        ask(&thread, Request::Resume).unwrap();
        assert!(now >= last);
        last = now;
    }
    while done(&thread) < 20_000 {
        thread::yield_now();
    }
}

#[test]
fn what_is_done_at_rest_is_done_with_no_processor_running_and_changes_no_state() {
    let (_hypervisor, thread) = running(&[]);
    let (_, subscription) = thread.handle().subscribe().unwrap();
    let rip = thread.handle().at_rest(|machine| {
        // Would wait for ever for one that runs.
        machine.vcpus().iter().map(|vcpu| vcpu.while_at_rest(hv_rip)).max()
    });
    assert!(rip.unwrap().is_some());
    assert_eq!((thread.handle().state(), told(&subscription)), (State::Running, vec![]));
}

fn hv_rip(vcpu: &impl crate::hv::Vcpu) -> u64 {
    vcpu.registers().unwrap().rip
}

#[test]
fn many_that_ask_at_once_are_all_answered() {
    let (_hypervisor, thread) = running(&[]);
    let (_, subscription) = thread.handle().subscribe().unwrap();
    let handle = thread.handle();
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                for round in 0..50 {
                    let request = if (number + round) % 2 == 0 { Request::Pause } else { Request::Resume };
                    handle.request(request, Origin::Control).unwrap();
                }
            });
        }
    });
    // Whatever the order was, each transition began where the last one had ended.
    let mut state = State::Running;
    while let Some(news) = subscription.next() {
        let News::Event(Event { what: What::State { from, to, .. }, .. }) = news else { break };
        assert_eq!(from, state);
        state = to;
    }
    assert_eq!(ask(&thread, Request::Kill), Ok(State::Stopped));
}

#[test]
fn a_driver_that_goes_takes_its_machine_with_it_and_answers_to_nobody() {
    let (_hypervisor, thread) = running(&[]);
    let handle = thread.handle().clone();
    drop(thread);
    assert_eq!(handle.state(), State::Stopped);
    assert_eq!(handle.ending().unwrap().status, 137);
    assert_eq!(handle.request(Request::Kill, Origin::Control), Ok(State::Stopped));
    let refused = handle.request(Request::Resume, Origin::Control).unwrap_err();
    assert_eq!(refused.to_string(), "a VM that has stopped cannot be resumed");
}

#[test]
fn a_machine_that_nobody_drives_any_longer_is_not_waited_for() {
    let (_hypervisor, machine) = machine(&[]);
    let driver = Driver::new(machine).unwrap();
    let handle = driver.handle();
    drop(driver);
    assert!(handle.request(Request::Start, Origin::Owner).is_err());
    assert_eq!(handle.ending(), None);
}
