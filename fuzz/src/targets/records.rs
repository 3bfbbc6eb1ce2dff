//! Records of the ring: a byte that says the backend, then each record behind its length.

use tcpclose::metrics::Metrics;
use tcpclose::metrics::gauges::StuckAfter;
use tcpclose::metrics::port_labels::PortLabels;
use tcpclose::names::{HookCoverage, Phase};
use tcpclose::tracker::event::{EventSink, TrackerEvent};
use tcpclose::tracker::socket::TrackedSocket;
use tcpclose::tracker::transition::Transition;
use tcpclose::tracker::{HostParameters, Tracker};
use tcpclose_common::event::{
    FlowStepRecord, HookRecord, Numbers, OpenRecord, Record, RecordHeader, StepRecord,
};

use super::Bytes;

const HERE: u32 = 1;
/// Later than any host has run, and so far from the end that no sum of instants leaves its type.
const LATEST_NS: u64 = 1 << 62;

struct Books {
    ledger: Metrics,
    closes: u64,
    durations: u64,
}

impl EventSink for Books {
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        match event {
            TrackerEvent::Closed { .. } => self.closes += 1,
            TrackerEvent::StateDuration { ns, .. } => {
                assert!(ns < LATEST_NS, "{event:?}");
                self.durations += 1;
            }
            _ => {}
        }
        self.ledger.event(at_ns, event);
    }

    fn is_watched(&self) -> bool {
        true
    }

    fn transition(&mut self, step: Transition) {
        assert!(step.spent.max_ns.is_none_or(|max| step.spent.min_ns <= max), "{step:?}");
    }
}

/// Reads them, and hands them to a tracker.
pub fn read(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let backend = rest.byte();
    let [by_cookie, netns_known, hooks] = [1, 2, 4].map(|bit| backend & bit != 0);
    let host =
        HostParameters { netns: HERE, everywhere: backend & 8 != 0, netns_known, ephemeral: 32768..=60999 };
    let mut tracker = Tracker::new(host, by_cookie);
    tracker.set_hooks(HookCoverage {
        reset_reasons: &["not_specified", "no_socket"],
        births: hooks,
        ends: hooks,
        resets: hooks,
        received_resets: hooks,
        since_ns: 0,
    });
    let ledger = Metrics::new(PortLabels::new(4, &[]));
    let mut books = Books { ledger, closes: 0, durations: 0 };
    let (mut records, mut latest) = (0, 0);
    while !rest.0.is_empty() {
        let length = usize::from(rest.byte());
        let bytes = rest.take(length);
        let Some(mut record) = Record::decode(bytes) else { continue };
        assert_eq!(Record::decode(&encode(&record)), Some(record));
        let head = match &mut record {
            Record::Open(open) | Record::Mptcp(open) => &mut open.head,
            Record::Step(step, _) => &mut step.head,
            Record::Hook(hook, _) => &mut hook.head,
        };
        head.time_ns %= LATEST_NS;
        latest = latest.max(head.time_ns);
        records += 1;
        tracker.record(&record, &mut books);
        assert!(tracker.len() <= records);
        if backend & 16 != 0 {
            tracker.settle(latest, &mut books);
        }
        if backend & 32 != 0 && records % 8 == 0 {
            tracker.records_lost(latest);
        }
    }
    tracker.settle(LATEST_NS + (1 << 40), &mut books);
    let kind = |socket: &TrackedSocket| tracker.port_kind(socket);
    let gauges =
        books.ledger.gauges(tracker.sockets_and_writes(), &kind, &StuckAfter::default(), &|_| false, latest);
    for phase in Phase::ALL {
        let of = gauges.standing.iter().filter(|((_, each), _)| *each == phase);
        let gauge: u64 = of.map(|(_, standing)| standing.sockets).sum();
        assert_eq!(gauge as usize, tracker.sockets().filter(|socket| socket.phase == phase).count());
    }
    // A name that was lost takes its counts along.
    assert!(books.ledger.closes().map(|(.., n)| n).sum::<u64>() <= books.closes);
    assert!(books.ledger.durations().map(|(.., each)| each.count()).sum::<u64>() <= books.durations);
}

/// What the probe writes for `record`.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = |bytes: &mut Vec<u8>, head: &RecordHeader| {
        bytes.extend(head.key.to_ne_bytes());
        bytes.extend(head.time_ns.to_ne_bytes());
        bytes.extend(head.local_port.to_ne_bytes());
        bytes.extend(head.remote_port.to_ne_bytes());
        bytes.extend([head.old, head.new]);
        bytes.extend(head.flags.to_ne_bytes());
        bytes.extend(head.netns.to_ne_bytes());
        bytes.extend(head.detail.err().to_ne_bytes());
        bytes.extend(head.detail.err_soft().to_ne_bytes());
    };
    let numbers = |bytes: &mut Vec<u8>, numbers: &Numbers| {
        bytes.extend(numbers.snd.to_ne_bytes());
        bytes.extend(numbers.rcv.to_ne_bytes());
    };
    match record {
        Record::Open(open) | Record::Mptcp(open) => {
            head(&mut bytes, &open.head);
            numbers(&mut bytes, &open.numbers);
            for word in open.local.iter().chain(&open.remote).chain([&open.inum, &open.spare]) {
                bytes.extend(word.to_ne_bytes());
            }
            assert_eq!(bytes.len(), size_of::<OpenRecord>());
        }
        Record::Step(step, flow) => {
            head(&mut bytes, &step.head);
            numbers(&mut bytes, &step.numbers);
            assert_eq!(bytes.len(), size_of::<StepRecord>());
            // What is no hash is at the tp_btf backend.
            if *flow != 0 {
                bytes.extend(flow.to_ne_bytes());
                assert_eq!(bytes.len(), size_of::<FlowStepRecord>());
            }
        }
        Record::Hook(hook, _) => {
            head(&mut bytes, &hook.head);
            bytes.extend(hook.subject.socket().to_ne_bytes());
            assert_eq!(bytes.len(), size_of::<HookRecord>());
        }
    }
    bytes
}
