use std::path::Path;

use super::*;
use crate::hv::kvm::{CAPABILITIES, DEVICE, Kvm};

fn sample(required: bool, verdict: Verdict) -> Row {
    Row { required, ..Row::new(Area::Kvm, "sample", verdict, "") }
}

#[test]
fn only_required_rows_decide_whether_a_guest_can_run() {
    for (required, verdict, can_run) in [
        (true, Verdict::Ok, true),
        (true, Verdict::Missing, false),
        (true, Verdict::Limited, false),
        (true, Verdict::NotExamined, false),
        (false, Verdict::Missing, true),
        (false, Verdict::Limited, true),
    ] {
        assert_eq!(Report::new(vec![sample(required, verdict)]).can_run, can_run, "{required} {verdict:?}");
    }
}

#[test]
fn rows_of_an_area_stand_together_in_the_order_of_their_examination() {
    let row = |area, name| Row::new(area, name, Verdict::Ok, "");
    let rows = vec![row(Area::Network, "a"), row(Area::Kvm, "b"), row(Area::Network, "c")];
    let names: Vec<_> = Report::new(rows).rows.into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["b", "a", "c"]);
}

#[test]
fn a_guest_can_run_here_exactly_if_kvm_has_what_is_required() {
    let report = examine();
    assert_eq!(report.can_run, Kvm::open().is_ok(), "{report:#?}");
}

#[test]
fn a_report_survives_being_written_as_json_and_read_back() {
    let report = examine();
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    assert!(json.starts_with(r#"{"can-run":"#), "{json}");
    let row = serde_json::to_string(&sample(true, Verdict::NotExamined)).unwrap();
    let expected = r#"{"area":"kvm","name":"sample","verdict":"not-examined","#;
    assert_eq!(row, expected.to_owned() + r#""detail":"","advice":null,"required":true}"#);
}

#[test]
fn without_kvm_the_rows_are_the_same_and_no_guest_can_run() {
    for node in ["/dev/null", "/dev/there-is-no-such-node", "/", "odd\0name"] {
        let report = examine_with(Path::new(node));
        assert!(!report.can_run, "{node}");
        let examined = examine_with(Path::new(DEVICE));
        let names = |report: &Report| report.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&report), names(&examined), "{node}");
    }
}

#[test]
fn names_are_unique_and_gaps_of_this_kvm_are_never_required() {
    let report = examine_with(Path::new("/dev/null"));
    let mut names: Vec<_> = report.rows.iter().map(|row| &row.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), report.rows.len());
    let required = report.rows.iter().filter(|row| row.required);
    assert!(required.clone().all(|row| row.area < Area::Instruction));
    let capabilities = CAPABILITIES.iter().filter(|capability| capability.required).count();
    assert_eq!(required.count(), capabilities + 2 + 3);
}
