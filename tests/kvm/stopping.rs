//! Guests are stopped at any time, promptly and at a consistent point, and no request is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lodger::hv::ExitKind;
use lodger::vcpu::Ending;

use crate::support::{Board, CODE, Consecutive, Plan, Random, eventually, machine_code, within};

/// No pause or stop takes longer, even on a loaded host. What they do take is printed.
const PROMPT: Duration = Duration::from_secs(1);
/// All rounds of a hammer test together.
const HAMMER: Duration = Duration::from_secs(300);
const ROUNDS: u64 = 10_000;

fn counting() -> &'static [u8] {
    machine_code!("mov ebx, 0x180000", "2: inc qword ptr [rbx]", "jmp 2b")
}

/// Writes 1, 2, 3… to the port. What each instruction's address says about EAX is used below.
fn port_storm() -> &'static [u8] {
    machine_code!("mov edx, 0x540", "xor eax, eax", "2: inc eax", "out dx, eax", "jmp 2b")
}

const STORM_OUT: u64 = CODE + 9;

/// Halts again and again; only an interrupt would let it write.
fn halting() -> &'static [u8] {
    machine_code!("sti", "2: hlt", "mov al, 9", "out 0xf4, al", "jmp 2b")
}

fn halting_for_good() -> &'static [u8] {
    machine_code!("cli", "hlt", "mov al, 9", "out 0xf4, al")
}

/// These tests need a processor for the guest and one for themselves: two at once would spend their time
/// waiting for each other's time slices.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pauses a board again and again, and notes how long it took.
struct Pauser<'a> {
    name: &'static str,
    board: &'a Board,
    latencies: Vec<Duration>,
}

impl<'a> Pauser<'a> {
    fn new(name: &'static str, board: &'a Board) -> Self {
        Self { name, board, latencies: Vec::new() }
    }

    /// How many pauses fetched the processor out of `KVM_RUN`. One right behind a resume finds it still
    /// waiting to be let in; that has to work as well, but is no proof of anything.
    fn effective(&self) -> u64 {
        self.latencies.len() as u64
    }

    fn pause(&mut self) {
        self.rest(Board::pause);
    }

    fn stop(&mut self) {
        self.rest(|board| {
            board.vcpu().request_stop();
            board.vcpu().wait_at_rest();
        });
    }

    fn rest(&mut self, request: impl FnOnce(&Board)) {
        let interruptions = || self.board.vcpu().counters().get(ExitKind::Interrupted);
        let before = interruptions();
        let start = Instant::now();
        request(self.board);
        let took = start.elapsed();
        assert!(took < PROMPT, "{}: it took {took:?}", self.name);
        if interruptions() > before {
            self.latencies.push(took);
        }
    }
}

impl Drop for Pauser<'_> {
    fn drop(&mut self) {
        self.latencies.sort_unstable();
        if let (Some(median), Some(most)) =
            (self.latencies.get(self.latencies.len() / 2), self.latencies.last())
        {
            println!("{}: median {median:?}, most {most:?} of {}", self.name, self.latencies.len());
        }
    }
}

#[test]
fn whatever_the_guest_does_it_is_paused_and_stopped_promptly() {
    let memory_storm = machine_code!("mov ebx, 0xd0000000", "2: mov [rbx], eax", "jmp 2b");
    let string_storm = machine_code!(
        "cld",
        "mov edx, 0x540",
        "2: mov esi, 0x180000",
        "mov ecx, 4096",
        "rep outsb",
        "mov edi, 0x180000",
        "mov ecx, 4096",
        "rep insb",
        "jmp 2b",
    );
    let long_copy = machine_code!(
        "cld",
        "2: mov esi, 0x100000",
        "mov edi, 0x180000",
        "mov ecx, 0x80000",
        "rep movsb",
        "jmp 2b"
    );
    let cases = [
        ("halted with interrupts off", 0, halting_for_good()),
        ("halted with interrupts on", 0, halting()),
        ("a busy loop in ring 0", 0, counting()),
        ("a busy loop in ring 3", 3, counting()),
        ("port accesses in ring 0", 0, port_storm()),
        ("port accesses in ring 3", 3, port_storm()),
        ("memory-mapped accesses in ring 3", 3, memory_storm),
        ("string accesses in ring 3", 3, string_storm),
        ("a long copy in ring 0", 0, long_copy),
    ];
    let _alone = alone();
    within(HAMMER, move || {
        let mut random = Random::new(1);
        for (name, ring, code) in cases {
            let board = Plan::new(code).ring(ring).build();
            let mut pauser = Pauser::new(name, &board);
            while pauser.effective() < 100 {
                board.resume();
                random.dawdle(200);
                pauser.pause();
            }
            board.resume();
            random.dawdle(1000);
            pauser.stop();
            let ending = board.ending();
            assert!(matches!(ending, Ending::Stopped), "{name}: {ending:?}");
        }
    });
}

