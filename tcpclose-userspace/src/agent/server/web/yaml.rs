//! A YAML file as a tree of texts, lists and tables, each with its line.
//!
//! Built from the parser's events without recursion, so that no depth of nesting ends the agent. Anchors,
//! tags and a second document, which the format does not need, are refused: an anchor can expand to a
//! gigabyte.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// The largest file. A bundle of every public CA has a quarter of that.
pub const LARGEST: usize = 1 << 20;

/// The deepest nesting of lists and tables. The format has three levels.
const DEEPEST: usize = 8;

/// A value and its first line, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: YamlValue,
}

#[derive(Debug, PartialEq, Eq)]
pub enum YamlValue {
    /// A key without a value, or `null`.
    Nothing,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, each key once.
    Table(Vec<(YamlKey, Node)>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct YamlKey {
    pub name: String,
    pub line: usize,
}

/// Why a file is refused.
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

/// The beginning of `text`, short enough for an error message.
pub fn short(text: &str) -> &str {
    text.char_indices().nth(80).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// A list or a table that has not ended yet.
enum Open {
    List(usize, Vec<Node>),
    Table { line: usize, entries: Vec<(YamlKey, Node)>, names: HashSet<String>, key: Option<YamlKey> },
}

/// The only document of `text`; [`YamlValue::Nothing`] if there is none.
///
/// # Errors
/// When `text` is not YAML, or uses a part of YAML that the format does not need.
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
            return Err(YamlError::new(line, "anchors are not supported", "repeat the value"));
        }
        if tag.is_some() {
            return Err(YamlError::new(line, "tags are not supported", "remove it"));
        }
        if matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)) && open.len() >= DEEPEST {
            return Err(YamlError::new(
                line,
                "lists and tables are nested too deeply",
                "the format has three levels",
            ));
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
                let value = if nothing { YamlValue::Nothing } else { YamlValue::Text(text.into_owned()) };
                Node { line, value }
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, items)) => Node { line, value: YamlValue::List(items) },
                Some(Open::Table { line, entries, .. }) => Node { line, value: YamlValue::Table(entries) },
                None => return Err(YamlError::new(line, "an end without a beginning", "write it as YAML")),
            },
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Table { entries, names, key, .. }) => match (key.take(), node.value) {
                (Some(key), value) => entries.push((key, Node { line: node.line, value })),
                (None, YamlValue::Text(name)) => {
                    if !names.insert(name.clone()) {
                        return Err(YamlError::new(
                            node.line,
                            format!("{} is set twice", short(&name)),
                            "keep one",
                        ));
                    }
                    *key = Some(YamlKey { name, line: node.line });
                }
                (None, _) => {
                    return Err(YamlError::new(node.line, "a key that is not a text", "write a name"));
                }
            },
        }
    }
    Ok(root.unwrap_or(Node { line: 1, value: YamlValue::Nothing }))
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
        let YamlValue::Table(entries) = root.value else { panic!("no table") };
        let (a, d) = (&entries[0], &entries[1]);
        assert_eq!((a.0.name.as_str(), a.0.line, d.0.line), ("a", 2, 5));
        assert_eq!(d.1.value, YamlValue::Text("1\n2\n".to_owned()));
        let YamlValue::Table(inner) = &a.1.value else { panic!("no table") };
        let text = |text: &str| Node { line: 3, value: YamlValue::Text(text.to_owned()) };
        assert_eq!(inner[0].1.value, YamlValue::List(vec![text("x"), text("~")]));
        assert_eq!(inner[1].1.value, YamlValue::Nothing);
        for nothing in ["", "\n\n", "# a word\n", "---\n", "~"] {
            assert_eq!(tree(nothing).unwrap().value, YamlValue::Nothing, "{nothing:?}");
        }
    }

    #[test]
    fn parts_of_yaml_that_the_format_does_not_need_are_refused() {
        assert_eq!(wrong("a: &x 1\nb: *x"), "1: anchors are not supported");
        assert_eq!(wrong("a: !!str 1"), "1: tags are not supported");
        assert_eq!(wrong("a: 1\n---\nb: 2"), "2: a second document");
        assert_eq!(wrong("a: 1\na: 2"), "2: a is set twice");
        assert_eq!(wrong("[a]: 1"), "1: a key that is not a text");
        assert!(wrong("a: [").starts_with("1: ") || wrong("a: [").starts_with("2: "));
        assert_eq!(wrong(&"[".repeat(100)), "1: lists and tables are nested too deeply");
        assert!(tree(&"[".repeat(100_000)).is_err());
        assert_eq!(wrong(&"- ".repeat(1000)), "1: lists and tables are nested too deeply");
    }
}
