//! Where snapshots are, and how to get from one to another.

use std::os::unix::ffi::OsStrExt;
use std::path::{self, Component, Path, PathBuf};
use std::{fs, io};

use super::draft::is_state;
use super::{Error, STATE};

/// The absolute path of where a snapshot is to be, without links or `..` on the way to it. Nothing need be there yet,
/// but for the directory that it is to be in.
pub fn place_for(path: &Path) -> Result<PathBuf, Error> {
    let absolute = path::absolute(path).map_err(Error::io("find", path))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        // The root directory, or somewhere else above.
        return fs::canonicalize(&absolute).map_err(Error::io("find", &absolute));
    };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::NoDirectory { path: parent.to_owned() })
        }
        Err(error) => Err(Error::io("find", parent)(error)),
    }
}

/// Fails if a snapshot in this place would be inside of another one, which would be none any more.
pub(super) fn check_outside(place: &Path) -> Result<(), Error> {
    match around(place) {
        None => Ok(()),
        Some(snapshot) => Err(Error::Inside { path: place.to_owned(), snapshot }),
    }
}

/// The snapshot in whose directory a file is, or is to be.
pub fn around(path: &Path) -> Option<PathBuf> {
    let path = resolved(path);
    path.ancestors().skip(1).find(|above| is_state(&above.join(STATE))).map(Path::to_owned)
}

/// How to get to `to` from the directory that is to be in `place`: both may be moved together then. What have nothing
/// in common but the root directory are not moved together.
pub(super) fn path_from(place: &Path, to: &Path) -> io::Result<PathBuf> {
    let to = fs::canonicalize(to)?;
    let place = resolved(place);
    let common = place.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    // The root directory is a component, too.
    if common < 2 {
        return Ok(to);
    }
    let up = place.components().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(common)).collect();
    // Nothing is left if both are one; the path of that is its own.
    Ok(if path.as_os_str().as_bytes().is_empty() { PathBuf::from(".") } else { path })
}

/// The absolute path of what need not be there yet, without links or `..` on the way as far as it can be found, so that
/// it can be compared with others, and means the same elsewhere and later. A link at its end is followed, as to a
/// snapshot that is read; [`place_for`] does not follow that.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let absolute = path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let beside = || Some(fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?));
    fs::canonicalize(&absolute).ok().or_else(beside).unwrap_or(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::Scratch;

    #[test]
    fn paths_are_relative_where_both_can_be_moved_together() {
        let scratch = Scratch::new();
        let base = scratch.path("base");
        fs::create_dir(&base).unwrap();
        let inner = scratch.path("diffs");
        fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink(&base, scratch.path("latest")).unwrap();
        let from = |place: &Path, to: &Path| path_from(place, to).unwrap();
        assert_eq!(from(&scratch.path("diff"), &base), Path::new("../base"));
        assert_eq!(from(&scratch.path("diff"), &scratch.path("latest")), Path::new("../base"));
        assert_eq!(from(&inner.join("one"), &base), Path::new("../../base"));
        assert_eq!(from(&base.join("within"), &base), Path::new(".."));
        assert_eq!(from(&base, &base), Path::new("."));
        assert_eq!(from(Path::new("/proc/self"), &base), fs::canonicalize(&base).unwrap());
        assert!(path_from(&scratch.path("diff"), &scratch.path("none")).is_err());
    }

    #[test]
    fn places_have_one_name() {
        let scratch = Scratch::new();
        let inner = scratch.path("inner");
        fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink(&inner, scratch.path("link")).unwrap();
        let inside = fs::canonicalize(&inner).unwrap();
        let found = |name: &str| place_for(&scratch.path(name)).unwrap();
        for name in ["inner/new", "inner/./new/", "inner/../inner/new", "link/new", "link/../inner/new"] {
            assert_eq!(found(name), inside.join("new"), "{name}");
        }
        assert_eq!(found("inner/.."), inside.parent().unwrap());
        // What takes the place of a link would not be what was meant.
        assert_eq!(found("link"), inside.with_file_name("link"));
        assert_eq!(resolved(&scratch.path("link")), inside);
        assert_eq!(resolved(&scratch.path("link/../inner/new")), inside.join("new"));
        assert_eq!(resolved(Path::new("/no/such/new")), Path::new("/no/such/new"));
        assert!(resolved(Path::new("no/such/new")).is_absolute());
        let error = place_for(&scratch.path("no/new")).unwrap_err().to_string();
        assert!(error.contains("/no is not there") && error.contains("make it first"), "{error}");
        assert_eq!(place_for(Path::new("/")).unwrap(), Path::new("/"));
    }
}
