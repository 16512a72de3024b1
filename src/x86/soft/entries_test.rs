//! Stores over what may be an entry of a page table that programs use.

use super::*;

/// An entry that programs use, in the middle of a page that may be a table.
const ENTRY: u64 = 0x5000 | USER_PAGE;
const WORD: u64 = DATA + 0x800;
const LAST_WORD: u64 = DATA + PAGE_SIZE - 8;
const MOST: u64 = 1 << 32;
/// What stores write: present and the user's in no part of it.
const VALUE: u64 = 0x5858_5858_5858_5858;
const INVALIDATE: [u8; 3] = [0x0f, 0x01, 0x3f];
const REPEAT: u8 = 0xf3;
const SET_DIRECTION: u8 = 0xfd;

/// An instruction that writes `size` bytes at RDI, or pushes them from there downwards.
#[derive(Debug, Clone)]
struct Form {
    code: Vec<u8>,
    size: u64,
    /// Done in one step, and so only where it is aligned.
    atomic: bool,
    pushes: bool,
}

/// Code for operands of this size: an opcode that has a variant for bytes, which is one less, or has none.
fn sized(size: u64, byte: Option<u8>, opcode: &[u8], behind: &[u8]) -> Option<Vec<u8>> {
    let (last, first) = opcode.split_last()?;
    let prefix: &[u8] = match size {
        2 => &[0x66],
        8 => &[0x48],
        _ => &[],
    };
    let last = if size == 1 { byte? } else { *last };
    Some([prefix, first, &[last], behind].concat())
}

fn stores() -> Vec<Form> {
    let plain: [(Option<u8>, &[u8], &[u8]); 12] = [
        (Some(0x88), &[0x89], &[0x07]),       // mov [rdi], rax
        (Some(0x00), &[0x01], &[0x07]),       // add [rdi], rax
        (Some(0x30), &[0x31], &[0x07]),       // xor [rdi], rax
        (Some(0x80), &[0x83], &[0x0f, 0x18]), // or [rdi], 24
        (Some(0xfe), &[0xff], &[0x07]),       // inc [rdi]
        (Some(0xf6), &[0xf7], &[0x17]),       // not [rdi]
        (Some(0xd0), &[0xd1], &[0x27]),       // shl [rdi], 1
        (None, &[0x0f, 0xba], &[0x2f, 5]),    // bts [rdi], 5
        (None, &[0x0f, 0xba], &[0x37, 2]),    // btr [rdi], 2
        (None, &[0x0f, 0xb3], &[0x0f]),       // btr [rdi], rcx
        (Some(0xaa), &[0xab], &[]),           // stos
        (Some(0xa4), &[0xa5], &[]),           // movs
    ];
    let locked: [(Option<u8>, &[u8], &[u8]); 8] = [
        (Some(0x00), &[0x01], &[0x07]),       // lock add [rdi], rax
        (Some(0x80), &[0x83], &[0x0f, 0x18]), // lock or [rdi], 24
        (Some(0xfe), &[0xff], &[0x0f]),       // lock dec [rdi]
        (None, &[0x0f, 0xba], &[0x2f, 5]),    // lock bts [rdi], 5
        (None, &[0x0f, 0xba], &[0x37, 2]),    // lock btr [rdi], 2
        (None, &[0x0f, 0xbb], &[0x0f]),       // lock btc [rdi], rcx
        (Some(0xc0), &[0x0f, 0xc1], &[0x07]), // lock xadd [rdi], rax
        (Some(0xb0), &[0x0f, 0xb1], &[0x0f]), // lock cmpxchg [rdi], rcx
    ];
    let unlocked_but_atomic: [(Option<u8>, &[u8], &[u8]); 3] = [
        (Some(0x86), &[0x87], &[0x07]),       // xchg [rdi], rax
        (Some(0xc0), &[0x0f, 0xc1], &[0x07]), // xadd [rdi], rax
        (Some(0xb0), &[0x0f, 0xb1], &[0x0f]), // cmpxchg [rdi], rcx
    ];
    let pushes: [&[u8]; 6] = [
        &[0x50],             // push rax
        &[0x6a, 0x18],       // push 24
        &[0xff, 0x36],       // push [rsi]
        &[0x9c],             // pushf
        &[0xe8, 0, 0, 0, 0], // call to the next instruction
        &[0xff, 0xd3],       // call rbx, which leads there, too
    ];
    let mut forms = vec![Form { code: vec![0x0f, 0x94, 0x07], size: 1, atomic: false, pushes: false }]; // sete
    for size in [1, 2, 4, 8] {
        let mut add = |prefix: &[u8], atomic: bool, what: &(Option<u8>, &[u8], &[u8])| {
            if let Some(code) = sized(size, what.0, what.1, what.2) {
                forms.push(Form { code: [prefix, &code].concat(), size, atomic, pushes: false });
            }
        };
        plain.iter().for_each(|what| add(&[], false, what));
        locked.iter().for_each(|what| add(&[0xf0], true, what));
        unlocked_but_atomic.iter().for_each(|what| add(&[], true, what));
    }
    let pushes = pushes.map(|code| Form { code: code.to_vec(), size: 8, atomic: false, pushes: true });
    forms.extend(pushes);
    forms
}

