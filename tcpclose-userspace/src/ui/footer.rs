//! The last lines of a text: where it comes from, and what is missing.

use crate::failure::printable;
use crate::ui::table;

/// The source, and a line per remark in `incomplete`.
pub fn footer(source: &str, incomplete: &[String], width: Option<u16>) -> String {
    let remarks = incomplete.iter().map(|remark| format!("incomplete: {}", printable(remark)));
    let lines = std::iter::once(format!("source: {}", printable(source))).chain(remarks);
    lines.map(|line| table::wrap(&line, width) + "\n").collect()
}
