//! Directories that come and go, also at once, and such that others have left or laid out.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Instant, SystemTime};

use super::*;
use crate::console::{LOG, OLDER_LOG};
use crate::storage::testing::TempDir;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn root(dir: &TempDir) -> Root {
    Root::at(dir.path().join("root")).unwrap()
}

/// What a process that was killed leaves, at whichever moment.
fn leave(root: &Root, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let path = root.path().join(name);
    root::make(&path).unwrap();
    for (file, content) in files {
        fs::write(path.join(file), content).unwrap();
    }
    path
}

/// The names of what is there.
fn listed(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until `condition` holds. A child that another test has just started has our locks, too, for a moment.
fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_directory_is_its_users_alone_and_goes_with_its_owner() {
    let dir = TempDir::new();
    let root = root(&dir);
    let taken = Directory::take(&root, &name("one")).unwrap();
    let path = root.path().join("one");
    assert_eq!(taken.path(), path);
    for path in [root.path(), &path] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(fs::read_to_string(path.join(PID)).unwrap(), format!("{}\n", process::id()));
    fs::write(path.join("file"), "").unwrap();
    fs::create_dir(path.join("more")).unwrap();
    fs::write(path.join("more/file"), "").unwrap();
    drop(taken);
    assert_eq!(listed(root.path()), [""; 0]);
}

#[test]
fn a_name_is_one_machines_at_a_time_and_the_error_names_its_process() {
    let dir = TempDir::new();
    let root = root(&dir);
    let taken = Directory::take(&root, &name("one")).unwrap();
    let said = Directory::take(&root, &name("one")).unwrap_err().to_string();
    assert!(said.contains("a VM called one already"), "{said}");
    assert!(said.contains(&format!("process {} (", process::id())), "{said}");
    let other = Directory::take(&root, &name("two")).unwrap();
    assert_eq!(listed(root.path()), ["one", "two"]);
    drop(taken);
    wait_until(|| Directory::take(&root, &name("one")).is_ok());
    drop(other);
}

#[test]
fn names_that_nobody_chose_are_found_by_themselves() {
    let dir = TempDir::new();
    let root = root(&dir);
    let taken: Vec<_> = (0..3).map(|_| Directory::take_any(&root).unwrap()).collect();
    let own = process::id();
    assert_eq!(listed(root.path()), [format!("vm-{own}"), format!("vm-{own}-2"), format!("vm-{own}-3")]);
    drop(taken);
}

#[test]
fn what_the_dead_have_left_is_removed_and_the_living_keep_theirs() {
    let dir = TempDir::new();
    let root = root(&dir);
    let living = Directory::take(&root, &name("living")).unwrap();
    fs::write(living.path().join("file"), "").unwrap();
    // Killed while it ran, before it told who it is, before it had the file, and while it cleared up.
    leave(&root, "killed", &[(PID, "99999999\n"), ("disk0.qcow2", "data"), ("log", "")]);
    leave(&root, "early", &[(PID, "")]);
    leave(&root, "earliest", &[]);
    // Nobody's, as far as can be known.
    leave(&root, "foreign", &[("file", "")]);
    fs::write(root.path().join("no-directory"), "").unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(PID), "1\n").unwrap();
    let linked = leave(&root, "linked", &[(PID, "")]);
    symlink(&outside, linked.join("link")).unwrap();
    let taken = Directory::take(&root, &name("taken")).unwrap();
    assert_eq!(listed(root.path()), ["foreign", "living", "no-directory", "taken"]);
    assert_eq!(listed(living.path()), ["file", PID]);
    assert_eq!(listed(&outside), [PID], "a link was followed");
    drop((living, taken));
}

