//! An image that is open: for a device, or for the tools.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vm_memory::VolatileSlice;

use super::assumed::AssumedRaw;
use super::error::EPHEMERAL;
use super::format::{Content, recognise_file};
use super::qcow2::{self, Access, Header, Held, Qcow2Disk};
use super::{Direction, Error, Extent, Flush, Format, Place, RawFile, Storage, Verified, lock};
use crate::threads;

/// How many images may lie behind each other.
pub const DEEPEST: usize = 64;

/// Which images of a chain are locked while the disk is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Locking {
    /// The image, and all that lies behind it: what a VM needs.
    #[default]
    Chain,
    /// Only the image.
    Image,
    /// The image now, and what lies behind it when [`Disk::lock_behind`] is called: while it is opened, somebody may
    /// still have a lock on that who is about to give it up.
    ImageFirst,
    /// None: only for a look at what somebody else may be changing.
    None,
}

/// How an image is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskOptions {
    /// Nothing can be written then.
    pub read_only: bool,
    /// What it is. Without it, its first bytes decide, and what would let a guest decide is refused.
    pub format: Option<Format>,
    /// Past the host's page cache, where a request is aligned for that.
    pub direct: bool,
    /// Whether the format of a backing file that does not declare it is found out from its content. A guest that
    /// once had that file as a raw disk could have written a header that names any file of the host.
    pub probe_backing: bool,
    /// Whether what is read of the image's backing file is compared with the hashes beside that.
    pub verify_backing: bool,
    /// What is locked.
    pub locking: Locking,
}

/// One image of a chain.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How large the disk is that it holds.
    pub size: u64,
    pub(super) header: Option<Header>,
    pub(super) identity: Identity,
}

impl Layer {
    /// Which file it was when it was opened, and in which state.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Which file it is, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The file system's number.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
    /// How long it is.
    pub len: u64,
    /// When something was written to it last, in seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
    /// When something of it was changed last.
    pub changed: (i64, i64),
    /// How much of the host's space it takes.
    pub allocated: u64,
}

impl Identity {
    /// That of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let status = file.metadata()?;
        Ok(Self {
            device: status.dev(),
            inode: status.ino(),
            len: status.len(),
            modified: (status.mtime(), status.mtime_nsec()),
            changed: (status.ctime(), status.ctime_nsec()),
            allocated: status.blocks() * 512,
        })
    }

    /// Whether it is the same file, in whichever state.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// An image that is open, with all that lies behind it.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    layers: Vec<Layer>,
    /// What is still to be locked.
    unlocked: Mutex<Vec<(PathBuf, File)>>,
}

#[derive(Debug)]
enum Kind {
    Raw(RawFile),
    /// Raw, because it is nothing else and nobody said so: has to stay that.
    AssumedRaw(AssumedRaw),
    Qcow2(Box<Qcow2Disk>),
}

