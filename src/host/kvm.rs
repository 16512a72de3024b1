//! KVM itself: whether it can be opened, what it offers, how much of it.

use std::io;
use std::path::Path;

use super::device::{Permissions, reason};
use super::{Area, Row, Verdict};
use crate::hv::kvm::{CAPABILITIES, Capability, Kvm};
use crate::hv::{self, Hypervisor};

/// What rows say that cannot be filled without KVM.
pub(super) const NO_KVM: &str = "there is no KVM to ask";

/// Opens KVM at `node` and tells what it is like.
pub(super) fn examine(node: &Path) -> (Option<Kvm>, Vec<Row>) {
    let opened = Kvm::open_at(node);
    let mut rows = device_rows(node, opened.as_ref().map(|_| ()), Permissions::of(node));
    let opened = opened.ok();
    let limits = opened.as_ref().map(|kvm| Limits {
        recommended: kvm.recommended_vcpus(),
        most: kvm.max_vcpus(),
        slots: kvm.memory_slots(),
    });
    rows.extend(limit_rows(limits.as_ref()));
    match &opened {
        Some(kvm) => rows.extend(kvm.capabilities().map(|(known, there)| capability_row(known, Some(there)))),
        None => rows.extend(CAPABILITIES.iter().map(|known| capability_row(known, None))),
    }
    (opened, rows)
}

/// The device node, and the version of the interface behind it.
fn device_rows(node: &Path, opened: Result<(), &hv::Error>, permissions: Option<Permissions>) -> Vec<Row> {
    let path = node.display();
    let rights = permissions.as_ref().map(Permissions::describe).unwrap_or_default();
    let device = |verdict, detail: String| Row::new(Area::Kvm, "device", verdict, detail).required();
    let version = |verdict, detail: String| Row::new(Area::Kvm, "api-version", verdict, detail).required();
    let opens = || device(Verdict::Ok, format!("{path} opens for reading and writing ({rights})"));
    match opened {
        Ok(()) => {
            let expected = kvm_bindings::KVM_API_VERSION;
            vec![opens(), version(Verdict::Ok, format!("{expected}, the version that lodger speaks"))]
        }
        Err(hv::Error::ApiVersion { found, expected }) => {
            let detail = format!("{found}; lodger speaks version {expected}");
            let advice = "use a newer kernel: every Linux since 2.6.22 speaks version 12";
            vec![opens(), version(Verdict::Missing, detail).advise(advice)]
        }
        Err(error) => {
            let source = match error {
                hv::Error::Open { source, .. } | hv::Error::Call { source, .. } => Some(source),
                _ => None,
            };
            let (detail, advice) = match source.and_then(io::Error::raw_os_error) {
                Some(libc::ENOTTY) => (
                    format!("{path} is something else: it does not know KVM's questions"),
                    Some("this file is no KVM device: look how it got there, and remove it".to_owned()),
                ),
                Some(libc::ENOENT) => (format!("{path} does not exist"), Some(NOT_THERE.to_owned())),
                Some(libc::ENODEV | libc::ENXIO) => {
                    (format!("{path} exists, but there is no driver behind it"), Some(NOT_THERE.to_owned()))
                }
                Some(libc::EACCES) => {
                    (format!("{path} may not be opened ({rights})"), permissions.map(|p| p.advice(node)))
                }
                Some(libc::EPERM) => (
                    format!("{path} is forbidden here, whatever its permissions say ({rights})"),
                    Some(
                        "let the container use the device (`--device /dev/kvm` with docker or podman)".into(),
                    ),
                ),
                _ => (source.map_or_else(|| error.to_string(), |io| format!("{path}: {}", reason(io))), None),
            };
            let row = Row { advice, ..device(Verdict::Missing, detail) };
            vec![row, version(Verdict::NotExamined, NO_KVM.to_owned())]
        }
    }
}

const NOT_THERE: &str = "load the module for this processor (`sudo modprobe kvm_intel` or `kvm_amd`); if that \
                         fails, enable virtualization in the firmware set-up, nested virtualization in the machine \
                         around this one, or pass the device into the container";

/// How much of everything one guest can have.
struct Limits {
    recommended: usize,
    most: u32,
    slots: usize,
}

