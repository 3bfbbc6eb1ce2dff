//! JSON Schema, draft 7: as much of it as the schemas of a dashboard use. A keyword that is not known here is a panic, so
//! that none is taken for checked.

use serde_json::{Map, Value};

/// Keywords that say nothing of what is valid.
const REMARKS: [&str; 9] = [
    "$schema",
    "$comment",
    "definitions",
    "description",
    "default",
    "title",
    "format",
    "deprecated",
    "x-deprecation-message",
];

/// What is wrong with `value` by `schema`, part of `document`: each with the path to it.
pub fn errors(value: &Value, schema: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(value, schema, document, "", &mut found);
    found
}

fn check(value: &Value, schema: &Value, document: &Value, at: &str, found: &mut Vec<String>) {
    let schema = match schema {
        Value::Bool(true) => return,
        Value::Bool(false) => return found.push(format!("{at}: nothing may be here")),
        Value::Object(schema) => schema,
        other => panic!("no schema: {other}"),
    };
    // Draft 7 has a reference stand alone; what may stand beside it here are remarks.
    let mut wrong = |why: String| found.push(format!("{at}: {why}"));
    for (keyword, expected) in schema {
        match keyword.as_str() {
            "type" if !is_type(value, expected) => wrong(format!("not of type {expected}: {value}")),
            "enum" if !list(expected).contains(value) => wrong(format!("{value} is none of {expected}")),
            "const" if value != expected => wrong(format!("{value} is not {expected}")),
            "minLength"
                if value.as_str().is_some_and(|text| (text.len() as u64) < number(expected) as u64) =>
            {
                wrong("too short".to_owned());
            }
            "maxLength" if value.as_str().is_some_and(|text| text.len() as u64 > number(expected) as u64) => {
                wrong("too long".to_owned());
            }
            "minimum" if value.as_f64().is_some_and(|n| n < number(expected)) => {
                wrong(format!("{value} < {expected}"))
            }
            "maximum" if value.as_f64().is_some_and(|n| n > number(expected)) => {
                wrong(format!("{value} > {expected}"))
            }
            "exclusiveMinimum" if value.as_f64().is_some_and(|n| n <= number(expected)) => {
                wrong(format!("{value} <= {expected}"));
            }
            "exclusiveMaximum" if value.as_f64().is_some_and(|n| n >= number(expected)) => {
                wrong(format!("{value} >= {expected}"));
            }
            "minItems" if value.as_array().is_some_and(|items| (items.len() as f64) < number(expected)) => {
                wrong("too few".to_owned());
            }
            _ => {}
        }
    }
    for (keyword, inner) in schema {
        match keyword.as_str() {
            "$ref" => check(value, referred(document, inner), document, at, found),
            "allOf" => list(inner).iter().for_each(|each| check(value, each, document, at, found)),
            "anyOf" | "oneOf" => alternatives(value, keyword, list(inner), document, at, found),
            "items" => {
                for (nth, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(item, inner, document, &format!("{at}/{nth}"), found);
                }
            }
            "required" => {
                let missing = |name: &&Value| {
                    value.as_object().is_some_and(|v| !v.contains_key(name.as_str().unwrap()))
                };
                found.extend(
                    list(inner).iter().filter(missing).map(|name| format!("{at}: {name} is missing")),
                );
            }
            "properties" | "additionalProperties" => {}
            "type" | "enum" | "const" | "minLength" | "maxLength" | "minimum" | "maximum"
            | "exclusiveMinimum" | "exclusiveMaximum" | "minItems" => {}
            remark => assert!(REMARKS.contains(&remark), "{remark} is not known here"),
        }
    }
    if let Value::Object(object) = value {
        properties(object, schema, document, at, found);
    }
}

fn properties(
    object: &Map<String, Value>,
    schema: &Map<String, Value>,
    document: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    for (name, inner) in object {
        let at = format!("{at}/{name}");
        match (schema.get("properties").and_then(|known| known.get(name)), schema.get("additionalProperties"))
        {
            (Some(known), _) => check(inner, known, document, &at, found),
            (None, Some(rest)) => check(inner, rest, document, &at, found),
            (None, None) => {}
        }
    }
}

/// Says what is wrong by the alternative that fits best: the one with the fewest complaints.
fn alternatives(
    value: &Value,
    keyword: &str,
    of: &[Value],
    document: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    let tried: Vec<Vec<String>> = of
        .iter()
        .map(|each| {
            let mut found = Vec::new();
            check(value, each, document, at, &mut found);
            found
        })
        .collect();
    match tried.iter().filter(|found| found.is_empty()).count() {
        0 => found.extend(tried.into_iter().min_by_key(Vec::len).unwrap()),
        1 => {}
        n if keyword == "oneOf" => found.push(format!("{at}: fits {n} of what it should fit one")),
        _ => {}
    }
}

fn is_type(value: &Value, expected: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type"),
    };
    match expected {
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        name => is(name.as_str().unwrap()),
    }
}

fn referred<'a>(document: &'a Value, reference: &Value) -> &'a Value {
    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
    document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn what_does_not_fit_is_reported_with_its_place() {
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {
            "a": {"type": "integer", "minimum": 1}, "b": {"$ref": "#/definitions/b"},
            "c": {"oneOf": [{"type": "string"}, {"enum": [1, 2]}]}, "d": {"type": "array", "items": {"const": "x"}},
        },
        "definitions": {"b": {"type": "string", "minLength": 2}},
    });
    let of = |value| errors(&value, &schema, &schema);
    assert_eq!(of(serde_json::json!({"a": 1, "b": "bb", "c": 2, "d": ["x"]})), [""; 0]);
    assert_eq!(of(serde_json::json!({"b": "bb"})), [r#": "a" is missing"#]);
    assert_eq!(of(serde_json::json!({"a": 0})), ["/a: 0 < 1"]);
    assert_eq!(of(serde_json::json!({"a": 1, "b": "b"})), ["/b: too short"]);
    assert_eq!(of(serde_json::json!({"a": 1, "c": 3})).len(), 1);
    assert_eq!(of(serde_json::json!({"a": 1, "d": ["x", "y"]})), [r#"/d/1: "y" is not "x""#]);
    assert_eq!(of(serde_json::json!({"a": 1, "e": 1})), ["/e: nothing may be here"]);
}