#[test]
fn the_living_and_the_dead_are_told_apart_and_nothing_else_is_listed() {
    let dir = TempDir::new();
    let root = root(&dir);
    let living = Directory::take(&root, &name("living")).unwrap();
    leave(&root, "dead", &[(PID, "99999999\n")]);
    leave(&root, "foreign", &[("file", "")]);
    fs::write(root.path().join("no-directory"), "").unwrap();
    let found = |text: &str| list::look(&root, name(text)).map(|found| (found.pid, found.alive));
    assert_eq!(found("living"), Some((Some(process::id()), true)));
    assert_eq!(found("dead"), Some((Some(99_999_999), false)));
    for text in ["foreign", "no-directory", "nobody"] {
        assert_eq!(found(text), None, "{text}");
    }
    drop(living);
    assert_eq!(found("living"), None);
}

#[test]
fn a_dead_ones_name_is_free_and_its_files_are_gone() {
    let dir = TempDir::new();
    let root = root(&dir);
    for files in [&[(PID, "99999999\n"), ("disk0.qcow2", "data")][..], &[(PID, "")], &[]] {
        leave(&root, "one", files);
        let taken = Directory::take(&root, &name("one")).unwrap();
        assert_eq!(listed(taken.path()), [PID]);
        assert_eq!(owner(&taken.pid), Some(process::id()));
    }
}

fn ended(reason: &str) -> Ended {
    Ended { unix_ms: 1, status: 7, reason: reason.to_owned(), uptime: Some(0.5), cpus: 2, memory: 4096 }
}

/// Has a machine end that tells how.
fn leave_ended(root: &Root, text: &str, reason: &str) -> PathBuf {
    let taken = Directory::take(root, &name(text)).unwrap();
    let path = taken.path().to_owned();
    taken.ended.set(ended(reason)).unwrap();
    path
}

#[test]
fn of_one_that_tells_how_it_ended_that_stays_and_what_it_printed_and_said() {
    let dir = TempDir::new();
    let root = root(&dir);
    let taken = Directory::take(&root, &name("one")).unwrap();
    for file in [MESSAGES, LOG, OLDER_LOG, "control.sock", "disk0.qcow2", "ended.new"] {
        fs::write(taken.path().join(file), file).unwrap();
    }
    taken.ended.set(ended("it was its time\nand more")).unwrap();
    drop(taken);
    let path = root.path().join("one");
    assert_eq!(listed(&path), [LOG, OLDER_LOG, ended::ENDED, MESSAGES, PID]);
    let found = list::look(&root, name("one")).unwrap();
    assert_eq!((found.alive, found.pid), (false, Some(process::id())));
    let told = found.ended.unwrap();
    assert_eq!((told.in_short(), &told), ("it was its time", &ended("it was its time\nand more")));
    // Others that begin leave it alone, one of the same name takes its place, and leaves nothing if it is not to.
    drop(Directory::take(&root, &name("two")).unwrap());
    assert_eq!(listed(root.path()), ["one"]);
    let taken = Directory::take(&root, &name("one")).unwrap();
    assert_eq!(listed(taken.path()), [PID]);
    assert_eq!(list::look(&root, name("one")).unwrap().ended, None);
    drop(taken);
    assert_eq!(listed(root.path()), [""; 0]);
}

#[test]
fn so_many_that_have_ended_are_remembered_and_so_much_of_each() {
    let dir = TempDir::new();
    let root = root(&dir);
    for number in 0..ended::MOST + 3 {
        let path = leave_ended(&root, &format!("vm-{number}"), &"ä".repeat(100_000));
        // The clock of a file system may go in steps.
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
        File::open(path.join(ended::ENDED)).unwrap().set_modified(when).unwrap();
    }
    drop(Directory::take(&root, &name("next")).unwrap());
    let left = listed(root.path());
    assert_eq!(left.len(), ended::MOST);
    assert!(["vm-0", "vm-1", "vm-2"].iter().all(|name| !left.contains(&(*name).to_owned())), "{left:?}");
    let told = list::look(&root, name("vm-3")).unwrap().ended.unwrap();
    assert_eq!(told.reason, "ä".repeat(8 << 10));
}

