//! The words of the field, one file per word: each an enum with one table of its variants and their names.

#[macro_use]
mod word;
pub(crate) mod words;

mod age;
mod cause;
mod correction;
mod diagnosis;
mod flow;
mod hook_coverage;
mod idle_reason;
mod last_write;
mod netns_owner;
mod opening;
mod outcome;
mod phase;
mod port_key;
mod port_kind;
mod process_state;
mod role;
mod runtime;
mod side;
mod time_wait_end;
mod transition_source;
mod unmeasured_reason;
mod verdict;

pub use age::Age;
pub use cause::Cause;
pub use correction::Correction;
pub use diagnosis::Diagnosis;
pub use flow::{Flow, address_of, words_of};
pub use hook_coverage::{HookCoverage, LINGER_0, TIME_WAIT_SOCKET, abort_reason};
pub use idle_reason::IdleReason;
pub use last_write::{LastWrite, WriteLook};
pub use netns_owner::NetnsOwner;
pub use opening::{Listening, Opening};
pub use outcome::Outcome;
pub use phase::Phase;
pub use port_key::PortKey;
pub use port_kind::PortKind;
pub use process_state::ProcessState;
pub use role::Role;
pub use runtime::Runtime;
pub use side::Side;
pub use time_wait_end::TimeWaitEnd;
pub use transition_source::TransitionSource;
pub use unmeasured_reason::UnmeasuredReason;
pub use verdict::Verdict;
