//! The cache of fixtures: snapshots that this very program made, in a directory beside that of the kernels.
//!
//! Its name says what a fixture was made from: this executable, which holds the whole of lodger, so that no other
//! build's snapshot is ever restored; the kernel, the initramfs and the machine's description; and the host since its
//! last start, whose processors the guest has seen. Tests in parallel, of several runs too, share it. Each fixture has
//! a file that is locked: by one that makes it, or by all that open it. The snapshot is put in its place when it is
//! whole.
//!
//! What was not used for long is removed whenever a new one has been made.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use std::{env, io};

use lodger::snapshot::Snapshot;
use lodger::vm::{Config, Kernel};

/// How much the disk holds of fixtures, but for those that are in use.
const MOST_BYTES: u64 = 512 << 20;
/// How long one is kept that nobody uses.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A fixture that is there, and stays as long as this lives.
pub struct Kept {
    snapshot: Snapshot,
    _lock: File,
}

impl Kept {
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// The fixture of this description. If it is not there, or damaged, `make` writes a snapshot to the path it is given.
pub fn kept(cache: &Path, config: &Config, make: impl FnOnce(&Path)) -> Kept {
    fs::create_dir_all(cache).unwrap_or_else(|error| panic!("{}: {error}", cache.display()));
    let name = name(config);
    let place = cache.join(&name);
    let lock = locked(&cache.join(format!("{name}.lock")), File::lock_shared);
    if let Some(snapshot) = sound(&place) {
        return in_use(snapshot, lock);
    }
    drop(lock);
    let lock = locked(&cache.join(format!("{name}.lock")), File::lock);
    // Somebody else may have made it meanwhile.
    if sound(&place).is_none() {
        let _ = fs::remove_dir_all(&place);
        make(&place);
        println!("made the fixture {}", place.display());
        remove_old(cache, &name, MOST_BYTES, LONGEST);
    }
    lock.lock_shared().unwrap();
    let snapshot = sound(&place).unwrap_or_else(|| panic!("{} was made and is not there", place.display()));
    in_use(snapshot, lock)
}

fn in_use(snapshot: Snapshot, lock: File) -> Kept {
    // The time of its last use.
    let _ = lock.set_modified(SystemTime::now());
    Kept { snapshot, _lock: lock }
}

/// Opens and locks a file; not one that was removed before it was locked.
fn locked(path: &Path, lock: impl Fn(&File) -> io::Result<()>) -> File {
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
        lock(&file).unwrap();
        let number = file.metadata().unwrap().ino();
        if fs::metadata(path).is_ok_and(|now| now.ino() == number) {
            return file;
        }
    }
}

/// The snapshot there, if there is one. Its memory is read and compared with its checksums once in a run.
fn sound(place: &Path) -> Option<Snapshot> {
    static CHECKED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let snapshot = Snapshot::open(place).ok()?;
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !checked.iter().any(|other| other == place) {
        if let Err(error) = snapshot.check() {
            println!("a fixture is made again: {error}");
            return None;
        }
        checked.push(place.to_owned());
    }
    Some(snapshot)
}

