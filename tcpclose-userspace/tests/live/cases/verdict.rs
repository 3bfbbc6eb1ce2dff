//! What an agent told of a case, held against what it should have told.

use std::collections::BTreeMap;

use super::backends::{Backend, Truth};
use super::common::Metrics;
use super::scene::Stayed;
use super::stay::{STATES, Stay};
use super::table::Case;

/// A duration read off a minisocket's timer may be wrong by this: jiffies, milliseconds of idiag_expires, and the
/// error of the measured length of TIME-WAIT.
const TIMER_SLACK: f64 = 0.05;

/// How the dumps of an agent went, seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dumps {
    /// The longest time between two.
    pub apart: f64,
    /// The longest one.
    pub took: f64,
}

/// A case that was played.
pub struct Played {
    /// Its place in the table.
    pub number: usize,
    pub case: &'static Case,
    pub port: u16,
    /// Per life what the script did; or why the script could not be played to its end.
    pub lives: Result<Vec<Vec<Stayed>>, String>,
}

/// One sample against the truth.
pub struct Error {
    pub state: &'static str,
    pub reported: &'static str,
    /// Seconds from the middle of what the script knows.
    pub seconds: f64,
    /// Half of that: the script knows no better.
    pub known_to: f64,
}

/// The ways in which `metrics` of an agent on `backend` differ from what the backend tells of `played`. What could be
/// measured goes to `errors`.
pub fn differences(
    played: &Played,
    backend: Backend,
    metrics: &Metrics,
    dumps: Dumps,
    errors: &mut Vec<Error>,
) -> Vec<String> {
    let lives = match &played.lives {
        Ok(lives) => lives,
        Err(why) => return vec![format!("the script failed: {why}")],
    };
    let mut differences = samples(played, lives, backend, metrics, dumps, errors);
    differences.extend(closes(played, backend, metrics));
    let port = played.port.to_string();
    for (labels, left) in metrics.select("tcpclose_sockets", &[("port", &port)]) {
        if left != 0.0 {
            differences.push(format!("{left} still in {}", labels["state"]));
        }
    }
    differences
}

/// Whether `played` had a phase that dumps alone tell of, shorter than two of their intervals were: one that may be unseen,
/// and what it was for with it. On a host with much else to do an emulated machine's dumps are that far apart.
pub fn too_brief(played: &Played, backend: Backend, dumps: Dumps) -> bool {
    // Without BTF the end of a full socket in FIN-WAIT-2 looks like its hand-over to a minisocket: which of the two it was is
    // known where the phase was longer than the time until the next dump.
    let by_dump = |stay: Stay| {
        stay.time.reported(backend) == "dump"
            || backend == Backend::BlindDiag && stay.time == Truth::FinWait2Cut
    };
    let lives = played.lives.iter().flatten().flatten();
    let mut dumped = lives.filter(|stayed| by_dump(stayed.stay));
    dumped.any(|stayed| truth(stayed).1 < 2.0 * (dumps.apart + dumps.took))
}

/// Any side.
const ANY: &str = "any";

/// The sides that are told apart. Without BTF a side is unknown until a dump, which comes when it will, proves it.
const fn sides(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::BlindDiag => &[ANY],
        _ => &["server", "client", "unknown"],
    }
}

/// The one of [`sides`] that `side` is.
fn side_label(backend: Backend, side: &str) -> &str {
    if backend == Backend::BlindDiag { ANY } else { side }
}

/// Holds the duration histograms of the case's port against the brackets.
fn samples(
    played: &Played,
    lives: &[Vec<Stayed>],
    backend: Backend,
    metrics: &Metrics,
    dumps: Dumps,
    errors: &mut Vec<Error>,
) -> Vec<String> {
    // By state and side.
    let mut wanted: BTreeMap<_, Vec<Wanted>> = BTreeMap::new();
    for (life, stays) in played.case.lives.iter().zip(lives) {
        for (stayed, next) in stays.iter().zip(stays.iter().skip(1).map(Some).chain([None])) {
            let reported = stayed.stay.time.reported(backend);
            let truth = truth(stayed);
            if let Some(mut bracket) = bracket(truth, reported, dumps) {
                if reported == "timer" {
                    bracket.1 += next.map_or(0.0, |next| hidden_by_rearming(next, dumps));
                }
                let key = (stayed.stay.state, side_label(backend, life.side.reported(backend)));
                wanted.entry(key).or_default().push(Wanted { truth, bracket, reported });
            }
        }
    }
    let mut differences = Vec::new();
    let port = played.port.to_string();
    for (state, _) in STATES {
        for side in sides(backend) {
            let want = wanted.remove(&(state, *side)).unwrap_or_default();
            let labels = [("state", state), ("port", port.as_str()), ("side", *side)];
            let labels = if *side == ANY { &labels[..2] } else { &labels[..] };
            let count = metrics.sum("tcpclose_state_duration_seconds_count", labels);
            let sum = metrics.sum("tcpclose_state_duration_seconds_sum", labels);
            if count != want.len() as f64 {
                differences.push(format!("{state} ({side}): {count} samples, not {}", want.len()));
                continue;
            }
            let low: f64 = want.iter().map(|want| want.bracket.0).sum();
            let high: f64 = want.iter().map(|want| want.bracket.1).sum();
            // A microsecond for the sum's own arithmetic.
            if !(low - 1e-6..=high + 1e-6).contains(&sum) {
                differences.push(format!("{state} ({side}): {sum:.6} s, not {low:.6} to {high:.6}"));
            }
            if let [Wanted { truth: (low, high), reported, .. }] = want[..] {
                let (middle, known_to) = ((low + high) / 2.0, (high - low) / 2.0);
                errors.push(Error { state, reported, seconds: (sum - middle).abs(), known_to });
            }
        }
    }
    differences
}

