//! What page tables allow, and page tables that nobody made with care.

use super::super::pages::Access;
use super::*;
use crate::x86::mode::EFER_NXE;

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const CR4_PKE: u64 = 1 << 22;
const CR4_PKS: u64 = 1 << 24;
/// The directory in which a large page takes the place of [`LAST_TABLE`].
const DIRECTORY: u64 = 0x3000;
const POINTERS: u64 = 0x2000;

/// `mov al, [rsi]; hlt`.
const LOAD: [u8; 3] = [0x8a, 0x06, END];
/// `mov [rsi], al; hlt`.
const STORE: [u8; 3] = [0x88, 0x06, END];

fn at_data(code: &[u8]) -> Bench {
    let mut bench = Bench::with(code);
    bench.general.rsi = DATA;
    bench
}

#[test]
fn the_bit_against_execution_is_a_reserved_one_where_it_is_not_enabled() {
    let mut bench = at_data(&LOAD);
    bench.map(DATA, PLAIN | NO_EXECUTE);
    bench.expect_untouched();
    bench.special.efer |= EFER_NXE;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.soft.executed(), 1);
    // Code there is not run.
    bench.general.rip = DATA;
    bench.bytes(DATA, &[0x90, END]);
    bench.expect_untouched();
}

#[test]
fn entries_with_reserved_bits_are_the_hypervisors() {
    let cases = [
        (LAST_TABLE + DATA / PAGE_SIZE * 8, DATA | PLAIN | 1 << 51, "an address beyond the guest's memory"),
        (DIRECTORY, PLAIN | LARGE | 1 << 13, "a large page that is not aligned"),
        (DIRECTORY, PLAIN | LARGE | 1 << 20, "a large page that is not aligned"),
        (POINTERS, PLAIN | LARGE | 1 << 21, "a huge page that is not aligned"),
        (ROOT, PLAIN | LARGE, "a page of 512 GiB"),
    ];
    for (place, entry, what) in cases {
        let mut bench = at_data(&LOAD);
        bench.put(place, entry);
        bench.expect_untouched();
        assert_eq!(bench.get(place), entry, "{what}: nothing is marked");
    }
}

#[test]
fn large_pages_are_walked() {
    for (place, bits) in [(DIRECTORY, LARGE), (DIRECTORY, LARGE | 1 << 12), (POINTERS, LARGE)] {
        let mut bench = at_data(&STORE);
        bench.put(place, PLAIN | bits);
        bench.general.rax = 7;
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!(bench.get(DATA), 7);
        assert_eq!(bench.get(place), PLAIN | bits | ACCESSED | DIRTY);
    }
}

#[test]
fn a_refused_access_marks_nothing() {
    for rights in [ABSENT, READ_ONLY] {
        let mut bench = at_data(&STORE);
        // Code is elsewhere, so that nothing else marks the tables of the data.
        let far = 1 << 40;
        bench.map_at(far, DATA);
        bench.put(0x8_2000, DATA | rights);
        bench.general.rsi = far;
        bench.expect_untouched();
        for entry in [ROOT + 2 * 8, 0x8_0000, 0x8_1000, 0x8_2000] {
            assert_eq!(bench.get(entry) & (ACCESSED | DIRTY), 0, "{entry:#x}");
        }
    }
}

#[test]
fn read_only_pages_are_the_hypervisors_to_write_with_and_without_write_protection() {
    const WRITE_PROTECT: u64 = 1 << 16;
    for protect in [0, WRITE_PROTECT] {
        let mut bench = at_data(&STORE);
        bench.special.cr0 |= protect;
        bench.map(DATA, READ_ONLY);
        bench.expect_untouched();
    }
}

