//! What a program on the hook costs an event, by the kernel's own run statistics.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use serde_json::json;
use tcpclose::probe::prog_stats::ProgramStats;

use crate::Setting;
use crate::contender::Contender;
use crate::load::{self, Load, PORT};
use crate::process;
use crate::report::{Figure, Spread, cell, reached};

/// Connections that are open at a time: two descriptors each, and a process may have 20,000 on many hosts.
const AT_ONCE: usize = 4000;

/// Nanoseconds of a run of the program.
#[derive(Clone, Copy, serde::Serialize)]
struct Sample {
    /// While connections open: steps that the probe filters out.
    filtered: f64,
    /// While they close: steps that it records.
    recorded: f64,
    /// Runs of both kinds: more than the connections account for are other traffic of the host.
    runs: [u64; 2],
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let _kept = enable_stats(Stats::RunTime).context("the kernel keeps no run statistics")?;
    let mut samples: BTreeMap<Contender, Vec<Sample>> = BTreeMap::new();
    for round in 0..setting.pairs {
        let mut order = Contender::WATCHERS;
        order.rotate_left(round % Contender::WATCHERS.len());
        for contender in order {
            samples.entry(contender).or_default().push(sample(contender, setting)?);
        }
    }
    let of = |contender, what: fn(&Sample) -> f64| {
        Spread::of(samples.get(&contender).into_iter().flatten().map(what))
    };
    let median = |contender, what| of(contender, what).map_or(0.0, |spread: Spread| spread.median);
    let floor = median(Contender::Record, |s| s.recorded);
    let empty = (median(Contender::Empty, |s| s.filtered), median(Contender::Empty, |s| s.recorded));
    let rows = Contender::WATCHERS.into_iter().map(|contender| {
        let (filtered, recorded) = (median(contender, |s| s.filtered), median(contender, |s| s.recorded));
        let verdict = match contender {
            Contender::Btf => format!(
                "{}; {}: the bare record, which reads nothing of the socket, is {:+.0} ns over empty, and this \
                 {:+.0} ns over that",
                reached(filtered <= empty.0 + 5.0, "filtered ≤ empty + 5 ns"),
                reached(recorded <= empty.1 + 90.0, "recorded ≤ empty + 90 ns"),
                floor - empty.1,
                recorded - floor
            ),
            _ => "–".to_owned(),
        };
        vec![
            contender.name().to_owned(),
            cell(of(contender, |s| s.filtered), 1.0, 1),
            format!("{:+.1}", filtered - empty.0),
            cell(of(contender, |s| s.recorded), 1.0, 1),
            format!("{:+.1}", recorded - empty.1),
            verdict,
        ]
    });
    let rows = rows.collect();
    let samples: BTreeMap<&str, _> = samples.iter().map(|(who, samples)| (who.name(), samples)).collect();
    Ok(Figure {
        name: "program",
        title: "Program time per event",
        method: format!(
            "run_time_ns ÷ run_cnt of the program on inet_sock_set_state (BPF_ENABLE_STATS), over \
             {AT_ONCE} connections that are opened and stay open (every step is filtered out), then closed \
             (every step but those to LISTEN is recorded), {} times each, in turns. The statistics' own \
             two clock reads are in every figure. Nanoseconds, median (quartiles).",
            setting.pairs
        ),
        columns: vec!["program of", "opening", "over empty", "closing", "over empty", "to reach"],
        rows,
        samples: json!(samples),
    })
}

fn sample(contender: Contender, setting: &Setting) -> Result<Sample> {
    load::in_a_namespace(|| {
        let running = contender.start(&setting.floor)?;
        let ids = on_the_hook()?;
        let runs = || -> Result<ProgramStats> {
            let all = process::programs(running.pid())?;
            let (_, runs) =
                all.into_iter().find(|(id, _)| ids.contains(id)).context("its program is not found")?;
            Ok(runs)
        };
        load::pin()?;
        let mut load = Load::listen(PORT)?;
        let before = runs()?;
        let open = load.open(AT_ONCE)?;
        let opened = runs()?;
        for (client, server) in open {
            drop(client);
            drop(server);
        }
        let closed = runs()?;
        let each = |from: ProgramStats, to: ProgramStats| {
            (to.ns - from.ns) as f64 / (to.count - from.count).max(1) as f64
        };
        Ok(Sample {
            filtered: each(before, opened),
            recorded: each(opened, closed),
            runs: [opened.count - before.count, closed.count - opened.count],
        })
    })
}

/// Programs that look as if they hang on this hook, by their names: the agent has others as well.
pub fn on_the_hook() -> Result<Vec<u32>> {
    const NAMES: [&str; 9] = [
        "set_state_btf",
        "set_state_trace",
        "handle_set_stat",
        "inet_sock_set_s",
        "empty",
        "filter",
        "record",
        "empty_classic",
        "record_classic",
    ];
    let mut ids = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default();
        if NAMES.contains(&name) {
            ids.push(program.id());
        }
    }
    Ok(ids)
}
