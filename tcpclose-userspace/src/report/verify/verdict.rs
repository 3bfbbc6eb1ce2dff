//! Two readings of one number, and whether they agree.

use std::fmt;

use serde::Serialize;

/// The bounds of a number, which changes while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    pub min: i64,
    pub max: i64,
}

impl Span {
    pub const fn exact(n: i64) -> Self {
        Self { min: n, max: n }
    }

    /// Of two readings in any order.
    pub fn between(a: i64, b: i64) -> Self {
        Self { min: a.min(b), max: a.max(b) }
    }

    pub const fn plus(self, other: Self) -> Self {
        Self { min: self.min + other.min, max: self.max + other.max }
    }

    pub const fn minus(self, other: Self) -> Self {
        Self { min: self.min - other.max, max: self.max - other.min }
    }

    /// By how much this is certainly more than `other`, or (negative) less; 0 when both can be equal.
    pub const fn beyond(self, other: Self) -> i64 {
        if self.min > other.max {
            self.min - other.max
        } else if self.max < other.min {
            self.max - other.min
        } else {
            0
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}–{}", self.min, self.max),
        }
    }
}

/// Whether two readings agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub enum Agreement {
    /// They may be the same number.
    Equal,
    /// They differ by no more than a known cause explains.
    Explained(String),
    /// They differ without a known cause.
    Differs,
    /// The backend in use cannot know it.
    NotTold(String),
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => f.write_str("equal"),
            Self::Explained(why) => write!(f, "explained: {why}"),
            Self::Differs => f.write_str("DIFFERS"),
            Self::NotTold(why) => write!(f, "not known to this backend: {why}"),
        }
    }
}

/// Known causes by which the agent's number may differ from the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// Events that the agent has lost and no reconcile has corrected: each can cause a difference of one.
    pub lost: i64,
    /// Network namespaces exist, or existed, that are not read and whose events the agent may count.
    pub elsewhere: bool,
}

impl Causes {
    /// Judges `agent` against `kernel`.
    pub fn judge(&self, agent: Span, kernel: Span) -> Agreement {
        let beyond = agent.beyond(kernel);
        match beyond {
            0 => Agreement::Equal,
            _ if beyond.abs() <= self.lost => {
                Agreement::Explained(format!("the agent reports {} lost events", self.lost))
            }
            1.. if self.elsewhere => {
                let why = "the agent counts network namespaces that are not read here (see below)";
                Agreement::Explained(why.to_owned())
            }
            _ => Agreement::Differs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_overlap_are_equal() {
        let span = |min, max| Span { min, max };
        assert_eq!(Span::between(5, 3), span(3, 5));
        assert_eq!(span(3, 5).beyond(span(5, 9)), 0);
        assert_eq!(span(3, 5).beyond(span(6, 9)), -1);
        assert_eq!(span(10, 12).beyond(span(6, 9)), 1);
        assert_eq!(span(1, 2).plus(span(10, 20)), span(11, 22));
        assert_eq!(span(10, 20).minus(span(1, 2)), span(8, 19));
        assert_eq!((Span::exact(4).to_string(), span(4, 6).to_string()), ("4".into(), "4–6".into()));
    }

    #[test]
    fn a_difference_needs_a_cause_that_is_large_enough() {
        let judge = |causes: Causes, agent| causes.judge(Span::exact(agent), Span { min: 10, max: 12 });
        let none = Causes::default();
        assert_eq!(judge(none, 11), Agreement::Equal);
        assert_eq!(judge(none, 13), Agreement::Differs);
        assert_eq!(judge(none, 9), Agreement::Differs);
        let lost = Causes { lost: 2, ..none };
        assert!(matches!(judge(lost, 8), Agreement::Explained(_)));
        assert!(matches!(judge(lost, 14), Agreement::Explained(_)));
        assert_eq!(judge(lost, 7), Agreement::Differs);
        // What the agent counts elsewhere makes its number larger, never smaller.
        let elsewhere = Causes { elsewhere: true, ..none };
        assert!(matches!(judge(elsewhere, 99), Agreement::Explained(_)));
        assert_eq!(judge(elsewhere, 9), Agreement::Differs);
    }

    #[test]
    fn a_verdict_reads_the_same_in_json() {
        let json = |verdict| serde_json::to_string(&verdict).unwrap();
        assert_eq!(json(Agreement::Differs), r#"{"verdict":"differs"}"#);
        assert_eq!(json(Agreement::NotTold("x".into())), r#"{"verdict":"not_told","why":"x"}"#);
    }
}
