//! Disks with limits, asked for more by the embedded guest's `disk`.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Scratch, guest, lodger};

const SIZE: usize = 4 << 20;

/// How long the process took in which the guest did `work` to a disk with these options, and what the disk holds then.
/// It held sevens before; the guest writes zeroes.
#[track_caller]
fn run(options: &str, work: &str) -> (Duration, Vec<u8>) {
    let scratch = Scratch::new();
    let path = scratch.at("disk");
    fs::write(&path, vec![7; SIZE]).unwrap();
    let disk = ["--disk".to_owned(), format!("{path}{options}")];
    let start = Instant::now();
    let finished = lodger(disk.into_iter().chain(guest(&format!("disk {work};halt"))), "").with(0).silent();
    assert!(finished.stdout.contains(" 0 failed"), "{finished:#?}");
    (start.elapsed(), fs::read(path).unwrap())
}

#[track_caller]
fn takes(least: u64, options: &str, work: &str) -> Vec<u8> {
    let (took, bytes) = run(options, work);
    println!("{options} {work}: {took:?}");
    assert!(took >= Duration::from_millis(least), "{took:?}");
    bytes
}

#[test]
fn operations_are_limited_in_the_long_run() {
    takes(299, ",iops=1000+1", "read 4096 32 300");
    takes(299, ",iops=1000+1,direct,queues=2", "read 4096 8 300");
    takes(250, ",iops=1000+50", "read 512 1 300 seq");
    // The smallest burst that nobody chose is one.
    takes(750, ",iops=4", "read 512 4 4");
}

#[test]
fn bytes_are_limited_in_the_long_run_and_what_is_late_is_right() {
    // 4 MiB, without the burst and the request that goes on credit.
    let bytes = takes(293, ",bps=10M+1M", "write 65536 8 64 seq");
    assert!(bytes.iter().all(|&byte| byte == 0));
    let bytes = takes(199, ",bps=5M+4K,direct", "write 4096 32 256 seq");
    assert!(bytes[..1 << 20].iter().all(|&byte| byte == 0) && bytes[1 << 20..].iter().all(|&byte| byte == 7));
    // Each is larger than the burst.
    let bytes = takes(300, ",bps=10M+1", "write 1048576 2 4 seq");
    assert!(bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn what_a_burst_or_high_limits_let_through_is_done() {
    for options in [",bps=1+1G,iops=1+1000000", ",bps=15.5E,iops=18446744073709551615"] {
        let (_, bytes) = run(options, "write 65536 8 64 seq");
        assert!(bytes.iter().all(|&byte| byte == 0), "{options}");
    }
}
