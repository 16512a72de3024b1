//! What a user says about where the console is to go: `stdio`, `pty`, `file=F` or `none`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a guest's console is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Spec {
    /// This process's standard input and output.
    #[default]
    Stdio,
    /// A new pseudo-terminal, for terminal programs to attach to.
    Pty,
    /// Output to a file that is created or emptied; no input.
    File(PathBuf),
    /// Nowhere: output is discarded, input never comes.
    None,
}

/// Text that names no console.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// `file` without a path.
    #[error("a console in a file needs the file's path, as in \"file=console.log\"")]
    NoPath,
    /// Something else altogether.
    #[error("{found:?} is not a console: write stdio, pty, file=PATH or none")]
    Unknown {
        /// What was written.
        found: String,
    },
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "pty" => Ok(Self::Pty),
            "none" => Ok(Self::None),
            "file" | "file=" => Err(SpecError::NoPath),
            _ => match text.strip_prefix("file=") {
                Some(path) => Ok(Self::File(path.into())),
                None => Err(SpecError::Unknown { found: text.to_owned() }),
            },
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => formatter.write_str("stdio"),
            Self::Pty => formatter.write_str("pty"),
            Self::File(path) => write!(formatter, "file={}", path.display()),
            Self::None => formatter.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_and_written_alike() {
        let kinds = [
            ("stdio", Spec::Stdio),
            ("pty", Spec::Pty),
            ("none", Spec::None),
            ("file=a=b, c", Spec::File("a=b, c".into())),
        ];
        for (text, spec) in kinds {
            assert_eq!(text.parse(), Ok(spec.clone()));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_would_be_right() {
        assert_eq!("file=".parse::<Spec>(), Err(SpecError::NoPath));
        assert_eq!("file".parse::<Spec>(), Err(SpecError::NoPath));
        for text in ["", "STDIO", "tty", "pty=1", " none", "files=x"] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains("stdio, pty, file=PATH or none"), "{error}");
        }
    }
}