impl Disk {
    /// Opens an image.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self, Error> {
        let file = open_file(path, options.read_only)?;
        if options.locking != Locking::None {
            lock::lock(&file, path, !options.read_only)?;
        }
        let format = match options.format {
            Some(format) => format,
            None => recognised(&file, path)?,
        };
        let mut chain = Chain::new(options);
        let kind = match format {
            Format::Raw => {
                let raw = raw_file(file, path, options.read_only, options.direct)?;
                chain.add(path, Format::Raw, &raw, None)?;
                match options.format {
                    Some(_) => Kind::Raw(raw),
                    None => Kind::AssumedRaw(AssumedRaw::new(raw)),
                }
            }
            Format::Qcow2 => {
                let header = Header::read(&file, path)?;
                header.check_usable(path)?;
                if options.format.is_none() {
                    check_name(path, &header)?;
                }
                let for_flushing = file.try_clone().map_err(Error::io("open", path))?;
                let held = header.held();
                let image = chain.qcow2(file, path, header, options.read_only, &held)?;
                Kind::Qcow2(Box::new(Qcow2Disk::new(image, for_flushing, held, options.read_only)))
            }
        };
        Ok(chain.disk(kind))
    }

    /// A disk of zeroes that is in no directory and goes away with the value. `dir` says on which file system. Of the
    /// options those count that do not tell what is in it.
    pub fn ephemeral(dir: &Path, size: u64, options: &DiskOptions) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(dir)
            .map_err(Error::io(EPHEMERAL, dir))?;
        file.set_len(size).map_err(Error::io("give a size to an ephemeral disk in", dir))?;
        // There is no other path to it.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let mut raw = RawFile::new(file, options.read_only).map_err(Error::io("open", dir))?;
        if options.direct {
            raw = direct(raw, &path, dir)?;
        }
        let mut chain = Chain::new(options);
        chain.add(dir, Format::Raw, &raw, None)?;
        Ok(chain.disk(Kind::Raw(raw)))
    }

    /// What is in a file, byte for byte, that somebody has open.
    pub(super) fn of_file(file: File, path: &Path) -> Result<Self, Error> {
        let options = DiskOptions { read_only: true, locking: Locking::None, ..DiskOptions::default() };
        let raw = RawFile::new(file, true).map_err(Error::io("read", path))?;
        let mut chain = Chain::new(&options);
        chain.add(path, Format::Raw, &raw, None)?;
        Ok(chain.disk(Kind::Raw(raw)))
    }

    /// The image first, and then what lies behind each.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What the image itself holds.
    pub fn format(&self) -> Format {
        self.layers[0].format
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.layers[0].path
    }

    /// What the image itself, without what lies behind it, has at `offset`, and for how many of the `len` bytes
    /// from there on.
    pub fn extent(&self, offset: u64, len: u64) -> io::Result<(Extent, u64)> {
        match &self.kind {
            Kind::Raw(raw) => raw.extent(offset, len),
            Kind::AssumedRaw(raw) => raw.inner().extent(offset, len),
            Kind::Qcow2(image) => image.extent(offset, len),
        }
    }

    /// Whether the disk is known to read as zeroes at `offset`, and for how many of the `len` bytes that holds.
    pub fn reads_as_zero(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        match &self.kind {
            Kind::Qcow2(image) => image.reads_as_zero(offset, len),
            _ => self.extent(offset, len).map(|(extent, len)| (extent != Extent::Data, len)),
        }
    }

    /// Locks what lies behind the image, if it was opened [so](Locking::ImageFirst).
    pub fn lock_behind(&self) -> Result<(), Error> {
        let mut unlocked = threads::lock(&self.unlocked);
        while let Some((path, file)) = unlocked.last() {
            // The lock is that of the file that is read, of which this is one more descriptor.
            lock::lock(file, path, false)?;
            unlocked.pop();
        }
        Ok(())
    }

    /// Lets others read the image, which nobody writes to any more. It stays open as it is.
    pub fn share(&self) {
        lock::only_read(self.file(), self.path());
    }

    /// The image's own file.
    pub fn file(&self) -> &File {
        match &self.kind {
            Kind::Raw(raw) => raw.file(),
            Kind::AssumedRaw(raw) => raw.inner().file(),
            Kind::Qcow2(image) => image.file(),
        }
    }

    /// The disk's qcow2 image, for what only that can do.
    pub(super) fn into_qcow2(self) -> Option<Qcow2Disk> {
        match self.kind {
            Kind::Qcow2(image) => Some(*image),
            _ => None,
        }
    }

    fn storage(&self) -> &dyn Storage {
        match &self.kind {
            Kind::Raw(raw) => raw,
            Kind::AssumedRaw(raw) => raw,
            Kind::Qcow2(image) => &**image,
        }
    }
}

impl Storage for Disk {
    fn size(&self) -> u64 {
        self.storage().size()
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.storage().read(offset, to)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.storage().write(offset, from)
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        self.storage().begin_flush()
    }

    fn place(&self, direction: Direction, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        self.storage().place(direction, offset, slices)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.storage().write_zeroes(offset, len, unmap)
    }