fn bench(spare: bool) -> Bench {
    let mut bench = Bench::with(&[]);
    bench.soft.spare_entries(spare);
    bench
}

/// Has `form` write at `target` from the next run on.
fn prepare(bench: &mut Bench, form: &Form, target: u64) {
    bench.bytes(CODE, &[&form.code[..], &[END]].concat());
    let length = form.code.len() as u64;
    bench.put(CODE + 0x100, VALUE);
    let rsp = if form.pushes { target + 8 } else { STACK };
    bench.general = Registers {
        rip: CODE,
        rflags: 2,
        rax: VALUE,
        rbx: CODE + length,
        rcx: 4,
        rsi: CODE + 0x100,
        rdi: target,
        rsp,
        ..Registers::default()
    };
}

/// The page of data.
fn page(bench: &Bench) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE as usize];
    bench.memory.mapped().read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    bytes
}

/// Runs what was prepared and expects that it is the hypervisor's, with nothing changed.
fn expect_left(bench: &mut Bench, what: &str) {
    let (memory, registers, executed) = (page(bench), bench.general, bench.soft.executed());
    assert_eq!(bench.run(), Leave::Step, "{what}");
    assert_eq!(bench.general, registers, "{what}");
    assert_eq!(bench.soft.executed(), executed, "{what}");
    assert!(page(bench) == memory, "memory has changed: {what}");
}

/// The same, and that it is done here, as where nothing is spared.
fn expect_done(bench: &mut Bench, other: &mut Bench, what: &str) {
    let executed = bench.soft.executed();
    assert_eq!(bench.run(), Leave::Step, "{what}");
    assert_eq!(bench.soft.executed(), executed + 1, "{what}");
    assert_eq!(other.run(), Leave::Step, "{what}");
    assert_eq!(bench.general, other.general, "{what}");
    assert!(page(bench) == page(other), "memory is not what it should be: {what}");
}

/// All places where a form's operand has a byte in common with the word at `WORD`.
fn targets_on_word(form: &Form) -> impl Iterator<Item = u64> + use<> {
    let (size, atomic) = (form.size, form.atomic);
    (WORD + 1 - size..WORD + 8).filter(move |target| !atomic || target.is_multiple_of(size))
}

/// Expects of each form, everywhere on a word with this value in a page prepared so, that it is done here.
fn expect_all_done(spare: bool, word: u64, prepare_page: impl Fn(&Bench)) {
    let mut benches = [bench(spare), bench(false)];
    for form in stores() {
        for target in targets_on_word(&form) {
            for bench in &mut benches {
                bench.bytes(DATA, &[0; PAGE_SIZE as usize]);
                bench.put(WORD, word);
                prepare_page(bench);
                prepare(bench, &form, target);
            }
            let [bench, other] = &mut benches;
            expect_done(bench, other, &format!("{form:x?} at {target:#x} over {word:#x}"));
        }
    }
}

