//! What Linux is handed at its start: the command line, initial file systems, a seed for its random numbers.

use crate::support::{Linux, USER_SPACE, first_process, has_line, lodger, section, tiny};

const ASK: &str = "show:/proc/cmdline exit:42";

#[test]
fn the_command_line_replaces_the_default() {
    let line = format!("console=ttyS0 quiet a=b rdinit=/tests -- {ASK}");
    let arguments = ["run", tiny().path("vmlinux"), "--initrd", first_process(), "--cmdline", &line];
    let finished = lodger(arguments, "").with(42).silent();
    assert_eq!(section(&finished, "/proc/cmdline").trim_end(), line);
}

#[test]
fn what_is_appended_follows_the_default() {
    let arguments = ["run", tiny().path("vmlinux"), "--initrd", first_process()];
    let more = ["--append", "quiet rdinit=/tests", &format!("--append=-- {ASK}")];
    let finished = lodger([&arguments[..], &more].concat(), "").with(42).silent();
    let line = format!("console=ttyS0 reboot=k panic=-1 quiet rdinit=/tests -- {ASK}");
    assert_eq!(section(&finished, "/proc/cmdline").trim_end(), line);
}

#[test]
fn a_kernel_takes_its_longest_command_line_whole() {
    let end = format!(" rdinit=/tests -- {ASK}");
    let start = "console=ttyS0 quiet x=";
    let line = format!("{start}{}{end}", "y".repeat(2047 - start.len() - end.len()));
    let arguments = ["run", tiny().path("vmlinux"), "--initrd", first_process(), "--cmdline", &line];
    let finished = lodger(arguments, "").with(42).silent();
    assert_eq!(section(&finished, "/proc/cmdline").trim_end(), line);
}

#[test]
fn several_initial_file_systems_become_one() {
    let finished = Linux::new(tiny()).with_programs().run("run:/bin/check:list exit:42").with(42).silent();
    has_line(&finished, USER_SPACE);
    has_line(&finished, "/bin/check list: status 0");
}

#[test]
fn random_numbers_are_there_from_the_start_and_differ() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        // Without trust in the processor's own numbers only the seed is left.
        let linux = Linux::new(tiny()).parameters("random.trust_cpu=off");
        let finished = linux.run("log random exit:42").with(42).silent();
        let log = section(&finished, "log");
        let ready = log.lines().find(|line| line.contains("crng init done"));
        assert!(ready.is_some_and(|line| line.starts_with("<5>[    0.000000]")), "{ready:?} in {finished:?}");
        seen.extend(finished.lines().find_map(|line| line.strip_prefix("random: ")).map(str::to_owned));
    }
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0], seen[1]);
}
