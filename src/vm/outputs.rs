//! Files that output goes to, which must be none that the machine or a snapshot needs: they are emptied.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Changes, Config, DiskSource, Error, Kernel, PortSpec};
use crate::console::Place;
use crate::snapshot;

impl Config {
    /// Fails if a port's output, or the console's if that goes to a file, would go where the machine has something
    /// else, or into a snapshot.
    ///
    /// [`Machine::new`](super::Machine::new) looks by itself, but knows nothing of the console's file, which its owner
    /// opens: he asks before he does. Images behind an overlay are not looked at here; they are locked while they are
    /// used.
    pub fn check_outputs(&self, console: Option<&Path>) -> Result<(), Error> {
        let console = console.map(|path| ("the console".to_owned(), path));
        let outputs: Vec<_> = console.into_iter().chain(self.ports.iter().filter_map(output)).collect();
        // The usual case, which is to cost nothing.
        if outputs.is_empty() {
            return Ok(());
        }
        let mut others: Vec<_> =
            self.needed().map(|(what, path)| (what.to_owned(), Identity::of(path))).collect();
        for (name, path) in outputs {
            if let Some(snapshot) = snapshot::around(path) {
                return Err(Error::OutputToSnapshot { output: name, path: path.to_owned(), snapshot });
            }
            let identity = Identity::of(path);
            if identity.is_some()
                && let Some((used_as, _)) = others.iter().find(|(_, other)| *other == identity)
            {
                let (path, used_as) = (path.to_owned(), used_as.clone());
                return Err(Error::OutputToUsed { output: name, path, used_as });
            }
            others.push((format!("the file of {name}"), identity));
        }
        Ok(())
    }

    /// The files that it is made of.
    fn needed(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let kernel = match &self.kernel {
            Kernel::File(path) => Some(("the kernel", path)),
            Kernel::Embedded | Kernel::Bytes(_) => None,
        };
        let initrds = self.initrds.iter().map(|path| ("an initial file system", path));
        let images = self.disks.iter().flat_map(|disk| match &disk.source {
            DiskSource::Image { path, changes: Changes::Overlay(overlay), .. } => vec![path, overlay],
            DiskSource::Image { path, .. } => vec![path],
            DiskSource::Ephemeral { .. } => Vec::new(),
        });
        let images = images.map(|path| ("a disk", path));
        kernel.into_iter().chain(initrds).chain(images).map(|(what, path)| (what, path.as_path()))
    }
}

fn output(port: &PortSpec) -> Option<(String, &Path)> {
    match &port.place {
        Place::File(path) => Some((format!("the port {}", port.name), path)),
        Place::Socket(_) | Place::Pty => None,
    }
}

/// What two paths to one file have in common.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    File {
        device: u64,
        number: u64,
    },
    BlockDevice(u64),
    /// One that is only to be made.
    Future(PathBuf),
}

impl Identity {
    /// None of pipes, terminals and the like, from which nothing can be lost.
    fn of(path: &Path) -> Option<Self> {
        let Ok(found) = fs::metadata(path) else {
            let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
            return Some(Self::Future(directory.canonicalize().ok()?.join(path.file_name()?)));
        };
        if found.is_file() {
            return Some(Self::File { device: found.dev(), number: found.ino() });
        }
        found.file_type().is_block_device().then(|| Self::BlockDevice(found.rdev()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::TempDir;

    #[track_caller]
    fn refused(config: &Config, console: Option<&Path>, words: &[&str]) {
        let said = config.check_outputs(console).unwrap_err().to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }

    fn logs(names: &[(&str, &Path)]) -> Vec<PortSpec> {
        let port = |&(name, path): &(&str, &Path)| PortSpec {
            name: name.to_owned(),
            place: Place::File(path.to_owned()),
        };
        names.iter().map(port).collect()
    }

    #[test]
    fn no_output_goes_to_what_the_machine_needs_by_whichever_path() {
        let dir = TempDir::new();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let (link, hard) = (dir.path().join("link"), dir.path().join("hard"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::hard_link(&file, &hard).unwrap();
        let disk = |text: String| Config { disks: vec![text.parse().unwrap()], ..Config::default() };
        let (file_text, dir_text) = (file.display(), dir.path().display());
        for path in [&file, &link, &hard, &dir.path().join(".").join("file")] {
            let words = ["the port log cannot write to", path.to_str().unwrap(), "choose another file"];
            for (config, what) in [
                (disk(format!("{file_text}")), "is a disk of this VM"),
                (disk(format!("{file_text},ro")), "is a disk of this VM"),
                (disk(format!("{file_text},overlay")), "is a disk of this VM"),
                (disk(format!("/dev/null,overlay={file_text}")), "is a disk of this VM"),
                (Config { kernel: Kernel::File(file.clone()), ..Config::default() }, "is the kernel"),
                (Config { initrds: vec![file.clone()], ..Config::default() }, "is an initial file system"),
            ] {
                refused(&config, Some(path), &["the console cannot write to", what]);
                let config = Config { ports: logs(&[("log", path)]), ..config };
                refused(&config, None, &[&words[..], &[what]].concat());
            }
        }
        // One that is made when the machine is.
        let future = disk(format!("{file_text},overlay={dir_text}/new"));
        refused(&future, Some(&dir.path().join("./new")), &["is a disk"]);
        future.check_outputs(Some(&dir.path().join("other"))).unwrap();
    }

    #[test]
    fn no_output_goes_into_a_snapshot() {
        let scratch = crate::snapshot::testing::Scratch::new();
        let place = scratch.path("snapshot");
        crate::snapshot::testing::write(&place);
        std::os::unix::fs::symlink(place.join("memory"), scratch.path("link")).unwrap();
        for path in [place.join("memory"), place.join("disks/new"), scratch.path("link")] {
            refused(
                &Config::default(),
                Some(&path),
                &["the console cannot", "in the snapshot", "another file"],
            );
            let config = Config { ports: logs(&[("log", &path)]), ..Config::default() };
            refused(&config, None, &["the port log cannot", "in the snapshot"]);
        }
        Config::default().check_outputs(Some(&scratch.path("new"))).unwrap();
    }

    #[test]
    fn each_output_has_a_file_of_its_own() {
        let dir = TempDir::new();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let config = |second| Config { ports: logs(&[("a", &one), ("b", second)]), ..Config::default() };
        config(&two).check_outputs(None).unwrap();
        refused(&config(&one), None, &["the port b cannot write to", "the file of the port a"]);
        refused(&config(&two), Some(&one), &["the port a cannot", "the file of the console"]);
        // What loses nothing may be shared.
        let nowhere = Path::new("/dev/null");
        let config = Config { ports: logs(&[("a", nowhere), ("b", nowhere)]), ..Config::default() };
        config.check_outputs(Some(nowhere)).unwrap();
    }
}