#[test]
fn no_byte_of_an_entry_that_programs_use_is_written_here() {
    let mut bench = bench(true);
    for entry in [ENTRY, 5, PAGE_SIZE | 5, (MOST - PAGE_SIZE) | 0xfff, ENTRY | 0xfff << 52, 0x20_0000 | 0xe7]
    {
        bench.put(WORD, entry);
        for form in stores() {
            for target in targets_on_word(&form) {
                prepare(&mut bench, &form, target);
                expect_left(&mut bench, &format!("{form:x?} at {target:#x} over {entry:#x}"));
            }
        }
    }
}

#[test]
fn words_that_are_no_entries_of_programs_are_written_here() {
    // Absent; the supervisor's; leading nowhere, so that the page is no table either.
    for word in [0, ENTRY & !1, 0x5000 | PLAIN, MOST | USER_PAGE, u64::MAX] {
        expect_all_done(true, word, |_| {});
    }
}

#[test]
fn words_beside_an_entry_are_written_here() {
    let mut benches = [bench(true), bench(false)];
    for form in stores() {
        for target in [WORD - form.size, WORD + 8] {
            for bench in &mut benches {
                bench.put(WORD - 8, 0);
                bench.put(WORD, ENTRY);
                bench.put(WORD + 8, 0);
                prepare(bench, &form, target);
            }
            let [bench, other] = &mut benches;
            expect_done(bench, other, &format!("{form:x?} at {target:#x}"));
        }
    }
}

#[test]
fn a_page_with_a_present_word_that_leads_nowhere_is_no_table() {
    for (place, nowhere) in
        [(DATA, MOST | 1), (LAST_WORD, MOST | 0xfff), (LAST_WORD, 1 << 51 | 1), (WORD + 16, u64::MAX)]
    {
        expect_all_done(true, ENTRY, |bench| bench.put(place, nowhere));
    }
    // One that is absent does not tell, nor does one in the next page.
    let mut bench = bench(true);
    bench.put(WORD, ENTRY);
    bench.put(DATA, u64::MAX - 1);
    bench.put(DATA + PAGE_SIZE, 1);
    bench.put(DATA - 8, 1);
    for form in stores() {
        prepare(&mut bench, &form, WORD);
        expect_left(&mut bench, &format!("{form:x?}"));
    }
}

#[test]
fn all_is_written_here_before_there_are_programs() {
    expect_all_done(false, ENTRY, |_| {});
}

#[test]
fn bit_numbers_beyond_the_operand_lead_to_entries_too() {
    // bts and lock btr with the bit number in RCX
    for code in [&[0x48, 0x0f, 0xab, 0x0f][..], &[0xf0, 0x48, 0x0f, 0xb3, 0x0f]] {
        let mut bench = bench(true);
        bench.put(WORD, ENTRY);
        let form = Form { code: code.to_vec(), size: 8, atomic: false, pushes: false };
        for (base, bit) in [(DATA, 0x800 * 8), (DATA, 0x800 * 8 + 63), (LAST_WORD, (0x7f8_i64 * -8) as u64)] {
            prepare(&mut bench, &form, base);
            bench.general.rcx = bit;
            expect_left(&mut bench, &format!("{code:x?} {bit}"));
        }
        // The word at RDI itself is not touched.
        prepare(&mut bench, &form, WORD);
        bench.general.rcx = 64;
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!(bench.general.rip, CODE + code.len() as u64);
    }
}

