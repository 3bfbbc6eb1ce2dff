//! How many whole connections a second one core makes while somebody watches, what is lost of them, and what watching
//! them costs in CPU time elsewhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use tcpclose_common::progress;

use crate::Setting;
use crate::contender::{Contender, Running};
use crate::load::{self, Load, MOST_TIME_WAITS, PORT};
use crate::process;
use crate::report::{Figure, Spread, cell, reached};

/// Close-phase transitions of one connection that the tracepoint reports: FIN-WAIT-1, FIN-WAIT-2 and its end,
/// CLOSE-WAIT, LAST-ACK and its end.
pub const TRANSITIONS: u64 = 6;

/// What one run gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Connections a second.
    pub rate: f64,
    pub connections: u32,
    /// Events lost, by the contender's own count; for the agent, records that were made and are missing too.
    pub lost: u64,
    /// CPU time of the contender's process, seconds; the load's own is not in it.
    pub cpu: f64,
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let duration = Duration::from_secs_f64(setting.seconds);
    let mut runs: Vec<(Contender, Run, f64)> = Vec::new();
    let mut bare = Vec::new();
    for round in 0..setting.pairs {
        let mut order = Contender::WATCHERS;
        order.rotate_left(round % Contender::WATCHERS.len());
        // Each runs next to a bare run: one bare run, two contenders, one bare run, and so on.
        let mut last_bare = run(Contender::Bare, setting, duration, 1)?;
        bare.push(last_bare);
        for pair in order.chunks(2) {
            let (first, second) = (pair[0], pair.get(1));
            let one = run(first, setting, duration, 1)?;
            runs.push((first, one, one.rate / last_bare.rate));
            let other =
                second.map(|&second| Ok::<_, anyhow::Error>((second, run(second, setting, duration, 1)?)));
            let other = other.transpose()?;
            last_bare = run(Contender::Bare, setting, duration, 1)?;
            bare.push(last_bare);
            if let Some((second, run)) = other {
                runs.push((second, run, run.rate / last_bare.rate));
            }
        }
        progress::note(&format!("rate: round {} of {}", round + 1, setting.pairs));
    }
    Ok(figure(setting, &bare, &runs))
}

