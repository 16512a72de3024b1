//! Networking and disk input and output: what moves a guest's bytes.

use std::io;
use std::path::Path;

use super::device::{Permissions, reason, try_open};
use super::memory::close;
use super::{Area, Row, Verdict};
use crate::kernel_files::{self as files, field};

const TUN: &str = "/dev/net/tun";
/// Its number in the capability sets (capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Tries and judges.
pub(super) fn examine() -> Vec<Row> {
    let status = files::read("/proc/self/status");
    vec![
        tun(
            try_open(Path::new(TUN)),
            Permissions::of(Path::new(TUN)),
            may_make_interfaces(status.as_deref()),
        ),
        accelerator("vhost-net", "/dev/vhost-net", "vhost_net", "moves network packets in the kernel"),
        accelerator("vhost-vsock", "/dev/vhost-vsock", "vhost_vsock", "gives guests sockets to the host"),
        io_uring(io_uring_call(), files::read("/proc/sys/kernel/io_uring_disabled").as_deref()),
    ]
}

fn may_make_interfaces(status: Option<&str>) -> bool {
    let effective = status.and_then(|text| u64::from_str_radix(field(text, "CapEff")?, 16).ok());
    effective.is_some_and(|set| set >> CAP_NET_ADMIN & 1 != 0)
}

fn tun(opened: io::Result<()>, rights: Option<Permissions>, may_make: bool) -> Row {
    let row = |verdict, detail: String| Row::new(Area::Network, "tun", verdict, detail);
    // Said in every advice, so that nobody changes a host for nothing.
    let use_of_it = "this version of lodger has no network; later ones need it for tap interfaces";
    match opened {
        Ok(()) if may_make => {
            row(Verdict::Ok, format!("{TUN} opens, and this process may create interfaces"))
        }
        Ok(()) => row(Verdict::Limited, format!("{TUN} opens, but this process may not create interfaces"))
            .advise(format!("{use_of_it}: `sudo ip tuntap add NAME mode tap user $USER` makes one for you")),
        Err(error) => {
            let detail = format!("{TUN}: {}", reason(&error));
            match (error.raw_os_error(), rights) {
                (Some(libc::EACCES), Some(rights)) => {
                    row(Verdict::Missing, format!("{detail} ({})", rights.describe()))
                        .advise(format!("{use_of_it}: `sudo chmod 666 {TUN}`, as most distributions have it"))
                }
                _ => row(Verdict::Missing, detail).advise(format!(
                    "{use_of_it}: `sudo modprobe tun`, or pass the device into the container"
                )),
            }
        }
    }
}

/// A device node by which the kernel does part of a virtual device's work.
fn accelerator(name: &str, path: &str, module: &str, purpose: &str) -> Row {
    let node = Path::new(path);
    accelerator_row(name, path, module, purpose, try_open(node), Permissions::of(node))
}

fn accelerator_row(
    name: &str,
    path: &str,
    module: &str,
    purpose: &str,
    opened: io::Result<()>,
    rights: Option<Permissions>,
) -> Row {
    let row = |verdict, detail: String| Row::new(Area::Network, name, verdict, detail);
    let use_of_it = "this version of lodger does not use it; where it helps later";
    match (opened, rights) {
        (Ok(()), _) => row(Verdict::Ok, format!("{path} opens; it {purpose}")),
        (Err(error), Some(rights)) if error.kind() == io::ErrorKind::PermissionDenied => {
            row(Verdict::Missing, format!("{path} may not be opened ({})", rights.describe()))
                .advise(format!("{use_of_it}: {}", rights.advice(Path::new(path))))
        }
        (Err(error), _) => row(Verdict::Missing, format!("{path}: {}; it {purpose}", reason(&error)))
            .advise(format!("{use_of_it}: `sudo modprobe {module}`")),
    }
}