#[test]
fn stores_across_pages_are_the_hypervisors_once_there_are_programs() {
    for form in stores().iter().filter(|form| form.size > 1 && !form.atomic) {
        for target in DATA + PAGE_SIZE + 1 - form.size..DATA + PAGE_SIZE {
            let [mut bench, mut other] = [bench(true), bench(false)];
            prepare(&mut bench, form, target);
            expect_left(&mut bench, &format!("{form:x?} at {target:#x}"));
            assert_eq!(bench.get(DATA + PAGE_SIZE), 0);
            prepare(&mut other, form, target);
            other.run();
            assert_eq!(other.soft.executed(), 1);
        }
    }
}

/// A repeated string instruction for elements of this size: upwards, or downwards behind `std`.
fn string(moves: bool, size: u64, upwards: bool) -> Vec<u8> {
    let opcode = if moves { [0xa4, 0xa5] } else { [0xaa, 0xab] };
    let element = sized(size, Some(opcode[0]), &opcode[1..], &[]).unwrap();
    let direction: &[u8] = if upwards { &[] } else { &[SET_DIRECTION] };
    // Prefixes of size come behind that of repetition, where the last one has to be REX.
    [direction, &[REPEAT], &element, &[END]].concat()
}

fn all_strings() -> impl Iterator<Item = (bool, u64, bool)> {
    let sizes = [1, 2, 4, 8];
    let kinds = [(false, true), (false, false), (true, true), (true, false)];
    sizes.into_iter().flat_map(move |size| kinds.map(|(moves, upwards)| (moves, size, upwards)))
}

#[test]
fn a_repeated_string_goes_as_far_as_the_first_entry() {
    const COUNT: u64 = 48;
    for (moves, size, upwards) in all_strings() {
        for shift in 0..size {
            let what = format!("moves {moves}, {size} bytes, upwards {upwards}, shifted by {shift}");
            let mut bench = bench(true);
            bench.bytes(CODE, &string(moves, size, upwards));
            let source = CODE + 0x200;
            (0..100).for_each(|word| bench.put(source + word * 8, VALUE));
            bench.put(WORD, ENTRY);
            // Elements before the word, none of which touches it.
            let before = 20;
            let step = if upwards { size } else { size.wrapping_neg() };
            let start =
                if upwards { WORD - before * size - shift } else { WORD + 8 + shift + (before - 1) * size };
            bench.general.rdi = start;
            bench.general.rsi = if upwards { source } else { source + (COUNT - 1) * size };
            let rsi = bench.general.rsi;
            (bench.general.rax, bench.general.rcx) = (VALUE, COUNT);
            assert_eq!(bench.run(), Leave::Step, "{what}");
            let moved =
                |from: u64, count| if moves { from.wrapping_add(step.wrapping_mul(count)) } else { from };
            assert_eq!(bench.general.rcx, COUNT - before, "{what}");
            assert_eq!(bench.general.rdi, start.wrapping_add(step.wrapping_mul(before)), "{what}");
            assert_eq!(bench.general.rsi, moved(rsi, before), "{what}");
            assert_eq!(bench.general.rip, CODE + u64::from(!upwards), "{what}");
            let written = if upwards { start..start + before * size } else { WORD + 8 + shift..start + size };
            for (address, byte) in (DATA..).zip(page(&bench)) {
                let entry = (WORD..WORD + 8).contains(&address);
                let old = if entry { ENTRY.to_le_bytes()[(address - WORD) as usize] } else { 0 };
                let expected = if written.contains(&address) { 0x58 } else { old };
                assert_eq!(byte, expected, "{address:#x}: {what}");
            }
            expect_left(&mut bench, &what);
            // The hypervisor takes the entry away, and the rest is done here.
            bench.put(WORD, 0);
            assert_eq!(bench.run(), Leave::Step, "{what}");
            assert_eq!(bench.general.rcx, 0, "{what}");
            assert_eq!(bench.general.rsi, moved(rsi, COUNT), "{what}");
        }
    }
}

