//! What an image is.

use std::path::{Path, PathBuf};

use crate::storage::disk::{Identity, open_file, recognised};
use crate::storage::qcow2::Header;
use crate::storage::{Disk, DiskOptions, Error, Format, Locking, raw};

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
    /// Its format.
    pub format: Format,
    /// How large the disk is that it holds.
    pub virtual_size: u64,
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

/// Looks at an image, also at one that is in use.
pub fn info(path: &Path, format: Option<Format>) -> Result<Info, Error> {
    let file = open_file(path, true)?;
    let format = match format {
        Some(format) => format,
        None => recognised(&file, path)?,
    };
    let header = match format {
        Format::Qcow2 => Some(Header::read(&file, path)?),
        Format::Raw => None,
    };
    let size = raw::size_of(&file).map_err(Error::io("read", path))?;
    let size = header.as_ref().map_or(size, |header| header.size);
    let identity = Identity::of(&file).map_err(Error::io("read", path))?;
    let image = describe(path, format, size, header.as_ref(), &identity);
    let options = DiskOptions {
        read_only: true,
        format: Some(format),
        locking: Locking::None,
        ..DiskOptions::default()
    };
    let (chain, problem) = match Disk::open(path, &options) {
        Ok(disk) => {
            let behind = disk.layers().iter().skip(1);
            let chain = behind.map(|layer| {
                describe(&layer.path, layer.format, layer.size, layer.header.as_ref(), &layer.identity)
            });
            (chain.collect(), None)
        }
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Ok(Info { image, chain, problem })
}

fn describe(path: &Path, format: Format, size: u64, header: Option<&Header>, file: &Identity) -> LayerInfo {
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
