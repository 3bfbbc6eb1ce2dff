//! The age of a state.

/// The time spent in the present state, nanoseconds: what is proven, never a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// At least this long.
    pub min_ns: u64,
    /// At most this long; `None` where no bound is proven.
    pub max_ns: Option<u64>,
}

impl Age {
    /// The entry was seen.
    pub const fn exact(ns: u64) -> Self {
        Self { min_ns: ns, max_ns: Some(ns) }
    }

    /// Nothing is proven.
    pub(crate) const UNKNOWN: Self = Self { min_ns: 0, max_ns: None };

    /// The same age from instants that may be off by `error_ns`.
    pub(crate) fn give_or_take(self, error_ns: u64) -> Self {
        Self {
            min_ns: self.min_ns.saturating_sub(error_ns),
            max_ns: self.max_ns.map(|max| max.saturating_add(error_ns)),
        }
    }

    pub fn is_exact(&self) -> bool {
        self.max_ns == Some(self.min_ns)
    }

    /// The same age `ns` later.
    pub fn later(self, ns: u64) -> Self {
        Self { min_ns: self.min_ns.saturating_add(ns), max_ns: self.max_ns.map(|max| max.saturating_add(ns)) }
    }

    /// The shorter of two ages.
    pub fn shorter(self, other: Self) -> Self {
        let max_ns = match (self.max_ns, other.max_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { min_ns: self.min_ns.min(other.min_ns), max_ns }
    }

    /// Proven to be `bound_ns` or longer.
    pub const fn is_past(&self, bound_ns: u64) -> bool {
        self.min_ns >= bound_ns
    }

    /// May be `bound_ns` or longer, but that is not proven.
    pub fn may_be_past(&self, bound_ns: u64) -> bool {
        !self.is_past(bound_ns) && self.max_ns.is_none_or(|max| max >= bound_ns)
    }
}
