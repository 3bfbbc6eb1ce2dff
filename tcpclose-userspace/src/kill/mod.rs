//! Destroys stuck sockets, one at a time.
//!
//! * [`crate::report::kill::plan`]: which of the listed sockets to destroy, and why the others are left
//!   alone; pure.
//! * [`crate::report::kill::pace`]: when the next one may go; pure.
//! * [`crate::report::kill::summary`]: the results, for `--json` and for people.
//! * [`order`]: an order and its result, as command line and agent exchange them.
//! * [`places`]: the paths to the network namespaces of orders.
//! * [`execute`]: carries out one order, in the command line or in the agent.

pub mod order;
pub mod places;

use crate::kill::places::Places;
use crate::linux::host::uptime_ns;
use crate::linux::sock_diag;
use crate::names::Flow;

pub use crate::kill::order::KillOrder;
pub use crate::report::kill::outcome::{KillOutcome, SCHEMA};

const GONE: &str = "it has gone";

/// Carries out `order` in the socket's network namespace, which `places` finds.
pub fn execute(order: &KillOrder, places: &mut Places) -> KillOutcome {
    places.inside(order.netns, order.netns_id, || carry_out(order)).unwrap_or_else(|outcome| outcome)
}

/// Carries out `order` in the network namespace of the calling thread.
///
/// The state and the diagnosis are read immediately before. A race of microseconds remains: the kernel
/// compares the cookie and no state, so a socket that its program closes in between is destroyed in LAST-ACK.
fn carry_out(order: &KillOrder) -> KillOutcome {
    let flow = Flow::new(order.local, order.peer);
    let lookup = || sock_diag::lookup(&flow, order.interface, Some(order.cookie.0));
    match lookup() {
        Ok(Some(now)) => {
            if let Some(why) = order.changed(&now, uptime_ns()) {
                return KillOutcome::Spared { why };
            }
        }
        Ok(None) => return KillOutcome::Spared { why: GONE.to_owned() },
        Err(error) => return refused(&error),
    }
    match sock_diag::destroy(&flow, order.interface, order.cookie.0) {
        Ok(()) => {}
        Err(error) if sock_diag::is_gone(&error) => return KillOutcome::Spared { why: GONE.to_owned() },
        Err(error) => return refused(&error),
    }
    // Below 6.11 the kernel reports success and leaves a socket that no program holds as it is (tcp_abort()).
    match lookup() {
        Ok(Some(still)) if still.state == order.state.state() => KillOutcome::Refused {
            errno: None,
            why: "the kernel reported success but did not destroy the socket (Linux before 6.11, if no program holds it)".to_owned(),
        },
        _ => KillOutcome::Destroyed,
    }
}

fn refused(error: &std::io::Error) -> KillOutcome {
    KillOutcome::Refused { errno: error.raw_os_error(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::netns;
    use crate::names::Diagnosis;
    use crate::report::fixtures::socket;

    fn order(diagnoses: &[Diagnosis]) -> KillOrder {
        KillOrder::new(&socket(600, &[]), diagnoses, 60.0, 5.0)
    }

    #[test]
    fn an_order_for_a_socket_that_is_gone_touches_nothing() {
        let own = netns::own().unwrap();
        let here = KillOrder { netns: own.inum, netns_id: own.id, ..order(&[Diagnosis::NotClosed]) };
        let mut places = Places::default();
        assert_eq!(execute(&here, &mut places), KillOutcome::Spared { why: GONE.to_owned() });
        // Another namespace has the inode by now: the sockets of the former one have gone with it.
        let later = KillOrder { netns_id: own.id.wrapping_add(1), ..here.clone() };
        let KillOutcome::Spared { why } = execute(&later, &mut places) else { panic!() };
        assert!(why.contains("network namespace has gone"), "{why}");
        // Inodes of namespaces begin at 0xf0000000 (fs/proc/generic.c, PROC_DYNAMIC_FIRST), the first ones'
        // just below.
        let nowhere = KillOrder { netns: 1, ..here };
        let KillOutcome::Refused { errno: None, why } = execute(&nowhere, &mut places) else { panic!() };
        assert!(why.contains("its network namespace net:[1] can no longer be found"), "{why}");
    }
}
