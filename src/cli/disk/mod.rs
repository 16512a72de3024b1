//! `lodger disk`: making, examining and changing disk images; one file per subcommand.
//!
//! Everything is done by [`lodger::storage::tools`]; here are its options and what is printed.

mod check;
mod commit;
mod convert;
mod create;
mod diff;
mod hash;
mod info;
pub(super) mod output;
mod rebase;
mod resize;
mod size;
mod sync;

use clap::{Args, Subcommand};

use super::AnyError;

const HELP: &str = "\
Examples:
  lodger disk create root.raw --size 4G                    an empty disk that takes no space yet
  lodger disk create vm1.qcow2 --backing template.qcow2    an overlay: the template stays as it is
  lodger disk info vm1.qcow2 --json | jq .chain
  lodger disk convert vm1.qcow2 vm1.raw                    a copy of its own, with all that lies behind
  lodger disk check vm1.qcow2 --repair
  lodger disk sync vm1.raw /backup/vm1.raw --verify        move only what differs

Every subcommand takes --json. Formats are raw and qcow2, and QEMU reads what is written here. Without a format an
image's content decides, except where a guest could have written it to get at other files; then the message says so.
Images that are in use are refused, whether a VM of lodger or of QEMU has them.";

/// What to do with which image.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Subcommand)]
enum DiskCommand {
    /// Make an empty image, or an overlay on another
    Create(create::CreateArgs),
    /// Say what an image is, and what lies behind it
    Info(info::InfoArgs),
    /// Copy a disk to an image of its own, in another format
    Convert(convert::ConvertArgs),
    /// Write what an overlay holds into the image behind it
    Commit(commit::CommitArgs),
    /// Put an overlay onto another image, or onto none
    Rebase(rebase::RebaseArgs),
    /// Give a disk another size
    Resize(resize::ResizeArgs),
    /// Find out whether a qcow2 image is sound, and repair it
    Check(check::CheckArgs),
    /// Hash a disk block by block, and keep the hashes beside its image
    Hash(hash::HashArgs),
    /// Say where two disks differ
    Diff(diff::DiffArgs),
    /// Make one disk equal to another by moving only what differs
    Sync(sync::SyncArgs),
}

/// Does it; the status is 1 where the answer is no.
pub fn disk(arguments: &DiskArgs) -> Result<u8, AnyError> {
    match &arguments.command {
        DiskCommand::Create(arguments) => create::create(arguments),
        DiskCommand::Info(arguments) => info::info(arguments),
        DiskCommand::Convert(arguments) => convert::convert(arguments),
        DiskCommand::Commit(arguments) => commit::commit(arguments),
        DiskCommand::Rebase(arguments) => rebase::rebase(arguments),
        DiskCommand::Resize(arguments) => resize::resize(arguments),
        DiskCommand::Check(arguments) => check::check(arguments),
        DiskCommand::Hash(arguments) => hash::hash(arguments),
        DiskCommand::Diff(arguments) => diff::diff(arguments),
        DiskCommand::Sync(arguments) => sync::sync(arguments),
    }
}
