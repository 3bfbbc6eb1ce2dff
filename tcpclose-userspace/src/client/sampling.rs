//! Samples of the kernel's counters in every network namespace, around a scrape of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::thread::sleep;
use std::time::Duration;

use crate::client::Client;
use crate::client::reply::Reply;
use crate::failure::Failure;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, Netns, NetnsPath};
use crate::linux::netns_counters;
use crate::linux::netns_counters::{NetnsCounters, SampleOrder};
use crate::report::requests::METRICS_PATH;
use crate::report::verify::samples::Samples;
use crate::report::verify::{AuditSample, DumpedSockets, KernelSample, NetnsSample};

/// How often namespaces are searched for between two samples, since one may come and go.
const SEARCH: Duration = Duration::from_secs(1);

/// The namespaces seen so far.
pub struct Sampler<'a> {
    client: &'a Client,
    /// Every namespace that was ever sampled.
    known: BTreeMap<u32, Netns>,
    /// The inode of every one that a search found.
    found: BTreeSet<u32>,
    /// Those of the last search.
    last: BTreeSet<u32>,
    /// Of the last pass and search: those that the command is not allowed to enter, and processes that it is not allowed to read.
    refused: BTreeSet<u32>,
    denied: u32,
}

/// Namespaces that were not sampled, which the agent may count all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    pub refused: usize,
    pub denied: usize,
    /// Those that existed for a while.
    pub gone: usize,
}

impl Unseen {
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// In words.
    pub fn words(self) -> Vec<String> {
        let mut words =
            crate::report::incomplete::not_inspected("the kernel's numbers", self.refused, self.denied);
        if self.gone > 0 {
            let which = match self.gone {
                1 => "1 network namespace disappeared during the comparison: its last counts are".to_owned(),
                n => {
                    format!("{n} network namespaces disappeared during the comparison: their last counts are")
                }
            };
            words.push(format!("{which} missing from the kernel's numbers"));
        }
        words
    }
}

impl<'a> Sampler<'a> {
    pub fn new(client: &'a Client) -> Self {
        Self {
            client,
            known: BTreeMap::new(),
            found: BTreeSet::new(),
            last: BTreeSet::new(),
            refused: BTreeSet::new(),
            denied: 0,
        }
    }

    /// Reads the agent's metrics between two passes over all namespaces.
    pub fn sample(&mut self) -> Result<AuditSample, Failure> {
        let before = self.pass(SampleOrder::DumpThenSums)?;
        let Reply::Answer(metrics) = self.client.get(METRICS_PATH)? else { return Err(self.client.gone()) };
        let metrics = metrics.expect_ok().map_err(|why| self.client.failure(why))?;
        let after = self.pass(SampleOrder::SumsThenDump)?;
        let sample = |netns: &Netns| NetnsSample { netns: netns.clone(), before: None, after: None };
        let mut namespaces: BTreeMap<u32, NetnsSample> =
            self.known.iter().map(|(id, netns)| (*id, sample(netns))).collect();
        for account in before {
            let entry = namespaces.entry(account.netns.id).or_insert_with(|| sample(&account.netns));
            entry.before = Some(view(account));
        }
        for account in after {
            let entry = namespaces.entry(account.netns.id).or_insert_with(|| sample(&account.netns));
            entry.after = Some(view(account));
        }
        Ok(AuditSample { namespaces, metrics: Samples::parse(&String::from_utf8_lossy(&metrics.body)) })
    }

    /// A dump of every namespace, and its counters, which are read first.
    pub fn views(&mut self) -> Result<BTreeMap<u32, KernelSample>, Failure> {
        let accounts = self.pass(SampleOrder::SumsThenDump)?;
        Ok(accounts.into_iter().map(|account| (account.netns.id, view(account))).collect())
    }

    /// Sleeps, and searches for namespaces that come and go.
    pub fn pause(&mut self, time: Duration) -> Result<(), Failure> {
        let mut left = time;
        while left > SEARCH {
            sleep(SEARCH);
            left -= SEARCH;
            self.search(&Descriptors::NONE)?;
        }
        sleep(left);
        Ok(())
    }

    /// The namespaces missing from `sample`, the last one.
    pub fn unseen(&self, sample: &AuditSample) -> Unseen {
        let known: BTreeSet<u32> = self.known.values().map(|netns| netns.inum).collect();
        let left = sample
            .namespaces
            .values()
            .filter(|netns| netns.after.is_none() && !self.refused.contains(&netns.netns.inum));
        let passed = self.found.iter().filter(|inum| !known.contains(inum) && !self.last.contains(inum));
        Unseen {
            refused: self.refused.len(),
            denied: self.denied as usize,
            gone: left.count() + passed.count(),
        }
    }

    fn search(&mut self, descriptors: &Descriptors) -> Result<Vec<NetnsPath>, Failure> {
        let found = netns::find(descriptors).map_err(|error| Failure::new("/proc", error, "mount it"))?;
        self.last = found.places.iter().map(|place| place.inum).collect();
        self.found.extend(&self.last);
        self.denied = found.denied;
        Ok(found.places)
    }

    fn pass(&mut self, order: SampleOrder) -> Result<Vec<NetnsCounters>, Failure> {
        let places = self.search(&Descriptors::All)?;
        let accounts = netns_counters::accounts(&places, order).map_err(|error: io::Error| {
            let todo = "mount /proc, and load the modules inet_diag and tcp_diag";
            Failure::new("the kernel's TCP counters", error, todo)
        })?;
        let refused = accounts.failed.iter().filter(|(_, why)| why.kind() == ErrorKind::PermissionDenied);
        self.refused = refused.map(|(place, _)| place.inum).collect();
        self.known.extend(accounts.taken.iter().map(|account| (account.netns.id, account.netns.clone())));
        Ok(accounts.taken)
    }
}

fn view(account: NetnsCounters) -> KernelSample {
    let NetnsCounters { counters, stat, sockets, .. } = account;
    KernelSample { counters, stat, sockets: DumpedSockets::new(&sockets) }
}
