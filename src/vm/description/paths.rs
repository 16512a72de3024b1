//! The paths in a description, and what they are relative to.

use std::path::{Path, PathBuf};
use std::{io, path};

use super::Description;
use crate::console::{self, Place};
use crate::vm::{Changes, Config, DiskSource, Kernel};

impl Description {
    /// Has relative paths begin at `directory`.
    pub fn resolve(&mut self, directory: &Path) {
        for path in self.paths() {
            // An absolute one stays what it is.
            *path = directory.join(&*path);
        }
    }

    /// Has relative paths begin at the directory in which this process is, and be absolute. Links are not followed.
    pub fn make_absolute(&mut self) -> io::Result<()> {
        for path in self.paths() {
            *path = path::absolute(&*path)?;
        }
        Ok(())
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let Self { config, console } = self;
        // All are named, so that another one with a path is not forgotten.
        let Config {
            kernel,
            initrds,
            disks,
            ports,
            name: _,
            memory: _,
            cpus: _,
            cpu: _,
            entry: _,
            flat: _,
            cmdline: _,
            append: _,
            rng: _,
            balloon: _,
            virtio_console: _,
            completion: _,
            clock: _,
        } = config;
        let mut paths: Vec<_> = initrds.iter_mut().collect();
        if let Kernel::File(path) = kernel {
            paths.push(path);
        }
        for disk in disks {
            if let DiskSource::Image { path, changes, .. } = &mut disk.source {
                paths.push(path);
                if let Changes::Overlay(overlay) = changes {
                    paths.push(overlay);
                }
            }
        }
        for port in ports {
            match &mut port.place {
                Place::Socket(path) | Place::File(path) => paths.push(path),
                Place::Pty => {}
            }
        }
        if let console::Spec::File(path) = console {
            paths.push(path);
        }
        paths
    }
}
