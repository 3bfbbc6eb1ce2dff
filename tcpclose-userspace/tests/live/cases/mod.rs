//! Every way in which a TCP connection can close, scripted to the segment, and what the agent tells of it on every backend.
//!
//! * [`wire`]: segments by hand. [`place`]: network namespaces and TUN devices. [`peer`]: the hand-made end.
//! * [`scene`]: a kernel's socket, a peer, and when the script did what. [`diag`]: what the kernel itself says.
//! * [`passive`], [`active`], [`resets`], [`local`], [`timeouts`], [`minisockets`]: the scripts.
//! * [`table`]: the cases, and what is true of each. [`stay`]: the states. [`backends`]: what each backend reports, read from
//!   docs/coverage.toml. [`verdict`]: what an agent told, against that.
//! * [`stage`]: agents, namespaces, and all cases at once. [`report`]: what is printed.
//!
//! What an agent tells wrong fails the test, but where the kernel itself says that it left out the agent's program that
//! often (`common/left_out.rs`), or where its dumps were too far apart for a phase that only they tell of: then that case
//! is played again, until it is told right (`common/rounds.rs`).
//!
//! `TCPCLOSE_BACKENDS=btf+diag,tracepoint+hooks` leaves the other backends out. `TCPCLOSE_NO_SKIP` says that this kernel has every backend: one that does not start is then a failure,
//! but those that `TCPCLOSE_LACKING=btf,hooks` names, one of which that does start is a failure.

use crate::common;
use crate::common::left_out;
use crate::common::rounds;

mod active;
pub mod backends;
pub mod diag;
mod local;
mod minisockets;
mod passive;
pub mod peer;
pub mod place;
mod report;
mod resets;
pub mod scene;
mod stage;
pub mod stay;
mod table;
mod timeouts;
mod verdict;
pub mod wire;

#[test]
#[ignore = "needs root"]
fn every_case_on_every_backend() {
    stage::play();
}

#[test]
fn every_truth_of_a_case_is_in_the_coverage_file() {
    for case in table::CASES {
        for life in case.lives {
            let times = life.stays.iter().map(|stay| stay.time);
            for truth in times.chain([life.side, life.outcome]).chain(life.waited) {
                backends::Backend::ALL
                    .into_iter()
                    .for_each(|backend| assert_ne!(truth.reported(backend), ""));
            }
        }
    }
    assert!(table::CASES.len() >= 35);
}
