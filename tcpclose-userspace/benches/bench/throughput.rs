//! How many records per second tracker and metrics take, on one core, without a kernel.

use anyhow::Result;
use serde_json::json;
use tcpclose::linux::host;
use tcpclose::tracker::event::{EventSink, TrackerEvent};
use tcpclose_common::event::Record;

use crate::Setting;
use crate::events::{self, Stream};
use crate::report::{Figure, Spread, cell, reached};

const CONNECTIONS: u64 = 200_000;
/// TIME-WAITs that are tracked meanwhile: a quiet host's, a busy one's.
const WAITING: [u64; 2] = [1000, 100_000];

/// Facts that nobody counts.
struct Nobody;

impl EventSink for Nobody {
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        std::hint::black_box((at_ns, event));
    }
}

/// How far a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Decoded,
    Tracked,
    Counted,
}

impl Way {
    const ALL: [Self; 3] = [Self::Decoded, Self::Tracked, Self::Counted];

    const fn name(self) -> &'static str {
        match self {
            Self::Decoded => "decoded",
            Self::Tracked => "decoded, tracked",
            Self::Counted => "decoded, tracked, counted in the metrics",
        }
    }
}

/// Records a second of CPU time.
fn run(stream: &Stream, way: Way, by_cookie: bool) -> f64 {
    let (mut tracker, mut ledger) = (events::tracker(by_cookie), events::ledger());
    let begun = host::thread_cpu_ns();
    for bytes in stream.iter() {
        let Some(record) = Record::decode(bytes) else { continue };
        match way {
            Way::Decoded => {
                std::hint::black_box(record);
            }
            Way::Tracked => tracker.record(&record, &mut Nobody),
            Way::Counted => tracker.record(&record, &mut ledger),
        }
    }
    stream.records as f64 / (host::thread_cpu_ns() - begun) as f64 * 1e9
}

/// Records per second that tracker and metrics take with so many TIME-WAITs tracked.
pub fn with_tracked(waiting: u64, turns: usize) -> Option<Spread> {
    let stream = events::connections(2 * waiting.max(CONNECTIONS / 4), waiting);
    Spread::of((0..turns).map(|_| run(&stream, Way::Counted, true)))
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    for waiting in WAITING {
        let by_cookie = events::connections(CONNECTIONS, waiting);
        let classic = events::as_classic(&by_cookie);
        for (backend, stream) in [("tp_btf", &by_cookie), ("classic", &classic)] {
            let ways = if backend == "tp_btf" { &Way::ALL[..] } else { &[Way::Counted] };
            for &way in ways {
                let rates: Vec<f64> =
                    (0..setting.pairs).map(|_| run(stream, way, backend == "tp_btf")).collect();
                let rate = Spread::of(rates.iter().copied());
                let median = rate.map_or(0.0, |rate| rate.median);
                rows.push(vec![
                    format!("{backend}: {}", way.name()),
                    if backend == "tp_btf" { waiting.to_string() } else { "all of them".to_owned() },
                    cell(rate, 1e-6, 2),
                    format!("{:.1}", 1e9 / median),
                    match way {
                        Way::Counted => reached(median >= 10e6, "≥ 10 million/s"),
                        _ => "–".to_owned(),
                    },
                ]);
                samples
                    .push(json!({"backend": backend, "way": way.name(), "waiting": waiting, "rates": rates}));
            }
        }
    }
    Ok(Figure {
        name: "throughput",
        title: "Tracker and metrics, records per second",
        method: format!(
            "Generated records of {CONNECTIONS} whole connections (64 and more at a time, 8 ports), taken \
             from memory by one thread, by a fresh tracker each time, {} times; by its CPU time. A \
             TIME-WAIT is ended by a record of `hooks` when so many more connections have begun; at the \
             classic tracepoint by nothing, so that all stay. Median (quartiles).",
            setting.pairs
        ),
        columns: vec!["records", "TIME-WAITs tracked", "million/s", "ns per record", "to reach"],
        rows,
        samples: json!(samples),
    })
}
