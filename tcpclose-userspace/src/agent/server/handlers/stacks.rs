//! `POST /v1/stacks?pid=4242&for=60s`: takes the stacks of a process for a while.

use std::time::Duration;

use hyper::StatusCode;

use crate::agent::parts::Parts;
use crate::agent::server::response::{Answer, plain};

/// The longest time that may be asked for.
const LONGEST: Duration = Duration::from_secs(600);

/// Answers `query`, the part after the `?`.
pub fn answer(query: &str, parts: &Parts) -> Answer {
    let (pid, time) = match parse(query) {
        Ok(asked) => asked,
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let Parts { tracking, stacks, stacks_wake, .. } = parts;
    match stacks.borrow_mut().ask(pid, time, &mut tracking.borrow_mut(), stacks_wake) {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(why) => plain(StatusCode::CONFLICT, format!("{why:#}\n")),
    }
}

/// # Errors
/// What is wrong with a field.
fn parse(query: &str) -> Result<(u32, Duration), String> {
    let (mut pid, mut time) = (None, Duration::from_secs(60));
    for (key, value) in query.split('&').filter_map(|field| field.split_once('=')) {
        match key {
            "pid" => pid = Some(value.parse().map_err(|_| format!("pid={value}: not a pid"))?),
            "for" => {
                time = humantime::parse_duration(value).map_err(|why| format!("for={value}: {why}"))?;
            }
            _ => {}
        }
    }
    if time.is_zero() || time > LONGEST {
        return Err(format!("for: write a duration up to {}", humantime::format_duration(LONGEST)));
    }
    pid.map(|pid| (pid, time)).ok_or_else(|| "pid is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_process_and_a_time() {
        assert_eq!(parse("pid=7&for=90s&x=1"), Ok((7, Duration::from_secs(90))));
        assert_eq!(parse("pid=7"), Ok((7, Duration::from_secs(60))));
        for bad in ["", "for=1s", "pid=x", "pid=-1", "pid=7&for=x", "pid=7&for=0s", "pid=7&for=601s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
