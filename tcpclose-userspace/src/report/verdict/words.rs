//! The evidence of a verdict in words.

use std::time::Duration;

use crate::names::{Side, Verdict};
use crate::report::verdict::history::History;
use crate::report::verdict::rules::WaitsFor;

/// `1h 2m`, in whole seconds from one second on.
pub fn span(ns: u64) -> String {
    let whole = match ns {
        0..1_000_000_000 => ns / 1_000_000 * 1_000_000,
        _ => ns / 1_000_000_000 * 1_000_000_000,
    };
    humantime::format_duration(Duration::from_nanos(whole)).to_string()
}

fn seconds(seconds: f64) -> String {
    span((seconds.max(0.0) * 1e9) as u64)
}

fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// What the verdict follows from, one sentence each.
pub fn evidence(side: Side, history: &History) -> Vec<String> {
    let present = &history.present;
    let mut lines = vec![number(history)];
    if present.half_closed > 0 {
        let sockets = count(present.half_closed, "connection", "connections");
        let other = if side == Side::Server { "behind it" } else { "before it" };
        lines.push(format!(
            "it has passed the end on to {sockets} {other}, whose {} not closed",
            if present.half_closed == 1 { "peer has" } else { "peers have" }
        ));
    }
    if present.peer_waits > 0 {
        let n = present.peer_waits;
        lines.push(format!("the local peers of {n} have sent their FIN, and may wait for an answer"));
    }
    if present.not_accepted > 0 {
        lines.push(format!("{} wait in the listener's queue", present.not_accepted));
    }
    if side == Side::Client && present.goodbyes > 0 {
        lines.push(format!(
            "nobody has read from {} since the server closed: at most {} B are waiting",
            present.goodbyes, present.most_goodbye
        ));
    } else if present.not_read > 0 {
        let of = present.not_read;
        let read = if history.last_used_ns.is_some() {
            "some are read from, or written to"
        } else {
            "none is read from"
        };
        lines.push(format!("the program has not read the end of {of}; {read}"));
    }
    if present.not_closed > 0 {
        lines.push(format!("the program has read all of {} and not closed them", present.not_closed));
    }
    lines.push(ends(history));
    if let Some(silent) = present.silent_before.filter(|_| side == Side::Client) {
        lines.push(format!("the server closed after {} without a request", seconds(silent)));
    }
    if history.closes > 0 {
        lines.push(format!(
            "the program has closed {}",
            count(history.closes, "other connection", "other connections")
        ));
    } else if side == Side::Server && present.not_read + present.not_accepted > 0 {
        lines.push("the program has closed no connection meanwhile".to_owned());
    }
    if let Some((used, limit)) = present.fds.filter(|(used, limit)| 2 * used >= *limit) {
        lines.push(format!("{used} of {limit} file descriptors are in use"));
    }
    if let Some(former) = history.former {
        lines.push(format!("it was {} before", former.name()));
    }
    lines
}

fn number(history: &History) -> String {
    let stuck = history.present.stuck;
    let watched = span(history.watched_ns());
    let first = history.counts.front().map_or(stuck, |first| first.stuck);
    let growth = match history.growth_per_hour() {
        Some(growth) if growth.abs() >= 0.5 && first != stuck => format!(" ({growth:+.0} per hour)"),
        _ => String::new(),
    };
    match history.counts.len() {
        0 | 1 => format!("{stuck} stuck at the first look"),
        _ if first == stuck && history.arrivals == 0 => format!("{stuck} stuck, none new in {watched}"),
        _ if first < stuck => format!("{stuck} stuck, up from {first} {watched} ago{growth}"),
        _ if first > stuck => format!("{stuck} stuck, down from {first} {watched} ago{growth}"),
        _ => format!("{stuck} stuck, as many as {watched} ago"),
    }
}

fn ends(history: &History) -> String {
    let ends = &history.ends;
    if ends.all() == 0 {
        return "none was closed or used again".to_owned();
    }
    let kinds = [
        (ends.closed, "closed by the program"),
        (ends.reset_after_write, "reset because the program wrote to them"),
        (ends.reset_by_peer, "reset by the peer"),
        (ends.destroyed, "destroyed (tcpclose kill, or ss -K)"),
        (ends.other, "ended unseen"),
    ];
    let kinds: Vec<String> =
        kinds.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let after = ends.median_ns().map_or_else(String::new, |ns| format!(", after {} (median)", span(ns)));
    format!("others ended late: {}{after}", kinds.join(", "))
}

/// What an undecided group waits for.
pub fn waits_for(waits: WaitsFor, now_ns: u64) -> String {
    match waits {
        WaitsFor::Looks => "the next look at it".to_owned(),
        WaitsFor::Answer => "the answer that the local peers may wait for".to_owned(),
        WaitsFor::Growth(until_ns) => match until_ns.saturating_sub(now_ns) {
            0 => "more of them, or none for a while".to_owned(),
            left => {
                format!("{}, to see whether more arrive and whether any is closed or used again", span(left))
            }
        },
        WaitsFor::Activity => "new connections, to see whether the program reads from them".to_owned(),
    }
}

/// What to do about it.
pub fn advice(side: Side, history: &History) -> Option<String> {
    let silent = history.present.silent_before;
    let text = match (history.verdict, side) {
        (Verdict::Undecided, _) => return None,
        (Verdict::Leak, Side::Client) => {
            "find the path on which the program drops a connection, or a response, without closing it".to_owned()
        }
        (Verdict::Leak, _) => {
            "find the path on which the program has read the end of the stream and does not close".to_owned()
        }
        (Verdict::StalePool, _) => match silent {
            Some(silent) => format!(
                "give the pool an idle time-out below the server's, {}, or let it check connections before it uses them",
                seconds(silent)
            ),
            None => "give the pool an idle time-out below the server's, or let it check connections before it uses them"
                .to_owned(),
        },
        (Verdict::SlowReader, _) => "the program reads, but slower than data came: see what it does between two reads".to_owned(),
        (Verdict::Hung, _) => "see what the threads that should accept or read wait for".to_owned(),
        (Verdict::ProxyHalfClose, Side::Server) => {
            "look at the program behind the proxy: it has the end of the stream, and does not close".to_owned()
        }
        (Verdict::ProxyHalfClose, _) => "look at the clients of the proxy: they have the end of the stream, and do not close".to_owned(),
        (Verdict::OneOff, _) => "a restart frees them; if they come again, see --stacks".to_owned(),
    };
    Some(text)
}
