//! The document of `GET /ports` and `tcpclose ports --json`: the close phase by service port. Aggregates only: no address, no
//! process.
//!
//! As with [`crate::report::sockets`], readers ignore unknown keys.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::linux::sock_diag::Socket;
use crate::metrics::gauges::Standing;
use crate::metrics::histogram;
use crate::metrics::histogram::Histogram;
use crate::metrics::port_labels::PortLabel;
use crate::names::words::named;
use crate::names::{Age, Diagnosis, Phase, Side};
use crate::report::assemble::{DumpClock, dumped_facts};
use crate::report::diagnosis::{diagnose, neglected};
use crate::report::envelope::{Envelope, Versioned, document};
use crate::report::sockets::seconds;

/// The version of the document that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// The age from which the age of the numbers is mentioned.
const WORTH_MENTIONING_SECONDS: f64 = 5.0;

impl Versioned for PortsDocument {
    fn schema(&self) -> u32 {
        self.schema
    }
}

document! {
    /// The close phase by service port.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct PortsDocument: SCHEMA {
        /// How old the oldest part of `sockets` and `stuck` is at `at`; `null` from an agent that does not report it.
        #[serde(default)]
        pub age_seconds: Option<f64>,
    } {
        /// The age from which a CLOSE-WAIT is stuck.
        pub stuck_after_seconds: f64,
        /// The period up to now over which rates are taken; `null` while it is too short for any.
        pub rate_seconds: Option<f64>,
        /// All ports together: every state, in the order of the close.
        pub states: Vec<StateUse>,
        /// The transitions that were seen, all ports together; empty in a snapshot.
        pub transitions: Vec<TransitionUse>,
        /// Every pair of side and port that has a name, and `other` for the rest. In a snapshot every pair that has sockets.
        pub ports: Vec<PortUse>,
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortUse {
    #[serde(with = "named")]
    pub side: Side,
    /// A number, or `"other"`.
    #[serde(with = "port_or_other")]
    pub port: Option<u16>,
    /// Sockets in all close-phase states now.
    pub sockets: u64,
    /// Stuck sockets of all ages; `tcpclose_stuck_sockets` has them in classes.
    pub stuck: u64,
    /// CLOSE-WAITs that may be stuck, whose entry was not seen.
    pub possibly_stuck: u64,
    /// Connections that ended since the pair got its name; `null` in a snapshot.
    pub closes: Option<u64>,
    pub closes_per_second: Option<f64>,
    /// The states that have sockets now, or that sockets have left.
    pub states: Vec<StateUse>,
}

impl PortUse {
    pub const fn label(&self) -> PortLabel {
        PortLabel { side: self.side, port: self.port }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateUse {
    #[serde(with = "named")]
    pub state: Phase,
    /// Sockets in the state now.
    pub sockets: u64,
    /// Proven minimum age of the oldest of them; `null` without any.
    pub oldest_seconds: Option<f64>,
    /// Durations of the sockets that left it; `null` where none did.
    pub durations: Option<Durations>,
}

/// The histogram of the time that sockets spent in a state, as `tcpclose_state_duration_seconds` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    pub count: u64,
    pub sum_seconds: f64,
    pub median: QuantileBounds,
    pub p99: QuantileBounds,
}

/// The bounds of a quantile: the histogram has buckets and a sum, which prove an interval, and no number in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantileBounds {
    /// By linear interpolation in between; older agents write `null` beyond the last bucket.
    pub seconds: Option<f64>,
    pub from_seconds: f64,
    /// Older agents write `null` beyond the last bucket.
    pub to_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransitionUse {
    /// The name of a state, as in labels.
    pub from: String,
    pub to: String,
    /// The count since the agent started.
    pub count: u64,
    pub per_second: Option<f64>,
}

impl PortsDocument {
    /// How old the numbers are, in words, if that is worth mentioning.
    pub fn old(&self) -> Option<String> {
        let seconds = self.age_seconds.filter(|seconds| *seconds >= WORTH_MENTIONING_SECONDS)?;
        Some(format!("numbers {seconds:.0} s old"))
    }
}

impl StateUse {
    pub fn new(state: Phase, standing: Standing, durations: Option<&Histogram>) -> Self {
        let Standing { sockets, oldest_ns } = standing;
        let oldest_seconds = (sockets > 0).then(|| seconds(oldest_ns));
        Self { state, sockets, oldest_seconds, durations: durations.and_then(Durations::of) }
    }
}

impl From<histogram::Quantile> for QuantileBounds {
    fn from(quantile: histogram::Quantile) -> Self {
        Self {
            seconds: Some(quantile.seconds),
            from_seconds: seconds(quantile.from_ns),
            to_seconds: Some(seconds(quantile.to_ns)),
        }
    }
}

impl Durations {
    /// `None` without samples.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        Some(Self {
            count: histogram.count(),
            sum_seconds: histogram.sum_seconds(),
            median: histogram.quantile(0.5)?.into(),
            p99: histogram.quantile(0.99)?.into(),
        })
    }
}

