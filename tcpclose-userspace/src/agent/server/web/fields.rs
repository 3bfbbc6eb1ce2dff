//! Values of a YAML tree by the keys of the format, and error messages with their location.

use std::fmt;

use crate::agent::server::web::yaml::{Node, YamlKey, YamlValue, short};
use crate::failure::{Failure, did_you_mean};

/// The location of a value, for error messages.
#[derive(Clone)]
pub struct FieldLocation<'a> {
    pub file: &'a str,
    pub line: usize,
    /// `tls_server_config.min_version`; empty for the whole file.
    pub path: String,
}

impl FieldLocation<'_> {
    pub fn wrong(&self, why: impl fmt::Display, todo: impl Into<String>) -> Failure {
        let Self { file, line, path } = self;
        let path = if path.is_empty() { String::new() } else { format!(": {path}") };
        Failure::new(format!("{file}, line {line}{path}"), why, todo)
    }

    pub fn below(&self, key: &YamlKey) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { file: self.file, line: key.line, path: format!("{}{dot}{}", self.path, short(&key.name)) }
    }

    /// The entries of a table, all of whose keys must be `known`.
    pub fn table<'n>(
        &self,
        node: &'n Node,
        known: &'static [&'static str],
    ) -> Result<Fields<'_, 'n>, Failure> {
        let entries = self.entries(node)?;
        if let Some((key, _)) = entries.iter().find(|(key, _)| !known.contains(&key.name.as_str())) {
            let todo = did_you_mean(&key.name, known.iter().copied());
            return Err(self.below(key).wrong("unknown key", todo));
        }
        Ok(Fields { place: self.clone(), entries })
    }

    pub fn entries<'n>(&self, node: &'n Node) -> Result<&'n [(YamlKey, Node)], Failure> {
        match &node.value {
            YamlValue::Table(entries) => Ok(entries),
            YamlValue::Nothing => Ok(&[]),
            _ => Err(self.wrong("not a table", "write keys with values below it")),
        }
    }
}

/// A table's entries.
pub struct Fields<'a, 'n> {
    pub place: FieldLocation<'a>,
    pub entries: &'n [(YamlKey, Node)],
}

impl<'a, 'n> Fields<'a, 'n> {
    pub fn at(&self, name: &str) -> Field<'a, 'n> {
        let found = self.entries.iter().find(|(key, _)| key.name == name);
        match found {
            Some((key, node)) => Field { place: self.place.below(key), node: Some(node) },
            None => {
                let key = YamlKey { name: name.to_owned(), line: self.place.line };
                Field { place: self.place.below(&key), node: None }
            }
        }
    }
}

/// A value that may be absent.
pub struct Field<'a, 'n> {
    pub place: FieldLocation<'a>,
    pub node: Option<&'n Node>,
}

impl<'a, 'n> Field<'a, 'n> {
    pub fn wrong(&self, why: impl fmt::Display, todo: impl Into<String>) -> Failure {
        self.place.wrong(why, todo)
    }

    pub fn table(&self, known: &'static [&'static str]) -> Result<Fields<'_, 'n>, Failure> {
        match self.node {
            Some(node) => self.place.table(node, known),
            None => Ok(Fields { place: self.place.clone(), entries: &[] }),
        }
    }

    /// The text; `None` if absent or empty.
    pub fn text(&self) -> Result<Option<&'n str>, Failure> {
        match self.node.map(|node| &node.value) {
            None | Some(YamlValue::Nothing) => Ok(None),
            Some(YamlValue::Text(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong("not a text", "write one value")),
        }
    }

    pub fn texts(&self) -> Result<Vec<(FieldLocation<'a>, &'n str)>, Failure> {
        let items = match self.node.map(|node| &node.value) {
            None | Some(YamlValue::Nothing) => return Ok(Vec::new()),
            Some(YamlValue::List(items)) => items,
            Some(_) => return Err(self.wrong("not a list", "write one value a line, each after a hyphen")),
        };
        let text = |item: &'n Node| {
            let place = FieldLocation { line: item.line, ..self.place.clone() };
            match &item.value {
                YamlValue::Text(text) => Ok((place, text.as_str())),
                _ => Err(place.wrong("not a text", "write one value a line, each after a hyphen")),
            }
        };
        items.iter().map(text).collect()
    }

    pub fn flag(&self, default: bool) -> Result<bool, Failure> {
        // The words of Go's YAML.
        match self.text()?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true" | "yes" | "on" | "y") => Ok(true),
            Some("false" | "no" | "off" | "n") => Ok(false),
            Some(_) => Err(self.wrong("neither true nor false", "write true or false")),
        }
    }

    /// The value of the text in `known`.
    pub fn choice<T: Copy>(&self, known: &[(&str, T)]) -> Result<Option<T>, Failure> {
        self.text()?.map(|text| choice(&self.place, text, known)).transpose()
    }
}

pub fn choice<T: Copy>(place: &FieldLocation<'_>, text: &str, known: &[(&str, T)]) -> Result<T, Failure> {
    known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let todo = did_you_mean(text, known.iter().map(|(name, _)| *name));
        place.wrong(format_args!("{:?} is not known or not supported", short(text)), todo)
    })
}
