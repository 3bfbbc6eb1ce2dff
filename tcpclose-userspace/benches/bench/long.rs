//! Half an hour at a tenth of what one core can: whether memory stays flat, and nothing is lost or has to be mended.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::Setting;
use crate::contender::Agent;
use crate::load::{self, Load, PORT};
use crate::process;
use crate::rate;
use crate::report::{Figure, reached};

/// Unless told otherwise.
pub const SECONDS: f64 = 1800.0;

const SCRAPE: Duration = Duration::from_secs(5);
/// In one go; then the load rests until the next is due.
const SLICE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Serialize)]
struct Sample {
    seconds: f64,
    connections: u32,
    resident: u64,
    anonymous: u64,
    cpu: f64,
    tracked: f64,
    lost: f64,
    corrections: f64,
    interval: f64,
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let brief = Duration::from_millis(1500).min(Duration::from_secs_f64(setting.seconds));
    let most = rate::run(crate::contender::Contender::Bare, setting, brief, 1)?.rate;
    let per_slice = (most / 10.0 * SLICE.as_secs_f64()) as usize;
    let duration = Duration::from_secs_f64(setting.seconds);
    let samples = load::in_a_namespace(|| {
        let agent = Agent::start(&[])?;
        let begun = Instant::now();
        scope(|scope| {
            let load = scope.spawn(move || -> Result<u32> {
                load::pin()?;
                let mut load = Load::listen(PORT)?;
                let mut due = Instant::now();
                while begun.elapsed() < duration {
                    load.time_waits(per_slice)?;
                    due += SLICE;
                    sleep(due.saturating_duration_since(Instant::now()));
                }
                Ok(load.made())
            });
            let mut samples = vec![sample(&agent, begun)?];
            while !load.is_finished() {
                let next = SCRAPE * samples.len() as u32;
                sleep(next.saturating_sub(begun.elapsed()).min(SCRAPE));
                samples.push(sample(&agent, begun)?);
            }
            let made = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            if let Some(last) = samples.last_mut() {
                last.connections = made;
            }
            Ok(samples)
        })
    })?;
    Ok(figure(&samples, per_slice))
}

fn sample(agent: &Agent, begun: Instant) -> Result<Sample> {
    // As Prometheus does it, and then once more to be read.
    agent.scrape()?;
    let metrics = agent.metrics()?;
    let (resident, anonymous) = process::resident(agent.pid())?;
    Ok(Sample {
        seconds: begun.elapsed().as_secs_f64(),
        connections: 0,
        resident,
        anonymous,
        cpu: process::cpu(agent.pid())?.as_secs_f64(),
        tracked: metrics.sum("tcpclose_sockets", &[]),
        lost: metrics.sum("tcpclose_events_lost_total", &[]),
        corrections: metrics.sum("tcpclose_reconcile_corrections_total", &[]),
        interval: metrics.sum("tcpclose_reconcile_interval_seconds", &[]),
    })
}

fn figure(samples: &[Sample], per_slice: usize) -> Figure {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / (1 << 20) as f64);
    // Ten rows, and the last.
    let step = samples.len().div_ceil(10).max(1);
    let mut shown: Vec<&Sample> = samples.iter().step_by(step).collect();
    shown.extend(samples.last());
    // Its start is none of the run's cost.
    let start = samples.first().map_or(0.0, |first| first.cpu);
    let rows = shown.iter().map(|sample| {
        let row = [
            format!("{:.0}", sample.seconds),
            format!("{:.0}", sample.tracked),
            mib(sample.resident),
            mib(sample.anonymous),
            format!("{:.2} %", (sample.cpu - start) / sample.seconds.max(0.1) * 100.0),
            format!("{:.1}", sample.interval),
            format!("{:.0}", sample.lost),
            format!("{:.0}", sample.corrections),
        ];
        row.to_vec()
    });
    let mut rows: Vec<Vec<String>> = rows.collect();
    // From when every TIME-WAIT that begins is met by one that ends, with a minute for tables to grow.
    let steady: Vec<u64> =
        samples.iter().filter(|sample| sample.seconds >= 180.0).map(|sample| sample.resident).collect();
    let flat = steady.iter().min().zip(steady.iter().max()).map_or_else(
        || "too short to tell".to_owned(),
        |(least, most)| format!("{} to {} MiB after 3 minutes", mib(*least), mib(*most)),
    );
    let (lost, corrections) = samples.last().map_or((0.0, 0.0), |last| (last.lost, last.corrections));
    rows.push(
        ["all", "", &flat, "", "", "", &reached(lost == 0.0, "0 lost"), &reached(corrections == 0.0, "0")]
            .map(str::to_owned)
            .to_vec(),
    );
    Figure {
        name: "long",
        title: "A long run",
        method: format!(
            "{} whole connections a second (a tenth of what a core here can, bare) for {:.0} s, {} of \
             them, an agent with its defaults scraped each 5 s.",
            per_slice as u128 * 1000 / SLICE.as_millis(),
            samples.last().map_or(0.0, |last| last.seconds),
            samples.last().map_or(0, |last| last.connections)
        ),
        columns: vec![
            "seconds",
            "tracked",
            "VmRSS, MiB",
            "RssAnon, MiB",
            "CPU, of a core so far",
            "between dumps, s",
            "lost",
            "corrections",
        ],
        rows,
        samples: json!(samples),
    }
}
