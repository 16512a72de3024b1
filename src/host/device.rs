//! Device nodes: who may open them, and what to do for those who may not.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::kernel_files as files;

const READ_WRITE_BY_GROUP: u32 = 0o060;
const MODE_BITS: u32 = 0o7777;

/// Who may open a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permissions {
    /// The owner's name, or number where it has none.
    pub owner: String,
    /// The group's name, or number where it has none.
    pub group: String,
    /// The permission bits.
    pub mode: u32,
}

impl Permissions {
    /// Those of the node at `path`.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            owner: name_of(found.uid(), files::read("/etc/passwd").as_deref()),
            group: name_of(found.gid(), files::read("/etc/group").as_deref()),
            mode: found.mode() & MODE_BITS,
        })
    }

    /// As in "owner root, group kvm, mode 660".
    pub(super) fn describe(&self) -> String {
        let Self { owner, group, mode } = self;
        format!("owner {owner}, group {group}, mode {mode:03o}")
    }

    /// What lets somebody open the node who may not now.
    pub(super) fn advice(&self, path: &Path) -> String {
        let path = path.display();
        if self.mode & READ_WRITE_BY_GROUP == READ_WRITE_BY_GROUP && self.group != "root" {
            let group = &self.group;
            return format!(
                "add yourself to the group {group} (`sudo usermod -aG {group} $USER`, then log in again)"
            );
        }
        format!(
            "give it to the group kvm (`sudo chgrp kvm {path} && sudo chmod 660 {path}`) and add yourself to \
             that group (`sudo usermod -aG kvm $USER`, then log in again)"
        )
    }
}

/// The name of a user or group, from the text of `/etc/passwd` or `/etc/group`.
fn name_of(id: u32, table: Option<&str>) -> String {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found = fields.nth(1)?.parse::<u32>().ok()?;
        (found == id && !name.is_empty()).then(|| name.to_owned())
    };
    table.and_then(|table| table.lines().find_map(line)).unwrap_or_else(|| id.to_string())
}

/// Whether this process may open the node for reading and writing.
pub(super) fn try_open(path: &Path) -> io::Result<()> {
    // No node may keep this waiting.
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map(drop)
}

/// What the operating system said, without its number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or_default();
    plain.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "root:x:0:\nkvm:x:104:\n:x:7:\nodd\nodd:x\nodd:x:y:\n";

    #[test]
    fn names_come_from_the_table_and_numbers_stand_in_for_missing_ones() {
        assert_eq!(name_of(104, Some(GROUPS)), "kvm");
        assert_eq!(name_of(7, Some(GROUPS)), "7");
        assert_eq!(name_of(105, Some(GROUPS)), "105");
        assert_eq!(name_of(0, None), "0");
    }

    #[test]
    fn a_group_that_may_open_the_node_is_the_one_to_join() {
        let kvm = Permissions { owner: "root".into(), group: "virt".into(), mode: 0o660 };
        let advice = kvm.advice(Path::new("/dev/kvm"));
        assert!(advice.contains("usermod -aG virt"), "{advice}");
        assert_eq!(kvm.describe(), "owner root, group virt, mode 660");
    }

    #[test]
    fn nobody_is_advised_to_join_the_group_root() {
        for mode in [0o600, 0o660] {
            let root = Permissions { owner: "root".into(), group: "root".into(), mode };
            let advice = root.advice(Path::new("/dev/kvm"));
            assert!(advice.contains("chgrp kvm /dev/kvm"), "{advice}");
            assert!(!advice.contains("-aG root"), "{advice}");
        }
    }

    #[test]
    fn reasons_are_told_without_numbers() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
        assert_eq!(reason(&io::Error::other("Odd")), "odd");
    }
}
