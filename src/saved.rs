//! The envelope in which every piece of saved state travels.
//!
//! Each thing that has state (memory layout, vCPU, device) has a `Saved…` type of its own that implements
//! [`Saved`]. [`encode`] writes its name and version in front of it; [`decode`] refuses anything that is not
//! exactly what was asked for. Snapshots store these envelopes as their sections; this room relies on
//! nothing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// State that can be written down and read back.
pub trait Saved: Serialize + DeserializeOwned {
    /// What this state belongs to, e.g. `"serial"`.
    const NAME: &'static str;
    /// Raised whenever the encoding of the type changes.
    const VERSION: u16;
}

/// Why saved state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The bytes are not an envelope, or end too early.
    #[error("saved state of {name} is damaged or cut short")]
    Damaged {
        /// The state that was expected.
        name: &'static str,
    },
    /// The envelope holds the state of something else.
    #[error("expected the saved state of {expected}, found that of {found:?}")]
    OtherName {
        /// The state that was expected.
        expected: &'static str,
        /// The name that the envelope carries.
        found: String,
    },
    /// The envelope was written by a program with another idea of this state.
    #[error("saved state of {name} has version {found}, this program reads version {expected}")]
    OtherVersion {
        /// The state that was expected.
        name: &'static str,
        /// The version this program knows.
        expected: u16,
        /// The version in the envelope.
        found: u16,
    },
    /// Bytes are left over after the state.
    #[error("saved state of {name} is followed by {extra} bytes that belong to nothing")]
    Trailing {
        /// The state that was expected.
        name: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    name: &'a str,
    version: u16,
}

/// State in its envelope, for those who pass it on and do not know its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the state belongs to.
    pub name: &'static str,
    /// The version of its encoding.
    pub version: u16,
    /// What [`decode`] reads.
    pub bytes: Vec<u8>,
}

impl Envelope {
    /// Puts `state` into one.
    pub fn of<S: Saved>(state: &S) -> Self {
        Self { name: S::NAME, version: S::VERSION, bytes: encode(state) }
    }
}

/// Writes `state` with its name and version in front.
pub fn encode<S: Saved>(state: &S) -> Vec<u8> {
    // Serialising into a growing vector fails only for types that postcard cannot represent (maps of unknown
    // length); the test of each saved type would show that at once.
    let header = Header { name: S::NAME, version: S::VERSION };
    let bytes = postcard::to_stdvec(&header).expect("a header is always representable");
    postcard::to_extend(state, bytes).expect("saved types are plain data")
}

/// Reads back what [`encode`] wrote; any other name, version or length is an error.
pub fn decode<S: Saved>(bytes: &[u8]) -> Result<S, Error> {
    let damaged = |_| Error::Damaged { name: S::NAME };
    let (header, rest): (Header<'_>, _) = postcard::take_from_bytes(bytes).map_err(damaged)?;
    if header.name != S::NAME {
        return Err(Error::OtherName { expected: S::NAME, found: header.name.to_owned() });
    }
    if header.version != S::VERSION {
        return Err(Error::OtherVersion { name: S::NAME, expected: S::VERSION, found: header.version });
    }
    let (state, rest) = postcard::take_from_bytes(rest).map_err(damaged)?;
    match rest.len() {
        0 => Ok(state),
        extra => Err(Error::Trailing { name: S::NAME, extra }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Lamp {
        lit: bool,
        hours: u32,
    }

    impl Saved for Lamp {
        const NAME: &'static str = "lamp";
        const VERSION: u16 = 3;
    }

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct NewerLamp(Lamp);

    impl Saved for NewerLamp {
        const NAME: &'static str = "lamp";
        const VERSION: u16 = 4;
    }

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Door(Lamp);

    impl Saved for Door {
        const NAME: &'static str = "door";
        const VERSION: u16 = 3;
    }

    const LAMP: Lamp = Lamp { lit: true, hours: 70_000 };

    #[test]
    fn what_was_encoded_is_decoded() {
        assert_eq!(decode::<Lamp>(&encode(&LAMP)), Ok(LAMP));
    }

    #[test]
    fn state_of_another_thing_or_version_is_refused_by_name() {
        let bytes = encode(&LAMP);
        assert_eq!(
            decode::<Door>(&bytes),
            Err(Error::OtherName { expected: "door", found: "lamp".to_owned() })
        );
        assert_eq!(
            decode::<NewerLamp>(&bytes),
            Err(Error::OtherVersion { name: "lamp", expected: 4, found: 3 })
        );
    }

    #[test]
    fn every_truncation_and_any_excess_is_refused() {
        let bytes = encode(&LAMP);
        for length in 0..bytes.len() {
            assert_eq!(decode::<Lamp>(&bytes[..length]), Err(Error::Damaged { name: "lamp" }));
        }
        let longer = [bytes, vec![0; 2]].concat();
        assert_eq!(decode::<Lamp>(&longer), Err(Error::Trailing { name: "lamp", extra: 2 }));
    }
}
