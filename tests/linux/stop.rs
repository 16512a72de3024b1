//! `lodger stop`: Linux hears of the power button, and shuts itself down.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Fixture, Running, Session, smp, wait_until};

#[test]
fn linux_switches_itself_off_when_it_is_asked_to_also_from_a_pause() {
    for paused in [false, true] {
        let session = Session::new();
        let (_kept, mut command) = Fixture::bare(smp()).command();
        command.args(["--name", "linux"]).env("XDG_RUNTIME_DIR", session.path());
        let mut running = Running::start(command.stdin(Stdio::piped()));
        // As long as nobody has hung up.
        let _keyboard = running.stdin();
        let lines = BufReader::new(running.stdout()).lines();
        wait_until("it is there", || session.run(&["inspect", "linux"]).status.success());
        if paused {
            session.run(&["pause", "linux"]).with(0).silent();
        }
        session.run(&["stop", "linux", "--timeout", "300"]).with(0).silent();
        let rest: Vec<_> = lines.map(Result::unwrap).collect();
        assert!(rest.iter().any(|line| line.contains("init: the power button was pressed")), "{rest:?}");
        running.finish().with(0).silent();
    }
}
