//! Arguments that mean nothing (status 2), and arguments that mean something impossible (status 1).

use crate::support::{Scratch, lodger};

#[track_caller]
fn misunderstood(arguments: &[&str], word: &str) {
    let finished = lodger(arguments, "").with(2);
    assert_eq!(finished.stdout, "");
    assert!(finished.stderr.starts_with("error: ") && finished.stderr.contains(word), "{finished:#?}");
    assert!(finished.stderr.contains("--help"), "{finished:#?}");
}

#[test]
fn what_is_no_option_is_wrong_usage() {
    misunderstood(&["--nonsense"], "--nonsense");
    misunderstood(&["run", "--memroy", "1G"], "--memory");
    misunderstood(&["run", "one", "two"], "two");
    misunderstood(&["--cpus"], "--cpus");
    misunderstood(&["run", "--cpus", "1", "--cpus", "2"], "--cpus");
}

#[test]
fn text_that_is_no_size_is_wrong_usage() {
    for text in ["100M1", "", "M", "lots", "1.G", ".5G", "1.1G", "0x100000", "16E", "99999999999999999999"] {
        misunderstood(&["--memory", text], "--memory");
    }
    misunderstood(&["--memory=-1"], "-1");
    misunderstood(&["--memory", "1G,fast"], "hugepages, hugetlb, prefault and mergeable");
    misunderstood(&["--memory", "1G,hugepages,hugetlb"], "choose one");
    misunderstood(&["--memory", "1G,hugetlb,mergeable"], "not merged");
    misunderstood(&["--balloon=much"], "\"much\" is not a size");
    misunderstood(&["--balloon=1M,often"], "there is no-reporting");
}

#[test]
fn text_that_is_no_limit_of_a_disk_is_wrong_usage() {
    misunderstood(&["--disk", "disk.img,bps=0"], "bps=0 is no limit");
    misunderstood(&["--disk", "disk.img,iops=many"], "\"many\" is no number of operations");
    misunderstood(&["--disk", "disk.img,iops=500+0"], "a burst of nothing");
}

#[test]
fn text_that_is_no_count_of_processors_is_wrong_usage() {
    for text in ["two", "-1", "1.5", "4294967296", ""] {
        misunderstood(&[&format!("--cpus={text}")], "--cpus");
    }
}

#[test]
fn text_that_is_no_arrangement_of_processors_is_wrong_usage() {
    misunderstood(&["--cpus", "8,sockets=3"], "sockets × cores × threads");
    misunderstood(&["--cpus", "8,sockets=2,cores=2,threads=4"], "2 sockets × 2 cores × 4 threads");
    misunderstood(&["--cpus", "2,dies=2"], "there are sockets=S, cores=C and threads=T");
    misunderstood(&["--cpus", "cores=2,cores=2"], "twice");
    misunderstood(&["--cpus", "2,cores=two"], "two");
}

#[test]
fn text_that_is_no_processor_is_wrong_usage() {
    misunderstood(&["--cpu", "skylake"], "write host or baseline");
    misunderstood(&["--cpu", "host,popcnt"], "+popcnt");
    misunderstood(&["--cpu", "host,+sse4.2"], "sse4_2");
    misunderstood(&["--cpu", "baseline,-teapot"], "--cpu help");
    misunderstood(&["--cpu="], "host or baseline");
}

#[test]
fn text_that_is_no_place_is_wrong_usage() {
    for text in ["", "here", "0x", "0x1000,fast", "0x1000,real,long", "-1", "0x10000000000000000"] {
        misunderstood(&[&format!("--flat={text}")], "--flat");
    }
    misunderstood(&["--entry", "multiboot"], "auto, pvh, linux64 and image");
}

#[test]
fn text_that_is_no_console_is_wrong_usage() {
    for text in ["", "tty", "file=", "file", "pty=1", "virtio,", "virtio,tty", "virtio=pty"] {
        misunderstood(&[&format!("--console={text}")], "--console");
    }
    misunderstood(&["--console", "hvc0"], "virtio,pty");
}

#[test]
fn text_that_is_no_port_is_wrong_usage() {
    for (text, word) in [
        ("", "no name of a port"),
        ("a/b,pty", "no name of a port"),
        ("agent", "there are socket=PATH, pty and file=PATH"),
        ("agent,tcp=80", "\"tcp=80\" is no place"),
        ("agent,pty=1", "\"pty=1\" is no place"),
        ("agent,socket=", "needs its path"),
        ("agent,file", "needs its path"),
    ] {
        misunderstood(&[&format!("--port={text}")], word);
    }
}

