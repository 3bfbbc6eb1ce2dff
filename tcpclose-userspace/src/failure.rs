//! What a person reads when something cannot be done: one line that says what failed, why, and what to do.

use std::fmt;

/// A failure that ends the command: printed on one line, exit status 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What could not be done.
    pub what: String,
    /// Why: the cause as the system told it.
    pub why: String,
    /// What to do about it.
    pub todo: String,
}

impl Failure {
    pub fn new(what: impl Into<String>, why: impl fmt::Display, todo: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), todo: todo.into() }
    }
}

impl fmt::Display for Failure {
    /// `what: why; todo`, whatever line breaks the parts had.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("{}: {}; {}", self.what, self.why, self.todo);
        let mut words = line.split_whitespace();
        if let Some(first) = words.next() {
            f.write_str(first)?;
        }
        words.try_for_each(|word| write!(f, " {word}"))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new("cannot load", "line one\n  line two", "try again");
        assert_eq!(failure.to_string(), "cannot load: line one line two; try again");
    }
}
