//! Tests that have a process of their own, in which a panic of any thread is the end, nothing else uses memory, and
//! what never comes to an end is killed.

use std::any;
use std::env;
use std::fs;
use std::io::Read;
use std::panic;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ALONE: &str = "LODGER_TEST_ALONE";
const CASES: &str = "LODGER_HOSTILE_CASES";
/// What a case may take on average, and all of them anyway.
const EACH: Duration = Duration::from_millis(2);
const ALL: Duration = Duration::from_mins(2);

/// Runs `body` in another process, which is this test once more.
#[track_caller]
pub fn alone<T: Fn()>(test: &T, body: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            before(info);
            process::abort();
        }));
        return body();
    }
    // A function's type is called as it is, behind the crate's name.
    let name = any::type_name_of_val(test).split_once("::").map_or("", |(_, name)| name);
    let mut child = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let outputs = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let said = thread::spawn(|| read(outputs.0));
    let complained = thread::spawn(|| read(outputs.1));
    let limit = Instant::now() + ALL + EACH * u32::try_from(cases(0)).unwrap_or(u32::MAX);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.to_string();
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break "killed, since it does not come to an end".to_owned();
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (said, complained) = (said.join().unwrap(), complained.join().unwrap());
    println!("{said}");
    assert!(said.contains("1 passed"), "{name}: {status}\n{said}\n{complained}");
}

fn read(mut output: impl Read) -> String {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How many cases a generated test tries: `LODGER_HOSTILE_CASES`, or as many as a test may take time for.
pub fn cases(otherwise: u64) -> u64 {
    env::var(CASES).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What this process has.
#[derive(Debug, Clone, Copy)]
struct Usage {
    heap: usize,
    resident: usize,
    files: usize,
    threads: usize,
}

impl Usage {
    fn now() -> Self {
        // SAFETY: only returns numbers.
        let heap = unsafe { libc::mallinfo2() };
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let count = |directory| fs::read_dir(directory).unwrap().count();
        Self {
            heap: heap.uordblks + heap.hblkhd,
            resident: pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096,
            files: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }
}

/// The numbers of cases; as the last was tried, the process has no more of anything than after the first quarter, but
/// for what comes and goes.
pub fn watched(count: u64) -> impl Iterator<Item = u64> {
    let start = Instant::now();
    let mut warm = None;
    (0..=count).map_while(move |case| {
        if case == count / 4 {
            warm = Some(Usage::now());
        }
        if case < count {
            return Some(case);
        }
        let (warm, end) = (warm?, Usage::now());
        println!("{count} cases in {:.1?}: {warm:?} after a quarter, {end:?} at the end", start.elapsed());
        assert!(end.heap < warm.heap + (256 << 10), "the heap grows");
        assert!(end.resident < warm.resident + (8 << 20), "the process grows");
        assert!(end.files < warm.files + 40, "files stay open");
        assert!(end.threads < warm.threads + 20, "threads stay");
        None
    })
}