fn limit_rows(limits: Option<&Limits>) -> [Row; 2] {
    let row = |name: &str, detail: Option<String>| match detail {
        Some(detail) => Row::new(Area::Kvm, name, Verdict::Ok, detail),
        None => Row::new(Area::Kvm, name, Verdict::NotExamined, NO_KVM),
    };
    [
        row(
            "processors-per-guest",
            limits.map(|limits| format!("{} recommended, {} at most", limits.recommended, limits.most)),
        ),
        row("memory-slots", limits.map(|limits| format!("{} pieces of memory per guest", limits.slots))),
    ]
}

fn capability_row(capability: &Capability, there: Option<bool>) -> Row {
    let Capability { name, purpose, required, .. } = capability;
    let detail = |word: &str| format!("{word}needed {purpose}");
    let row = match there {
        Some(true) => Row::new(Area::Capability, name, Verdict::Ok, detail("")),
        Some(false) => Row::new(Area::Capability, name, Verdict::Missing, detail("not there, "))
            .advise("this kernel's KVM is too old or was built without it; try a newer kernel"),
        None => Row::new(Area::Capability, name, Verdict::NotExamined, NO_KVM),
    };
    Row { required: *required, ..row }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(number: i32) -> hv::Error {
        hv::Error::Open { path: "/dev/kvm".into(), source: io::Error::from_raw_os_error(number) }
    }

    fn judge(error: &hv::Error) -> Vec<Row> {
        let rights = Permissions { owner: "root".into(), group: "kvm".into(), mode: 0o660 };
        device_rows(Path::new("/dev/kvm"), Err(error), Some(rights))
    }

    #[test]
    fn each_reason_why_kvm_does_not_open_has_its_own_advice() {
        for (number, detail, advice) in [
            (libc::ENOENT, "does not exist", "modprobe"),
            (libc::ENODEV, "no driver", "modprobe"),
            (libc::EACCES, "may not be opened (owner root, group kvm, mode 660)", "usermod -aG kvm"),
            (libc::EPERM, "forbidden", "--device /dev/kvm"),
            (libc::ENOTTY, "something else", "no KVM device"),
        ] {
            let rows = judge(&open_error(number));
            assert_eq!((rows[0].verdict, rows[1].verdict), (Verdict::Missing, Verdict::NotExamined));
            assert!(rows[0].detail.contains(detail), "{:?}", rows[0]);
            assert!(rows[0].advice.as_ref().is_some_and(|text| text.contains(advice)), "{:?}", rows[0]);
            assert!(rows.iter().all(Row::prevents_guests));
        }
    }

    #[test]
    fn an_unknown_reason_is_told_as_it_is() {
        assert_eq!(judge(&open_error(libc::EMFILE))[0].detail, "/dev/kvm: too many open files");
    }

    #[test]
    fn another_version_of_the_interface_is_not_a_missing_device() {
        let rows = judge(&hv::Error::ApiVersion { found: 10, expected: 12 });
        assert_eq!((rows[0].verdict, rows[1].verdict), (Verdict::Ok, Verdict::Missing));
        assert!(rows[1].detail.contains("10"), "{:?}", rows[1]);
    }

    #[test]
    fn a_missing_capability_prevents_guests_only_if_it_is_required() {
        for capability in &CAPABILITIES {
            let row = capability_row(capability, Some(false));
            assert_eq!(row.prevents_guests(), capability.required);
            assert!(row.advice.is_some());
            assert_eq!(capability_row(capability, Some(true)).verdict, Verdict::Ok);
            assert_eq!(capability_row(capability, None).verdict, Verdict::NotExamined);
        }
    }

    #[test]
    fn another_device_node_is_not_taken_for_kvm() {
        let (kvm, rows) = examine(Path::new("/dev/null"));
        assert!(kvm.is_none());
        assert!(rows[0].detail.contains("/dev/null is something else"), "{:?}", rows[0]);
        let (kvm, rows) = examine(Path::new("/dev/there-is-no-such-node"));
        assert!(kvm.is_none());
        assert!(rows[0].detail.contains("does not exist"), "{:?}", rows[0]);
        assert_eq!(rows.len(), 4 + CAPABILITIES.len());
    }
}