/// The counts of one pair of side and port.
#[derive(Clone, Debug, Default)]
struct PairCounts {
    states: BTreeMap<Phase, Standing>,
    stuck: u64,
    possibly_stuck: u64,
}

impl PairCounts {
    /// Takes in a socket that is in `phase` for `age`, and was last written to `last_write` ago.
    fn take(
        &mut self,
        phase: Phase,
        (age, last_write): (Age, Option<Age>),
        diagnosis: Option<Diagnosis>,
        bound_ns: u64,
    ) {
        let standing = self.states.entry(phase).or_default();
        standing.sockets += 1;
        standing.oldest_ns = standing.oldest_ns.max(age.min_ns);
        if phase == Phase::CloseWait && diagnosis != Some(Diagnosis::StillSending) {
            let neglected = neglected(age, last_write, diagnosis);
            self.stuck += u64::from(neglected.is_past(bound_ns));
            self.possibly_stuck += u64::from(neglected.may_be_past(bound_ns));
        }
    }

    fn states(&self, phases: impl Iterator<Item = Phase>) -> Vec<StateUse> {
        let one =
            |phase: Phase| StateUse::new(phase, self.states.get(&phase).copied().unwrap_or_default(), None);
        phases.map(one).collect()
    }
}

/// The dump of one network namespace.
pub struct NetnsDumped<'a> {
    /// `ip_local_port_range` in it.
    pub local_ports: &'a RangeInclusive<u16>,
    pub sockets: &'a [Socket],
    pub listeners: &'a [Socket],
}

/// The document of one dump of each network namespace: the sockets that exist now, and their proven minimum ages. `bound_ns`:
/// the age from which a CLOSE-WAIT is stuck.
pub fn of_dumps<'a>(
    envelope: Envelope,
    dumped: impl Iterator<Item = NetnsDumped<'a>>,
    bound_ns: u64,
    clock: DumpClock,
) -> PortsDocument {
    let no_earlier_look = HashMap::new();
    let (mut all, mut pairs) = (PairCounts::default(), BTreeMap::<PortLabel, PairCounts>::new());
    for NetnsDumped { local_ports, sockets, listeners } in dumped {
        for socket in sockets {
            let Some(phase) = Phase::of(socket.state) else { continue };
            let facts = dumped_facts(socket, listeners, local_ports, clock, &no_earlier_look);
            let diagnosis = diagnose(socket, facts.age, facts.last_write, bound_ns);
            let label = PortLabel { side: facts.side, port: Some(facts.port) };
            for seen in [&mut all, pairs.entry(label).or_default()] {
                seen.take(phase, (facts.age, facts.last_write), diagnosis, bound_ns);
            }
        }
    }
    let ports = pairs.into_iter().map(|(label, seen)| PortUse {
        side: label.side,
        port: label.port,
        sockets: seen.states.values().map(|standing| standing.sockets).sum(),
        stuck: seen.stuck,
        possibly_stuck: seen.possibly_stuck,
        closes: None,
        closes_per_second: None,
        states: seen.states(seen.states.keys().copied()),
    });
    PortsDocument {
        age_seconds: Some(0.0),
        stuck_after_seconds: seconds(bound_ns),
        states: all.states(Phase::ALL.into_iter()),
        ports: ports.collect(),
        ..PortsDocument::within(envelope)
    }
}

