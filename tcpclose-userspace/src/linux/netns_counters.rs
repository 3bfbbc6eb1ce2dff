//! What the kernel says of TCP in several network namespaces: a dump of each beside its sums, on one thread that ends
//! with them.

use std::io;

use crate::linux::netns;
use crate::linux::netns::{Netns, Place};
use crate::linux::netns_dump;
use crate::linux::netns_dump::Ask;
use crate::linux::proc_net;
use crate::linux::proc_net::{Counters, SockStat};
use crate::linux::sock_diag::Socket;

/// Every state of a socket that is in the kernel's tables: TCP_ESTABLISHED to TCP_CLOSING.
const EVERY_STATE: Ask = Ask { states: 0xffe, info: false };

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    DumpThenSums,
    SumsThenDump,
}

/// Of one namespace.
#[derive(Clone, Debug)]
pub struct Account {
    pub netns: Netns,
    pub counters: Counters,
    pub stat: SockStat,
    pub sockets: Vec<Socket>,
}

/// What a journey has brought.
#[derive(Debug, Default)]
pub struct Accounts {
    pub taken: Vec<Account>,
    /// Where nobody could go, and why.
    pub failed: Vec<(Place, io::Error)>,
}

/// Goes to `places` and takes the account of each.
///
/// # Errors
/// When a namespace that was entered gives no dump or no sums: what the kernel lacks there it lacks in all.
pub fn accounts(places: &[Place], order: Order) -> io::Result<Accounts> {
    netns::travel(|traveller| {
        let mut accounts = Accounts::default();
        for place in places {
            match traveller.enter(place) {
                Ok(netns) => accounts.taken.push(account(netns, order)?),
                Err(why) => accounts.failed.push((place.clone(), why)),
            }
        }
        Ok(accounts)
    })?
}

/// The account of this thread's namespace.
fn account(netns: Netns, order: Order) -> io::Result<Account> {
    let sums = || {
        proc_net::read().map_err(|error| {
            io::Error::new(error.kind(), format!("the kernel's counters in /proc/net: {error}"))
        })
    };
    let ((counters, stat), dump) = match order {
        Order::SumsThenDump => (sums()?, netns_dump::dump(EVERY_STATE)?),
        Order::DumpThenSums => {
            let dump = netns_dump::dump(EVERY_STATE)?;
            (sums()?, dump)
        }
    };
    Ok(Account { netns, counters, stat, sockets: dump.sockets })
}