/// The hash of everything that a fixture of this description is made from.
fn name(config: &Config) -> String {
    static BUILD_AND_HOST: OnceLock<blake3::Hash> = OnceLock::new();
    let common = BUILD_AND_HOST.get_or_init(|| {
        let mut hasher = blake3::Hasher::new();
        add_file(&mut hasher, &env::current_exe().unwrap());
        hasher.update(&fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default());
        hasher.finalize()
    });
    let mut hasher = blake3::Hasher::new();
    hasher.update(common.as_bytes());
    if let Kernel::File(path) = &config.kernel {
        add_file(&mut hasher, path);
    }
    config.initrds.iter().for_each(|path| add_file(&mut hasher, path));
    hasher.update(format!("{config:?}").as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Adds what is in a file.
fn add_file(hasher: &mut blake3::Hasher, path: &Path) {
    let added = File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    added.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Removes the fixtures that were not used for `longest`, and those that were used least lately as long as all together
/// have more than `most` bytes; but not the one called `but`, nor any that is in use.
fn remove_old(cache: &Path, but: &str, most: u64, longest: Duration) {
    let mut found = fixtures(cache);
    found.sort_by_key(|(_, (used, _))| std::cmp::Reverse(*used));
    let mut sum = 0;
    for (name, (used, size)) in found {
        sum += size;
        let idle = used.elapsed().unwrap_or_default();
        if name == but || (sum <= most && idle <= longest) {
            continue;
        }
        let path = cache.join(format!("{name}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let Some(_lock) = lock.ok().filter(|lock| lock.try_lock().is_ok()) else { continue };
        // What a snapshot is written into has another name until it is whole.
        for left in [name.clone(), format!(".{name}.new")] {
            let _ = fs::remove_dir_all(cache.join(left));
        }
        let _ = fs::remove_file(path);
        sum -= size;
    }
}

/// What is there, by name: when it was last used, and how much of the disk it takes.
fn fixtures(cache: &Path) -> Vec<(String, (SystemTime, u64))> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let (Ok(file), Ok(status)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
        let bare = file.trim_start_matches('.').trim_end_matches(".new").trim_end_matches(".lock");
        let (used, size) = found.entry(bare.to_owned()).or_insert((SystemTime::UNIX_EPOCH, 0));
        *used = status.modified().map_or(*used, |time| time.max(*used));
        let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        *size += files.filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum::<u64>();
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use lodger::snapshot::{Draft, MEMORY};

    use super::*;
    use crate::support::Scratch;

    const SIZE: u64 = 1 << 20;

    fn make(place: &Path) {
        let mut draft = Draft::begin(place, SIZE).unwrap();
        draft.put(0, &vec![1; SIZE as usize]).unwrap();
        draft.finish(Vec::new()).unwrap();
    }

    /// The names of what is there.
    fn names(cache: &Path) -> Vec<String> {
        fixtures(cache).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_fixture_is_made_once_and_again_when_it_is_truncated() {
        let scratch = Scratch::new();
        let config = Config::default();
        let first = kept(scratch.path(), &config, make);
        let again = kept(scratch.path(), &config, |_| panic!("it is there"));
        assert_eq!(again.snapshot().info().id, first.snapshot().info().id);
        let other = Config { rng: true, ..Config::default() };
        let other = kept(scratch.path(), &other, make);
        assert_ne!(other.snapshot().directory(), first.snapshot().directory());
        let place = first.snapshot().directory().to_owned();
        drop((first, again));
        File::options().write(true).open(place.join(lodger::snapshot::STATE)).unwrap().set_len(100).unwrap();
        assert!(kept(scratch.path(), &config, make).snapshot().check().is_ok());
        // Nobody has read this one yet, as in another run.
        let copy = scratch.path().join("copy");
        make(&copy);
        let memory = File::options().write(true).open(copy.join(MEMORY)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&memory, &[2], 5000).unwrap();
        assert!(sound(&copy).is_none());
    }

    #[test]
    fn only_one_makes_a_fixture_and_the_others_wait_for_it() {
        let scratch = Scratch::new();
        let made = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    kept(scratch.path(), &Config::default(), |place| {
                        *made.lock().unwrap() += 1;
                        make(place);
                    });
                });
            }
        });
        assert_eq!(made.into_inner().unwrap(), 1);
    }

    #[test]
    fn what_is_old_or_too_much_is_removed_unless_it_is_in_use() {
        let scratch = Scratch::new();
        let cache = scratch.path();
        for (name, hours) in [("a", 1), ("b", 2), ("c", 3)] {
            make(&cache.join(name));
            let long_ago = SystemTime::now() - Duration::from_secs(3600 * hours);
            File::open(cache.join(name)).unwrap().set_modified(long_ago).unwrap();
            File::create(cache.join(format!("{name}.lock"))).unwrap().set_modified(long_ago).unwrap();
        }
        // What was being written.
        fs::create_dir(cache.join(".d.new")).unwrap();
        fs::write(cache.join(".d.new").join(MEMORY), [1; 8192]).unwrap();
        remove_old(cache, "a", u64::MAX, LONGEST);
        assert_eq!(names(cache), ["a", "b", "c", "d"]);
        let used = locked(&cache.join("c.lock"), File::lock_shared);
        remove_old(cache, "a", 0, LONGEST);
        assert_eq!(names(cache), ["a", "c"]);
        drop(used);
        remove_old(cache, "a", u64::MAX, Duration::ZERO);
        assert_eq!(names(cache), ["a"]);
        assert_eq!(fs::read_dir(cache).unwrap().count(), 2);
    }
}
