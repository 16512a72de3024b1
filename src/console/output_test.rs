//! The output is tested against pipes: readers that read, that are slow, stuck or gone.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::super::sink::Handle;
use super::super::writer::Flow;
use super::*;

const LONG: Duration = Duration::from_secs(10);

fn timing(patience: Duration) -> Timing {
    Timing { patience, ..Timing::default() }
}

/// An output into a pipe of the smallest size, and the other end of it.
fn pipe(patience: Duration) -> (Arc<Output>, File) {
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: changes only the size of the pipe.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    (output(writer.into(), patience), OwnedFd::from(reader).into())
}

fn output(fd: OwnedFd, patience: Duration) -> Arc<Output> {
    Arc::new(Output::new(Sink::new(Handle::Owned(fd)), timing(patience)))
}

fn set_nonblocking(fd: &impl AsRawFd) {
    // SAFETY: changes only the mode of the descriptor.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
}

fn read_all(mut reader: File) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits until `what` holds.
fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < LONG, "this never came to be");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that show if one is missing or out of order.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Pushes until the queue is full and one more push is waiting.
fn fill_and_wait(output: &Arc<Output>) -> JoinHandle<()> {
    let pusher = {
        let output = Arc::clone(output);
        thread::spawn(move || (0..SOFT_BOUND / 1024 + 8).for_each(|_| output.push(&[b'.'; 1024])))
    };
    let shared = output.shared.as_ref().unwrap();
    until(|| shared.lock().waiting > 0);
    pusher
}

#[test]
fn the_first_byte_is_written_at_once_and_without_a_thread() {
    let (output, mut reader) = pipe(LONG);
    assert_eq!(output.first_byte_at(), None);
    let before = Instant::now();
    output.push(b"X");
    assert!(output.first_byte_at().is_some_and(|at| at >= before));
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"X");
    assert!(!output.shared.as_ref().unwrap().lock().started);
    assert_eq!(output.counters(), Counters { bytes_written: 1, writes: 1, ..Counters::default() });
}

