//! The host's processor and kernel.

use super::{Area, Row, Verdict};
use crate::kernel_files::{self as files, field};

/// The first with MADV_POPULATE_WRITE, by which memory is prefaulted.
const NEEDED_FOR_PREFAULT: (u32, u32) = (5, 14);

struct Facts {
    cpuinfo: Option<String>,
    release: Option<String>,
    has_kvm: bool,
}

/// Reads and judges.
pub(super) fn examine(has_kvm: bool) -> Vec<Row> {
    let cpuinfo = files::read("/proc/cpuinfo");
    rows(&Facts { cpuinfo, release: files::read("/proc/sys/kernel/osrelease"), has_kvm })
}

fn rows(facts: &Facts) -> Vec<Row> {
    let flags = facts.cpuinfo.as_deref().and_then(|text| field(text, "flags"));
    let has = |wanted: &str| flags.map(|flags| flags.split_ascii_whitespace().any(|flag| flag == wanted));
    vec![
        model(facts),
        virtualization(has("vmx"), has("svm"), facts.has_kvm),
        surroundings(has("hypervisor")),
        kernel(facts.release.as_deref()),
    ]
}

fn model(facts: &Facts) -> Row {
    let model = facts.cpuinfo.as_deref().and_then(|text| field(text, "model name"));
    match model.filter(|model| !model.is_empty()) {
        Some(model) => Row::new(Area::Processor, "model", Verdict::Ok, model),
        None => Row::new(Area::Processor, "model", Verdict::NotExamined, "/proc/cpuinfo does not tell it"),
    }
}

fn virtualization(vmx: Option<bool>, svm: Option<bool>, has_kvm: bool) -> Row {
    let row = |verdict, detail: &str| Row::new(Area::Processor, "virtualization", verdict, detail);
    match (vmx, svm) {
        (Some(true), _) => row(Verdict::Ok, "the processor has Intel VT-x (vmx)"),
        (_, Some(true)) => row(Verdict::Ok, "the processor has AMD-V (svm)"),
        (None, _) | (_, None) => row(Verdict::NotExamined, "/proc/cpuinfo tells no flags"),
        _ if has_kvm => {
            row(Verdict::Limited, "neither vmx nor svm; KVM is here all the same and works in software")
        }
        _ => row(Verdict::Missing, "neither vmx nor svm").advise(
            "enable virtualization in the firmware set-up; in a virtual machine, have nested virtualization \
             enabled by whoever runs it",
        ),
    }
}

fn surroundings(hypervisor: Option<bool>) -> Row {
    let row = |verdict, detail: &str| Row::new(Area::Processor, "host-machine", verdict, detail);
    match hypervisor {
        Some(true) => {
            row(Verdict::Ok, "this host is itself a virtual machine: exits take longer than on a bare one")
        }
        Some(false) => row(Verdict::Ok, "no hypervisor beneath this host"),
        None => row(Verdict::NotExamined, "/proc/cpuinfo tells no flags"),
    }
}

fn kernel(release: Option<&str>) -> Row {
    let row = |verdict, detail: String| Row::new(Area::Processor, "kernel", verdict, detail);
    let Some(release) = release.map(str::trim).filter(|release| !release.is_empty()) else {
        return row(Verdict::NotExamined, "/proc/sys/kernel/osrelease does not tell it".to_owned());
    };
    match version(release) {
        Some(version) if version < NEEDED_FOR_PREFAULT => {
            row(Verdict::Limited, format!("Linux {release}; guest memory cannot be prefaulted"))
                .advise("use Linux 5.14 or newer, or leave `prefault` out")
        }
        _ => row(Verdict::Ok, format!("Linux {release}")),
    }
}

/// The first two numbers of a release like `6.18.44-1-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(flags: &str, has_kvm: bool) -> Vec<Row> {
        let cpuinfo = format!("processor\t: 0\nmodel name\t: A Processor\nflags\t\t: {flags}\n");
        rows(&Facts { cpuinfo: Some(cpuinfo), release: Some("6.1.0-44\n".into()), has_kvm })
    }

    #[test]
    fn either_kind_of_hardware_virtualization_is_recognised() {
        assert!(judge("fpu vmx", true)[1].detail.contains("VT-x"));
        assert!(judge("svm fpu", true)[1].detail.contains("AMD-V"));
    }

    #[test]
    fn a_missing_flag_matters_only_without_kvm() {
        let with = &judge("fpu vmxoff", true)[1];
        assert_eq!((with.verdict, &with.advice), (Verdict::Limited, &None));
        let without = &judge("fpu", false)[1];
        assert_eq!(without.verdict, Verdict::Missing);
        assert!(without.advice.is_some());
    }

    #[test]
    fn a_host_that_is_a_guest_is_recognised() {
        assert!(judge("fpu hypervisor", true)[2].detail.contains("itself a virtual machine"));
        assert!(judge("fpu", true)[2].detail.contains("no hypervisor"));
    }

    #[test]
    fn kernels_too_old_to_prefault_are_told_so() {
        for (release, verdict) in [
            ("5.13.99", Verdict::Limited),
            ("5.14", Verdict::Ok),
            ("6.18.44-fc\n", Verdict::Ok),
            ("4.19.0", Verdict::Limited),
            ("odd", Verdict::Ok),
            ("", Verdict::NotExamined),
        ] {
            assert_eq!(kernel(Some(release)).verdict, verdict, "{release:?}");
        }
    }

    #[test]
    fn nothing_is_made_of_files_that_say_nothing() {
        for cpuinfo in [None, Some(String::new()), Some(":::\nflags\n\0model name:".to_owned())] {
            let rows = rows(&Facts { cpuinfo, release: None, has_kvm: true });
            assert!(rows.iter().all(|row| row.verdict == Verdict::NotExamined), "{rows:?}");
        }
    }
}
