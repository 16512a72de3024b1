//! Snapshots of guests that write their memory meanwhile, and diffs of what they wrote.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lodger::boot::Flat;
use lodger::devices::Collected;
use lodger::hv::Hypervisor;
use lodger::hv::kvm::KvmVm;
use lodger::snapshot::Snapshot;
use lodger::vm::{CannotSave, Config, Drafted, Error, Kernel, Machine, MemorySpec};

use crate::support::{Random, Scratch, kvm, machine_code, restore, within};

const LIMIT: Duration = Duration::from_secs(300);

/// Writes to pages at random, in 4 MiB, prints a letter now and then that depends on all that it read there, and ends
/// with status 7. `$enter` is how it goes there, by the address in RAX.
macro_rules! scribbler {
    ($writes:literal, $($enter:literal),+ $(,)?) => {
        machine_code!(
            // Page tables of its own, by which ring 3 may have all of the first 64 MiB.
            "mov edi, 0x200000",
            "mov eax, 0x201007",
            "mov [rdi], rax",
            "mov eax, 0x202007",
            "mov [rdi + 0x1000], rax",
            "xor ecx, ecx",
            "2: mov rax, rcx",
            "shl rax, 21",
            "or rax, 0x87",
            "mov [rdi + rcx * 8 + 0x2000], rax",
            "inc ecx",
            "cmp ecx, 32",
            "jb 2b",
            "mov cr3, rdi",
            "mov rax, 0x00affb000000ffff",
            "mov [rdi + 0x3020], rax",
            "mov rax, 0x00cff3000000ffff",
            "mov [rdi + 0x3018], rax",
            // Some hosts lose the IOPL of ring 3: a task state segment allows the first 2048 ports.
            "mov rax, 0x0000892040000168",
            "mov [rdi + 0x3028], rax",
            "mov word ptr [rdi + 0x4066], 0x68",
            "mov byte ptr [rdi + 0x4168], 0xff",
            "mov word ptr [rdi + 0x3100], 0x37",
            "lea rax, [rdi + 0x3000]",
            "mov [rdi + 0x3102], rax",
            "lgdt [rdi + 0x3100]",
            "mov eax, 0x28",
            "ltr ax",
            "mov esp, 0x300000",
            "lea rax, [rip + 3f]",
            $($enter,)+
            "3: mov rbx, 0x123456789",
            "xor ecx, ecx",
            "mov edx, 0x3f8",
            concat!("4: mov r8d, ", $writes),
            "5: mov rax, rbx",
            "shl rax, 13",
            "xor rbx, rax",
            "mov rax, rbx",
            "shr rax, 7",
            "xor rbx, rax",
            "mov rax, rbx",
            "shl rax, 17",
            "xor rbx, rax",
            "mov eax, ebx",
            "and eax, 0x3ffff8",
            "add rbx, [rax + 0x400000]",
            "mov [rax + 0x400000], rbx",
            "dec r8d",
            "jnz 5b",
            "mov eax, ebx",
            "and al, 0x1f",
            "add al, 0x41",
            "out dx, al",
            "inc ecx",
            "cmp ecx, 1000",
            "jne 4b",
            "mov al, 7",
            "out 0xf4, al",
        )
    };
}

/// In ring 3 and in ring 0. Every KVM has the processor do the first, and its page tables tell who wrote; a KVM without
/// hardware interprets the second, and writes through the mapping of this process. With hardware, there is time for
/// more.
fn guests() -> [&'static [u8]; 2] {
    macro_rules! both {
        ($writes:literal) => {
            [
                scribbler!(
                    $writes,
                    "push 0x1b",
                    "push 0x300000",
                    "push 0x3002",
                    "push 0x23",
                    "push rax",
                    "iretq"
                ),
                scribbler!($writes, "jmp rax"),
            ]
        };
    }
    if kvm().is_in_hardware() { both!("10000") } else { both!("60") }
}

/// In ring 3, and for hours.
fn endless() -> &'static [u8] {
    scribbler!("2000000000", "push 0x1b", "push 0x300000", "push 0x3002", "push 0x23", "push rax", "iretq")
}

fn config(code: &[u8]) -> Config {
    Config {
        kernel: Kernel::Bytes(code.to_vec()),
        flat: Some(Flat::default()),
        memory: MemorySpec::of_size(64 << 20),
        ..Config::default()
    }
}

/// What is in the memory, but for the page with the id that every machine has of its own.
fn fingerprint(machine: &Machine<KvmVm>) -> blake3::Hash {
    const OWN_ID: u64 = 0xdf000;
    let mut hasher = blake3::Hasher::new();
    let each = |offset: u64, pages: &[u8]| {
        for (offset, page) in (offset..).step_by(4096).zip(pages.chunks(4096)) {
            if offset == OWN_ID {
                continue;
            }
            hasher.update(&offset.to_le_bytes()).update(page);
        }
        Ok::<_, Error>(())
    };
    machine.memory().each_run(each).unwrap();
    hasher.finalize()
}

/// Takes a snapshot of a machine that runs, and pauses it; nothing if it has ended by then.
fn take(machine: &Machine<KvmVm>, place: &Path, base: Option<&Path>, live: bool) -> Option<Drafted> {
    let mut capture = machine.begin_snapshot(place, base).expect("a snapshot can be begun");
    if live {
        capture.copy(&mut |_| {}).expect("memory can be copied");
    }
    machine.pause();
    match capture.complete(machine, &kvm()) {
        Err(Error::Save(CannotSave::Ended(_))) => None,
        drafted => Some(drafted.expect("a machine at rest can be saved")),
    }
}