#[test]
fn a_million_bytes_arrive_complete_and_in_order() {
    let (output, reader) = pipe(LONG);
    let reader = read_all(reader);
    let bytes = pattern(1_000_000);
    for byte in &bytes {
        output.push(std::slice::from_ref(byte));
    }
    output.finish();
    assert_eq!(output.counters().bytes_dropped, 0);
    drop(output);
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn pushes_of_all_sizes_keep_their_order_also_through_a_nonblocking_pipe() {
    let (reader, writer) = io::pipe().unwrap();
    set_nonblocking(&writer);
    let output = output(writer.into(), LONG);
    let reader = read_all(OwnedFd::from(reader).into());
    let bytes = pattern(1_500_000);
    let mut rest = &bytes[..];
    let mut size = 0;
    while !rest.is_empty() {
        size = (size * 3 + 1) % 200_003;
        let (now, later) = rest.split_at(size.min(rest.len()));
        output.push(now);
        rest = later;
    }
    output.finish();
    drop(output);
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn what_several_processors_print_arrives_whole() {
    let (output, reader) = pipe(LONG);
    let reader = read_all(reader);
    let printers = [b'a', b'b', b'c'].map(|letter| {
        let output = Arc::clone(&output);
        thread::spawn(move || (0..50_000).for_each(|_| output.push(&[letter])))
    });
    for printer in printers {
        printer.join().unwrap();
    }
    output.finish();
    drop(output);
    let bytes = reader.join().unwrap();
    for letter in [b'a', b'b', b'c'] {
        assert_eq!(bytes.iter().filter(|byte| **byte == letter).count(), 50_000);
    }
}

#[test]
fn a_burst_of_bytes_costs_few_writes_and_few_wakes() {
    let (output, reader) = pipe(LONG);
    let reader = read_all(reader);
    let start = Instant::now();
    let mut pushed = 0;
    while start.elapsed() < Duration::from_millis(100) {
        output.push(b".");
        pushed += 1;
        let next = Instant::now();
        while next.elapsed() < Duration::from_micros(7) {}
    }
    output.finish();
    let counters = output.counters();
    drop(output);
    assert_eq!(reader.join().unwrap().len(), pushed);
    // On an idle machine about 105 writes and 1 wake for 14,000 bytes.
    assert!(counters.writes < pushed as u64 / 10, "{counters:?} for {pushed} bytes");
    assert!(counters.wakes < pushed as u64 / 50, "{counters:?} for {pushed} bytes");
}

#[test]
fn finishing_twice_or_without_output_is_fine() {
    let (output, reader) = pipe(LONG);
    output.finish();
    output.finish();
    output.push(b"late");
    assert_eq!(output.counters(), Counters { bytes_dropped: 4, ..Counters::default() });
    drop(output);
    assert_eq!(read_all(reader).join().unwrap(), b"");
}

#[test]
fn a_thread_started_beforehand_changes_nothing() {
    let (output, reader) = pipe(LONG);
    output.start();
    output.start();
    output.push(b"one ");
    output.push(b"two");
    output.finish();
    output.start();
    drop(output);
    assert_eq!(read_all(reader).join().unwrap(), b"one two");
}

#[test]
fn a_stuck_reader_costs_one_wait_and_then_bytes_and_the_loss_is_told() {
    let (output, reader) = pipe(Duration::from_millis(50));
    let pushed = 3 * SOFT_BOUND;
    for _ in 0..pushed / 64 {
        output.push(&[b'.'; 64]);
    }
    let lost = output.counters().bytes_dropped;
    assert!(lost >= SOFT_BOUND as u64);
    let reader = read_all(reader);
    // Once the reader takes some, bytes are taken again, after the notice.
    until(|| output.shared.as_ref().unwrap().lock().flow == Flow::Open);
    output.push(b"back");
    output.finish();
    assert_eq!(output.counters().bytes_dropped, lost);
    drop(output);
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    let notice = format!("\r\n[lodger: {lost} bytes of console output lost]\r\nback");
    assert_eq!(text.strip_suffix(&notice).map(str::len), Some(pushed - lost as usize));
}

#[test]
fn a_loss_is_told_even_if_the_guest_prints_nothing_more() {
    let (output, reader) = pipe(Duration::from_millis(200));
    output.push(&vec![b'.'; 2 * SOFT_BOUND]);
    let reader = read_all(reader);
    output.finish();
    drop(output);
    assert!(reader.join().unwrap().ends_with(b" bytes of console output lost]\r\n"));
}

#[test]
fn a_slow_reader_loses_nothing() {
    let (output, mut reader) = pipe(LONG);
    let sum = thread::spawn(move || {
        let mut all = Vec::new();
        let mut piece = [0; 8192];
        loop {
            thread::sleep(Duration::from_micros(500));
            match reader.read(&mut piece).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&piece[..count]),
            }
        }
    });
    let bytes = pattern(5 * SOFT_BOUND);
    bytes.chunks(100).for_each(|piece| output.push(piece));
    output.finish();
    drop(output);
    assert!(sum.join().unwrap() == bytes);
}

#[test]
fn finishing_does_not_wait_for_ever_for_a_reader_that_never_reads() {
    for nonblocking in [false, true] {
        let (reader, writer) = io::pipe().unwrap();
        if nonblocking {
            set_nonblocking(&writer);
        }
        let output = output(writer.into(), Duration::from_millis(50));
        output.push(&[b'.'; SOFT_BOUND]);
        output.push(&[b'.'; SOFT_BOUND]);
        let start = Instant::now();
        output.finish();
        output.finish();
        assert!(start.elapsed() < LONG);
        let counters = output.counters();
        assert_eq!(counters.bytes_written + counters.bytes_dropped, 2 * SOFT_BOUND as u64);
        // Only the writer to a non-blocking pipe can be ended before its reader is.
        if nonblocking {
            let shared = Arc::downgrade(output.shared.as_ref().unwrap());
            drop(output);
            until(|| shared.strong_count() == 0);
        }
        drop(reader);
    }
}

