//! A YAML file as a tree of texts, lists and tables, each with its line.
//!
//! Made from the parser's events and without recursion, so that no file, however deep, ends the agent. What the
//! format has no use for (anchors, tags, a second document) is refused: an anchor can stand for a gigabyte.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// What a file may be in size: a bundle of every public CA is a quarter of that.
pub const LARGEST: usize = 1 << 20;

/// Tables in lists in tables. The format has three.
const DEEPEST: usize = 8;

/// A value and the line that it begins on, from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    /// A key without a value, or `null`.
    Nothing,
    Text(String),
    List(Vec<Node>),
    /// In the file's order; no key twice.
    Table(Vec<(YamlKey, Node)>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct YamlKey {
    pub name: String,
    pub line: usize,
}

/// Why there is no tree.
#[derive(Debug, PartialEq, Eq)]
pub struct YamlError {
    pub line: usize,
    pub why: String,
    pub todo: &'static str,
}

impl YamlError {
    fn new(line: usize, why: impl Into<String>, todo: &'static str) -> Self {
        Self { line, why: why.into(), todo }
    }
}

/// As much of `text` as a line that is said of it has room for.
pub fn short(text: &str) -> &str {
    text.char_indices().nth(80).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// A list or a table that is not at its end yet.
enum Open {
    List(usize, Vec<Node>),
    Table { line: usize, entries: Vec<(YamlKey, Node)>, names: HashSet<String>, key: Option<YamlKey> },
}

/// The one document of `text`; [`Value::Nothing`] for none.
///
/// # Errors
/// Where it is no YAML, or YAML that the format has no use for.
pub fn tree(text: &str) -> Result<Node, YamlError> {
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            YamlError::new(
                error.marker().line(),
                short(error.info()),
                "write it as YAML, with spaces for indentation",
            )
        })?;
        let line = span.start.line();
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag),
            _ => (0, &None),
        };
        if anchor != 0 || matches!(event, Event::Alias(_)) {
            return Err(YamlError::new(line, "anchors are not supported", "write it out"));
        }
        if tag.is_some() {
            return Err(YamlError::new(line, "tags are not supported", "leave it out"));
        }
        if matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)) && open.len() >= DEEPEST {
            return Err(YamlError::new(line, "lists and tables lie too deep", "the format has three levels"));
        }
        let node = match event {
            Event::DocumentStart(_) if root.is_some() => {
                return Err(YamlError::new(line, "a second document", "write one"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(line, Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table { line, entries: Vec::new(), names: HashSet::new(), key: None });
                continue;
            }
            Event::Scalar(text, style, ..) => {
                let nothing =
                    style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if nothing { Value::Nothing } else { Value::Text(text.into_owned()) };
                Node { line, value }
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, items)) => Node { line, value: Value::List(items) },
                Some(Open::Table { line, entries, .. }) => Node { line, value: Value::Table(entries) },
                None => return Err(YamlError::new(line, "an end without a beginning", "write it as YAML")),
            },
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Table { entries, names, key, .. }) => match (key.take(), node.value) {
                (Some(key), value) => entries.push((key, Node { line: node.line, value })),
                (None, Value::Text(name)) => {
                    if !names.insert(name.clone()) {
                        return Err(YamlError::new(
                            node.line,
                            format!("{} is there twice", short(&name)),
                            "keep one",
                        ));
                    }
                    *key = Some(YamlKey { name, line: node.line });
                }
                (None, _) => return Err(YamlError::new(node.line, "a key that is no text", "write a name")),
            },
        }
    }
    Ok(root.unwrap_or(Node { line: 1, value: Value::Nothing }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        let YamlError { line, why, .. } = tree(text).unwrap_err();
        format!("{line}: {why}")
    }

    #[test]
    fn values_have_their_lines() {
        let root = tree("# one\na:\n  b: [x, \"~\"]\n  c:\nd: |\n  1\n  2\n").unwrap();
        let Value::Table(entries) = root.value else { panic!("no table") };
        let (a, d) = (&entries[0], &entries[1]);
        assert_eq!((a.0.name.as_str(), a.0.line, d.0.line), ("a", 2, 5));
        assert_eq!(d.1.value, Value::Text("1\n2\n".to_owned()));
        let Value::Table(inner) = &a.1.value else { panic!("no table") };
        let text = |text: &str| Node { line: 3, value: Value::Text(text.to_owned()) };
        assert_eq!(inner[0].1.value, Value::List(vec![text("x"), text("~")]));
        assert_eq!(inner[1].1.value, Value::Nothing);
        for nothing in ["", "\n\n", "# a word\n", "---\n", "~"] {
            assert_eq!(tree(nothing).unwrap().value, Value::Nothing, "{nothing:?}");
        }
    }

    #[test]
    fn what_the_format_has_no_use_for_is_refused() {
        assert_eq!(wrong("a: &x 1\nb: *x"), "1: anchors are not supported");
        assert_eq!(wrong("a: !!str 1"), "1: tags are not supported");
        assert_eq!(wrong("a: 1\n---\nb: 2"), "2: a second document");
        assert_eq!(wrong("a: 1\na: 2"), "2: a is there twice");
        assert_eq!(wrong("[a]: 1"), "1: a key that is no text");
        assert!(wrong("a: [").starts_with("1: ") || wrong("a: [").starts_with("2: "));
        assert_eq!(wrong(&"[".repeat(100)), "1: lists and tables lie too deep");
        assert!(tree(&"[".repeat(100_000)).is_err());
        assert_eq!(wrong(&"- ".repeat(1000)), "1: lists and tables lie too deep");
    }
}
