//! Selects the sockets to destroy. Pure.

use serde::Serialize;

use crate::names::{Diagnosis, Phase};
use crate::report::sockets::StuckSocket;

/// What may be destroyed, besides the filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Leave {
    /// The age, seconds, from which a socket is stuck.
    pub bound: f64,
    /// The diagnoses of CLOSE-WAITs that may be destroyed.
    pub diagnoses: Vec<Diagnosis>,
    /// Also those that are only possibly past the bound, or only possibly the owner's.
    pub possibly: bool,
    /// Also those whose local peer waits for an answer.
    pub half_closed: bool,
    /// The filters name an owner.
    pub by_owner: bool,
    /// The most sockets to destroy: the first ones.
    pub limit: usize,
}

/// What is destroyed unless a diagnosis is named. A `still_sending` is at work. Destroying a `not_accepted` frees nothing: it
/// stays in its listener's queue until the program accepts it.
pub const DIAGNOSES: [Diagnosis; 2] = [Diagnosis::NotRead, Diagnosis::NotClosed];

/// A socket whose program has written to it so lately is at work, however short the bound is.
const AT_WORK_SECONDS: f64 = 60.0;

/// Matching sockets that are left alone, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    pub still_sending: usize,
    pub not_accepted: usize,
    /// Of another diagnosis that was not named.
    pub other_diagnosis: usize,
    /// Not seen by any dump, so that it is unknown whether they are at work.
    pub unknown: usize,
    /// Whose local peer has sent its FIN and may wait for an answer.
    pub half_closed: usize,
    /// Not proven to be past the bound.
    pub possibly: usize,
    /// Whose owner is one of several candidates.
    pub candidates: usize,
    /// MPTCP sockets: the kernel has no SOCK_DESTROY for them.
    pub mptcp: usize,
    /// Beyond the limit.
    pub beyond_limit: usize,
}

/// Divides `sockets` (which match the filters, the oldest first) into those to destroy and those to leave alone.
pub fn plan(sockets: Vec<StuckSocket>, leave: &Leave) -> (Vec<StuckSocket>, Left) {
    let mut left = Left::default();
    let mut going = Vec::new();
    for socket in sockets {
        let proven = socket.is_past(leave.bound);
        if !proven && !socket.may_be_past(leave.bound) {
            continue;
        }
        let is_sending =
            socket.is_written_to(AT_WORK_SECONDS) && !leave.diagnoses.contains(&Diagnosis::StillSending);
        let allowed = socket.diagnosis.is_none_or(|diagnosis| leave.diagnoses.contains(&diagnosis))
            && (socket.state != Phase::CloseWait || socket.diagnosis.is_some());
        if socket.mptcp {
            left.mptcp += 1;
        } else if is_sending {
            left.still_sending += 1;
        } else if !allowed {
            *match socket.diagnosis {
                Some(Diagnosis::StillSending) => &mut left.still_sending,
                Some(Diagnosis::NotAccepted) => &mut left.not_accepted,
                Some(Diagnosis::NotRead | Diagnosis::NotClosed) => &mut left.other_diagnosis,
                Some(Diagnosis::Unknown) | None => &mut left.unknown,
            } += 1;
        } else if socket.peer_waits && !leave.half_closed {
            left.half_closed += 1;
        } else if !proven && !leave.possibly {
            left.possibly += 1;
        } else if leave.by_owner && socket.has_candidates() && !leave.possibly {
            left.candidates += 1;
        } else if going.len() >= leave.limit {
            left.beyond_limit += 1;
        } else {
            going.push(socket);
        }
    }
    (going, left)
}