#[test]
fn releasing_frees_a_waiting_push_and_loses_nothing() {
    let (output, reader) = pipe(LONG);
    let pusher = fill_and_wait(&output);
    output.release_waiters(true);
    pusher.join().unwrap();
    assert_eq!(output.counters().bytes_dropped, 0);
    output.release_waiters(false);
    let reader = read_all(reader);
    output.finish();
    drop(output);
    assert_eq!(reader.join().unwrap().len(), SOFT_BOUND + 8 * 1024);
}

#[test]
fn released_pushes_stop_at_the_hard_bound() {
    let (output, reader) = pipe(LONG);
    output.release_waiters(true);
    output.push(&vec![b'.'; 4 * HARD_BOUND]);
    let dropped = output.counters().bytes_dropped;
    assert!(dropped >= 2 * HARD_BOUND as u64);
    let reader = read_all(reader);
    output.finish();
    drop(output);
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    assert!(text.ends_with(&format!("[lodger: {dropped} bytes of console output lost]\r\n")));
}

#[test]
fn a_reader_that_is_gone_ends_the_output_and_not_the_process() {
    let (output, reader) = pipe(LONG);
    output.push(b"first");
    drop(reader);
    output.push(b"second");
    until(|| output.failure().is_some());
    assert_eq!(output.failure().unwrap().kind(), io::ErrorKind::BrokenPipe);
    output.push(b"third");
    output.finish();
    let expected = Counters { bytes_written: 5, bytes_dropped: 11, bytes_of_ours: 0, writes: 1, wakes: 1 };
    assert_eq!(output.counters(), expected);
}

#[test]
fn a_reader_that_goes_frees_a_waiting_push() {
    let (output, reader) = pipe(LONG);
    let pusher = fill_and_wait(&output);
    drop(reader);
    pusher.join().unwrap();
    assert_eq!(output.failure().unwrap().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_full_disk_is_told() {
    let full = OwnedFd::from(File::options().write(true).open("/dev/full").unwrap());
    let output = output(full, LONG);
    output.push(b"first");
    assert_eq!(output.failure().unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(output.counters().bytes_dropped, 5);
}

#[test]
fn discarded_output_still_knows_when_it_began() {
    let output = Output::discard();
    output.start();
    output.push(b"X");
    let first = output.first_byte_at();
    assert!(first.is_some());
    output.push(b"Y");
    assert_eq!(output.first_byte_at(), first);
    output.finish();
    assert_eq!(output.counters(), Counters::default());
}

#[test]
fn a_text_of_ours_never_waits() {
    let (output, reader) = pipe(LONG);
    let pusher = fill_and_wait(&output);
    output.notify("left out");
    let text = read_all(reader);
    pusher.join().unwrap();
    output.finish();
    drop(output);
    assert!(text.join().unwrap().iter().all(|byte| *byte == b'.'));
}

#[test]
fn stopping_and_printing_at_the_same_time_hangs_nobody() {
    for _ in 0..50 {
        let (output, reader) = pipe(LONG);
        let reader = read_all(reader);
        let stop = Arc::new(AtomicBool::new(false));
        let printer = {
            let (output, stop) = (Arc::clone(&output), Arc::clone(&stop));
            thread::spawn(move || {
                let mut pushed = 0;
                while !stop.load(Ordering::Relaxed) {
                    output.push(b"0123456789");
                    pushed += 10;
                }
                pushed
            })
        };
        thread::sleep(Duration::from_micros(200));
        output.start();
        output.release_waiters(true);
        // Ends although the printer goes on.
        output.finish();
        stop.store(true, Ordering::Relaxed);
        let pushed: u64 = printer.join().unwrap();
        let counters = output.counters();
        assert_eq!(counters.bytes_written + counters.bytes_dropped, pushed + counters.bytes_of_ours);
        drop(output);
        assert_eq!(reader.join().unwrap().len() as u64, counters.bytes_written);
    }
}