#[test]
fn protection_keys_are_the_hypervisors() {
    let mut bench = at_data(&LOAD);
    bench.special.cr4 |= CR4_PKE;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.soft.executed(), 1, "pages of the supervisor have no such key");
    bench.general.rip = CODE;
    bench.map(DATA, USER_PAGE);
    bench.special.cr3 |= 8; // another address space, so that nothing is remembered
    bench.expect_untouched();
    let mut bench = at_data(&LOAD);
    bench.special.cr4 |= CR4_PKS;
    assert_eq!(bench.run(), Leave::Mode);
}

#[test]
fn no_page_table_leads_out_of_the_guests_memory() {
    let mut seed = 0x5851_f42d_4c95_7f2d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut found, mut executed) = (0, 0);
    for round in 0..150 {
        let mut bench = Bench::with(&[]);
        let (_, host) = bench.memory.host_regions().next().unwrap();
        let all = host as usize..host as usize + (2 << 20);
        for table in (0x1000..0x6000).step_by(PAGE_SIZE as usize) {
            for entry in 0..512 {
                // Mostly somewhere in memory, or behind it, or anything; code stays where it is at first.
                let value = match random() % 8 {
                    0 => random(),
                    1 => ((2 << 20) - PAGE_SIZE + random() % 3 * PAGE_SIZE) | (random() % 256),
                    2 => (0x1000 + random() % 6 * PAGE_SIZE) | 7,
                    3 => continue,
                    _ => (random() % 512 * PAGE_SIZE) | (random() % 256) | 3,
                };
                bench.put(table + entry * 8, value);
            }
        }
        if round % 3 != 0 {
            [
                (ROOT, 0x2000),
                (0x2000, 0x3000),
                (0x3000, LAST_TABLE),
                (LAST_TABLE + CODE / PAGE_SIZE * 8, CODE),
            ]
            .iter()
            .for_each(|(table, next)| bench.put(*table, next | PLAIN));
        }
        bench.special.efer |= if random() % 2 == 0 { EFER_NXE } else { 0 };
        bench.special.cr3 = if random() % 8 == 0 { random() } else { ROOT };
        let state = State::load(&bench.general, &bench.special);
        for _ in 0..2000 {
            let linear = match random() % 4 {
                0 => random() >> (random() % 64),
                1 => 0_u64.wrapping_sub(random() % (4 << 20)),
                _ => random() % (4 << 20),
            };
            let access = [Access::Read, Access::Write, Access::Execute][(random() % 3) as usize];
            let size = [1, 2, 4, 8, 64, 4096][(random() % 6) as usize];
            if let Ok(at) = bench.soft.engine.pages.host(&state, linear, size, access) {
                assert!(all.contains(&(at as usize)) && at as usize + size <= all.end, "{linear:#x}");
                found += 1;
            }
        }
        run_anything(&mut bench, &mut random);
        executed += bench.soft.executed();
    }
    assert!(found > 10_000, "{found}");
    assert!(executed > 1_000, "{executed}");
}

/// Stores, loads, strings and random code with random registers, under whatever page tables there are.
fn run_anything(bench: &mut Bench, random: &mut impl FnMut() -> u64) {
    // mov [rsi], rax; lock xadd [rdi], rbx; rep movsq; push rax; call +0; rep stosb
    let code = [
        &[0x48, 0x89, 0x06, 0xf0, 0x48, 0x0f, 0xc1, 0x1f, 0xf3, 0x48, 0xa5][..],
        &[0x50, 0xe8, 0, 0, 0, 0, 0xf3, 0xaa],
    ]
    .concat();
    for _ in 0..40 {
        bench.bytes(CODE, &code);
        for chunk in 0..16 {
            bench.put(CODE + code.len() as u64 + chunk * 8, random());
        }
        let general = &mut bench.general;
        general.rip = CODE + random() % 19;
        for register in [&mut general.rsi, &mut general.rdi, &mut general.rsp] {
            *register = random() % (4 << 20);
        }
        general.rcx = random() % 10_000;
        if let Leave::Interrupts = bench.run() {
            bench.special.cr3 ^= 8; // forgets everything
        }
    }
}
