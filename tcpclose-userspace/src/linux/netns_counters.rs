//! TCP in several network namespaces: a dump of each and the kernel's counters, on one thread that ends with them.

use std::io;

use crate::linux::netns;
use crate::linux::netns::{Netns, NetnsPath};
use crate::linux::netns_dump;
use crate::linux::netns_dump::DumpRequest;
use crate::linux::proc_net;
use crate::linux::proc_net::{MibCounters, SockStat};
use crate::linux::sock_diag::Socket;

/// Every state of a socket that is in the kernel's tables: TCP_ESTABLISHED to TCP_CLOSING.
const EVERY_STATE: DumpRequest = DumpRequest { states: 0xffe, info: false };

/// The order of dump and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleOrder {
    DumpThenSums,
    SumsThenDump,
}

/// The dump and the counters of one namespace.
#[derive(Clone, Debug)]
pub struct NetnsCounters {
    pub netns: Netns,
    pub counters: MibCounters,
    pub stat: SockStat,
    pub sockets: Vec<Socket>,
}

/// The result of one pass over the namespaces.
#[derive(Debug, Default)]
pub struct NetnsCountersList {
    pub taken: Vec<NetnsCounters>,
    /// Namespaces that could not be entered, and why.
    pub failed: Vec<(NetnsPath, io::Error)>,
}

/// Dumps each of `places` and reads its counters.
///
/// # Errors
/// When a namespace that was entered cannot be dumped or has no counters: then none has.
pub fn accounts(places: &[NetnsPath], order: SampleOrder) -> io::Result<NetnsCountersList> {
    netns::with_visitor(|visitor| {
        let mut accounts = NetnsCountersList::default();
        for place in places {
            match visitor.enter(place) {
                Ok(netns) => accounts.taken.push(account(netns, order)?),
                Err(why) => accounts.failed.push((place.clone(), why)),
            }
        }
        Ok(accounts)
    })?
}

/// Dumps this thread's namespace and reads its counters.
fn account(netns: Netns, order: SampleOrder) -> io::Result<NetnsCounters> {
    let sums = || {
        proc_net::read().map_err(|error| {
            io::Error::new(error.kind(), format!("the kernel's counters in /proc/net: {error}"))
        })
    };
    let ((counters, stat), dump) = match order {
        SampleOrder::SumsThenDump => (sums()?, netns_dump::dump(EVERY_STATE)?),
        SampleOrder::DumpThenSums => {
            let dump = netns_dump::dump(EVERY_STATE)?;
            (sums()?, dump)
        }
    };
    Ok(NetnsCounters { netns, counters, stat, sockets: dump.sockets })
}
