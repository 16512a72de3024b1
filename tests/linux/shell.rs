//! The test guest as its user meets it: a shell on the serial port.

use crate::support::{Linux, has_line, tiny};

#[test]
fn linux_boots_to_a_shell_that_runs_a_script_from_a_pipe() {
    let script = "uname -a; cat /proc/cpuinfo; echo sum $((40 + 2)); poweroff -f\n";
    let finished = Linux::new(tiny()).memory("128M").run_shell(script).with(0);
    let version = tiny().get("version");
    let uname = finished.lines().find(|line| line.starts_with("Linux "));
    assert!(
        uname.is_some_and(|line| line.contains(version) && line.contains("x86_64")),
        "{uname:?} in {finished:?}"
    );
    let processors = finished.lines().filter(|line| line.starts_with("processor\t: ")).count();
    assert_eq!(processors, 1, "{finished:?}");
    for name in ["vendor_id\t: ", "flags\t\t: fpu "] {
        assert!(finished.lines().any(|line| line.starts_with(name)), "{name:?} is not in {finished:?}");
    }
    has_line(&finished, "init: user space reached");
    has_line(&finished, "sum 42");
}

#[test]
fn the_end_of_the_input_ends_the_shell_and_the_guest() {
    let finished = Linux::new(tiny()).run_shell("echo sum $((40 + 2))\n").with(0);
    has_line(&finished, "sum 42");
    has_line(&finished, "init: the shell has ended");
}

#[test]
fn a_scripts_status_is_the_process_s_own() {
    let finished = Linux::new(tiny()).run_only_script("echo from a script; exit 37").with(37).silent();
    has_line(&finished, "from a script");
    has_line(&finished, "init: the script ended with status 37");
    let finished = Linux::new(tiny()).run_only_script("true").with(0);
    has_line(&finished, "init: the script ended with status 0");
}
