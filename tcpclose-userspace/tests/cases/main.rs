//! Every way in which a TCP connection can close, scripted to the segment, and what the agent tells of it on every rung.
//!
//! * [`wire`]: segments by hand. [`place`]: network namespaces and TUN devices. [`peer`]: the hand-made end.
//! * [`scene`]: a kernel's socket, a peer, and when the script did what. [`diag`]: what the kernel itself says.
//! * [`passive`], [`active`], [`resets`], [`local`], [`timeouts`], [`minisockets`]: the scripts.
//! * [`table`]: the cases, and what is true of each. [`stay`]: the states. [`rungs`]: what each rung tells, read from the
//!   README. [`verdict`]: what an agent told, against that.
//! * [`stage`]: agents, namespaces, and all cases at once. [`report`]: what is printed.
//!
//! What an agent tells wrong fails the test, but where the kernel itself says that it left out the agent's program that
//! often (`common/left_out.rs`), or where its dumps were too far apart for a phase that only they tell of: then that case
//! is played again, until it is told right (`common/rounds.rs`).
//!
//! `TCPCLOSE_RUNGS=btf+diag,tracepoint+hooks` leaves the other rungs out. `TCPCLOSE_NO_SKIP` says that this kernel has every rung: one that does not start is then a failure,
//! but those that `TCPCLOSE_LACKING=btf,hooks` names, one of which that does start is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/left_out.rs"]
mod left_out;
#[path = "../common/rounds.rs"]
mod rounds;

mod active;
mod diag;
mod local;
mod minisockets;
mod passive;
mod peer;
mod place;
mod report;
mod resets;
mod rungs;
mod scene;
mod stage;
mod stay;
mod table;
mod timeouts;
mod verdict;
mod wire;

#[test]
fn every_case_on_every_rung() {
    if common::can_attach() {
        stage::play();
    }
}

#[test]
fn every_row_of_the_table_is_in_the_readme() {
    for case in table::CASES {
        for life in case.lives {
            let times = life.stays.iter().map(|stay| stay.time);
            for truth in times.chain([life.side, life.outcome]).chain(life.waited) {
                rungs::Rung::ALL.into_iter().for_each(|rung| assert_ne!(truth.told(rung), ""));
            }
        }
    }
    assert!(table::CASES.len() >= 35);
}
