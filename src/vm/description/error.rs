//! What is wrong with a description, and where.

use std::path::PathBuf;
use std::{fmt, io};

use super::LARGEST;

/// Why a text describes no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct DescriptionError {
    /// In which line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: Reason,
}

/// What can be wrong with a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is not text.
    #[error("this is not text (UTF-8)")]
    NotText,
    /// It is not TOML.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// A key of more parts than mean something.
    #[error("a key of so many parts means nothing")]
    Deep,
    /// A key that means nothing.
    #[error("{0}")]
    Key(Unknown),
    /// A value of another kind.
    #[error("`{name}` is {found}, and has to be {wanted}")]
    Kind {
        /// The key.
        name: String,
        /// What it is.
        found: &'static str,
        /// What it may be.
        wanted: &'static str,
    },
    /// A value that says nothing of use.
    #[error("`{name}`: {why}")]
    Value {
        /// The key.
        name: String,
        /// Why not.
        why: String,
    },
}

/// A key that means nothing where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The key.
    pub key: String,
    /// The table in which it stands; empty for the file itself.
    pub table: String,
    /// What may have been meant.
    pub meant: Option<&'static str>,
    /// What means something there.
    pub known: Vec<&'static str>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, table, meant, known } = self;
        // Keys are short, as long as somebody means something by them.
        const LONGEST: usize = 60;
        match key.char_indices().nth(LONGEST) {
            Some((end, _)) => write!(f, "unknown key `{}…`", key[..end].escape_debug())?,
            None => write!(f, "unknown key `{}`", key.escape_debug())?,
        }
        if !table.is_empty() {
            write!(f, " in `{table}`")?;
        }
        match meant {
            Some(meant) => write!(f, ": did you mean `{meant}`?"),
            None => write!(f, "; there are `{}`", known.join("`, `")),
        }
    }
}

/// Why a file describes no machine.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is no description, by its size.
    #[error("{} is larger than {} MiB, which no description of a machine is", .0.display(), LARGEST >> 20)]
    TooLarge(PathBuf),
    /// It describes no machine.
    #[error("{}, {source}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: DescriptionError,
    },
}

/// Why a machine cannot be described in a text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CannotDescribe {
    /// The text is UTF-8.
    #[error(
        "the path {0:?} is not UTF-8, as everything in a description has to be: give the file another name"
    )]
    Path(PathBuf),
    /// A text can name no bytes in memory.
    #[error("the kernel is no file, so that a description cannot name it")]
    KernelInMemory,
    /// Something only a program can have asked for.
    #[error("the machine has what no description can say: {0}")]
    Impossible(DescriptionError),
    /// Something that would be another machine.
    #[error("the description says something else than it should; this is a bug of lodger")]
    Differs,
}