/// Runs a guest to its end, and takes snapshots at random moments: full ones and diffs, while it runs and at rest.
/// After some of them it goes on in a machine that was restored. What it printed, and its status.
fn disturbed(config: Config, seed: u64, tracked: bool) -> (String, u8) {
    within(LIMIT, move || {
        let scratch = Scratch::in_memory();
        let output = Arc::new(Collected::default());
        let mut random = Random::new(seed);
        let mut machine = Machine::new(&kvm(), &config, output.clone()).unwrap();
        let (mut number, mut depth, mut diffs, mut moves) = (0, 0, 0, 0);
        loop {
            machine.resume();
            random.dawdle(6000);
            let is_diff = tracked && (1..12).contains(&depth) && random.below(6) != 0;
            let (last, place) = (scratch.path(number), scratch.path(number + 1));
            let base = is_diff.then_some(last.as_path());
            let Some(drafted) = take(&machine, &place, base, random.below(3) != 0) else { break };
            if !is_diff {
                // Whoever still maps them keeps them.
                (number + 1 - depth.min(number)..=number).for_each(|old| {
                    let _ = fs::remove_dir_all(scratch.path(old));
                });
                depth = 0;
            }
            (number, depth, diffs) = (number + 1, depth + 1, diffs + u32::from(is_diff));
            if random.below(2) == 0 {
                machine.resume();
                drafted.finish().unwrap();
                machine.pause();
                continue;
            }
            drafted.finish().unwrap();
            let restored = restore(&config, &place, &output).unwrap();
            assert_eq!(fingerprint(&restored), fingerprint(&machine), "snapshot {number} of seed {seed}");
            machine = restored;
            moves += 1;
        }
        println!("{number} snapshots, {diffs} of them diffs, {moves} moves");
        (output.text(), machine.wait().status())
    })
}

fn undisturbed(config: &Config) -> (String, u8) {
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&kvm(), config, output.clone()).unwrap();
    let status = machine.run().status();
    (output.text(), status)
}

/// Whether this host tells what guests write.
fn tells() -> bool {
    let machine = Machine::new(&kvm(), &config(endless()), Arc::new(Collected::default())).unwrap();
    machine.memory().written_pages().inspect_err(|reason| println!("only full snapshots: {reason}")).is_ok()
}

#[test]
fn a_guest_that_writes_everywhere_does_not_notice_snapshots() {
    let tracked = tells();
    for (seed, code) in (1..).zip(guests()) {
        let expected = undisturbed(&config(code));
        assert_eq!((expected.0.len(), expected.1), (1000, 7));
        assert!(disturbed(config(code), seed, tracked) == expected, "seed {seed}");
    }
}

#[test]
fn five_diffs_are_as_good_as_a_full_snapshot() {
    if !tells() {
        return;
    }
    let (scratch, output) = (Scratch::in_memory(), Arc::new(Collected::default()));
    let config = config(endless());
    let machine = Machine::new(&kvm(), &config, output.clone()).unwrap();
    machine.resume();
    for number in 0..=5 {
        std::thread::sleep(Duration::from_millis(5));
        let base = scratch.path(number.max(1) - 1);
        let drafted = take(&machine, &scratch.path(number), (number > 0).then_some(&base), true).unwrap();
        drafted.finish().unwrap();
        if number < 5 {
            machine.resume();
        }
    }
    let full = scratch.path(6);
    machine.draft_snapshot(&kvm(), &full).unwrap().finish().unwrap();
    let by_diffs = restore(&config, &scratch.path(5), &output).unwrap();
    let at_once = restore(&config, &full, &output).unwrap();
    assert_eq!(fingerprint(&by_diffs), fingerprint(&at_once));
    assert_eq!(Snapshot::open(&scratch.path(5)).unwrap().layers().unwrap().len(), 6);
    Snapshot::open(&scratch.path(5)).unwrap().check().unwrap();
    by_diffs.resume();
    std::thread::sleep(Duration::from_millis(20));
    by_diffs.pause();
    assert!(by_diffs.outcome().is_none(), "{:?}", by_diffs.outcome());
    assert_ne!(fingerprint(&by_diffs), fingerprint(&at_once));
}

#[test]
fn a_diff_of_a_guest_that_did_little_is_small() {
    if !tells() {
        return;
    }
    let (scratch, output) = (Scratch::in_memory(), Arc::new(Collected::default()));
    let config = Config {
        memory: MemorySpec::of_size(128 << 20),
        cmdline: Some("quiet".to_owned()),
        ..Config::default()
    };
    let machine = Machine::new(&kvm(), &config, output.clone()).unwrap();
    machine.resume();
    assert!(output.wait_for("lodger> ", LIMIT));
    take(&machine, &scratch.path(0), None, true).unwrap().finish().unwrap();
    drop(machine);
    // A machine that was restored has what its snapshot has, but for what it wrote since.
    let output = Arc::new(Collected::default());
    let machine = restore(&config, &scratch.path(0), &output).unwrap();
    machine.resume();
    machine.serial().offer_input(b"help\r");
    assert!(output.wait_for("lodger> ", LIMIT));
    take(&machine, &scratch.path(1), Some(&scratch.path(0)), true).unwrap().finish().unwrap();
    let pages = Snapshot::open(&scratch.path(1)).unwrap().changes().unwrap().unwrap().pages();
    println!("{pages} pages");
    assert!(pages < 200, "{pages} pages");
    let again = restore(&config, &scratch.path(1), &output).unwrap();
    again.resume();
    again.serial().offer_input(b"exit 31\r");
    assert_eq!(again.wait().status(), 31, "{}", output.text());
}