/// One run of a contender, in a namespace of its own, with so many threads that make connections.
pub fn run(contender: Contender, setting: &Setting, duration: Duration, closers: u16) -> Result<Run> {
    load::in_a_namespace(|| {
        let running = contender.start(&setting.floor)?;
        let pid = running.pid();
        let received = received(&running)?;
        let cpu = process::cpu(pid)?;
        let stop = AtomicBool::new(false);
        let (made, took) = scope(|scope| {
            let scraper = scope.spawn(|| scrape(&running, &stop));
            let close = |closer| {
                if closers == 1 {
                    load::pin()?;
                }
                anyhow::Ok(Load::listen(PORT + closer)?.for_a_while(duration)?)
            };
            let loads: Vec<_> = (0..closers).map(|closer| scope.spawn(move || close(closer))).collect();
            let done: Result<Vec<(u32, Duration)>> = loads.into_iter().map(joined).collect();
            stop.store(true, Ordering::Relaxed);
            joined(scraper)?;
            let done = done?;
            let made = done.iter().map(|(made, _)| made).sum::<u32>();
            anyhow::Ok((made, done.iter().map(|(_, took)| *took).max().unwrap_or(duration)))
        })?;
        // Who lags behind is given the time to take what was made.
        if let Running::Tool(_) = running {
            sleep(Duration::from_millis(300));
        }
        let (mut lost, mut spent) = (0, Duration::ZERO);
        match &running {
            Running::Bare | Running::Floor(_) => {}
            Running::Agent(agent) => {
                let metrics = agent.metrics()?;
                spent = process::cpu(pid)?.saturating_sub(cpu);
                let reported = metrics.sum("tcpclose_events_lost_total", &[]) as u64;
                let taken = metrics.sum("tcpclose_events_received_total", &[]) as u64 - received;
                // What others close on this host can only hide a loss.
                lost = reported.max((u64::from(made) * TRANSITIONS).saturating_sub(taken));
            }
            Running::Tool(tool) => {
                spent = process::cpu(pid)?.saturating_sub(cpu);
                lost = tool.lost()?;
            }
        }
        if let Running::Floor(floor) = running {
            (_, lost, spent) = floor.end()?;
        }
        let rate = f64::from(made) / took.as_secs_f64();
        Ok(Run { rate, connections: made, lost, cpu: spent.as_secs_f64() })
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Records that the agent has taken.
fn received(running: &Running) -> Result<u64> {
    let Running::Agent(agent) = running else { return Ok(0) };
    Ok(agent.metrics()?.sum("tcpclose_events_received_total", &[]) as u64)
}

/// An agent is scraped half a second after the start, and each second from there.
fn scrape(running: &Running, stop: &AtomicBool) -> Result<()> {
    let Running::Agent(agent) = running else { return Ok(()) };
    let mut due = Instant::now() + Duration::from_millis(500);
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= due {
            agent.scrape()?;
            due += Duration::from_secs(1);
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn figure(setting: &Setting, bare: &[Run], runs: &[(Contender, Run, f64)]) -> Figure {
    let of = |contender| runs.iter().filter(move |(who, ..)| *who == contender);
    let ratio = |contender| Spread::of(of(contender).map(|(_, _, ratio)| *ratio));
    let median = |contender| ratio(contender).map_or(0.0, |ratio| ratio.median);
    let per_million = |contender| Spread::of(of(contender).map(|(_, run, _)| cpu_per_million(run)));
    let tcpstates = per_million(Contender::Tcpstates).map_or(0.0, |cpu| cpu.median);
    let record = median(Contender::Record);
    let verdict = |contender| {
        let floor = match contender {
            Contender::Btf => 0.95,
            Contender::Tracepoint => 0.92,
            _ => return "–".to_owned(),
        };
        let (rate, cpu) = (median(contender), per_million(contender).map_or(0.0, |cpu| cpu.median));
        let lost: u64 = of(contender).map(|(_, run, _)| run.lost).sum();
        let mut verdicts = vec![reached(rate >= floor, &format!("≥ {floor} of bare"))];
        if contender == Contender::Tracepoint {
            let [empty, record] = [Contender::EmptyClassic, Contender::RecordClassic].map(median);
            verdicts.push(format!("there an empty program leaves {empty:.3} and a bare record {record:.3}"));
        }
        if contender == Contender::Btf {
            verdicts.push(reached(rate >= record - 0.02, "within 0.02 of the bare record"));
        }
        verdicts.push(reached(lost == 0, "0 lost"));
        verdicts.push(reached(cpu <= tcpstates / 5.0, "≤ 1/5 of tcpstates' CPU"));
        verdicts.join("; ")
    };
    let bare_rate = Spread::of(bare.iter().map(|run| run.rate));
    let mut rows = vec![vec![
        Contender::Bare.name().to_owned(),
        cell(bare_rate, 1.0, 0),
        "1".to_owned(),
        "–".to_owned(),
        "–".to_owned(),
        "–".to_owned(),
    ]];
    for contender in Contender::WATCHERS {
        let lost: u64 = of(contender).map(|(_, run, _)| run.lost).sum();
        let made: u64 = of(contender).map(|(_, run, _)| u64::from(run.connections)).sum();
        let quiet = matches!(contender, Contender::Empty | Contender::Filter | Contender::EmptyClassic);
        rows.push(vec![
            contender.name().to_owned(),
            cell(Spread::of(of(contender).map(|(_, run, _)| run.rate)), 1.0, 0),
            cell(ratio(contender), 1.0, 3),
            if quiet { "–".to_owned() } else { format!("{lost} of {made} connections' events") },
            if quiet { "–".to_owned() } else { cell(per_million(contender), 1.0, 3) },
            verdict(contender),
        ]);
    }
    let samples: Vec<Value> = runs
        .iter()
        .map(|(who, run, ratio)| json!({"contender": who.name(), "run": run, "of_bare": ratio}))
        .collect();
    Figure {
        name: "rate",
        title: "Connection rate, events lost, CPU time",
        method: format!(
            "Whole loopback connections (connect, accept, close by the client, close by the server) from \
             one busy thread pinned to a core, {} s a run, {} runs of each contender, in turns and in an \
             order that rotates. A ratio is that of a run and the bare run just before or after it. Each \
             run has a new network namespace (tcp_max_tw_buckets {}, addresses all over 127.0.0.0/8), and \
             so has its contender; agents have their defaults and are scraped each second. Contenders may \
             run on any core. Lost: by the contender's own count, and for the agent records that should \
             have come as well. CPU time: of the contender's process, for a million close-phase \
             transitions (six a connection). Median (quartiles).",
            setting.seconds, setting.pairs, MOST_TIME_WAITS
        ),
        columns: vec![
            "contender",
            "connections/s",
            "÷ bare",
            "lost",
            "CPU s per million transitions",
            "to reach",
        ],
        rows,
        samples: json!({"bare": bare, "runs": samples}),
    }
}

fn cpu_per_million(run: &Run) -> f64 {
    run.cpu / (u64::from(run.connections) * TRANSITIONS) as f64 * 1e6
}
