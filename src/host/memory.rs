//! Host memory: how much there is, and what the kernel does with it for guests.

use std::path::Path;

use super::device::{Permissions, try_open};
use super::{Area, Row, Verdict};
use crate::kernel_files::{self as files, bytes, chosen, field, number};
use crate::memory::{GuestMemory, Layout, MIN_SIZE, Options};
use crate::x86::cpuid;

const USERFAULTFD: &str = "/dev/userfaultfd";
/// The command's own default for a guest.
const ORDINARY_GUEST: u64 = 256 << 20;

#[derive(Default)]
struct Facts {
    meminfo: Option<String>,
    overcommit: Option<String>,
    transparent: Option<String>,
    sharing: Option<String>,
}

/// Reads and judges.
pub(super) fn examine() -> Vec<Row> {
    let mut rows = rows(&Facts {
        meminfo: files::read("/proc/meminfo"),
        overcommit: files::read("/proc/sys/vm/overcommit_memory"),
        transparent: files::read("/sys/kernel/mm/transparent_hugepage/enabled"),
        sharing: files::read("/sys/kernel/mm/ksm/run"),
    });
    let node = Path::new(USERFAULTFD);
    rows.push(userfaultfd(userfaultfd_call(), try_open(node).is_ok(), Permissions::of(node)));
    rows.push(written_pages(watch_a_little()));
    rows
}

/// Tries it on as little memory as a guest can have.
fn watch_a_little() -> Result<(), String> {
    let layout = Layout::new(MIN_SIZE, cpuid::host_address_bits()).map_err(|error| error.to_string())?;
    let memory = GuestMemory::map(layout, Options::default()).map_err(|error| error.to_string())?;
    memory.written_pages().map(drop).map_err(|reason| reason.to_string())
}

fn written_pages(watched: Result<(), String>) -> Row {
    let name = "written pages";
    match watched {
        Ok(()) => {
            row(name, Verdict::Ok, "a guest stands still for a snapshot only while what it changed is copied")
        }
        Err(reason) => row(name, Verdict::Missing, reason).advise(
            "a guest stands still for a snapshot until all its memory is copied, and there are no diffs",
        ),
    }
}

fn rows(facts: &Facts) -> Vec<Row> {
    let Facts { meminfo, overcommit, transparent, sharing } = facts;
    vec![
        free(meminfo.as_deref()),
        overcommit_policy(overcommit.as_deref()),
        transparent_huge_pages(transparent.as_deref()),
        reserved_huge_pages(meminfo.as_deref()),
        page_sharing(sharing.as_deref()),
    ]
}

fn row(name: &str, verdict: Verdict, detail: impl Into<String>) -> Row {
    Row::new(Area::Memory, name, verdict, detail)
}

fn free(meminfo: Option<&str>) -> Row {
    let amounts = meminfo.and_then(|text| Some((bytes(text, "MemAvailable")?, bytes(text, "MemTotal")?)));
    let Some((available, total)) = amounts else {
        return row("free", Verdict::NotExamined, "/proc/meminfo does not tell it");
    };
    let detail = format!("{} MiB of {} MiB are available", available >> 20, total >> 20);
    if available < ORDINARY_GUEST {
        return row("free", Verdict::Limited, detail).advise(
            "a guest of ordinary size (256M) may not find room: end something, or use a smaller --memory",
        );
    }
    row("free", Verdict::Ok, detail)
}

fn overcommit_policy(policy: Option<&str>) -> Row {
    let name = "overcommit";
    match policy.and_then(number) {
        Some(0) => row(name, Verdict::Ok, "guests may be given more than the host has (heuristic policy)"),
        Some(1) => row(name, Verdict::Ok, "guests may be given more than the host has (always)"),
        Some(2) => row(
            name,
            Verdict::Limited,
            "the host promises no more memory than it has (strict policy)",
        )
        .advise(
            "a guest's whole memory counts from its start; for larger guests set vm.overcommit_memory to 0 \
                 (`sudo sysctl vm.overcommit_memory=0`)",
        ),
        _ => row(name, Verdict::NotExamined, "/proc/sys/vm/overcommit_memory does not tell it"),
    }
}

fn transparent_huge_pages(switch: Option<&str>) -> Row {
    let name = "transparent-huge-pages";
    match switch.map(chosen) {
        Some(Some("always")) => row(name, Verdict::Ok, "always given"),
        Some(Some("madvise")) => row(name, Verdict::Ok, "given where asked for (--memory SIZE,hugepages)"),
        Some(Some("never")) => row(name, Verdict::Missing, "switched off").advise(
            "for --memory SIZE,hugepages: \
             `echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`",
        ),
        Some(_) => row(name, Verdict::NotExamined, "the kernel's switch says something unknown"),
        None => row(name, Verdict::Missing, "this kernel has none"),
    }
}

fn reserved_huge_pages(meminfo: Option<&str>) -> Row {
    let name = "reserved-huge-pages";
    let value = |key| meminfo.and_then(|text| number(field(text, key)?));
    match (value("HugePages_Total"), value("HugePages_Free")) {
        (Some(0), _) => row(name, Verdict::Missing, "none").advise(
            "for --memory SIZE,hugetlb: `sudo sysctl vm.nr_hugepages=N`, one for each 2 MiB of the guest",
        ),
        (Some(total), Some(free)) => row(name, Verdict::Ok, format!("{free} of {total} are free")),
        _ => row(name, Verdict::NotExamined, "/proc/meminfo does not tell it"),
    }
}

