//! The `format` of a tracepoint, which tells where the fields of its record are.

use tcpclose::probe::record_format;

/// Reads it: every field that it finds lies within a record.
pub fn read(bytes: &[u8]) {
    /// The largest that the kernel makes (include/linux/trace_events.h, PERF_MAX_TRACE_SIZE, 5.8).
    const LARGEST: u32 = 2048;
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match record_format::parse(text) {
        Ok(record) => {
            let ends = [
                record.skaddr + 8,
                record.oldstate + 4,
                record.newstate + 4,
                record.sport + 2,
                record.dport + 2,
                record.protocol + 2,
                record.saddr_v6 + 16,
                record.daddr_v6 + 16,
            ];
            assert!(ends.iter().all(|end| *end <= LARGEST), "{record:?} of {text}");
        }
        Err(why) => assert!(why.to_string().starts_with("its ") && why.to_string().lines().count() == 1),
    }
}
