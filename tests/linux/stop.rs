//! `lodger stop`: Linux hears of the power button, and shuts itself down.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;

use crate::support::{Linux, Running, Scratch, program, smp};

#[test]
fn linux_switches_itself_off_when_it_is_asked_to_also_from_a_pause() {
    for paused in [false, true] {
        let scratch = Scratch::new();
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let runtime = scratch.path().to_owned();
        let ask = |line: &[&str]| {
            let mut command = program();
            Running::start(command.args(line).env("XDG_RUNTIME_DIR", &runtime)).finish()
        };
        let linux = Linux::new(smp()).options(&["--name", "linux"]).variable("XDG_RUNTIME_DIR", &runtime);
        let mut running = linux.start_script("echo ready; sleep 1000");
        let mut lines = BufReader::new(running.stdout()).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")));
        if paused {
            ask(&["pause", "linux"]).with(0).silent();
        }
        ask(&["stop", "linux", "--timeout", "300"]).with(0).silent();
        let rest: Vec<_> = lines.map(Result::unwrap).collect();
        assert!(rest.iter().any(|line| line.contains("init: the power button was pressed")), "{rest:?}");
        running.finish().with(0).silent();
    }
}
