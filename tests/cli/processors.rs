//! What guests are told of their processors.

use std::collections::BTreeSet;

use crate::support::{Finished, guest, lodger};

fn run(options: &[&str], commands: &str) -> Finished {
    lodger(options.iter().map(|&option| option.to_owned()).chain(guest(commands)), "")
}

/// ECX of leaf 1, as the guest sees it.
fn basic_features(options: &[&str]) -> (u32, String) {
    let finished = run(options, "cpuid 1;exit 3").with(3);
    let (_, rest) = finished.stdout.split_once("ecx ").expect("an answer");
    let digits = rest.get(..8).expect("eight digits");
    (u32::from_str_radix(digits, 16).unwrap(), finished.stderr)
}

const POPCNT: (&str, u32) = ("popcnt", 1 << 23);
const X2APIC: (&str, u32) = ("x2apic", 1 << 21);

#[test]
fn the_guest_sees_sockets_cores_and_threads() {
    let finished = run(&["--cpus", "4,threads=2"], "cpu;exit 1").with(1).silent();
    assert!(finished.stdout.contains("4 by CPUID"), "{finished:#?}");
    assert!(finished.stdout.contains("socket 0: 2 cores of 2 threads each"), "{finished:#?}");
    assert!(finished.stdout.contains("started     4 by INIT and SIPI"), "{finished:#?}");
    let finished = run(&["--cpus", "sockets=2,cores=3"], "cpu;exit 1").with(1).silent();
    assert!(finished.stdout.contains("socket 0: 3 cores"), "{finished:#?}");
    assert!(finished.stdout.contains("started     6 by INIT and SIPI"), "{finished:#?}");
    assert!(finished.stdout.contains("local APICs 0-2 4-6"), "{finished:#?}");
}

/// There are hosts that do not hide everything; they are told on.
#[test]
fn a_hidden_flag_is_not_seen_or_the_user_is_warned() {
    for (name, bit) in [POPCNT, X2APIC] {
        let (seen, said) = basic_features(&["--cpu", &format!("host,-{name}")]);
        match seen & bit {
            0 => assert_eq!(said, ""),
            _ => assert!(said.contains("does not hide") && said.contains(&format!("see {name};")), "{said}"),
        }
        assert_eq!(said.lines().count(), usize::from(seen & bit != 0));
    }
}

#[test]
fn baseline_shows_what_it_says_and_what_was_added() {
    let (baseline, _) = basic_features(&["--cpu", "baseline"]);
    assert_ne!(baseline & X2APIC.1, 0);
    let (without, _) = basic_features(&["--cpu", "baseline,-x2apic"]);
    assert_eq!(without & X2APIC.1, 0);
    let (again, said) = basic_features(&["--cpu", "host,-x2apic,+x2apic"]);
    assert_ne!(again & X2APIC.1, 0);
    assert_eq!(said, "");
}

#[test]
fn the_list_of_flags_has_each_once_and_says_which_can_be_had() {
    let list = lodger(["run", "--cpu", "help"], "").with(0).silent().stdout;
    let (_, flags) = list.split_once("Flags that this host offers\n").expect("what there is");
    let (offered, others) = flags.split_once("Flags that it does not offer\n").expect("what there is not");
    let (others, _) = others.split_once("\nExamples").expect("examples");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (offered, others) = (words(offered), words(others));
    let all: BTreeSet<_> = offered.iter().chain(&others).collect();
    assert_eq!(all.len(), offered.len() + others.len());
    assert!(offered.contains(&"sse2".to_owned()), "{offered:?}");
    // Whatever is listed is taken, and whatever is not is refused.
    let shown: String = offered.iter().map(|flag| format!(",+{flag}")).collect();
    run(&["--cpu", &format!("host{shown}")], "exit 4").with(4).silent();
    let missing = others.first().expect("no processor has everything");
    lodger(["--cpu", &format!("baseline,+{missing}")], "").refused(&[
        missing,
        "does not offer",
        "--cpu help",
    ]);
}
