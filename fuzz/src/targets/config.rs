//! The agent's TOML file.

use tcpclose::commands::config;

/// Reads it, and what `--check-config` would print of it, which must mean the same.
pub fn read(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::of_text(text) {
        Ok(shown) => match config::of_text(&shown) {
            Ok(again) => assert_eq!(values(&again), values(&shown), "of {text}"),
            Err(why) => panic!("{why}: of {text}, shown as {shown}"),
        },
        Err(why) => {
            let line = why.to_string();
            assert!(line.starts_with("tcpclose: ") && line.lines().count() == 1, "{line}");
        }
    }
}

/// Without where each is from.
fn values(shown: &str) -> Vec<&str> {
    let value = |line| str::rsplit_once(line, "  # ").map_or(line, |(value, _)| value);
    shown.lines().filter(|line| !line.starts_with('#')).map(value).collect()
}
