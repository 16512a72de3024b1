//! The pieces that `state` is made of.

use super::Error;
use crate::saved::{self, Envelope, Saved};

/// The saved state of one part of a machine, in its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Which part, as in `vcpu/0`.
    pub name: String,
    /// What kind of part, as in `vcpu`: for listings. What counts is the envelope.
    pub kind: String,
    /// The version of that kind's encoding, for listings too.
    pub version: u32,
    /// The envelope.
    pub bytes: Vec<u8>,
}

impl Section {
    /// The section `name`, which holds `state`.
    pub fn of<S: Saved>(name: impl Into<String>, state: &S) -> Self {
        Self::holding(name, Envelope::of(state))
    }

    /// The section `name`, which holds what is in `envelope`.
    pub fn holding(name: impl Into<String>, envelope: Envelope) -> Self {
        let Envelope { name: kind, version, bytes } = envelope;
        Self { name: name.into(), kind: kind.to_owned(), version: version.into(), bytes }
    }
}

impl Section {
    /// The state that is in it.
    pub fn decode<S: Saved>(self) -> Result<S, Error> {
        let Self { name, bytes, .. } = self;
        saved::decode(&bytes).map_err(|source| Error::Section { name, source })
    }
}

/// The sections of a snapshot that is being read. Each is taken out once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections(Vec<Section>);

impl Sections {
    /// These sections.
    pub fn new(sections: Vec<Section>) -> Self {
        Self(sections)
    }

    /// Takes the state out that is in the section `name`.
    pub fn take<S: Saved>(&mut self, name: &str) -> Result<S, Error> {
        self.take_section(name)?.decode()
    }

    /// Takes the state out that is in the section `name`, if there is such a section.
    pub fn take_if_there<S: Saved>(&mut self, name: &str) -> Result<Option<S>, Error> {
        let there = self.0.iter().any(|section| section.name == name);
        there.then(|| self.take(name)).transpose()
    }

    /// Takes out the section `name` as it is.
    pub fn take_section(&mut self, name: &str) -> Result<Section, Error> {
        let missing = || Error::Missing { name: name.to_owned() };
        let index = self.0.iter().position(|section| section.name == name).ok_or_else(missing)?;
        Ok(self.0.swap_remove(index))
    }

    /// Takes out the section `name`, which need not be there.
    pub fn pass_over(&mut self, name: &str) {
        self.0.retain(|section| section.name != name);
    }

    /// Makes sure that everything was taken out: state that nobody knows is not state that nobody needs.
    pub fn finish(self) -> Result<(), Error> {
        match self.0.into_iter().min_by(|one, other| one.name.cmp(&other.name)) {
            None => Ok(()),
            Some(Section { name, kind, .. }) => Err(Error::Unknown { name, kind }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{LAMP, Lamp};

    #[test]
    fn what_is_missing_and_what_is_left_is_named() {
        let mut sections = Sections::new(vec![Section::of("lamp/0", &LAMP), Section::of("lamp/1", &LAMP)]);
        assert_eq!(sections.take::<Lamp>("lamp/1").unwrap(), LAMP);
        let error = sections.take::<Lamp>("lamp/1").unwrap_err().to_string();
        assert_eq!(error, "the snapshot has no section \"lamp/1\"");
        assert_eq!(sections.take_if_there::<Lamp>("lamp/1").unwrap(), None);
        assert_eq!(sections.clone().take_if_there("lamp/0").unwrap(), Some(LAMP));
        let error = sections.clone().finish().unwrap_err().to_string();
        assert!(error.contains("\"lamp/0\" (of kind \"lamp\")"), "{error}");
        sections.take_section("lamp/0").unwrap();
        sections.finish().unwrap();
    }

    #[test]
    fn a_section_that_cannot_be_decoded_is_named() {
        let mut section = Section::of("lamp/0", &LAMP);
        section.bytes.pop();
        let error = Sections::new(vec![section]).take::<Lamp>("lamp/0").unwrap_err().to_string();
        assert_eq!(
            error,
            "the section \"lamp/0\" cannot be used: saved state of lamp is damaged or cut short"
        );
    }
}
