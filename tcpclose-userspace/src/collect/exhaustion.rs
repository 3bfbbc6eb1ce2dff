//! The owners of ephemeral ports.

use std::io;

use crate::collect;
use crate::linux::host;
use crate::linux::owners;
use crate::linux::owners::OwnersLookup;
use crate::linux::process;
use crate::report::exhaustion::document;
use crate::report::exhaustion::document::{ExhaustionDocument, ExhaustionInputs};

/// Describes the `limit` fullest tuples. Blocks for as long as a pass over all files takes.
///
/// # Errors
/// When /proc cannot be read.
pub fn assemble(
    inputs: &ExhaustionInputs<'_>,
    limit: usize,
    lookup: OwnersLookup,
) -> io::Result<ExhaustionDocument> {
    let (picks, tuples_in_use) = document::fullest(inputs.port_use, limit);
    let owners = owners::find(&document::inodes(&picks), lookup)?;
    let uptime_ns = host::uptime_ns();
    // A process that started after one of its closes only has the same pid.
    let name_of = |pid, ago_ns| {
        let closed_ns = uptime_ns.saturating_sub(ago_ns);
        process::started(pid).filter(|(began_ns, _)| *began_ns <= closed_ns).map(|(_, comm)| comm)
    };
    let envelope = collect::envelope(inputs.source, inputs.at.clone(), Vec::new());
    let missing = collect::missing_for_owners();
    let document =
        document::assemble(inputs, (&picks, tuples_in_use), (&owners, &missing), &name_of, envelope);
    Ok(ExhaustionDocument { locals: document::fullest_locals(inputs.port_use, limit), ..document })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    use crate::linux::ephemeral_ports::NetnsPorts;
    use crate::linux::{ephemeral_ports, netns};
    use crate::report::exhaustion::port_table::EphemeralUse;

    #[test]
    fn a_connection_of_ours_is_in_the_table() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port_use: EphemeralUse =
            ephemeral_ports::look(&[netns::own_place().unwrap()], Duration::ZERO).unwrap();
        let [NetnsPorts { table, .. }] = &port_use.tables[..] else { panic!("{port_use:?}") };
        let (_, taken) = table
            .tuples()
            .find(|(tuple, _)| tuple.remote() == listener.local_addr().unwrap())
            .expect("its tuple");
        assert_eq!(taken.len(), 1, "the accepted end has the listener's port, which counts for all");
        assert_eq!(taken[0].port, client.local_addr().unwrap().port());
        assert!(table.bound() >= 1 && table.fullest() > 0.0);
        assert!(table.choice.has(taken[0].port) && !table.choice.has(80));
    }
}