#[test]
fn a_busy_loop_survives_ten_thousand_pauses() {
    let _alone = alone();
    within(HAMMER, || {
        let board = Plan::new(counting()).build();
        let mut random = Random::new(2);
        let mut pauser = Pauser::new("pauses of a busy loop", &board);
        for round in 0.. {
            if pauser.effective() == ROUNDS {
                break;
            }
            let before = board.data(0);
            board.resume();
            // A pause right behind a resume may come before the guest ran at all; now and then it has to run.
            match round % 16 {
                0 => eventually("the guest counts", || board.data(0) > before),
                1 => {}
                _ => random.dawdle(80),
            }
            pauser.pause();
            if round % 64 == 0 {
                let paused = board.data(0);
                random.dawdle(40);
                assert_eq!(board.data(0), paused, "it counts while it is paused");
            }
        }
        assert!(board.is_alive());
    });
}

#[test]
fn no_port_access_is_lost_or_repeated_in_ten_thousand_pauses() {
    let _alone = alone();
    within(HAMMER, || {
        let device = Arc::new(Consecutive::default());
        let board = Plan::new(port_storm()).device(&device).build();
        let mut random = Random::new(3);
        let mut pauser = Pauser::new("pauses of a storm of port accesses", &board);
        for round in 0.. {
            if pauser.effective() == ROUNDS {
                break;
            }
            let before = device.last();
            board.resume();
            match round % 16 {
                0 => eventually("the guest writes", || device.last() > before),
                1 => {}
                _ => random.dawdle(80),
            }
            pauser.pause();
            // At rest an access is done, or it has not begun: EAX and the instruction pointer say the same as
            // the device.
            let registers = board.registers();
            let written = match registers.rip {
                STORM_OUT => registers.rax - 1,
                _ => registers.rax,
            };
            assert_eq!(written, device.last(), "at {:#x}", registers.rip);
        }
        device.check();
        println!("{} accesses", device.last());
    });
}

#[test]
fn thousands_of_pauses_neither_wake_nor_hang_a_halted_guest() {
    let _alone = alone();
    within(HAMMER, || {
        for (name, code) in
            [("halted, interrupts on", halting()), ("halted, interrupts off", halting_for_good())]
        {
            let board = Plan::new(code).ring(0).build();
            let mut random = Random::new(4);
            let mut pauser = Pauser::new(name, &board);
            while pauser.effective() < 5000 {
                board.resume();
                random.dawdle(80);
                pauser.pause();
            }
            assert!(board.is_alive(), "{name}: woken by a pause");
            // Behind `hlt`, and waiting there.
            assert_eq!(board.registers().rip, CODE + 2);
        }
    });
}

#[test]
fn threads_that_pause_and_resume_against_each_other_do_not_lose_the_guest() {
    let _alone = alone();
    within(HAMMER, || {
        let board = Plan::new(counting()).build();
        let vcpu = board.vcpu();
        thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..2000 {
                        match random.below(2) {
                            0 => vcpu.request_pause(),
                            _ => vcpu.resume(),
                        }
                        random.dawdle(10);
                    }
                });
            }
        });
        board.pause();
        let before = board.data(0);
        board.resume();
        eventually("the guest counts", || board.data(0) > before);
        assert!(board.is_alive());
    });
}