    fn read_only(&self) -> bool {
        self.storage().read_only()
    }
}

/// A chain that is being opened.
struct Chain<'a> {
    options: &'a DiskOptions,
    layers: Vec<Layer>,
    unlocked: Vec<(PathBuf, File)>,
}

impl<'a> Chain<'a> {
    fn new(options: &'a DiskOptions) -> Self {
        Self { options, layers: Vec::new(), unlocked: Vec::new() }
    }

    fn disk(self, kind: Kind) -> Disk {
        Disk { kind, layers: self.layers, unlocked: Mutex::new(self.unlocked) }
    }

    fn add(
        &mut self,
        path: &Path,
        format: Format,
        raw: &RawFile,
        header: Option<Header>,
    ) -> Result<(), Error> {
        let identity = Identity::of(raw.file()).map_err(Error::io("open", path))?;
        let size = header.as_ref().map_or(raw.size(), |header| header.size);
        self.push(Layer { path: path.to_owned(), format, size, header, identity })
    }

    fn push(&mut self, layer: Layer) -> Result<(), Error> {
        if self.layers.iter().any(|other| other.identity.is_same_file(&layer.identity)) {
            return Err(Error::refused(
                &layer.path,
                "the chain of backing files comes back to it",
                "give one of them another with `lodger disk rebase --unsafe`",
            ));
        }
        if self.layers.len() == DEEPEST {
            return Err(Error::refused(
                &layer.path,
                format!("more than {DEEPEST} images lie behind each other"),
                "make the chain shorter with `lodger disk commit` or `rebase`",
            ));
        }
        self.layers.push(layer);
        Ok(())
    }

    fn qcow2(
        &mut self,
        file: File,
        path: &Path,
        header: Header,
        read_only: bool,
        held: &Held,
    ) -> Result<Access, Error> {
        let raw = raw_file(file, path, read_only, self.options.direct)?;
        let backing = header.backing.clone();
        self.add(path, Format::Qcow2, &raw, Some(header))?;
        let backing = match backing {
            None => None,
            Some(backing) => Some(self.backing(path, &backing)?),
        };
        qcow2::qcow2_layer(raw, !read_only, backing, held).map_err(Error::io("open", path))
    }

    fn backing(&mut self, above: &Path, backing: &qcow2::Backing) -> Result<Access, Error> {
        let path = backing_path(above, &backing.name)?;
        let file = open_file(&path, true).map_err(|error| behind(above, error))?;
        match self.options.locking {
            Locking::Chain => lock::lock(&file, &path, false)?,
            Locking::ImageFirst => {
                let file = file.try_clone().map_err(Error::io("open", &path))?;
                self.unlocked.push((path.clone(), file));
            }
            Locking::Image | Locking::None => {}
        }
        let format = match backing.format.as_deref() {
            Some("raw" | "file") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some(other) => {
                return Err(Error::refused(
                    above,
                    format!("its backing file is said to be in the format {other:?}, which is not read here"),
                    "convert that with `qemu-img convert`, and rebase",
                ));
            }
            None if self.options.probe_backing => recognised(&file, &path)?,
            None => {
                return Err(Error::refused(
                    above,
                    format!("it does not say in which format its backing file {} is", path.display()),
                    format!(
                        "if you know, say so: lodger disk rebase --unsafe {} --backing {} --backing-format FORMAT",
                        above.display(),
                        backing.name
                    ),
                ));
            }
        };
        if self.options.verify_backing && self.layers.len() == 1 {
            return self.verified(&path, format);
        }
        match format {
            Format::Raw => {
                let raw = raw_file(file, &path, true, self.options.direct)?;
                self.add(&path, Format::Raw, &raw, None)?;
                qcow2::raw_layer(raw).map_err(Error::io("open", &path))
            }
            Format::Qcow2 => {
                let header = Header::read(&file, &path)?;
                header.check_usable(&path)?;
                self.qcow2(file, &path, header, true, &Held::nothing())
            }
        }
    }

