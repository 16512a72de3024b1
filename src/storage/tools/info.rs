//! What an image is.

use std::path::{Path, PathBuf};

use crate::storage::disk::{Identity, open_file, recognised};
use crate::storage::qcow2::Header;
use crate::storage::{Disk, DiskOptions, Error, Format, Layer, Locking, raw};

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// The image itself.
    #[serde(flatten)]
    pub image: LayerInfo,
    /// What lies behind it, the nearest first.
    pub chain: Vec<LayerInfo>,
    /// Why it could not be opened, if it could not.
    pub problem: Option<String>,
}

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format, if that is one that is read here.
    pub format: Option<Format>,
    /// How large the disk is that it holds, if that can be found out.
    pub virtual_size: Option<u64>,
    /// How long the file is.
    pub file_size: u64,
    /// How much of the host's space it takes.
    pub allocated: u64,
    /// The unit of allocation of a qcow2 image.
    pub cluster_size: Option<u64>,
    /// What a qcow2 image says about what lies behind it.
    pub backing: Option<String>,
    /// In which format that is said to be.
    pub backing_format: Option<String>,
    /// Snapshots inside a qcow2 image.
    pub snapshots: u32,
}

/// Looks at an image, also at one that is in use, or that cannot be opened as a disk.
pub fn info(path: &Path, format: Option<Format>) -> Result<Info, Error> {
    let file = open_file(path, true)?;
    let identity = Identity::of(&file).map_err(Error::io("read", path))?;
    let unusable = |format, error: Error| Info {
        image: describe(path, format, None, None, &identity),
        chain: Vec::new(),
        problem: Some(error.to_string()),
    };
    let format_found = match format.map_or_else(|| recognised(&file, path), Ok) {
        Ok(format) => format,
        Err(error) => return Ok(unusable(None, error)),
    };
    let (header, size) = match format_found {
        Format::Raw => (None, raw::size_of(&file).map_err(Error::io("read", path))?),
        Format::Qcow2 => match Header::read(&file, path) {
            Ok(header) => {
                let size = header.size;
                (Some(header), size)
            }
            Err(error) => return Ok(unusable(Some(format_found), error)),
        },
    };
    let image = describe(path, Some(format_found), Some(size), header.as_ref(), &identity);
    let options = DiskOptions { read_only: true, format, locking: Locking::None, ..DiskOptions::default() };
    let (chain, problem) = match Disk::open(path, &options) {
        Ok(disk) => (disk.layers().iter().skip(1).map(describe_layer).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Ok(Info { image, chain, problem })
}

fn describe_layer(layer: &Layer) -> LayerInfo {
    describe(&layer.path, Some(layer.format), Some(layer.size), layer.header.as_ref(), &layer.identity)
}

fn describe(
    path: &Path,
    format: Option<Format>,
    size: Option<u64>,
    header: Option<&Header>,
    file: &Identity,
) -> LayerInfo {
    let backing = header.and_then(|header| header.backing.as_ref());
    LayerInfo {
        path: path.to_owned(),
        format,
        virtual_size: size,
        file_size: file.len,
        allocated: file.allocated,
        cluster_size: header.map(Header::cluster_size),
        backing: backing.map(|backing| backing.name.clone()),
        backing_format: backing.and_then(|backing| backing.format.clone()),
        snapshots: header.map_or(0, |header| header.snapshots),
    }
}
