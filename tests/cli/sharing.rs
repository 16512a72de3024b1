//! Equal pages of two guests, which the host's KSM keeps once until one of them is written to.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use crate::support::{Running, program, wait_until};

const KSM: &str = "/sys/kernel/mm/ksm";

fn number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// KSM at work and in a hurry; with the value it is as it was before.
struct Hurry(Vec<(String, String)>);

impl Hurry {
    /// None where that is not permitted.
    fn new() -> Option<Self> {
        let mut before = Self(Vec::new());
        // Without smart scans, which leave pages out that were not merged the last times.
        for (name, value) in
            [("smart_scan", "0"), ("sleep_millisecs", "5"), ("pages_to_scan", "5000"), ("run", "1")]
        {
            let path = format!("{KSM}/{name}");
            // Older hosts do not have all of these.
            let Ok(old) = fs::read_to_string(&path) else { continue };
            fs::write(&path, value).ok()?;
            before.0.push((path, old));
        }
        (before.0.last()?.0.ends_with("run")).then_some(before)
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        for (path, value) in self.0.drain(..).rev() {
            if let Err(error) = fs::write(&path, value) {
                eprintln!("{path} is not as it was: {error}");
            }
        }
    }
}

/// The embedded guest at its prompt.
struct Guest {
    running: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Guest {
    fn start() -> Self {
        let mut command = program();
        command.args(["--memory=64M,mergeable", "--cmdline", "quiet"]).stdin(Stdio::piped());
        let mut running = Running::start(&mut command);
        let (input, output) = (running.stdin(), BufReader::new(running.stdout()));
        Self { running, input, output }
    }

    /// Has it carry out commands, and returns what it printed meanwhile.
    fn does(&mut self, commands: &str) -> String {
        writeln!(self.input, "{commands}\necho so far").unwrap();
        let mut said = String::new();
        while !said.ends_with("\nso far\r\n") {
            assert!(self.output.read_line(&mut said).unwrap() > 0, "{said}");
        }
        said
    }

    /// How many of its pages the host does not keep for it alone.
    fn merged(&self) -> u64 {
        number(&format!("/proc/{}/ksm_merging_pages", self.running.id()))
    }
}

#[test]
fn equal_pages_of_two_guests_are_shared_until_one_writes_to_them() {
    const WRITTEN: u64 = 64;
    let Some(_hurry) = Hurry::new() else {
        eprintln!("skipped: there is no KSM, or it may not be switched on; run as root");
        return;
    };
    let mut guests = [Guest::start(), Guest::start()];
    for guest in &mut guests {
        // Each of these 4096 pages is another one, but they are the same in both guests.
        assert!(guest.does("touch 16").contains("every page kept what was written"));
    }
    let scans = || number(&format!("{KSM}/full_scans"));
    let mut last = (0, 0, 0);
    wait_until("the pages are merged, and there are no more", || {
        let now = (guests[0].merged(), guests[1].merged());
        if now != (last.0, last.1) {
            last = (now.0, now.1, scans());
        }
        now.0.min(now.1) >= 4096 && scans() > last.2 + 2
    });
    let (merged, sharing) = (last.0, number(&format!("{KSM}/pages_sharing")));
    println!("{} and {} pages are merged, {sharing} are saved", last.0, last.1);
    assert!(sharing >= 4096);

    let [first, second] = &mut guests;
    let written = (0..WRITTEN).map(|page| (0x80_0000 + page as u32 * 4096, 0x1234_5600 + page as u32));
    // No two of them are equal afterwards.
    let pokes: Vec<_> =
        written.clone().map(|(address, value)| format!("poke {address:#x} {value:#x}")).collect();
    first.does(&pokes.join("\n"));
    for (address, value) in written.step_by(21) {
        let look = format!("peek {address:#x} 4");
        for (guest, value) in [(&mut *first, value), (&mut *second, !address)] {
            let [a, b, c, d] = value.to_le_bytes();
            let said = guest.does(&look);
            assert!(said.contains(&format!("  {a:02x} {b:02x} {c:02x} {d:02x} ")), "{said}");
        }
    }
    wait_until("what was written is the guest's own", || first.merged() + WRITTEN <= merged);
    assert!(first.merged() + 2 * WRITTEN > merged, "only what was written");
}
