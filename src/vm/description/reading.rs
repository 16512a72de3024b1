//! Tables and values as they stand in a file, taken apart with an eye on what is left over.
//!
//! [`parts`](super::parts) makes a machine of them. Relies on `toml` for the language itself.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{DescriptionError, Reason, Unknown};
use crate::spelling;

/// Something wrong at a place of the text.
#[derive(Debug)]
pub(super) struct Problem {
    /// How many bytes of the text stand before it.
    pub offset: usize,
    /// What is wrong.
    pub reason: Reason,
}

impl Problem {
    /// The same, with the line in which it is.
    pub fn in_line_of(self, text: &[u8]) -> DescriptionError {
        let Self { offset, reason } = self;
        let before = &text[..offset.min(text.len())];
        DescriptionError { line: 1 + memchr::memchr_iter(b'\n', before).count(), reason }
    }
}

/// What a value is called and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// With the table around it, as in `disk.bps`; the whole file has no name.
    pub name: String,
    offset: usize,
}

impl Named {
    /// The whole file.
    pub fn file() -> Self {
        Self { name: String::new(), offset: 0 }
    }

    fn problem(&self, reason: Reason) -> Problem {
        Problem { offset: self.offset, reason }
    }

    /// What is wrong with what it says.
    pub fn wrong(&self, error: impl Display) -> Problem {
        self.problem(Reason::Value { name: self.name.clone(), why: error.to_string() })
    }

    /// What it is, and what it would have to be.
    pub fn is_not(&self, found: &'static str, wanted: &'static str) -> Problem {
        self.problem(Reason::Kind { name: self.name.clone(), found, wanted })
    }
}

/// A value and what it is called.
pub(super) struct Value<'t> {
    pub named: Named,
    value: DeValue<'t>,
}

/// What a value may be where a flag takes a compact text.
pub(super) enum Form<'t> {
    /// The text, or a number in digits.
    Compact(String),
    /// Said in as many words.
    Table(Section<'t>),
    /// Whether there is one at all.
    Switch(bool),
}

/// What a value may be that is not switched on and off.
pub(super) enum Written<'t> {
    /// The text, or a number in digits.
    Compact(String),
    /// Said in as many words.
    Table(Section<'t>),
}

impl<'t> Value<'t> {
    /// In which of the forms it is, of those that say something; `wanted` says what it may be.
    pub fn written(self, wanted: &'static str) -> Result<Written<'t>, Problem> {
        let named = self.named.clone();
        match self.form(wanted)? {
            Form::Compact(text) => Ok(Written::Compact(text)),
            Form::Table(table) => Ok(Written::Table(table)),
            Form::Switch(_) => Err(named.is_not("true or false", wanted)),
        }
    }

    /// In which of the forms it is; `wanted` says what it may be.
    pub fn form(self, wanted: &'static str) -> Result<Form<'t>, Problem> {
        match self.value {
            DeValue::Boolean(set) => Ok(Form::Switch(set)),
            DeValue::Table(table) => Ok(Form::Table(Section::new(self.named, table))),
            _ => self.compact(wanted).map(Form::Compact),
        }
    }

    /// A text or a number, as a flag takes it.
    pub fn compact(self, wanted: &'static str) -> Result<String, Problem> {
        match self.value {
            DeValue::String(text) => Ok(text.into_owned()),
            DeValue::Integer(number) => {
                let value = u128::from_str_radix(number.as_str(), number.radix());
                // What has no 128 bits' worth is refused as it stands.
                Ok(value.map_or_else(|_| number.to_string(), |value| value.to_string()))
            }
            other => Err(self.named.is_not(kind(&other), wanted)),
        }
    }

    /// A text.
    pub fn text(self) -> Result<String, Problem> {
        match self.value {
            DeValue::String(text) => Ok(text.into_owned()),
            other => Err(self.named.is_not(kind(&other), "a text in quotes")),
        }
    }

    /// A path.
    pub fn path(self) -> Result<PathBuf, Problem> {
        let named = self.named.clone();
        match self.text()? {
            text if text.is_empty() => Err(named.wrong("an empty path leads nowhere")),
            text => Ok(text.into()),
        }
    }

    /// Yes or no.
    pub fn switch(self) -> Result<bool, Problem> {
        match self.value {
            DeValue::Boolean(set) => Ok(set),
            other => Err(self.named.is_not(kind(&other), "true or false")),
        }
    }

    /// What a text or number stands for.
    pub fn parsed<T: FromStr<Err: Display>>(self, wanted: &'static str) -> Result<T, Problem> {
        let named = self.named.clone();
        self.compact(wanted)?.parse().map_err(|error| named.wrong(error))
    }

    /// All of a list, or the one that stands in its place.
    pub fn list(self) -> Vec<Self> {
        let Self { named, value } = self;
        let DeValue::Array(array) = value else { return vec![Self { named, value }] };
        let element = |element: Spanned<DeValue<'t>>| {
            let named = Named { offset: element.span().start, name: named.name.clone() };
            Self { named, value: element.into_inner() }
        };
        array.into_iter().map(element).collect()
    }

    /// All texts of a list, or the one that stands in its place.
    pub fn texts(self) -> Result<Vec<String>, Problem> {
        self.list().into_iter().map(Self::text).collect()
    }
}

/// A table: what is taken from it is known, and what is left over is not.
pub(super) struct Section<'t> {
    /// Where it stands.
    pub named: Named,
    entries: Vec<(Spanned<DeString<'t>>, Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    pub fn new(named: Named, table: DeTable<'t>) -> Self {
        Self { named, entries: table.into_iter().collect(), known: Vec::new() }
    }

    /// The value of a key, if it has one.
    pub fn take(&mut self, key: &'static str) -> Option<Value<'t>> {
        self.known.push(key);
        let at = self.entries.iter().position(|(found, _)| found.get_ref() == key)?;
        let (found, value) = self.entries.swap_remove(at);
        let name = match self.named.name.as_str() {
            "" => key.to_owned(),
            table => format!("{table}.{key}"),
        };
        Some(Value { named: Named { name, offset: found.span().start }, value: value.into_inner() })
    }

    /// What is made of a key's value, if it has one.
    pub fn with<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value<'t>) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.take(key).map(read).transpose()
    }

    /// Fails if there was anything that nobody took.
    pub fn finish(self) -> Result<(), Problem> {
        let first = self.entries.iter().min_by_key(|(key, _)| key.span().start);
        let Some((key, _)) = first else { return Ok(()) };
        let (offset, word) = (key.span().start, key.get_ref().as_ref());
        let meant = spelling::nearest(word, self.known.iter().copied());
        let unknown = Unknown { key: word.to_owned(), table: self.named.name, meant, known: self.known };
        Err(Problem { offset, reason: Reason::Key(unknown) })
    }
}

/// A value as a tree. Of numbers only whole ones are written in descriptions, and all fit.
pub(super) fn tree(value: DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.into_owned().into(),
        DeValue::Boolean(set) => set.into(),
        DeValue::Integer(number) => {
            let value = u64::from_str_radix(number.as_str(), number.radix());
            value.map_or_else(|_| number.as_str().into(), Into::into)
        }
        DeValue::Float(number) => number.as_str().into(),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(items) => items.into_iter().map(|item| tree(item.into_inner())).collect(),
        DeValue::Table(table) => {
            let entries = table.into_iter();
            entries
                .map(|(key, value)| (key.into_inner().into_owned(), tree(value.into_inner())))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
    }
}

/// What a value is, for those who expected something else.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