impl Left {
    /// In words, with the option that would include them; empty when nothing is left alone.
    pub fn words(&self) -> Vec<String> {
        let each = [
            (self.still_sending, "still sending (--diagnosis still_sending)"),
            (self.not_accepted, "not accepted yet (--diagnosis not_accepted)"),
            (self.other_diagnosis, "with a diagnosis that --diagnosis does not select"),
            (self.mptcp, "MPTCP (the kernel cannot destroy these)"),
            (self.unknown, "of unknown diagnosis"),
            (self.half_closed, "whose local peer may wait for an answer (--half-closed)"),
            (self.possibly, "possibly younger (--possibly)"),
            (self.candidates, "possibly another program's (--possibly)"),
            (self.beyond_limit, "beyond the --limit"),
        ];
        each.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures::{owner, socket};
    use crate::report::sockets::{AgeSeconds, Owner};

    fn leave(diagnoses: &[Diagnosis]) -> Leave {
        Leave {
            bound: 60.0,
            diagnoses: diagnoses.to_vec(),
            possibly: false,
            half_closed: false,
            by_owner: false,
            limit: usize::MAX,
        }
    }

    fn of(diagnosis: Option<Diagnosis>) -> StuckSocket {
        StuckSocket { diagnosis, ..socket(90, &[]) }
    }

    fn zoo() -> Vec<StuckSocket> {
        let age = AgeSeconds { exact: false, min_seconds: 10.0, max_seconds: None };
        vec![
            of(Some(Diagnosis::NotRead)),
            of(Some(Diagnosis::NotClosed)),
            of(Some(Diagnosis::StillSending)),
            of(Some(Diagnosis::NotAccepted)),
            of(Some(Diagnosis::Unknown)),
            // As an agent of another version might say it.
            of(None),
            StuckSocket { age, ..of(Some(Diagnosis::NotRead)) },
            socket(59, &[]),
        ]
    }

    #[test]
    fn only_proven_neglect_goes_unless_more_is_asked_by_name() {
        let (going, left) = plan(zoo(), &leave(&DIAGNOSES));
        let diagnoses: Vec<_> = going.iter().map(|socket| socket.diagnosis).collect();
        assert_eq!(diagnoses, [Some(Diagnosis::NotRead), Some(Diagnosis::NotClosed)]);
        let expected = Left { still_sending: 1, not_accepted: 1, unknown: 2, possibly: 1, ..Left::default() };
        assert_eq!(left, expected);
        assert_eq!(left.words().len(), 4);
        let (going, left) = plan(zoo(), &leave(&[Diagnosis::StillSending]));
        assert_eq!((going.len(), going[0].diagnosis), (1, Some(Diagnosis::StillSending)));
        assert_eq!((left.other_diagnosis, left.possibly), (3, 0));
        let (going, _) = plan(zoo(), &Leave { possibly: true, ..leave(&DIAGNOSES) });
        assert_eq!(going.len(), 3);
    }

    #[test]
    fn what_may_be_another_programs_is_not_destroyed_by_its_owner() {
        let candidate = Owner { candidate: true, ..owner(7, "api", (1, 2)) };
        let waiting = StuckSocket { owners: vec![candidate], ..of(Some(Diagnosis::NotAccepted)) };
        let asked = leave(&[Diagnosis::NotAccepted]);
        let by_owner = Leave { by_owner: true, ..asked.clone() };
        assert_eq!(plan(vec![waiting.clone()], &asked).0.len(), 1);
        let (going, left) = plan(vec![waiting.clone()], &by_owner);
        assert_eq!((going.len(), left), (0, Left { candidates: 1, ..Left::default() }));
        assert_eq!(plan(vec![waiting], &Leave { possibly: true, ..by_owner }).0.len(), 1);
    }

    #[test]
    fn a_short_bound_destroys_no_socket_that_is_written_to() {
        let write = |min_seconds, max_seconds| {
            let last_write = Some(AgeSeconds { exact: false, min_seconds, max_seconds: Some(max_seconds) });
            StuckSocket { last_write, ..of(Some(Diagnosis::NotClosed)) }
        };
        let asked = |diagnoses: &[Diagnosis]| Leave { bound: 0.0, ..leave(diagnoses) };
        let (going, left) = plan(vec![write(2.0, 3.0)], &asked(&DIAGNOSES));
        assert_eq!((going.len(), left.still_sending), (0, 1));
        let both = [Diagnosis::NotClosed, Diagnosis::StillSending];
        assert_eq!(plan(vec![write(2.0, 3.0)], &asked(&both)).0.len(), 1);
        // Before the FIN came, or long ago.
        assert_eq!(plan(vec![write(90.0, 90.5), write(61.0, 70.0)], &asked(&DIAGNOSES)).0.len(), 2);
    }

    #[test]
    fn a_live_half_close_is_destroyed_only_by_name() {
        let waited_for = StuckSocket { peer_waits: true, ..of(Some(Diagnosis::NotClosed)) };
        let (going, left) = plan(vec![waited_for.clone()], &leave(&DIAGNOSES));
        assert_eq!((going.len(), left), (0, Left { half_closed: 1, ..Left::default() }));
        let asked = Leave { half_closed: true, ..leave(&DIAGNOSES) };
        assert_eq!(plan(vec![waited_for], &asked).0.len(), 1);
    }

    #[test]
    fn other_states_have_no_diagnosis_and_go_when_asked_for() {
        let last_ack = StuckSocket { state: Phase::LastAck, ..of(None) };
        assert_eq!(plan(vec![last_ack], &leave(&DIAGNOSES)).0.len(), 1);
    }

    #[test]
    fn the_limit_takes_the_first() {
        let sockets = vec![of(Some(Diagnosis::NotRead)), of(Some(Diagnosis::NotClosed))];
        let (going, left) = plan(sockets, &Leave { limit: 1, ..leave(&DIAGNOSES) });
        assert_eq!(going[0].diagnosis, Some(Diagnosis::NotRead));
        assert_eq!((left.beyond_limit, left.words()), (1, vec!["1 beyond the --limit".to_owned()]));
        assert!(Left::default().words().is_empty());
    }
}