#[test]
fn text_that_is_no_interval_is_wrong_usage() {
    for text in ["", "1", "fast", "-1ms", "1.5ms", "0ms", "10us", "61s", "99999999999999999999s"] {
        misunderstood(&["--profile=x", &format!("--profile-interval={text}")], "--profile-interval");
    }
    misunderstood(&["--profile-interval", "1ms"], "--profile <FILE>");
    misunderstood(&["--profile"], "--profile");
}

#[test]
fn sizes_that_no_machine_has_are_refused() {
    lodger(["--memory", "0"], "").refused(&["memory", "at least 1M"]);
    lodger(["--memory", "64M", "--balloon=64M"], "").refused(&["balloon of 64M", "smaller"]);
    lodger(["--memory", "64K"], "").refused(&["64K", "at least 1M"]);
    lodger(["--memory", "4194305"], "").refused(&["4194305", "4 KiB"]);
    lodger(["--memory", "1E"], "").refused(&["1E", "address"]);
    lodger(["--memory", "15E,prefault"], "").refused(&["15E", "address"]);
}

#[test]
fn a_guest_that_does_not_fit_says_how_much_it_needs() {
    lodger(["--memory", "1M"], "").refused(&["embedded guest", "1M of memory", "--memory 2M"]);
    lodger(["--memory", "2M", "--cmdline", "quiet run=exit 9"], "").with(9).silent();
}

#[test]
fn huge_pages_that_are_not_reserved_come_with_advice() {
    lodger(["--memory", "1T,hugetlb"], "").refused(&["nr_hugepages"]);
}

#[test]
fn filling_in_more_memory_than_the_host_has_is_refused_at_once() {
    lodger(["--memory", "4T,prefault"], "").refused(&["prefault", "4T", "memory"]);
}

#[test]
fn numbers_of_processors_that_no_machine_has_are_refused() {
    lodger(["--cpus", "0"], "").refused(&["at least one processor"]);
    lodger(["--cpus", "100000"], "").refused(&["100000", "at most"]);
    lodger(["--cpus", "4294967295"], "").refused(&["4294967295", "at most"]);
    lodger(["--cpus", "sockets=4294967295,cores=4294967295"], "")
        .refused(&["18446744065119617025", "at most"]);
    lodger(["--cpus", "sockets=17,cores=9"], "").refused(&["17 sockets of 9 cores", "powers of two"]);
}

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    let long = "x".repeat(100_000);
    lodger(["--cmdline", &long], "").refused(&["100000 bytes", "at most 2047"]);
    // The longest that fits arrives whole.
    let longest = format!("quiet {} run=cmdline;exit 4", "x".repeat(2047 - 25));
    let finished = lodger(["--cmdline", &longest], "").with(4);
    assert!(finished.lines().any(|line| line == longest), "{finished:#?}");
    lodger(["--cmdline", &longest, "--append", "x"], "").refused(&["2049 bytes", "at most 2047"]);
}

#[test]
fn what_is_added_to_the_command_line_follows_it() {
    let line = |arguments: &[&str]| {
        let finished = lodger(arguments, "cmdline\nexit 3\n").with(3);
        let mut lines = finished.lines().skip_while(|line| !line.ends_with("> cmdline"));
        lines.nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(line(&["--append", "quiet", "--append", "b c"]), "quiet b c");
    assert_eq!(line(&["--append", "b", "--cmdline", "quiet a"]), "quiet a b");
}

#[test]
fn an_initrd_that_cannot_be_had_is_refused() {
    let scratch = Scratch::new();
    lodger(["--initrd", &scratch.at("none")], "").refused(&["initrd", "none", "No such file"]);
    lodger(["--initrd", "/tmp"], "").refused(&["initrd", "/tmp", "directory"]);
    lodger(["--initrd", &scratch.file("empty", b"")], "").refused(&["initrd", "empty"]);
    let large = scratch.file("large", b"x");
    std::fs::File::options().write(true).open(&large).unwrap().set_len(1 << 40).unwrap();
    lodger(["--initrd", &large, "--memory", "64M"], "").refused(&["large", "give the guest more memory"]);
    let small = scratch.file("small", b"x");
    lodger(["--initrd", &small, "--initrd", &scratch.at("none")], "").refused(&["none", "No such file"]);
    let both = ["--initrd", &small, "--initrd", &large];
    lodger(both, "").refused(&["small (1 bytes)", "large (1099511627776 bytes)", "together they take"]);
}

#[test]
fn a_log_filter_that_makes_no_sense_does_not_keep_the_guest_from_running() {
    let mut command = crate::support::program();
    command.env("RUST_LOG", "=,=,!!").args(crate::support::guest("exit 5"));
    crate::support::Running::start(&mut command).finish().with(5);
}