    /// What lies behind the first image, with all that lies behind that: the hashes are of the whole.
    fn verified(&mut self, path: &Path, format: Format) -> Result<Access, Error> {
        let options =
            DiskOptions { read_only: true, format: Some(format), verify_backing: false, ..*self.options };
        let disk = Verified::new(Disk::open(path, &options)?)?;
        disk.disk().layers().iter().try_for_each(|layer| self.push(layer.clone()))?;
        qcow2::verified_layer(disk).map_err(Error::io("open", path))
    }
}

/// Opens a file, and no directory, pipe or terminal.
pub(super) fn open_file(path: &Path, read_only: bool) -> Result<File, Error> {
    use std::os::unix::fs::FileTypeExt;
    // A pipe that nobody writes to would be waited for.
    let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(Error::io("open", path))?;
    let kind = file.metadata().map_err(Error::io("open", path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::refused(path, "it is no file", "name a disk image or a block device"));
    }
    Ok(file)
}

fn raw_file(file: File, path: &Path, read_only: bool, direct: bool) -> Result<RawFile, Error> {
    let raw = RawFile::new(file, read_only).map_err(Error::io("open", path))?;
    if direct { self::direct(raw, path, path) } else { Ok(raw) }
}

/// The same file with direct I/O, which is at `path` and known as `name`.
fn direct(raw: RawFile, path: &Path, name: &Path) -> Result<RawFile, Error> {
    raw.with_direct_io(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => Error::refused(
            name,
            "its file system has no direct I/O",
            "leave `direct` out, or put the image on another file system",
        ),
        _ => Error::io("open", name)(error),
    })
}

/// What the first bytes of the file say it is.
pub(super) fn recognised(file: &File, path: &Path) -> Result<Format, Error> {
    match recognise_file(file).map_err(Error::io("read", path))? {
        Content::Qcow2 => Ok(Format::Qcow2),
        Content::Other => Ok(Format::Raw),
        Content::Foreign(name) => Err(Error::refused(
            path,
            format!("it looks like {name}, which is not read here"),
            "convert it with `qemu-img convert`; if it really is a raw disk, say so (--disk FILE,format=raw; \
             `lodger disk` has --format, --from and the like)",
        )),
    }
}

/// A raw disk's guest can write a header of qcow2 that names any file of the host as its backing file, and would
/// get to read that when the disk is opened again by its content. So an image whose format nobody said may refer to
/// another file only if its name says that it is an overlay.
fn check_name(path: &Path, header: &Header) -> Result<(), Error> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let says_so = ["qcow2", "qcow", "overlay", "snap"].contains(&extension.to_ascii_lowercase().as_str());
    match &header.backing {
        Some(backing) if !says_so => Err(Error::refused(
            path,
            format!(
                "its content is a qcow2 image on top of {:?}, which its name does not tell; the guest of a raw disk \
                 could have written that to get at your files",
                backing.name
            ),
            "if it is meant to be one, name it so; or say its format, qcow2 or raw (--disk FILE,format=raw; `lodger \
             disk` has --format, --from and the like)",
        )),
        _ => Ok(()),
    }
}

/// Where the file behind `above` is. Relative names are meant from where the image is, as everywhere.
pub(super) fn backing_path(above: &Path, name: &str) -> Result<PathBuf, Error> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    let protocol = plain.split_once(':').filter(|(protocol, _)| !protocol.contains('/'));
    if let Some((protocol, _)) = protocol {
        return Err(Error::refused(
            above,
            format!(
                "its backing file {name:?} is reached through {protocol:?}, and only files are known here"
            ),
            "copy that into a file, and rebase",
        ));
    }
    Ok(above.parent().unwrap_or(Path::new("")).join(plain))
}

/// Tells of which image the file is the backing file.
fn behind(above: &Path, error: Error) -> Error {
    match error {
        Error::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => Error::refused(
            above,
            format!("its backing file {} is not there", path.display()),
            "bring it back, or name another with `lodger disk rebase --unsafe`",
        ),
        other => other,
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
