//! Whether what a socket costs stays the same as they grow in number.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tcpclose_common::progress;

use crate::Setting;
use crate::contender::Agent;
use crate::load::{self, Load, PORT};
use crate::memory;
use crate::process;
use crate::report::{Figure, Spread};
use crate::scrape::Scraped;
use crate::stuck::Lister;
use crate::{dump, stuck, throughput};

const SIZES: [usize; 3] = [1000, 10_000, 100_000];

pub fn measure(setting: &Setting) -> Result<Figure> {
    // Three sizes of everything: fewer turns each.
    let turns = setting.pairs.div_ceil(3);
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    let median = |values: &[f64]| Spread::of(values.iter().copied()).map_or(0.0, |spread| spread.median);
    let none = memory::run(0, "btf")?;
    for sockets in SIZES {
        let mut row = vec![sockets.to_string()];
        let mut tell = |name: &str, seconds: f64, show: String| {
            samples.push(json!({"sockets": sockets, "figure": name, "value": seconds}));
            row.push(show);
        };
        let each =
            |seconds: f64| format!("{:.2} ms, {:.0} ns each", seconds * 1e3, seconds * 1e9 / sockets as f64);

        let listed = stuck::run(sockets, turns)?;
        for wanted in [Lister::Ss, Lister::NoAgent, Lister::Agent] {
            let runs = listed.iter().find(|(lister, _)| *lister == wanted).map(|(_, runs)| runs);
            let wall: Vec<f64> = runs.into_iter().flatten().map(|took| took.wall).collect();
            tell(wanted.name(), median(&wall), each(median(&wall)));
        }
        let dumps = dump::run(sockets, turns)?;
        tell("dump", median(&dumps.ours), each(median(&dumps.ours)));
        let (scrape, busy) = at_rest(sockets, turns)?;
        tell("scrape", median(&scrape), each(median(&scrape)));
        tell("agent CPU", busy, format!("{:.2} % of a core", busy * 100.0));
        let resident = memory::run(sockets, "btf")?;
        let bytes = resident.all.saturating_sub(none.all) as f64;
        tell("memory", bytes, format!("{:.0} B each", bytes / sockets as f64));
        if let Some(rate) = throughput::with_tracked(sockets as u64, turns) {
            tell("tracker + metrics", rate.median, format!("{:.1} ns per record", 1e9 / rate.median));
        }
        rows.push(row);
        progress::note(&format!("growth: {sockets} sockets are done"));
    }
    Ok(Figure {
        name: "growth",
        title: "Growth",
        method: format!(
            "The figures above with more and more sockets, {turns} turns each, medians: CLOSE-WAITs for \
             the commands (wall time; in groups of 15,000 to a process), TIME-WAITs for the rest (the \
             dump's CPU time; a scrape's wall time; the agent's CPU time while it tracks them and nothing \
             else happens, of a core; its memory)."
        ),
        columns: vec![
            "sockets",
            "ss -tanp",
            "stuck --no-agent",
            "stuck",
            "dump",
            "scrape",
            "agent, at rest",
            "memory",
            "tracker + metrics",
        ],
        rows,
        samples: json!(samples),
    })
}

/// Of an agent that tracks so many TIME-WAITs while nothing else happens: what a scrape takes, seconds, and its share of
/// a core.
fn at_rest(sockets: usize, turns: usize) -> Result<(Vec<f64>, f64)> {
    const REST: Duration = Duration::from_secs(5);
    load::in_a_namespace(|| {
        let agent = Agent::start(&[])?;
        Load::listen(PORT)?.time_waits(sockets)?;
        sleep(Duration::from_secs(2));
        let before = process::cpu(agent.pid())?;
        sleep(REST);
        let busy = process::cpu(agent.pid())?.saturating_sub(before).as_secs_f64() / REST.as_secs_f64();
        let mut seconds = Vec::new();
        for _ in 0..turns {
            seconds.extend(Scraped::of_agent(&agent)?.seconds);
        }
        Ok((seconds, busy))
    })
}
