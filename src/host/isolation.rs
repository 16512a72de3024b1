//! What can confine the process that runs a guest.

use std::path::Path;

use super::{Area, Row, Verdict};
use crate::kernel_files::{self as files, number};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The first Landlock version that also confines ioctl calls on devices.
const COMPLETE_LANDLOCK: i64 = 5;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_LANDLOCK_VERSION: u32 = 1;
/// The confinement that later versions bring; said so that nobody changes a host for nothing.
const LATER: &str = "this version of lodger does not confine itself yet; later ones do it with this";

/// Asks and judges.
pub(super) fn examine() -> Vec<Row> {
    let controllers = files::read(&format!("{CGROUPS}/cgroup.controllers"));
    let has_first_version = Path::new(&format!("{CGROUPS}/memory")).is_dir();
    vec![
        seccomp(has_seccomp()),
        landlock(landlock_version()),
        user_namespaces(
            files::read("/proc/sys/user/max_user_namespaces").as_deref(),
            files::read("/proc/sys/kernel/unprivileged_userns_clone").as_deref(),
            files::read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref(),
        ),
        cgroups(controllers.as_deref(), has_first_version),
    ]
}

fn row(name: &str, verdict: Verdict, detail: impl Into<String>) -> Row {
    Row::new(Area::Isolation, name, verdict, detail)
}

fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads four bytes behind the pointer and changes nothing.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, std::ptr::from_ref(&action))
    };
    answer == 0
}

fn seccomp(there: bool) -> Row {
    if there {
        row("seccomp", Verdict::Ok, "system calls can be filtered")
    } else {
        row("seccomp", Verdict::Missing, "system calls cannot be filtered")
            .advise(format!("{LATER}: use Linux 4.14 or newer with CONFIG_SECCOMP_FILTER"))
    }
}

fn landlock_version() -> i64 {
    // SAFETY: without attributes and with this flag the call only tells its version.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            ASK_LANDLOCK_VERSION,
        )
    }
}

fn landlock(version: i64) -> Row {
    match version {
        COMPLETE_LANDLOCK.. => row("landlock", Verdict::Ok, format!("version {version}")),
        1.. => row("landlock", Verdict::Limited, format!("version {version} does not confine everything"))
            .advise(format!("{LATER}: Linux 6.10 and newer have version {COMPLETE_LANDLOCK}")),
        _ => row("landlock", Verdict::Missing, "not there, or not enabled").advise(format!(
            "{LATER}: boot a kernel that has CONFIG_SECURITY_LANDLOCK with landlock in its lsm= list"
        )),
    }
}

fn user_namespaces(most: Option<&str>, debian: Option<&str>, apparmor: Option<&str>) -> Row {
    let name = "user-namespaces";
    let missing = |detail: &str, how: &str| {
        row(name, Verdict::Missing, detail).advise(format!("{LATER}: `sudo sysctl {how}`"))
    };
    match (most.map(number), debian.and_then(number), apparmor.and_then(number)) {
        (None, ..) => row(name, Verdict::Missing, "this kernel has none"),
        (Some(None), ..) => row(name, Verdict::NotExamined, "the kernel's limit says something unknown"),
        (Some(Some(0)), ..) => missing("the limit for them is 0", "user.max_user_namespaces=10000"),
        (_, Some(0), _) => missing("kept to root", "kernel.unprivileged_userns_clone=1"),
        (.., Some(1..)) => row(name, Verdict::Limited, "AppArmor keeps them to programs that have a profile")
            .advise(format!("{LATER}: give lodger an AppArmor profile that allows userns")),
        (Some(Some(most)), ..) => row(name, Verdict::Ok, format!("up to {most}")),
    }
}

fn cgroups(controllers: Option<&str>, has_first_version: bool) -> Row {
    let advice = "this version of lodger sets no limits of its own; to limit guests, boot with \
                  systemd.unified_cgroup_hierarchy=1 for cgroups of version 2";
    match (controllers.map(str::trim), has_first_version) {
        (Some(""), _) => {
            row("cgroups", Verdict::Limited, "version 2, but without controllers here").advise(advice)
        }
        (Some(controllers), _) => row("cgroups", Verdict::Ok, format!("version 2: {controllers}")),
        (None, true) => row("cgroups", Verdict::Limited, "version 1 only").advise(advice),
        (None, false) => row("cgroups", Verdict::Missing, format!("none under {CGROUPS}")).advise(advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landlock_is_judged_by_its_version() {
        assert_eq!(landlock(7).verdict, Verdict::Ok);
        assert_eq!(landlock(1).verdict, Verdict::Limited);
        assert_eq!(landlock(-1).verdict, Verdict::Missing);
        assert_eq!(landlock(0).verdict, Verdict::Missing);
    }

    #[test]
    fn whatever_keeps_user_namespaces_away_is_named() {
        for (most, debian, apparmor, verdict, words) in [
            (Some("9\n"), None, None, Verdict::Ok, "up to 9"),
            (Some("9"), Some("1"), Some("0"), Verdict::Ok, "up to 9"),
            (Some("0"), None, None, Verdict::Missing, "limit"),
            (Some("9"), Some("0"), None, Verdict::Missing, "kept to root"),
            (Some("9"), Some("1"), Some("1"), Verdict::Limited, "AppArmor"),
            (Some("odd"), None, None, Verdict::NotExamined, "unknown"),
            (None, None, None, Verdict::Missing, "none"),
        ] {
            let row = user_namespaces(most, debian, apparmor);
            assert_eq!(row.verdict, verdict, "{row:?}");
            assert!(row.detail.contains(words), "{row:?}");
        }
    }

    #[test]
    fn cgroups_of_the_second_version_are_wanted_with_controllers() {
        assert_eq!(cgroups(Some("cpu memory\n"), false).detail, "version 2: cpu memory");
        assert_eq!(cgroups(Some("\n"), true).verdict, Verdict::Limited);
        assert_eq!(cgroups(None, true).detail, "version 1 only");
        assert_eq!(cgroups(None, false).verdict, Verdict::Missing);
    }

    #[test]
    fn a_host_without_seccomp_is_told_what_to_use() {
        assert_eq!(seccomp(true).advice, None);
        assert!(seccomp(false).advice.is_some());
    }
}
