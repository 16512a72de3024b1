use std::fs::File;

use super::*;
use crate::boot::testing::{bytes, code, elf};

const TEXT: u64 = 0xffff_ffff_8100_0000;
const PHYSICAL: u64 = 0x100_0000;
const CODE: u16 = 1;
const DATA: u16 = 2;
const ABSOLUTE: u16 = 0xfff1;

const LOCAL_LABEL: u8 = 0x00;
const LOCAL_FUNCTION: u8 = 0x02;
const GLOBAL_OBJECT: u8 = 0x11;
const GLOBAL_FUNCTION: u8 = 0x12;
const WEAK_FUNCTION: u8 = 0x22;

/// Name, type and binding, section, address, size.
type Symbol<'a> = (&'a str, u8, u16, u64, u64);

fn section(name: u32, kind: u32, flags: u64, address: u64, place: (usize, usize), link: u32) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend(name.to_le_bytes());
    record.extend(kind.to_le_bytes());
    for field in [flags, address, place.0 as u64, place.1 as u64] {
        record.extend(field.to_le_bytes());
    }
    record.extend(link.to_le_bytes());
    record.resize(64, 0);
    record
}

/// An ELF file with 0x1000 bytes of code at [`TEXT`], data behind it, nameless code behind that, and `symbols`.
fn with_symbols(symbols: &[Symbol<'_>]) -> Vec<u8> {
    const SECTION_NAMES: &[u8] = b"\0.text\0.aux\0";
    let mut file = elf(TEXT, &[code(PHYSICAL, &[0x90; 16])]);
    // The program header's linked address and size.
    file[64 + 16..64 + 24].copy_from_slice(&TEXT.to_le_bytes());
    file[64 + 40..64 + 48].copy_from_slice(&0x3000_u64.to_le_bytes());
    let (mut names, mut table) = (vec![0], vec![0; 24]);
    for &(name, info, section, address, size) in symbols {
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([info, 0]);
        table.extend(section.to_le_bytes());
        table.extend(address.to_le_bytes());
        table.extend(size.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let mut add = |bytes: &[u8]| {
        file.extend(bytes);
        (file.len() - bytes.len(), bytes.len())
    };
    let (table, names, section_names) = (add(&table), add(&names), add(SECTION_NAMES));
    let sections = [
        vec![0; 64],
        section(1, 1, 6, TEXT, (0, 0x1000), 0),
        section(0, 1, 3, TEXT + 0x1000, (0, 0x1000), 0),
        section(7, 1, 6, TEXT + 0x2000, (0, 0x1000), 0),
        section(0, 2, 0, 0, table, 5),
        section(0, 3, 0, 0, names, 0),
        section(0, 3, 0, 0, section_names, 0),
    ];
    let at = add(&sections.concat()).0 as u64;
    file[40..48].copy_from_slice(&at.to_le_bytes());
    for (field, value) in [(58, 64_u16), (60, sections.len() as u16), (62, 6)] {
        file[field..field + 2].copy_from_slice(&value.to_le_bytes());
    }
    file
}

fn sample() -> Vec<u8> {
    with_symbols(&[
        ("start", GLOBAL_FUNCTION, CODE, TEXT, 0x100),
        ("table", GLOBAL_OBJECT, DATA, TEXT + 0x1000, 0x10),
        ("__delay", LOCAL_FUNCTION, CODE, TEXT + 0x200, 0x80),
        ("__alias", GLOBAL_FUNCTION, CODE, TEXT + 0x300, 0x40),
        ("alias", GLOBAL_FUNCTION, CODE, TEXT + 0x300, 0x40),
        ("weak", WEAK_FUNCTION, CODE, TEXT + 0x300, 0x40),
        ("outer", GLOBAL_FUNCTION, CODE, TEXT + 0x400, 0x100),
        ("inner", GLOBAL_FUNCTION, CODE, TEXT + 0x420, 0x10),
        ("label", LOCAL_LABEL, CODE, TEXT + 0x600, 0),
        (".L1", LOCAL_LABEL, CODE, TEXT + 0x610, 0),
        ("", LOCAL_LABEL, CODE, TEXT + 0x620, 0),
        ("constant", LOCAL_LABEL, ABSOLUTE, TEXT + 0x630, 0),
        ("last", LOCAL_LABEL, CODE, TEXT + 0x700, 0),
        ("end_of_text", LOCAL_LABEL, CODE, TEXT + 0x1000, 0),
        ("astray", GLOBAL_FUNCTION, CODE, TEXT + 0x2000, 0x100),
    ])
}

fn read(file: &[u8]) -> Result<Symbols, SymbolsError> {
    Symbols::read(bytes(file))
}

fn refusal(file: &[u8]) -> String {
    read(file).unwrap_err().to_string()
}

#[test]
fn addresses_are_found_in_the_function_that_they_lie_in() {
    let symbols = read(&sample()).unwrap();
    for (offset, expected) in [
        (0, Some(("start", 0))),
        (0xff, Some(("start", 0xff))),
        (0x100, None),
        (0x23f, Some(("__delay", 0x3f))),
        (0x300, Some(("alias", 0))),
        (0x3ff, None),
        (0x41f, Some(("outer", 0x1f))),
        (0x420, Some(("inner", 0))),
        (0x430, Some(("outer", 0x30))),
        (0x6ff, Some(("label", 0xff))),
        (0xfff, Some(("last", 0x8ff))),
        (0x1004, None),
        (0x2004, Some((".aux", 4))),
        (0x3000, None),
    ] {
        assert_eq!(symbols.find(TEXT + offset), expected, "{offset:#x}");
    }
    assert_eq!(symbols.find(TEXT - 1), None);
    assert_eq!((symbols.count(), symbols.source()), (8, "test"));
}

#[test]
fn a_kernel_that_runs_before_it_has_paging_is_found_by_physical_addresses() {
    let symbols = read(&sample()).unwrap();
    assert_eq!(symbols.find(PHYSICAL + 0x210), Some(("__delay", 0x10)));
    assert_eq!(symbols.find_linked(PHYSICAL + 0x210), None);
    assert_eq!(symbols.describe(0, PHYSICAL + 0x210).as_deref(), Some("__delay+0x10"));
    assert_eq!(symbols.describe(3, PHYSICAL + 0x210), None);
    assert_eq!(symbols.find(PHYSICAL - 1), None);
}

#[test]
fn a_list_is_read_like_a_symbol_table() {
    let text = "ffffffff81000000 T _stext\nffffffff81000000 T startup_64\nffffffff81000100 t helper\n\
                ffffffff81000180 D data\nffffffff81000200 W weak [module]\r\n0000000000000000 A zero\n\n";
    let symbols = read(text.as_bytes()).unwrap();
    assert_eq!(symbols.find(TEXT + 0x10), Some(("startup_64", 0x10)));
    assert_eq!(symbols.find(TEXT + 0x17f), Some(("helper", 0x7f)));
    assert_eq!(symbols.find(TEXT + 0x180), None);
    assert_eq!(symbols.find(TEXT + 0x201), Some(("weak", 1)));
    let far = read(b"1000 T far\n200000 D data\n300000 T last\n").unwrap();
    assert_eq!(far.find(0x1f_ffff), Some(("far", 0x1f_efff)));
    assert_eq!((far.find(0x30_0fff), far.find(0x30_1000)), (Some(("last", 0xfff)), None));
    assert_eq!(symbols.find(TEXT + 0x10000), None);
    assert_eq!(symbols.count(), 3);
}

#[test]
fn what_is_neither_is_refused_with_the_line() {
    assert!(refusal(b"hello world\n").contains("line 1 does not read \"address type name\""));
    assert!(refusal(b"ffffffff81000000 T a\n\nffffffff81000000 T\n").contains("line 3"));
    assert!(refusal(b"+fffffff81000000 T a\n").contains("line 1"));
    assert!(refusal(b"11112222333344445 T a\n").contains("line 1"));
    assert!(refusal(b"0 \xff a\n").contains("line 1"));
    assert!(refusal(b"0 A zero\n").contains("names no functions"));
    assert!(refusal(b"").contains("symbol file test: it is empty"));
    let error = Symbols::read(Source::File("/nowhere/at/all".as_ref())).unwrap_err().to_string();
    assert!(error.contains("cannot open symbol file /nowhere/at/all"), "{error}");
    // Endless, if anybody tried.
    assert!(Symbols::read(Source::File("/dev/zero".as_ref())).is_err());
}

#[test]
fn a_file_without_symbols_says_so() {
    assert!(refusal(&elf(TEXT, &[code(PHYSICAL, &[0x90])])).contains("no symbol table"));
    assert!(refusal(b"\x7fELF").contains("header reaches beyond the end"));
    let mut other = sample();
    other[4] = 1;
    assert!(refusal(&other).contains("64-bit little-endian"));
    assert!(Symbols::of_kernel(bytes(&sample())).is_some());
    assert!(Symbols::of_kernel(bytes(b"ffffffff81000000 T a\n")).is_none(), "a flat image is no list");
    assert!(Symbols::of_kernel(bytes(&other)).is_none());
}

#[test]
fn names_can_do_no_harm_on_a_terminal() {
    let long = "x".repeat(5000);
    let file = with_symbols(&[
        ("clear\x1b[2J\nscreen", GLOBAL_FUNCTION, CODE, TEXT, 0x10),
        ("größe", GLOBAL_FUNCTION, CODE, TEXT + 0x10, 0x10),
        (&long, GLOBAL_FUNCTION, CODE, TEXT + 0x20, 0x10),
    ]);
    let symbols = read(&file).unwrap();
    assert_eq!(symbols.find(TEXT), Some(("clear?[2J?screen", 0)));
    assert_eq!(symbols.find(TEXT + 0x10), Some(("gr????e", 0)));
    assert_eq!(symbols.find(TEXT + 0x20).unwrap().0.len(), LONGEST_NAME);
}

#[test]
fn sizes_that_no_kernel_has_are_refused_before_anything_is_allocated() {
    let sections = |file: &[u8]| u64::from_le_bytes(file[40..48].try_into().unwrap()) as usize;
    let path = std::env::temp_dir().join(format!("symbols-test-{}", std::process::id()));
    for (section, words) in [(4, "symbol table has"), (5, "table of names has"), (6, "section names has")] {
        let mut file = sample();
        let size_at = sections(&file) + section * 64 + 32;
        file[size_at..size_at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        assert!(refusal(&file).contains("reaches beyond the end"));
        // A file may well be that large, with nothing in it.
        std::fs::write(&path, &file).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
        let error = Symbols::read(Source::File(&path)).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("at most"), "{error}");
    }
    File::create(&path).unwrap().set_len(1 << 42).unwrap();
    let error = Symbols::read(Source::File(&path)).unwrap_err().to_string();
    assert!(error.contains("list has 4398046511104 bytes"), "{error}");
    std::fs::remove_file(&path).unwrap();
}

/// xorshift64
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let list = b"ffffffff81000000 T start\nffffffff81000100 t helper\nffffffff81000180 D data\n".to_vec();
    let originals = [sample(), list];
    let mut state = 0x1234_5678_9abc_def1;
    let (mut understood, mut refused) = (0, 0);
    for round in 0..40_000 {
        let mut file = originals[round % 2].clone();
        for _ in 0..=random(&mut state) % 4 {
            let at = random(&mut state) as usize % file.len();
            match random(&mut state) % 5 {
                0 => file[at] ^= 1 << (random(&mut state) % 8),
                1 => file[at] = random(&mut state) as u8,
                2 | 3 => {
                    let values = [0, 1, 0xff, 1 << 32, 1 << 63, u64::MAX, TEXT, random(&mut state)];
                    let value = values[random(&mut state) as usize % values.len()].to_le_bytes();
                    let at = at / 8 * 8;
                    let length = 8.min(file.len() - at);
                    file[at..at + length].copy_from_slice(&value[..length]);
                }
                _ => file.truncate(at.max(8)),
            }
        }
        match read(&file) {
            Ok(symbols) => {
                understood += 1;
                for address in [0, TEXT, TEXT + 0x421, PHYSICAL, u64::MAX, random(&mut state)] {
                    let printable = |(name, _): (&str, u64)| name.bytes().all(|byte| byte.is_ascii_graphic());
                    assert!(symbols.find(address).is_none_or(printable), "round {round}");
                }
            }
            Err(SymbolsError::Contents { .. }) => refused += 1,
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(understood > 5_000 && refused > 5_000, "{understood} understood, {refused} refused");
}