#[test]
fn what_the_dead_and_the_ended_have_left_is_cleared_away_and_the_living_stay() {
    let dir = TempDir::new();
    let root = root(&dir);
    leave_ended(&root, "ended", "");
    leave(&root, "dead", &[(PID, "99999999\n"), ("disk0.qcow2", "data")]);
    leave(&root, "foreign", &[("file", "")]);
    let living = Directory::take(&root, &name("living")).unwrap();
    leave(&root, "dead", &[(PID, "99999999\n"), ("disk0.qcow2", "data")]);
    for (text, there) in [("ended", true), ("dead", true), ("ended", false), ("foreign", false)] {
        assert_eq!(clear_in(&root, &name(text)).unwrap(), there, "{text}");
    }
    let said = clear_in(&root, &name("living")).unwrap_err().to_string();
    assert!(
        said.contains("the VM living is run by process") && said.contains("lodger kill living"),
        "{said}"
    );
    assert_eq!(listed(root.path()), ["foreign", "living"]);
    drop(living);
}

#[test]
fn a_record_that_cannot_be_read_is_none() {
    let dir = TempDir::new();
    let root = root(&dir);
    let path = leave_ended(&root, "one", "");
    for text in ["", "{}", "nonsense", &"[".repeat(100_000)] {
        fs::write(path.join(ended::ENDED), text).unwrap();
        assert_eq!(list::look(&root, name("one")).unwrap().ended, None);
    }
}

/// `pid` is the first file to be made and the last to be removed.
#[test]
fn what_was_never_a_machines_is_refused_and_stays() {
    let dir = TempDir::new();
    let root = root(&dir);
    let path = leave(&root, "mine", &[("data", "precious")]);
    fs::create_dir(path.join("more")).unwrap();
    let said = Directory::take(&root, &name("mine")).unwrap_err().to_string();
    assert!(said.contains(path.to_str().unwrap()) && said.contains("was no VM's"), "{said}");
    assert!(said.contains("choose another name"), "{said}");
    assert_eq!(listed(&path), ["data", "more"]);
    assert_eq!(fs::read_to_string(path.join("data")).unwrap(), "precious");
    // Nor does the next one to come remove it.
    drop(Directory::take(&root, &name("other")).unwrap());
    assert_eq!(listed(&path), ["data", "more"]);
}

#[test]
fn whoever_removes_a_directory_is_waited_for() {
    let dir = TempDir::new();
    let root = root(&dir);
    let path = leave(&root, "one", &[(PID, "99999999\n"), ("file", "")]);
    let pid = open_pid(&path, false).unwrap();
    assert!(file_lock::try_lock(&pid, Kind::Exclusive, CHANGED).unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| Directory::take(&root, &name("one")));
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        remove(&path, &pid).unwrap();
        drop(pid);
        assert_eq!(listed(waiting.join().unwrap().unwrap().path()), [PID]);
    });
}

/// The kernel frees the memory of a killed process first, and gives up its locks after that.
#[test]
fn a_dying_owner_is_waited_for_and_counts_as_dead() {
    let dir = TempDir::new();
    let root = root(&dir);
    let mut dying = process::Command::new("true").spawn().unwrap();
    wait_until(|| file_lock::is_dying(dying.id()));
    let path = leave(&root, "one", &[(PID, &format!("{}\n", dying.id()))]);
    let lock = open_pid(&path, false).unwrap();
    assert!(file_lock::try_lock(&lock, Kind::Exclusive, OWNED).unwrap());
    assert!(!list::look(&root, name("one")).unwrap().alive);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| Directory::take(&root, &name("one")));
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.join().unwrap().unwrap();
    });
    dying.wait().unwrap();
}

