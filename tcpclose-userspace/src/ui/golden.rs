//! Whole outputs, compared with files in `tests/golden`. TCPCLOSE_TEST_WRITE=1 writes them.

use std::fs;
use std::path::PathBuf;

/// Compares `text` with the file `name`.
pub fn check(name: &str, text: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect();
    if std::env::var_os("TCPCLOSE_TEST_WRITE").is_some_and(|value| value == "1") {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs (TCPCLOSE_TEST_WRITE=1 writes it):\n{text}\nexpected:\n{expected}",
        path.display()
    );
}
