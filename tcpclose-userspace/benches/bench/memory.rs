//! What the agent's memory grows by with what it tracks.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;
use tcpclose_common::event::Record;

use crate::Setting;
use crate::contender::Agent;
use crate::events;
use crate::load::{self, Load, PORT};
use crate::process;
use crate::report::{Figure, reached};

const REAL: [usize; 4] = [0, 1000, 10_000, 100_000];
const GENERATED: [u64; 3] = [10_000, 100_000, 1_000_000];

/// An agent that tracks so many TIME-WAITs: resident memory, bytes, all and anonymous.
#[derive(Clone, Copy, Serialize)]
pub struct Resident {
    pub sockets: usize,
    pub all: u64,
    pub anonymous: u64,
}

/// Makes TIME-WAITs under an agent, and looks when it has them all.
pub fn run(sockets: usize, hook: &str) -> Result<Resident> {
    load::in_a_namespace(|| {
        let agent = Agent::start(&["--state-hook", hook])?;
        Load::listen(PORT)?.time_waits(sockets)?;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let tracked = agent.metrics()?.sum("tcpclose_sockets", &[]) as usize;
            if tracked >= sockets {
                break;
            }
            ensure!(Instant::now() < until, "the agent tracks {tracked} of {sockets}");
            sleep(Duration::from_millis(50));
        }
        // A dump later: what it takes is part of the price.
        sleep(Duration::from_millis(1500));
        let (all, anonymous) = process::resident(agent.pid())?;
        Ok(Resident { sockets, all, anonymous })
    })
}

pub fn measure(_: &Setting) -> Result<Figure> {
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    for hook in ["btf", "tracepoint"] {
        let mut none: Option<Resident> = None;
        for sockets in REAL {
            let now = run(sockets, hook)?;
            let each = none.map(|none| now.all.saturating_sub(none.all) as f64 / sockets as f64);
            none = none.or(Some(now));
            rows.push(vec![
                format!("agent, {hook}: VmRSS (RssAnon)"),
                sockets.to_string(),
                format!("{:.2} ({:.2})", mib(now.all), mib(now.anonymous)),
                each.map_or_else(|| "–".to_owned(), |each| format!("{each:.0}")),
                match each {
                    None => reached(now.all <= 16 << 20, "≤ 16 MiB"),
                    Some(each) => reached(each <= 128.0, "≤ 128 B"),
                },
            ]);
            samples.push(json!({"hook": hook, "resident": now}));
        }
    }
    for by_cookie in [true, false] {
        for sockets in GENERATED {
            let bytes = generated(sockets, by_cookie);
            let each = bytes as f64 / sockets as f64;
            rows.push(vec![
                format!("tracker alone, {}: malloc", if by_cookie { "tp_btf" } else { "classic" }),
                sockets.to_string(),
                format!("{:.2}", mib(bytes)),
                format!("{each:.0}"),
                reached(each <= 128.0, "≤ 128 B"),
            ]);
            samples.push(json!({"by_cookie": by_cookie, "generated": sockets, "bytes": bytes}));
        }
    }
    Ok(Figure {
        name: "memory",
        title: "Memory",
        method: "The agent: TIME-WAITs of real connections, resident memory when it tracks them all and a \
                 dump of them is over. Its ring is the kernel's, 8 MiB by default, of which it maps 256 KiB \
                 at a time: `bpftool map` shows it, these figures do not. The tracker alone: a socket for each of so many TIME-WAITs of generated \
                 records, by what malloc has handed out (mallinfo2). Tables double when they are full, so \
                 that the bytes per socket depend on how far that is away."
            .to_owned(),
        columns: vec!["what", "sockets", "MiB", "bytes per socket", "to reach"],
        rows,
        samples: json!(samples),
    })
}

/// What malloc has handed out for a tracker with so many TIME-WAITs, bytes.
fn generated(sockets: u64, by_cookie: bool) -> u64 {
    let (mut tracker, mut ledger) = (events::tracker(by_cookie), events::ledger());
    // In pieces, so that the records themselves take little. What the first few take is not theirs: rows of the ledger.
    const PIECE: u64 = 1 << 14;
    const FEW: u64 = 64;
    let mut before = 0;
    let mut made = 0;
    while made < sockets {
        let some = made..(made + if made == 0 { FEW } else { PIECE }).min(sockets);
        made = some.end;
        let stream = events::some_connections(some, u64::MAX);
        let stream = if by_cookie { stream } else { events::as_classic(&stream) };
        for record in stream.iter().filter_map(Record::decode) {
            tracker.record(&record, &mut ledger);
        }
        drop(stream);
        if made == FEW {
            before = allocated();
        }
    }
    assert_eq!(tracker.len() as u64, sockets);
    (allocated() - before) * sockets / (sockets - FEW)
}

fn allocated() -> u64 {
    // SAFETY: no arguments; glibc's own account.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}
