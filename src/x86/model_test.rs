use super::*;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index, index_significant: matches!(function, 7 | 0xd), eax, ebx, ecx, edx }
}

/// A processor with every flag in the leaves that it has, and state for AVX-512 and protection keys.
fn host() -> Vec<CpuidEntry> {
    let [k, v, m] = [b"KVMK", b"VMKV", b"M\0\0\0"].map(|text| u32::from_le_bytes(*text));
    vec![
        leaf(1, 0, [0x00b0_0f21, 0x0002_0800, !(1 << 31), u32::MAX]),
        leaf(6, 0, [4, 0, 0, 0]),
        leaf(7, 0, [1, u32::MAX, u32::MAX, u32::MAX]),
        leaf(0xa, 0, [0x0730_0402, 0, 0, 0]),
        leaf(0xd, 0, [0x2e7, 0x240, 0xa88, 0]),
        leaf(0xd, 1, [0xf, 0x240, 0, 0]),
        leaf(0xd, 2, [0x100, 0x240, 0, 0]),
        leaf(0xd, 5, [0x40, 0x440, 0, 0]),
        leaf(0xd, 9, [8, 0xa80, 0, 0]),
        leaf(0x14, 0, [1, 0, 0, 0]),
        leaf(0x4000_0000, 0, [0x4000_0001, k, v, m]),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
    ]
}

/// The same with nothing that came after about 2009.
fn old_host() -> Vec<CpuidEntry> {
    "baseline".parse::<CpuModel>().unwrap().choose(&host(), &[], Quirks::default()).unwrap()
}

fn choose(text: &str, offered: &[CpuidEntry]) -> Result<Vec<CpuidEntry>, NotOffered> {
    text.parse::<CpuModel>().unwrap().choose(offered, &[], Quirks::default())
}

fn flags(text: &str) -> Vec<&'static str> {
    flags_of(&choose(text, &host()).unwrap())
}

fn difference<'a>(from: &[&'a str], without: &[&str]) -> Vec<&'a str> {
    from.iter().filter(|name| !without.contains(name)).copied().collect()
}

fn at(entries: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
    *entries.iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
}

#[test]
fn host_is_what_kvm_offers_under_a_hypervisor() {
    let mut expected = host();
    expected[0].ecx |= 1 << 31;
    assert_eq!(choose("host", &host()), Ok(expected));
}

#[test]
fn a_hidden_flag_takes_along_what_builds_on_it() {
    let all = flags("host");
    assert_eq!(difference(&all, &flags("host,-pcid")), ["pcid"]);
    assert_eq!(difference(&all, &flags("host,-fma,-aes")), ["fma", "aes", "vaes"]);
    let without_avx = difference(&all, &flags("host,-avx"));
    for name in ["avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "vaes", "xop"] {
        assert!(without_avx.contains(&name), "{name} in {without_avx:?}");
    }
    assert!(!without_avx.contains(&"xsave") && !without_avx.contains(&"sse4_2"));
    let without_sse2 = difference(&all, &flags("host,-sse2"));
    assert!(without_sse2.contains(&"avx512bw"), "{without_sse2:?}");
}

#[test]
fn a_shown_flag_brings_what_it_builds_on() {
    let base = flags("baseline");
    let brought = |text: &str| difference(&flags(text), &base);
    assert_eq!(brought("baseline,+aes"), ["aes"]);
    assert_eq!(brought("baseline,+avx2"), ["xsave", "avx", "avx2"]);
    assert_eq!(brought("baseline,+ibpb"), ["ibrs", "ibpb"]);
}

#[test]
fn the_last_word_on_a_flag_counts() {
    let all = flags("host");
    assert_eq!(difference(&all, &flags("host,+pcid,-pcid")), ["pcid"]);
    assert_eq!(flags("host,-pcid,+pcid"), all);
}

#[test]
fn baseline_is_the_same_on_every_host_that_has_it() {
    let names = flags("baseline");
    assert_eq!(names, flags_of(&old_host()));
    for name in BASELINE.split_ascii_whitespace() {
        assert!(names.contains(&name), "{name}");
    }
    for name in ["avx", "xsave", "aes", "smep", "fsgsbase", "pdpe1gb", "nonstop_tsc", "svm", "vmx"] {
        assert!(!names.contains(&name), "{name}");
    }
    assert_eq!(choose("baseline", &host()), choose("baseline", &choose("host,-avx", &host()).unwrap()));
    assert_eq!(choose("baseline", &old_host()).unwrap(), old_host());
}

#[test]
fn baseline_has_no_leaf_that_differs_from_host_to_host() {
    let entries = old_host();
    assert!(entries.iter().all(|entry| ![0xa, 0xd, 0x14].contains(&entry.function)), "{entries:x?}");
    assert_eq!(at(&entries, 0x4000_0001, 0).eax, 0x0100_02eb);
    // Bits that have no name, too.
    assert_eq!(at(&entries, 7, 0).ecx, 0);
}

#[test]
fn state_that_xsave_saves_goes_with_its_flags() {
    let entries = choose("host,-avx512f", &host()).unwrap();
    assert_eq!(at(&entries, 0xd, 0).eax, 0x207);
    assert!(!entries.iter().any(|entry| (entry.function, entry.index) == (0xd, 5)));
    let entries = choose("baseline,+avx", &host()).unwrap();
    assert_eq!((at(&entries, 0xd, 0).eax, at(&entries, 0xd, 0).ecx), (7, 0x340));
    assert_eq!(at(&entries, 0xd, 1).eax, 0);
}