#[test]
fn a_repeated_string_goes_through_pages_to_the_first_entry() {
    for moves in [false, true] {
        let mut bench = bench(true);
        bench.bytes(CODE, &string(moves, 8, true));
        // In the third page.
        let entry = DATA + 2 * PAGE_SIZE + 0x10;
        bench.put(entry, ENTRY);
        // The first page has one, too, but is no table.
        bench.put(DATA + 8, ENTRY);
        bench.put(DATA + 16, MOST | 1);
        (bench.general.rdi, bench.general.rsi) = (DATA, 0x4_0000);
        (bench.general.rcx, bench.general.rax) = (2048, VALUE);
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!((bench.general.rdi, bench.general.rcx), (entry, 2048 - (entry - DATA) / 8));
        assert_eq!(bench.get(entry), ENTRY);
        assert_eq!(bench.get(DATA + 8), if moves { 0 } else { VALUE });
        assert_eq!(bench.get(entry - 8), if moves { 0 } else { VALUE });
    }
}

#[test]
fn what_only_reads_entries_is_done_here() {
    let reads: [&[u8]; 8] = [
        &[0x48, 0x8b, 0x07, END],       // mov rax, [rdi]
        &[0x48, 0x85, 0x07, END],       // test [rdi], rax
        &[0x48, 0x39, 0x07, END],       // cmp [rdi], rax
        &[0x48, 0x0f, 0xa3, 0x0f, END], // bt [rdi], rcx
        &[0x48, 0xaf, END],             // scasq
        &[0x48, 0xad, END],             // lodsq
        &[0xff, 0x37, END],             // push [rdi]
        &[0x48, 0x0f, 0x44, 0x07, END], // cmove rax, [rdi]
    ];
    for code in reads {
        let mut bench = bench(true);
        bench.bytes(CODE, code);
        bench.put(WORD, ENTRY);
        (bench.general.rdi, bench.general.rsi) = (WORD, WORD);
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!(bench.soft.executed(), 1, "{code:x?}");
        assert_eq!(bench.get(WORD), ENTRY);
    }
}

#[test]
fn an_invalidation_is_the_hypervisors_once_there_are_programs_and_forgets_in_any_case() {
    const OTHER: u64 = DATA + PAGE_SIZE;
    // mov rax, [rdi]; invlpg [rdi]; mov rax, [rdi]; hlt
    let code = [&[0x48, 0x8b, 0x07][..], &INVALIDATE, &[0x48, 0x8b, 0x07, END]].concat();
    for spare in [false, true] {
        let mut bench = bench(spare);
        bench.bytes(CODE, &code);
        bench.put(DATA, 1);
        bench.put(OTHER, 2);
        bench.general.rdi = DATA;
        if spare {
            assert_eq!(bench.run(), Leave::Step);
            assert_eq!((bench.general.rip, bench.general.rax), (CODE + 3, 1));
            bench.put(LAST_TABLE + DATA / PAGE_SIZE * 8, OTHER | PLAIN);
            expect_left(&mut bench, "invlpg");
            bench.general.rip = CODE + 6;
        } else {
            bench.put(CODE + 3, 0xf4); // `hlt` for now
            assert_eq!(bench.run(), Leave::Step);
            assert_eq!((bench.general.rip, bench.general.rax), (CODE + 3, 1));
            bench.put(LAST_TABLE + DATA / PAGE_SIZE * 8, OTHER | PLAIN);
            bench.bytes(CODE, &code);
        }
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!((bench.general.rip, bench.general.rax), (CODE + code.len() as u64 - 1, 2));
    }
}

/// A word as it may be in a page table, or elsewhere. If it is present it leads somewhere.
fn any_word(random: &mut impl FnMut() -> u64) -> u64 {
    let address = match random() % 4 {
        0 => PAGE_SIZE,
        1 => MOST - PAGE_SIZE,
        _ => (1 + random() % 0xf_ffff) * PAGE_SIZE,
    };
    match random() % 8 {
        0..3 => 0,
        3 => random() & !1,
        4 => address | PLAIN | random() & !(USER_PAGE | ((1 << 52) - PAGE_SIZE)),
        _ => address | 5 | random() & !((1 << 52) - PAGE_SIZE),
    }
}

