//! Standard output.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::failure::{Failure, harmless_json, printable};

/// Writes `text` to standard output. A reader that has gone (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The result of writing to standard output.
pub fn written(done: io::Result<()>) -> Result<(), Failure> {
    match done {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new("writing to standard output", error, "make room there, or write elsewhere"))
        }
        _ => Ok(()),
    }
}

/// `document` as one line of JSON.
pub fn json(document: &impl Serialize) -> Result<String, Failure> {
    let line = serde_json::to_string(document);
    line.map(|line| harmless_json(line) + "\n")
        .map_err(|error| Failure::new("writing JSON", error, "report this"))
}

/// Writes a remark to standard error. That nobody may read it is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "tcpclose: {}", printable(text));
}