mod port_or_other {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Port {
        Number(u16),
        Word(String),
    }

    pub fn serialize<S: Serializer>(port: &Option<u16>, to: S) -> Result<S::Ok, S::Error> {
        match port {
            Some(port) => to.serialize_u16(*port),
            None => to.serialize_str("other"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
        match Port::deserialize(from)? {
            Port::Number(port) => Ok(Some(port)),
            Port::Word(word) if word == "other" => Ok(None),
            Port::Word(word) => Err(D::Error::custom(format_args!("{word:?} is no port"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = concat!(
        r#"{"schema":1,"host":"h","boot_id":"b","at":"2026-11-22T11:00:00.123456789Z","source":"agent","age_seconds":null,"incomplete":[],"#,
        r#""stuck_after_seconds":60.0,"rate_seconds":55.5,"#,
        r#""states":[{"state":"fin_wait_1","sockets":0,"oldest_seconds":null,"durations":null}],"#,
        r#""transitions":[{"from":"last_ack","to":"closed","count":7,"per_second":0.1}],"#,
        r#""ports":[{"side":"server","port":8080,"sockets":1,"stuck":0,"possibly_stuck":0,"closes":7,"closes_per_second":0.1,"#,
        r#""states":[{"state":"close_wait","sockets":1,"oldest_seconds":2.5,"durations":{"count":7,"sum_seconds":0.01,"#,
        r#""median":{"seconds":0.0005,"from_seconds":0.0,"to_seconds":0.001},"#,
        r#""p99":{"seconds":null,"from_seconds":86400.0,"to_seconds":null}}}]},"#,
        r#"{"side":"client","port":"other","sockets":0,"stuck":0,"possibly_stuck":0,"closes":null,"#,
        r#""closes_per_second":null,"states":[]}]}"#,
    );

    #[test]
    fn a_socket_at_work_is_not_stuck_and_an_interval_is_possibly() {
        let mut seen = PairCounts::default();
        let mut take =
            |min_ns, max_ns, why| seen.take(Phase::CloseWait, (Age { min_ns, max_ns }, None), Some(why), 60);
        take(70, Some(70), Diagnosis::StillSending);
        take(61, None, Diagnosis::NotRead);
        take(10, None, Diagnosis::NotRead);
        take(10, Some(59), Diagnosis::NotClosed);
        assert_eq!((seen.stuck, seen.possibly_stuck), (1, 1));
        let [state] = &seen.states([Phase::CloseWait].into_iter())[..] else { panic!() };
        assert_eq!((state.sockets, state.oldest_seconds), (4, Some(70e-9)));
    }

    #[test]
    fn reads_and_writes_the_document_as_promised() {
        let document: PortsDocument = serde_json::from_str(SAMPLE).unwrap();
        assert_eq!(document.ports[1].label(), PortLabel { side: Side::Client, port: None });
        assert_eq!(serde_json::to_string(&document).unwrap(), SAMPLE);
        assert!(serde_json::from_str::<PortsDocument>(&SAMPLE.replace("\"other\"", "\"none\"")).is_err());
        let newer = SAMPLE.replace(r#""stuck":0"#, r#""stuck":0,"zone":"a""#);
        assert_eq!(serde_json::from_str::<PortsDocument>(&newer).unwrap(), document);
    }
}
