//! YAML as far as manifests use it, as JSON.

use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// The one document of the file at `path`.
pub fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    parse(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn parse(text: &str) -> Result<Value, String> {
    let mut events = Parser::new_from_str(text).map(|event| event.map(|(event, _)| event));
    let mut documents = Vec::new();
    while let Some(event) = events.next() {
        match event.map_err(|why| why.to_string())? {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamEnd => {}
            event => documents.push(node(event, &mut events)?),
        }
    }
    let [document] = <[Value; 1]>::try_from(documents).map_err(|all| format!("{} documents", all.len()))?;
    Ok(document)
}

type Failing<'a, E> = Result<Event<'a>, E>;

fn node<'a, E: ToString>(
    event: Event<'a>,
    events: &mut impl Iterator<Item = Failing<'a, E>>,
) -> Result<Value, String> {
    match event {
        Event::Scalar(text, style, 0, None) => scalar(&text, style),
        Event::SequenceStart(0, None) => {
            let mut list = Vec::new();
            loop {
                match next(events)? {
                    Event::SequenceEnd => return Ok(list.into()),
                    event => list.push(node(event, events)?),
                }
            }
        }
        Event::MappingStart(0, None) => {
            let mut map = Map::new();
            loop {
                let key = match next(events)? {
                    Event::MappingEnd => return Ok(map.into()),
                    Event::Scalar(key, ..) => key.into_owned(),
                    other => return Err(format!("no key: {other:?}")),
                };
                let value = next(events)?;
                if map.insert(key.clone(), node(value, events)?).is_some() {
                    return Err(format!("{key} stands there twice"));
                }
            }
        }
        // Anchors, aliases, tags.
        other => Err(format!("not read here: {other:?}")),
    }
}

fn next<'a, E: ToString>(events: &mut impl Iterator<Item = Failing<'a, E>>) -> Result<Event<'a>, String> {
    events.next().ok_or("it ends too early")?.map_err(|why| why.to_string())
}

fn scalar(text: &str, style: ScalarStyle) -> Result<Value, String> {
    if style != ScalarStyle::Plain {
        return Ok(text.into());
    }
    Ok(match text {
        "" | "~" | "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        // To kubectl they are no texts (YAML 1.1).
        "y" | "n" | "yes" | "no" | "on" | "off" => return Err(format!("{text} wants quotes")),
        _ => match (text.parse::<i64>(), text.parse::<f64>().ok().and_then(Number::from_f64)) {
            (Ok(whole), _) => whole.into(),
            (_, Some(number)) => number.into(),
            _ => text.into(),
        },
    })
}

#[test]
fn a_manifest_is_read_as_kubectl_reads_it() {
    let read = parse("a: 1\nb: \"1\"\nc: [x, true, 1.5]\nd:\n  - e: f\n    g:\n# h\n").unwrap();
    let expected = serde_json::json!({"a": 1, "b": "1", "c": ["x", true, 1.5], "d": [{"e": "f", "g": null}]});
    assert_eq!(read, expected);
    for bad in ["a: 1\na: 2", "a: yes", "a: &b 1", "a: 1\n---\nb: 2", "a: [", ""] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