#[test]
fn of_many_that_come_and_go_at_once_each_has_its_directory_for_itself() {
    let dir = TempDir::new();
    let root = root(&dir);
    let (owners, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (owners, taken, root) = (&owners, &taken, &root);
            scope.spawn(move || {
                for round in 0..60 {
                    let name = name(if round % 3 == 2 { "other" } else { "one" });
                    let shared = name.as_str() == "one";
                    match Directory::take(root, &name) {
                        Ok(directory) => {
                            let file = directory.path().join(format!("file-{number}"));
                            fs::write(&file, "").unwrap();
                            if shared {
                                assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                            }
                            thread::yield_now();
                            assert_eq!(listed(directory.path()).len(), 2);
                            if shared {
                                owners.fetch_sub(1, Ordering::SeqCst);
                            }
                            taken.fetch_add(1, Ordering::SeqCst);
                            drop(directory);
                        }
                        Err(Error::Taken { holder, .. }) => {
                            assert!(holder.contains(&process::id().to_string()), "{holder}");
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert!(taken.load(Ordering::SeqCst) > 30);
    drop(Directory::take(&root, &name("last")));
    wait_until(|| {
        drop(Directory::take(&root, &name("last")));
        listed(root.path()).is_empty()
    });
}

#[test]
fn a_directory_that_was_taken_away_by_hand_is_another_owners() {
    let dir = TempDir::new();
    let root = root(&dir);
    let lost = Directory::take(&root, &name("one")).unwrap();
    fs::remove_dir_all(lost.path()).unwrap();
    let taken = Directory::take(&root, &name("one")).unwrap();
    drop(lost);
    assert_eq!(listed(taken.path()), [PID]);
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    for said in [Root::at(path.to_owned()).unwrap_err(), root::make(path).unwrap_err()] {
        let said = said.to_string();
        for word in words.iter().chain(&[path.to_str().unwrap()]) {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
}

#[test]
fn what_others_have_laid_out_is_refused_with_the_reason() {
    let dir = TempDir::new();
    let path = dir.path().join("root");
    fs::write(&path, "").unwrap();
    refused(&path, &["no directory"]);
    fs::remove_file(&path).unwrap();
    let own = dir.path().join("own");
    root::make(&own).unwrap();
    symlink(&own, &path).unwrap();
    refused(&path, &["symbolic link"]);
    fs::remove_file(&path).unwrap();
    root::make(&path).unwrap();
    for mode in [0o755, 0o710, 0o701, 0o1777] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        refused(&path, &["others may enter it", &format!("{mode:o}")]);
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    if user() == 0 {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        refused(&path, &["belongs to user 12345"]);
    }
}

#[test]
fn where_others_can_exchange_it_no_directory_is_made() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let said = Root::at(dir.path().join("root")).unwrap_err().to_string();
    assert!(said.contains("others may replace it"), "{said}");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    Root::at(dir.path().join("root")).unwrap();
    if user() == 0 {
        // Neither mode nor stickiness bind the owner.
        for mode in [0o700, 0o755, 0o1777] {
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(dir.path(), Some(12345), None).unwrap();
            let said = Root::at(dir.path().join("root")).unwrap_err().to_string();
            assert!(said.contains("user 12345 may replace it"), "{said}");
        }
    }
}

#[test]
fn what_lies_under_a_machines_name_and_is_no_directory_of_ours_is_refused() {
    let dir = TempDir::new();
    let root = root(&dir);
    symlink("/etc", root.path().join("link")).unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    let open = leave(&root, "open", &[]);
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    for text in ["link", "file", "open"] {
        assert!(matches!(Directory::take(&root, &name(text)), Err(Error::Unsafe { .. })), "{text}");
    }
    // Nor is a file that leads elsewhere used to lock.
    let linked = leave(&root, "linked", &[]);
    let target = dir.path().join("target");
    fs::write(&target, "content").unwrap();
    symlink(&target, linked.join(PID)).unwrap();
    assert!(matches!(Directory::take(&root, &name("linked")), Err(Error::Io { action: "open", .. })));
    assert_eq!(fs::read_to_string(target).unwrap(), "content");
}