fn page_sharing(run: Option<&str>) -> Row {
    let name = "page-sharing";
    match run.map(number) {
        Some(Some(1)) => row(
            name,
            Verdict::Ok,
            "KSM is on: equal pages are kept once where asked for (--memory SIZE,mergeable)",
        ),
        Some(Some(_)) => row(name, Verdict::Missing, "KSM is switched off: nothing is merged")
            .advise("for --memory SIZE,mergeable: `echo 1 | sudo tee /sys/kernel/mm/ksm/run`"),
        Some(None) => row(name, Verdict::NotExamined, "KSM's switch says something unknown"),
        None => row(name, Verdict::Missing, "this kernel has no KSM"),
    }
}

/// Whether the system call gives a descriptor that also serves faults of the kernel, as KVM makes them.
fn userfaultfd_call() -> bool {
    // SAFETY: the call takes flags only; what it returns is a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    close(descriptor)
}

/// Closes what a system call returned; whether it was a descriptor.
pub(super) fn close(descriptor: libc::c_long) -> bool {
    match i32::try_from(descriptor) {
        Ok(descriptor) if descriptor >= 0 => {
            // SAFETY: the descriptor was made a moment ago and nobody else knows it.
            unsafe { libc::close(descriptor) };
            true
        }
        _ => false,
    }
}

fn userfaultfd(by_call: bool, by_node: bool, node: Option<Permissions>) -> Row {
    let name = "userfaultfd";
    let missing = |detail: &str| row(name, Verdict::Missing, detail);
    let use_of_it =
        "this version of lodger does not use it; later ones bring in a guest's memory on demand with it";
    match (by_call, by_node, node) {
        (true, ..) => row(name, Verdict::Ok, "memory can be filled in when it is touched"),
        (_, true, _) => {
            row(name, Verdict::Ok, format!("memory can be filled in when it is touched, by {USERFAULTFD}"))
        }
        (.., Some(rights)) => missing(&format!("{USERFAULTFD} may not be opened ({})", rights.describe()))
            .advise(format!("{use_of_it}: {}", rights.advice(Path::new(USERFAULTFD)))),
        (.., None) => missing("this kernel has none, or keeps it to itself")
            .advise(format!("{use_of_it}: `sudo sysctl vm.unprivileged_userfaultfd=1`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  24585936 kB\nMemAvailable:  23662304 kB\nHugePages_Total:       4\n\
                           HugePages_Free:        3\nHugepagesize:       2048 kB\n";

    #[test]
    fn an_ordinary_host_needs_no_advice() {
        let facts = Facts {
            meminfo: Some(MEMINFO.into()),
            overcommit: Some("0\n".into()),
            transparent: Some("always [madvise] never\n".into()),
            sharing: Some("1\n".into()),
        };
        let rows = rows(&facts);
        assert!(rows.iter().all(|row| row.verdict == Verdict::Ok && row.advice.is_none()), "{rows:?}");
        assert_eq!(rows[0].detail, "23107 MiB of 24009 MiB are available");
        assert_eq!(rows[3].detail, "3 of 4 are free");
    }

    #[test]
    fn each_setting_that_stands_in_a_guests_way_has_its_advice() {
        let poor = MEMINFO.replace("23662304", "100000").replace("4\n", "0\n");
        for (row, verdict, advice) in [
            (free(Some(&poor)), Verdict::Limited, "--memory"),
            (overcommit_policy(Some("2")), Verdict::Limited, "vm.overcommit_memory=0"),
            (transparent_huge_pages(Some("always madvise [never]")), Verdict::Missing, "madvise"),
            (reserved_huge_pages(Some(&poor)), Verdict::Missing, "nr_hugepages"),
            (page_sharing(Some("0")), Verdict::Missing, "ksm/run"),
            (userfaultfd(false, false, None), Verdict::Missing, "sysctl"),
        ] {
            assert_eq!(row.verdict, verdict, "{row:?}");
            assert!(row.advice.as_ref().is_some_and(|text| text.contains(advice)), "{row:?}");
        }
    }

    #[test]
    fn who_cannot_watch_memory_is_told_what_that_means() {
        assert_eq!(written_pages(Ok(())).verdict, Verdict::Ok);
        let row = written_pages(Err("too old".to_owned()));
        assert!(row.verdict == Verdict::Missing && row.detail == "too old", "{row:?}");
        assert!(row.advice.unwrap().contains("no diffs"));
    }

    #[test]
    fn either_way_to_userfaultfd_will_do() {
        let rights = || Some(Permissions { owner: "root".into(), group: "root".into(), mode: 0o600 });
        assert_eq!(userfaultfd(true, false, rights()).verdict, Verdict::Ok);
        assert_eq!(userfaultfd(false, true, rights()).verdict, Verdict::Ok);
        let forbidden = userfaultfd(false, false, rights());
        assert!(forbidden.detail.contains("mode 600"), "{forbidden:?}");
    }

    #[test]
    fn odd_contents_are_not_examined() {
        let odd = |text: &str| Facts {
            meminfo: Some(text.into()),
            overcommit: Some(text.into()),
            transparent: Some(text.into()),
            sharing: Some(text.into()),
        };
        for text in ["", "\0\u{fffd}", "MemAvailable: 99999999999999999999 kB", "[odd]", "-7", "MemTotal"] {
            let rows = rows(&odd(text));
            assert!(rows.iter().all(|row| row.verdict == Verdict::NotExamined), "{text:?}: {rows:?}");
        }
        let most = format!("MemAvailable: {0} kB\nMemTotal: {0} kB", u64::MAX);
        assert_eq!(free(Some(&most)).verdict, Verdict::NotExamined);
    }
}