/// What setting up the smallest ring comes to.
fn io_uring_call() -> io::Result<()> {
    // `struct io_uring_params`: 120 bytes, zero where nothing special is asked for.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes that the pointer leads to, during the call only.
    let descriptor = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if close(descriptor) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn io_uring(tried: io::Result<()>, switch: Option<&str>) -> Row {
    let row = |verdict, detail: String| Row::new(Area::Storage, "io-uring", verdict, detail);
    let use_of_it = "this version of lodger has no disks; later ones do disk input and output with it";
    match tried.map_err(|error| (error.raw_os_error(), reason(&error))) {
        Ok(()) => row(Verdict::Ok, "rings for disk input and output can be set up".to_owned()),
        Err((Some(libc::ENOSYS), _)) => row(Verdict::Missing, "this kernel has none".to_owned()),
        Err((Some(libc::EPERM), _)) if matches!(switch.map(str::trim), Some("1" | "2")) => {
            row(Verdict::Missing, "switched off by kernel.io_uring_disabled".to_owned())
                .advise(format!("{use_of_it}: `sudo sysctl kernel.io_uring_disabled=0`"))
        }
        Err((Some(libc::EPERM), _)) => row(Verdict::Missing, "forbidden to this process".to_owned())
            .advise(format!("{use_of_it}: let the container's system call filter allow io_uring")),
        Err((_, reason)) => row(Verdict::Missing, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(number: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(number))
    }

    fn rights() -> Option<Permissions> {
        Some(Permissions { owner: "root".into(), group: "root".into(), mode: 0o600 })
    }

    #[test]
    fn tap_needs_the_node_and_the_right_to_create_interfaces() {
        assert_eq!(tun(Ok(()), rights(), true).verdict, Verdict::Ok);
        let limited = tun(Ok(()), rights(), false);
        assert_eq!(limited.verdict, Verdict::Limited);
        assert!(limited.advice.is_some_and(|text| text.contains("ip tuntap")));
        let absent = tun(failed(libc::ENOENT), None, true);
        assert!(absent.advice.is_some_and(|text| text.contains("modprobe tun")));
        let forbidden = tun(failed(libc::EACCES), rights(), true);
        assert!(forbidden.detail.contains("mode 600"), "{forbidden:?}");
    }

    #[test]
    fn the_right_to_create_interfaces_is_read_from_the_effective_set() {
        let status = |set: &str| format!("Name:\tx\nCapPrm:\tffff\nCapEff:\t{set}\n");
        assert!(may_make_interfaces(Some(&status("0000000000001000"))));
        assert!(!may_make_interfaces(Some(&status("0000000000000fff"))));
        for odd in ["", "zz", "ffffffffffffffffffff"] {
            assert!(!may_make_interfaces(Some(&status(odd))), "{odd:?}");
        }
        assert!(!may_make_interfaces(None));
    }

    #[test]
    fn a_missing_accelerator_names_its_module_and_a_forbidden_one_its_permissions() {
        let judge = |opened, rights| accelerator_row("n", "/dev/n", "n_module", "helps", opened, rights);
        assert_eq!(judge(Ok(()), None).verdict, Verdict::Ok);
        let absent = judge(failed(libc::ENOENT), None);
        assert!(absent.advice.is_some_and(|text| text.contains("modprobe n_module")));
        let forbidden = judge(failed(libc::EACCES), rights());
        assert!(forbidden.detail.contains("mode 600"), "{forbidden:?}");
    }

    #[test]
    fn io_uring_can_be_absent_switched_off_or_forbidden() {
        assert_eq!(io_uring(Ok(()), None).verdict, Verdict::Ok);
        assert_eq!(io_uring(failed(libc::ENOSYS), None).advice, None);
        let off = io_uring(failed(libc::EPERM), Some("2\n"));
        assert!(off.detail.contains("switched off"), "{off:?}");
        let forbidden = io_uring(failed(libc::EPERM), Some("0\n"));
        assert!(forbidden.detail.contains("forbidden"), "{forbidden:?}");
        assert_eq!(io_uring(failed(libc::ENOMEM), None).verdict, Verdict::Missing);
    }
}
