//! The fields of a request's query, the part after the `?`.

use std::time::Duration;

/// The keys and values of `query`, all of whose keys must be `known`.
///
/// # Errors
/// One line that names the key and those that are known: a key that is not would have changed the answer.
pub fn fields<'q>(query: &'q str, known: &[&str]) -> Result<Vec<(&'q str, &'q str)>, String> {
    let field = |field: &'q str| {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        if known.contains(&key) { Ok((key, value)) } else { Err(unknown(key, known)) }
    };
    query.split('&').filter(|field| !field.is_empty()).map(field).collect()
}

fn unknown(key: &str, known: &[&str]) -> String {
    match known {
        [] => format!("{key}: unknown key; this path has none"),
        [one] => format!("{key}: unknown key; this path has {one}"),
        [first @ .., last] => format!("{key}: unknown key; this path has {} and {last}", first.join(", ")),
    }
}

/// # Errors
/// When a path without keys is asked with one.
pub fn none(query: &str) -> Result<(), String> {
    fields(query, &[]).map(drop)
}

/// The number `value` of `key`, from `range`.
///
/// # Errors
/// When it is none, or out of the range.
pub fn number(key: &str, value: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    value
        .parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{key}={value}: write a number from {} to {}", range.start(), range.end()))
}

/// The duration `value` of `key`.
///
/// # Errors
/// When it is none.
pub fn duration(key: &str, value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value).map_err(|why| format!("{key}={value}: {why}; for example 60s or 10m"))
}

/// Whether `value` is the only one that `key` can have.
///
/// # Errors
/// When it is another.
pub fn only(key: &str, value: &str, only: &str) -> Result<(), String> {
    if value == only { Ok(()) } else { Err(format!("{key}={value}: write {key}={only}, or leave it out")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_known_keys_only() {
        assert_eq!(fields("a=1&b=x=y&&a=", &["a", "b"]), Ok(vec![("a", "1"), ("b", "x=y"), ("a", "")]));
        assert_eq!((fields("", &["a"]), none(""), none("&")), (Ok(vec![]), Ok(()), Ok(())));
        let refused = |query, known: &[&str]| fields(query, known).unwrap_err();
        assert_eq!(refused("a=1&later=1", &["a", "b", "c"]), "later: unknown key; this path has a, b and c");
        assert_eq!(refused("A=1", &["a"]), "A: unknown key; this path has a");
        assert_eq!(none("port=80").unwrap_err(), "port: unknown key; this path has none");
        // One that lacks its value has a key all the same.
        assert_eq!(refused("later", &["a"]), "later: unknown key; this path has a");
    }

    #[test]
    fn a_value_is_what_its_key_takes() {
        assert_eq!(number("limit", "3", 0..=9), Ok(3));
        for wrong in ["10", "-1", "many", "", "1e1", "99999999999999999999999"] {
            let line = number("limit", wrong, 0..=9).unwrap_err();
            assert_eq!(line, format!("limit={wrong}: write a number from 0 to 9"));
        }
        assert_eq!(duration("for", "1500ms"), Ok(Duration::from_millis(1500)));
        assert!(duration("for", "soon").unwrap_err().starts_with("for=soon: "));
        assert_eq!(only("peers", "no", "no"), Ok(()));
        assert_eq!(only("peers", "yes", "no").unwrap_err(), "peers=yes: write peers=no, or leave it out");
    }
}