/// One sample that must be there.
struct Wanted {
    /// Least and most seconds that the script knows of.
    truth: (f64, f64),
    /// Least and most that the backend may tell.
    bracket: (f64, f64),
    reported: &'static str,
}

/// Least and most seconds that a state lasted, by the script's own clock.
fn truth(stayed: &Stayed) -> (f64, f64) {
    let left = stayed.left.expect("every state of a played script was left");
    let seconds = |ns: u64| ns as f64 / 1e9;
    let least = left.before_ns.saturating_sub(stayed.entered.after_ns);
    (seconds(least), seconds(left.after_ns - stayed.entered.before_ns))
}

/// By how much a duration that is read off the timer of `waiting`, the TIME-WAIT after it, may be too long: a retransmitted FIN sets
/// that timer anew, and shows if no dump came between. (The age of the TIME-WAIT is an interval that holds the entry all the same.)
fn hidden_by_rearming(waiting: &Stayed, dumps: Dumps) -> f64 {
    let Some(rearmed) = waiting.rearmed else { return 0.0 };
    let seconds = |ns: u64| ns as f64 / 1e9;
    let least = seconds(rearmed.before_ns.saturating_sub(waiting.entered.after_ns));
    if dumps.apart + dumps.took < least { 0.0 } else { seconds(rearmed.after_ns - waiting.entered.before_ns) }
}

/// Least and most that may be told of a state that lasted between `low` and `high`; `None` when nothing may be.
fn bracket((low, high): (f64, f64), reported: &str, dumps: Dumps) -> Option<(f64, f64)> {
    // When in a dump the kernel wrote idiag_expires is not told.
    let slack = TIMER_SLACK + dumps.took;
    match reported {
        "exact" => Some((low, high)),
        "timer" => Some(((low - slack).max(0.0), high + slack)),
        // The entry may be read off a timer, the end is the last sighting.
        "dump" => Some(((low - dumps.apart - slack).max(0.0), high + slack)),
        "unseen" => None,
        other => panic!("docs/coverage.toml: `{other}` is no exactness of a time"),
    }
}

/// Holds tcpclose_closes_total of the case's port against the table.
fn closes(played: &Played, backend: Backend, metrics: &Metrics) -> Vec<String> {
    let mut wanted: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    for life in played.case.lives {
        let side = side_label(backend, life.side.reported(backend));
        let key = (side, life.role, life.outcome.reported(backend));
        *wanted.entry((key.0.to_owned(), key.1.to_owned(), key.2.to_owned())).or_default() += 1.0;
    }
    let port = played.port.to_string();
    let mut got: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    for (labels, n) in metrics.select("tcpclose_closes_total", &[("port", &port)]) {
        let side = side_label(backend, &labels["side"]).to_owned();
        *got.entry((side, labels["role"].clone(), labels["outcome"].clone())).or_default() += n;
    }
    if got == wanted { Vec::new() } else { vec![format!("closes {got:?}, not {wanted:?}")] }
}

/// How many TIME-WAITs of `played` ended in each way, as `backend` tells.
pub fn ends<'a>(played: impl Iterator<Item = &'a Played>, backend: Backend) -> BTreeMap<&'static str, f64> {
    let mut ends = BTreeMap::new();
    for life in played.flat_map(|played| played.case.lives) {
        match life.waited.map(|how| how.reported(backend)) {
            None | Some("none") => {}
            Some(reason) => *ends.entry(reason).or_default() += 1.0,
        }
    }
    ends
}