#[test]
fn what_the_host_lacks_is_refused_by_name() {
    let error = choose("baseline,+avx2,+sse2,+pcid,-aes", &old_host()).unwrap_err();
    assert_eq!(error, NotOffered(vec!["avx2".to_owned(), "pcid".to_owned()]));
    assert!(error.to_string().contains("does not offer avx2, pcid to guests"), "{error}");
}

#[test]
fn what_the_host_does_not_hide_is_described_like_the_rest() {
    let asked = choose("baseline", &host()).unwrap();
    // The host shows XSAVE, AVX and PCID whatever it is told.
    let mut shown = asked.clone();
    shown[0].ecx |= 1 << 26 | 1 << 28 | 1 << 17;
    assert_eq!(returned(&asked, &shown), ["pcid", "xsave", "avx"]);
    assert_eq!(returned(&asked, &asked), [""; 0]);
    let model: CpuModel = "baseline".parse().unwrap();
    let entries = model.choose(&host(), &shown, Quirks::default()).unwrap();
    assert_eq!(returned(&asked, &entries), ["pcid", "xsave", "avx"]);
    assert_eq!(at(&entries, 0xd, 0).eax, 7);
}

#[test]
fn gaps_of_the_host_are_hidden_unless_they_are_asked_for() {
    let quirks = Quirks { hypercalls_hang: true, no_cmpxchg16b: true, counter_is_hosts: true };
    let host = [host(), vec![leaf(0x8000_0007, 0, [0, 0, 0, 1 << 8])]].concat();
    let on_such_a_host = |text: &str| text.parse::<CpuModel>().unwrap().choose(&host, &[], quirks).unwrap();
    for text in ["host", "baseline", "host,-pcid", "host,+cx16,-cx16"] {
        let entries = on_such_a_host(text);
        let flags = flags_of(&entries);
        assert!(!flags.contains(&"cx16") && !flags.contains(&"nonstop_tsc"), "{text}");
        assert_eq!(at(&entries, 0x4000_0001, 0).eax & (1 << 7 | 1 << 11 | 1 << 13), 0);
        assert_eq!(at(&entries, 0x4000_0001, 0).eax & (1 << 3 | 1 << 24), 1 << 3 | 1 << 24);
    }
    assert!(flags_of(&on_such_a_host("host,+cx16")).contains(&"cx16"));
    assert!(flags_of(&on_such_a_host("baseline,+cx16")).contains(&"cx16"));
    // Apart from that nothing is missing.
    let all = flags_of(&choose("host", &host).unwrap());
    assert_eq!(difference(&all, &flags_of(&on_such_a_host("host"))), ["cx16", "nonstop_tsc"]);
}

#[test]
fn a_processor_is_printed_as_it_is_written() {
    for text in ["host", "baseline", "host,-avx512f,+pcid", "baseline,+aes,-aes"] {
        assert_eq!(text.parse::<CpuModel>().unwrap().to_string(), text);
    }
    assert_eq!(CpuModel::default().to_string(), "host");
    assert!(CpuModel::default().is_host());
    assert!(!"host,-avx".parse::<CpuModel>().unwrap().is_host());
}

#[test]
fn what_is_no_processor_is_refused() {
    for text in ["", "Host", "host ", "skylake", "+avx", "help,+avx"] {
        let first = text.split(',').next().unwrap().to_owned();
        assert_eq!(text.parse::<CpuModel>(), Err(CpuModelError::Model(first)), "{text}");
    }
    for (text, word) in [("host,", ""), ("host,avx", "avx"), ("host,é", "é"), ("host,baseline", "baseline")]
    {
        assert_eq!(text.parse::<CpuModel>(), Err(CpuModelError::Change(word.to_owned())), "{text}");
    }
}

#[test]
fn an_unknown_flag_is_refused_with_the_one_that_was_meant() {
    let suggested = |flag: &str| match format!("host,+{flag}").parse::<CpuModel>() {
        Err(CpuModelError::Flag { flag: found, suggestion }) => {
            assert_eq!(found, flag);
            suggestion
        }
        other => panic!("{flag}: {other:?}"),
    };
    for (written, meant) in [
        ("sse4.2", "sse4_2"),
        ("SSE4-1", "sse4_1"),
        ("sse3", "pni"),
        ("avx5l2f", "avx512f"),
        ("cx61", "cx16"),
        ("popcmt", "popcnt"),
        ("invtsc", "nonstop_tsc"),
        ("AVX2", "avx2"),
    ] {
        assert_eq!(suggested(written), Some(meant), "{written}");
    }
    for nonsense in ["", "-", "ht", "teapot", "ééééé"] {
        let suggestion = suggested(nonsense);
        assert!(suggestion.is_none() || nonsense.len() < 3, "{nonsense}: {suggestion:?}");
    }
    let error = "host,-xsaev".parse::<CpuModel>().unwrap_err().to_string();
    assert!(error.contains("\"xsaev\" is no flag of a processor, but xsave is"), "{error}");
}

#[test]
fn every_flag_that_is_spoken_of_exists() {
    let spoken = BASELINE
        .split_ascii_whitespace()
        .chain(NEEDS.iter().flat_map(|(below, above)| above.split_ascii_whitespace().chain([*below])))
        .chain(OTHER_NAMES.iter().map(|&(_, name)| name))
        .chain(DETAILS.iter().map(|&(_, name)| name));
    for name in spoken {
        assert!(known_flags().contains(&name), "{name}");
    }
    for (other, _) in OTHER_NAMES {
        assert!(!known_flags().contains(&other), "{other} has its own name");
    }
}

#[test]
fn a_model_tells_what_it_leaves_out() {
    for (text, has) in [("host", true), ("baseline", true), ("host,-nx", false), ("baseline,-nx,+nx", true)] {
        assert_eq!(text.parse::<CpuModel>().unwrap().has("nx"), has, "{text}");
    }
}
