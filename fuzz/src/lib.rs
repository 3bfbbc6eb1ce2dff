//! What reads bytes that others wrote: each a function of bytes that must come back, whatever they are, and that panics
//! where what was read breaks a promise.
//!
//! * [`targets::records`]: the ring's records, and the tracker behind them.
//! * [`targets::record_format`]: the format of the classic tracepoint's record.
//! * [`targets::sock_diag`]: the datagrams of a dump.
//! * [`targets::state`]: the state file.
//! * [`targets::query`]: paths and queries of the unix socket, filters of who watches, orders to kill.
//! * [`targets::config`]: the agent's TOML file; [`targets::web`]: the web configuration.
//!
//! A target more is a file in `targets/`, a line in [`TARGETS`] and a folder with seeds in `corpus/`.
//!
//! `corpus/` holds what the fuzzer found to go different ways, from seeds that are written by hand (`seed-…`) or recorded from
//! the real thing (`real-…`, `tests/record.rs`). The tests play it in no time.

pub mod targets;

/// What the fuzzer calls.
pub type Target = fn(&[u8]);

/// By the names of their folders in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", targets::config::read),
    ("query", targets::query::read),
    ("record_format", targets::record_format::read),
    ("records", targets::records::read),
    ("sock_diag", targets::sock_diag::read),
    ("state", targets::state::read),
    ("web", targets::web::read),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_corpus_is_played() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let mut played = 0;
            for file in fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                println!("{}", path.display());
                target(&fs::read(path).unwrap());
                played += 1;
            }
            assert!(played > 0, "{name} has no corpus");
        }
    }

    #[test]
    fn the_corpus_stays_small() {
        let sizes = TARGETS.iter().flat_map(|(name, _)| {
            fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)).unwrap()
        });
        let size: u64 = sizes.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= 200_000, "{size} bytes: leave out of it what adds least");
    }
}
