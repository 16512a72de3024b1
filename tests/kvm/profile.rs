//! Profiles of guests whose place is known.

use std::time::Duration;

use lodger::boot::{Source, Symbols};
use lodger::hv::ExitKind;
use lodger::hv::kvm::KvmVcpu;
use lodger::vcpu::{Interval, Profile, Profiler, VcpuThread};

use crate::support::{CODE, Plan, eventually, machine_code, machine_with, within};

const LIMIT: Duration = Duration::from_secs(60);
const ENOUGH: u64 = 100;
/// Where an ELF guest is loaded.
const ADDRESS: u64 = 0x10_0000;

/// A few instructions, and from byte 64 on a loop without end.
fn busy() -> &'static [u8] {
    machine_code!("xor eax, eax", "jmp 2f", ".balign 64", "2: inc rax", "jmp 2b")
}

/// An ELF kernel of `code`, with the functions `start` and, from byte 64 on, `busy_loop`.
fn elf_with_symbols(code: &[u8]) -> Vec<u8> {
    const NAMES: &[u8] = b"\0start\0busy_loop\0";
    fn words(file: &mut Vec<u8>, words: &[u64]) {
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
    }
    let length = code.len() as u64;
    let (code_at, names_at) = (64 + 56, 64 + 56 + length);
    let symbols_at = names_at + NAMES.len() as u64;
    let sections_at = symbols_at + 3 * 24;
    // Magic, 64 bits, little-endian; an executable for x86-64; where program headers and sections are.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    words(&mut file, &[ADDRESS, 64, sections_at]);
    file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\x40\0\x04\0\x02\0");
    file.extend(b"\x01\0\0\0\x07\0\0\0");
    words(&mut file, &[code_at, ADDRESS, ADDRESS, length, length, 4]);
    file.extend(code);
    file.extend(NAMES);
    file.extend([0; 24]);
    // Name; a global function; section 1.
    file.extend(b"\x01\0\0\0\x12\0\x01\0");
    words(&mut file, &[ADDRESS, 64]);
    file.extend(b"\x07\0\0\0\x12\0\x01\0");
    words(&mut file, &[ADDRESS + 64, length - 64]);
    file.extend([0; 64]);
    for (kind, flags, address, at, size, link) in [
        (1_u32, 6, ADDRESS, code_at, length, 0_u32),
        (3, 0, 0, names_at, NAMES.len() as u64, 0),
        (2, 0, 0, symbols_at, 3 * 24, 2),
    ] {
        file.extend([0; 4]);
        file.extend(kind.to_le_bytes());
        words(&mut file, &[flags, address, at, size]);
        file.extend(link.to_le_bytes());
        file.extend([0; 20]);
    }
    file
}

fn interruptions(vcpu: &VcpuThread<KvmVcpu>) -> u64 {
    vcpu.counters().get(ExitKind::Interrupted)
}

/// The table's first line: share, samples and name.
fn top(profile: &Profile, symbols: Option<&Symbols>) -> String {
    let mut text = Vec::new();
    profile.write(symbols, &mut text).expect("memory takes everything");
    let text = String::from_utf8(text).expect("a profile is text");
    text.lines().find(|line| !line.starts_with('#')).expect("there are samples").trim().to_owned()
}

#[test]
fn the_busy_loop_of_a_kernel_with_symbols_leads_its_profile() {
    let kernel = elf_with_symbols(busy());
    within(LIMIT, move || {
        let mut described = None;
        let (machine, _) = machine_with(&kernel, |config| {
            config.flat = None;
            described = Some(config.clone());
        });
        let symbols = described.expect("it was described").symbols().expect("the kernel has symbols");
        let profiler = machine.profile(Interval::default()).expect("a thread can be started");
        machine.resume();
        eventually("the guest is sampled", || interruptions(&machine.vcpus()[0]) > ENOUGH);
        machine.stop();
        let profile = profiler.finish();
        assert!(profile.samples.len() as u64 > ENOUGH / 2, "{}", profile.samples.len());
        assert!(profile.samples.iter().all(|sample| sample.ring == 0));
        let top = top(&profile, Some(&symbols));
        assert!(top.ends_with("busy_loop"), "{top}");
        let share: f64 = top.split_once(" %").expect("a share").0.parse().expect("a number");
        assert!(share > 90.0, "{top}");
    });
}

#[test]
fn user_mode_is_told_apart_and_may_have_symbols_of_its_own() {
    within(LIMIT, || {
        let board = Plan::new(busy()).ring(3).build();
        let profiler = Profiler::start(&board.vcpus, Interval::default()).expect("a thread can be started");
        board.resume();
        eventually("the guest is sampled", || interruptions(board.vcpu()) > ENOUGH);
        board.pause();
        let profile = profiler.finish();
        assert!(top(&profile, None).ends_with("[user]"), "{}", top(&profile, None));
        let list = format!("{CODE:x} T start\n{:x} T busy_loop\n", CODE + 64);
        let symbols = Symbols::read(Source::Bytes { name: "a list", bytes: list.as_bytes() }).unwrap();
        let top = top(&profile, Some(&symbols));
        assert!(top.ends_with("busy_loop"), "{top}");
    });
}

#[test]
fn sampling_loses_and_repeats_no_access() {
    let code = machine_code!("mov edx, 0x540", "xor eax, eax", "2: inc eax", "out dx, eax", "jmp 2b");
    within(LIMIT, move || {
        let device = std::sync::Arc::new(crate::support::Consecutive::default());
        let board = Plan::new(code).device(&device).build();
        let often = Interval::new(Duration::from_micros(50)).unwrap();
        let profiler = Profiler::start(&board.vcpus, often).expect("a thread can be started");
        board.resume();
        eventually("the guest is sampled", || interruptions(board.vcpu()) > 2000);
        board.pause();
        let profile = profiler.finish();
        assert!(board.is_alive());
        // Each sample is taken between two accesses or within one instruction of them.
        assert!(
            profile.samples.iter().all(|sample| (CODE..CODE + code.len() as u64).contains(&sample.address))
        );
        assert!(device.last() > 1000);
    });
}

#[test]
fn a_processor_that_halts_or_was_never_started_is_sampled_where_it_waits() {
    let code = machine_code!("cli", "hlt", "2: jmp 2b");
    within(LIMIT, move || {
        let board = Plan::new(code).ring(0).cpus(2, &[]).build();
        let profiler = Profiler::start(&board.vcpus, Interval::default()).expect("a thread can be started");
        board.resume();
        eventually("both are sampled", || board.vcpus.iter().all(|vcpu| interruptions(vcpu) > ENOUGH));
        board.pause();
        let profile = profiler.finish();
        let at = |vcpu| profile.samples.iter().rfind(|sample| sample.vcpu == vcpu).expect("a sample").address;
        assert_eq!((at(0), at(1)), (CODE + 2, 0xffff_fff0));
        let mut text = Vec::new();
        profile.write(None, &mut text).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("  [not started]\n"));
    });
}
