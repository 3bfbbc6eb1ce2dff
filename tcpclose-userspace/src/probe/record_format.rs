//! Where the fields of the classic tracepoint's record are, from its `format` in tracefs.
//!
//! The common header before them is not the same everywhere: PREEMPT_RT's lazy preemption added a count to it
//! (`common_preempt_lazy_count`: Debian's 6.1-rt, RHEL 9), which moves every field.

use std::fmt;

use tcpclose_common::layout::RecordLayout;

/// The largest record (include/linux/trace_events.h, PERF_MAX_TRACE_SIZE, 5.8).
const LARGEST: u32 = 2048;

/// Why a format describes no record that the probe can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// It has no such field.
    Missing(&'static str),
    /// It has two of this name.
    Twice(&'static str),
    /// A field of another size than the probe reads.
    Size { field: &'static str, bytes: u32, expected: u32 },
    /// A field beyond what a record can hold.
    Beyond { field: &'static str, offset: u32 },
    /// A field without an offset or a size.
    Malformed(&'static str),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "its format has no field {field}"),
            Self::Twice(field) => write!(f, "its format has two fields {field}"),
            Self::Size { field, bytes, expected } => {
                write!(f, "its field {field} has {bytes} bytes, not {expected}")
            }
            Self::Beyond { field, offset } => {
                write!(f, "its field {field} is at {offset}, beyond a record's end")
            }
            Self::Malformed(field) => write!(f, "its format does not tell where the field {field} is"),
        }
    }
}

impl std::error::Error for FormatError {}

/// The layout that `format` tells, a line per field: `field:int oldstate; offset:16; size:4; signed:1;`, with tabs
/// between its parts.
///
/// # Errors
/// When a field that the probe reads is missing, or is not what the probe reads.
pub fn parse(format: &str) -> Result<RecordLayout, FormatError> {
    let offset = |name, expected| offset(format, name, expected);
    let layout = RecordLayout {
        is_mainline: 1,
        skaddr: offset("skaddr", 8)?,
        oldstate: offset("oldstate", 4)?,
        newstate: offset("newstate", 4)?,
        sport: offset("sport", 2)?,
        dport: offset("dport", 2)?,
        protocol: offset("protocol", 2)?,
        saddr_v6: offset("saddr_v6", 16)?,
        daddr_v6: offset("daddr_v6", 16)?,
    };
    Ok(RecordLayout { is_mainline: u32::from(layout == RecordLayout::MAINLINE), ..layout })
}

/// The offset of the field `name`, which has `expected` bytes.
fn offset(format: &str, name: &'static str, expected: u32) -> Result<u32, FormatError> {
    let mut lines = format.lines().filter(|line| name_of(line) == Some(name));
    let line = lines.next().ok_or(FormatError::Missing(name))?;
    if lines.next().is_some() {
        return Err(FormatError::Twice(name));
    }
    let number = |key| value_of(line, key).ok_or(FormatError::Malformed(name));
    let (offset, bytes) = (number("offset:")?, number("size:")?);
    if bytes != expected {
        return Err(FormatError::Size { field: name, bytes, expected });
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= LARGEST => Ok(offset),
        _ => Err(FormatError::Beyond { field: name, offset }),
    }
}

/// The name of the field that a line declares: `saddr` of `field:__u8 saddr[4];`.
fn name_of(line: &str) -> Option<&str> {
    let declaration = line.trim_start().strip_prefix("field:")?.split(';').next()?;
    let declaration = declaration.split('[').next()?.trim_end();
    declaration.rsplit([' ', '\t', '*']).next()
}

/// The number behind `key` in a line's parts.
fn value_of(line: &str, key: &str) -> Option<u32> {
    line.split(';').find_map(|part| part.trim().strip_prefix(key))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAINLINE: &str = include_str!("../../tests/formats/mainline-6.18.txt");
    const LAZY: &str = include_str!("../../tests/formats/lazy-preemption-6.1-rt.txt");

    #[test]
    fn mainline_is_read_in_place() {
        assert_eq!(parse(MAINLINE), Ok(RecordLayout::MAINLINE));
    }

    #[test]
    fn a_longer_common_header_moves_every_field() {
        let moved = RecordLayout {
            is_mainline: 0,
            skaddr: 16,
            oldstate: 24,
            newstate: 28,
            sport: 32,
            dport: 34,
            protocol: 38,
            saddr_v6: 48,
            daddr_v6: 64,
        };
        assert_eq!(parse(LAZY), Ok(moved));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_named() {
        let printed = |from: &str, to: &str| {
            assert!(MAINLINE.contains(from), "{from}");
            parse(&MAINLINE.replacen(from, to, 1)).unwrap_err()
        };
        let protocol = "field:__u16 protocol;	offset:30;	size:2;";
        // As before 5.6.
        let byte = "field:__u8 protocol;	offset:30;	size:1;";
        assert_eq!(printed(protocol, byte), FormatError::Size { field: "protocol", bytes: 1, expected: 2 });
        assert_eq!(
            printed(protocol, "field:__u16 proto;	offset:30;	size:2;"),
            FormatError::Missing("protocol")
        );
        assert_eq!(printed("skaddr;	offset:8;", "skaddr;"), FormatError::Malformed("skaddr"));
        assert_eq!(printed("skaddr;	offset:8;", "skaddr;	offset:-8;"), FormatError::Malformed("skaddr"));
        assert_eq!(
            printed("skaddr;	offset:8;", "skaddr;	offset:4294967295;"),
            FormatError::Beyond { field: "skaddr", offset: u32::MAX }
        );
        let twice = format!("{protocol}	signed:0;\n{protocol}");
        assert_eq!(printed(protocol, &twice), FormatError::Twice("protocol"));
        assert_eq!(parse(""), Err(FormatError::Missing("skaddr")));
        assert_eq!(printed(protocol, byte).to_string(), "its field protocol has 1 bytes, not 2");
    }

    proptest! {
        #[test]
        fn a_layout_lies_within_a_record(
            cut in 0..2000usize, at in 0..2000usize, with in "[ -~\\n\\t]{0,12}"
        ) {
            let mut text = LAZY.to_owned();
            let at = at.min(text.len());
            text.replace_range(at..(at + with.len()).min(text.len()), &with);
            text.truncate(cut.max(300).min(text.len()));
            if let Ok(layout) = parse(&text) {
                prop_assert!(layout.daddr_v6 + 16 <= LARGEST && layout.skaddr + 8 <= LARGEST);
            }
        }
    }
}
