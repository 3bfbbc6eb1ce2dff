//! The error message of every command: one line, with exit status 2.

use std::borrow::Cow;
use std::fmt;

/// Displayed as `tcpclose: what: why; todo`, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What the user can do; may be empty.
    pub todo: String,
}

impl Failure {
    /// The exit status of every failure.
    pub const EXIT: u8 = 2;

    pub fn new(what: impl Into<String>, why: impl fmt::Display, todo: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), todo: todo.into() }
    }

    /// For an error that clap found in the arguments of `command`: `tcpclose stuck`.
    pub fn of_arguments(error: &clap::Error, command: &str) -> Self {
        use clap::error::{ContextKind, ContextValue, ErrorKind};
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
            _ => None,
        };
        let help = format!("see {command} --help");
        if let (Some(argument), Some(value)) =
            (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue))
        {
            // clap calls it `--older-than <DURATION>`.
            let argument = argument.split(' ').next().unwrap_or(argument);
            let what = format!("{argument} {value:?}");
            if let Some(source) = std::error::Error::source(error) {
                return Self::new(what, source, "");
            }
            // A missing value comes as an empty one.
            if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue)
                && !value.is_empty()
            {
                return Self::new(
                    what,
                    "not a possible value",
                    format!("choose one of {}", values.join(", ")),
                );
            }
        }
        match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                return Self::new("arguments", "no command", help);
            }
            ErrorKind::InvalidUtf8 => {
                let todo = "only paths may contain such bytes";
                return Self::new("arguments", "one of them is not UTF-8", todo);
            }
            _ => {}
        }
        let rendered = error.to_string();
        let first = rendered.split("\n\n").next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        let words: Vec<&str> = first.split_whitespace().collect();
        // clap also suggests what is far off.
        let given =
            text(ContextKind::InvalidSubcommand).or(text(ContextKind::InvalidArg)).unwrap_or_default();
        let meant = text(ContextKind::SuggestedSubcommand).or(text(ContextKind::SuggestedArg));
        let todo = match meant.and_then(|meant| nearest(given, [meant])) {
            Some(meant) => format!("did you mean {meant}? Otherwise {help}"),
            None => help,
        };
        Self::new("arguments", words.join(" "), todo)
    }
}

/// The one of `known` that `word` was probably meant to be; `None` where none is close: at most every third character of the longer
/// one differs, and three in all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const MOST: usize = 3;
    let word = word.trim_start_matches('-');
    let length = word.chars().count();
    let by_distance = known
        .into_iter()
        // Comparing a long word takes long, and no name is close to it.
        .filter(|_| length <= 64)
        .map(|known| (strsim::damerau_levenshtein(known.trim_start_matches('-'), word), known));
    let (distance, nearest) = by_distance.min_by_key(|(distance, _)| *distance)?;
    let longer = length.max(nearest.trim_start_matches('-').chars().count());
    (distance <= (longer / 3).min(MOST)).then_some(nearest)
}

/// `did you mean cert_file?`, or where none of `known` is close all of them.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("choose one of {}", known.into_iter().collect::<Vec<&str>>().join(", ")),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcpclose: {}: {}", printable(&self.what), printable(&self.why))?;
        if self.todo.is_empty() { Ok(()) } else { write!(f, "; {}", printable(&self.todo)) }
    }
}

impl std::error::Error for Failure {}

/// `text` with control characters escaped: the name of a program, or an answer from a socket, must not reach
/// the terminal as commands or as lines of its own.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hostile(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// JSON with what [`is_hostile`] escaped: it may be in texts only, and means the same there. (serde_json escapes below U+0020.)
pub fn harmless_json(json: String) -> String {
    if !json.chars().any(is_hostile) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_hostile(c) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => escaped.push(c),
        }
    }
    escaped
}

/// Whether a terminal may interpret it as a command, or display the following text elsewhere. All of these
/// are below 2¹⁶.
pub fn is_hostile(c: char) -> bool {
    // The bidirectional marks reorder the text around them.
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_moves_no_cursor_and_means_the_same() {
        let text = "a\u{9b}2J\u{7f}\u{202e}\u{1b}ü\n";
        let json = harmless_json(serde_json::to_string(text).unwrap());
        assert!(!json.chars().any(is_hostile), "{json:?}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        assert_eq!(harmless_json("{\"ü\":1}".to_owned()), "{\"ü\":1}");
    }

    #[test]
    fn a_failure_is_one_line_whatever_it_quotes() {
        let failure = Failure::new("agent at /x", "it said \"a\nb\x1b[2J\"", "try\r\n--no-agent");
        assert_eq!(
            failure.to_string(),
            r#"tcpclose: agent at /x: it said "a\nb\u{1b}[2J"; try\r\n--no-agent"#
        );
        assert_eq!(Failure::new("a", "b", "").to_string(), "tcpclose: a: b");
    }

    #[test]
    fn only_what_is_close_is_suggested() {
        let known = ["cert_file", "key_file", "client_ca_file", "min_version"];
        for (word, meant) in [
            ("cert_fil", Some("cert_file")),
            ("crt_file", Some("cert_file")),
            ("keyfile", Some("key_file")),
            ("client_cafile", Some("client_ca_file")),
            ("--min_verison", Some("min_version")),
            ("key_fi", Some("key_file")),
            ("key", None),
            ("certificate", None),
            ("banana", None),
            ("ca", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"cert_file".repeat(99), known), None);
        assert_eq!(nearest("cert_file", []), None);
        assert_eq!(did_you_mean("kee_file", known), "did you mean key_file?");
        assert_eq!(did_you_mean("no", ["off", "auto"]), "choose one of off, auto");
    }

    #[test]
    fn only_characters_that_could_harm_a_terminal_are_escaped() {
        assert!(matches!(printable("naïve-ñ 日本"), Cow::Borrowed(_)));
        assert_eq!(printable("a\tb\u{7f}\u{9b}\u{202e}"), r"a\tb\u{7f}\u{9b}\u{202e}");
    }

    /// The first literal of each call of the log macros below `folder`, with its file.
    fn log_lines(folder: &std::path::Path, lines: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                log_lines(&path, lines);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for level in ["error", "warn", "info", "debug"] {
                    let call = format!("log::{level}!(");
                    let calls = text.split(call.as_str()).skip(1);
                    let literal = |call: &str| call.split('"').nth(1).map(str::to_owned);
                    lines.extend(calls.filter_map(literal).map(|line| (path.display().to_string(), line)));
                }
            }
        }
    }

    #[test]
    fn log_lines_begin_in_lower_case_and_say_cannot_rather_than_failed() {
        let mut lines = Vec::new();
        log_lines(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut lines);
        // This file has none but those of the search.
        lines.retain(|(path, _)| !path.ends_with("failure.rs"));
        assert!(lines.len() > 40, "{}", lines.len());
        for (path, line) in lines {
            let first = line.chars().next();
            assert!(
                first.is_some_and(|c| c.is_lowercase() || c == '{' || line.starts_with("RLIMIT_")),
                "{path}: {line}"
            );
            assert!(!line.ends_with(['.', '!', '\n']) && !line.contains(" failed"), "{path}: {line}");
        }
    }
}
