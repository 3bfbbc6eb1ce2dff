//! The lines that a watcher wants. The agent applies the filter, so that other lines are not even written.

use std::time::Duration;

use crate::names::{Outcome, Phase};
use crate::report::query;
use crate::tracker::transition::Transition;

/// The longest duration in nanoseconds: 584 years.
const LONGEST: Duration = Duration::from_nanos(u64::MAX);

/// A filter of transitions; an empty one lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchFilter {
    /// Service ports.
    pub ports: Vec<u16>,
    /// States that a transition leaves or enters.
    pub states: Vec<Phase>,
    /// Outcomes, which only last transitions have.
    pub outcomes: Vec<Outcome>,
    /// The process that closed this side, by its pid in the first PID namespace.
    pub pid: Option<u32>,
    /// The proven minimum of the time spent in the state that was left.
    pub longer_than: Duration,
    /// Not a filter: whether lines carry [`More`](crate::report::watch::line::More).
    pub more: bool,
}

impl WatchFilter {
    /// Whether this transition passes.
    pub fn passes(&self, step: &Transition) -> bool {
        let state = |phase: &Phase| step.from == phase.state() || step.to == phase.state();
        (self.ports.is_empty() || self.ports.contains(&step.port))
            && (self.states.is_empty() || self.states.iter().any(state))
            && (self.outcomes.is_empty() || step.outcome.is_some_and(|how| self.outcomes.contains(&how)))
            && self.pid.is_none_or(|pid| step.closer.is_some_and(|closer| closer.pid.get() == pid))
            && u128::from(step.spent.min_ns) >= self.longer_than.as_nanos()
    }

    /// The query of a request, which [`Self::parse`] reads.
    pub fn query(&self) -> String {
        let mut fields: Vec<String> = Vec::new();
        fields.extend(self.ports.iter().map(|port| format!("port={port}")));
        fields.extend(self.states.iter().map(|phase| format!("state={}", phase.name())));
        fields.extend(self.outcomes.iter().map(|outcome| format!("outcome={}", outcome.name())));
        fields.extend(self.pid.map(|pid| format!("pid={pid}")));
        if !self.longer_than.is_zero() {
            fields.push(format!("longer_than={}ns", self.longer_than.min(LONGEST).as_nanos()));
        }
        if self.more {
            fields.push("more=1".to_owned());
        }
        fields.join("&")
    }

    /// Parses a request's query.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        let known = ["port", "state", "outcome", "pid", "longer_than", "more"];
        for (key, value) in query::fields(query, &known)? {
            let wrong = |what: &str| format!("{key}={value}: {what}");
            match key {
                "port" => filter.ports.push(value.parse().map_err(|_| wrong("not a port"))?),
                "state" => {
                    let phase = Phase::ALL.into_iter().find(|phase| phase.name() == value);
                    filter.states.push(phase.ok_or_else(|| wrong("not a close-phase state"))?);
                }
                "outcome" => {
                    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.name() == value);
                    filter.outcomes.push(outcome.ok_or_else(|| wrong("not an outcome"))?);
                }
                "pid" => filter.pid = Some(value.parse().map_err(|_| wrong("not a process id"))?),
                "longer_than" => filter.longer_than = query::duration(key, value)?.min(LONGEST),
                _ => filter.more = query::only(key, value, "1").map(|()| true)?,
            }
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::names::Age;
    use crate::tracker::socket::Closer;
    use crate::tracker::transition::fin_wait_2_to_time_wait;

    #[test]
    fn each_filter_lets_through_what_it_names() {
        let closer = Closer { pid: NonZeroU32::new(42).unwrap(), at_ns: 7 };
        let step = Transition { closer: Some(closer), ..fin_wait_2_to_time_wait() };
        assert_eq!((step.port, step.spent), (80, Age { min_ns: 1_000_000_000, max_ns: Some(2_000_000_000) }));
        let end = Transition { outcome: Some(Outcome::Graceful), ..step.clone() };
        for (query, passes) in [
            ("", [true, true]),
            ("more=1", [true, true]),
            ("port=80", [true, true]),
            ("port=81&port=80", [true, true]),
            ("port=81", [false, false]),
            ("state=time_wait", [true, true]),
            ("state=last_ack&state=fin_wait_2", [true, true]),
            ("state=close_wait", [false, false]),
            ("outcome=graceful", [false, true]),
            ("outcome=timeout", [false, false]),
            ("pid=42", [true, true]),
            ("pid=43", [false, false]),
            ("longer_than=1s", [true, true]),
            ("longer_than=1001ms", [false, false]),
            ("port=80&state=close_wait", [false, false]),
        ] {
            let filter = WatchFilter::parse(query).unwrap();
            assert_eq!([filter.passes(&step), filter.passes(&end)], passes, "{query}");
        }
        let stranger = Transition { closer: None, ..step };
        assert!(!WatchFilter::parse("pid=42").unwrap().passes(&stranger));
    }

    #[test]
    fn a_query_says_what_the_filter_says() {
        let query = "port=80&port=443&state=close_wait&outcome=timeout&pid=7&longer_than=1500000000ns&more=1";
        let filter = WatchFilter::parse(query).unwrap();
        assert_eq!((filter.query().as_str(), filter.longer_than), (query, Duration::from_millis(1500)));
        assert_eq!(WatchFilter::parse(&WatchFilter::default().query()), Ok(WatchFilter::default()));
        for longest in ["584years", "585years", "18446744073709551615s"] {
            let filter = WatchFilter::parse(&format!("longer_than={longest}")).unwrap();
            assert_eq!(WatchFilter::parse(&filter.query()), Ok(filter));
        }
        for bad in
            ["port=", "port=70000", "state=limbo", "outcome=good", "pid=x", "longer_than=soon", "color=red"]
        {
            let why = WatchFilter::parse(bad).unwrap_err();
            assert!(why.starts_with(bad.split('=').next().unwrap()), "{why}");
        }
    }
}