/// Whether this is an entry that programs may use, as the architecture has it.
fn is_used_by_programs(word: u64) -> bool {
    let address = word & 0xf_ffff_ffff_f000;
    word & 1 != 0 && word & 4 != 0 && address < MOST
}

#[test]
fn random_stores_in_random_pages_are_done_here_unless_they_touch_an_entry_of_a_table() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let forms = stores();
    let mut benches = [bench(true), bench(false)];
    let (mut left, mut done, mut partly) = (0, 0, 0);
    for _ in 0..200 {
        let mut words: Vec<_> = (0..PAGE_SIZE / 8).map(|_| any_word(&mut random)).collect();
        // At either end, where no store comes.
        let is_table = random() % 3 != 0;
        if !is_table {
            let nowhere = [u64::MAX, MOST | 7, random() | 1 << 51 | 1, MOST | 1][(random() % 4) as usize];
            words[if random() % 2 == 0 { 0 } else { 511 }] = nowhere;
        }
        for _ in 0..60 {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            benches.iter().for_each(|bench| bench.bytes(DATA, &bytes));
            let touches = |from: u64, to: u64| {
                let mut touched = from / 8..=(to - 1) / 8;
                is_table && touched.any(|word| is_used_by_programs(words[(word - DATA / 8) as usize]))
            };
            let [bench, other] = &mut benches;
            if random() % 4 != 0 {
                let form = &forms[(random() % forms.len() as u64) as usize];
                let align = if form.atomic { form.size } else { 1 };
                let target = DATA + (8 + random() % (PAGE_SIZE - 24)) / align * align;
                let what = format!("{form:x?} at {target:#x}");
                prepare(bench, form, target);
                prepare(other, form, target);
                if touches(target, target + form.size) {
                    expect_left(bench, &what);
                    left += 1;
                } else {
                    expect_done(bench, other, &what);
                    done += 1;
                }
                continue;
            }
            // A repetition. Where it begins with a word, none becomes an entry while it is being written.
            let (moves, size) = (random() % 2 == 0, 1 << (random() % 4));
            let upwards = random() % 2 == 0;
            let bytes = 8 * (1 + random() % 24);
            let first = DATA + 8 + random() % (PAGE_SIZE / 8 - 2 - bytes / 8) * 8;
            let count = bytes / size;
            for bench in [&mut *bench, &mut *other] {
                bench.bytes(CODE, &string(moves, size, upwards));
                (0..32).for_each(|word| bench.put(CODE + 0x200 + word * 8, VALUE));
                let last = if upwards { 0 } else { bytes - size };
                bench.general = Registers {
                    rip: CODE,
                    rflags: 2,
                    rax: VALUE,
                    rcx: count,
                    rsi: CODE + 0x200 + last,
                    rdi: first + last,
                    rsp: STACK,
                    ..Registers::default()
                };
            }
            let element = |index| {
                let at = first + if upwards { index } else { count - 1 - index } * size;
                touches(at, at + size)
            };
            let here = (0..count).position(element).map_or(count, |index| index as u64);
            assert_eq!(bench.run(), Leave::Step);
            assert_eq!(bench.general.rcx, count - here, "{size} bytes, upwards {upwards}, at {first:#x}");
            other.general.rcx = here;
            assert_eq!(other.run(), Leave::Step);
            assert_eq!((bench.general.rdi, bench.general.rsi), (other.general.rdi, other.general.rsi));
            assert!(page(bench) == page(other), "{size} bytes, upwards {upwards}, at {first:#x}");
            assert_eq!(bench.general.rip == other.general.rip, here == count);
            partly += u32::from(here > 0 && here < count);
        }
    }
    assert!(left > 1000 && done > 1000 && partly > 250, "{left} {done} {partly}");
}
