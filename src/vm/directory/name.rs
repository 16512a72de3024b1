//! `--name`: what a machine is called.

use std::fmt;
use std::str::FromStr;

/// The longest name: with the directories around it and a socket's name behind it, it has to fit into the address of a
/// socket, which has 107 bytes.
const LONGEST: usize = 64;

/// What a machine is called, and its directory with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// A text that is no name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a name has 1 to {LONGEST} letters (a to z), digits, and -, _ or ., and begins with a letter or digit"
)]
pub struct NameError;

impl Name {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// What begins with a dot is hidden or has a meaning of its own, and what begins with a dash looks like an option.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if begins && text.len() <= LONGEST && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_mean_nothing_to_file_systems_and_shells() {
        for text in ["a", "web", "Web-2_b.c", "7", &"x".repeat(64)] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        for text in ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(65)] {
            assert_eq!(text.parse::<Name>(), Err(NameError), "{text:?}");
        }
    }
}
