//! Many threads that close at once: what they lose to the one ring that all of them write to.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Setting;
use crate::contender::Contender;
use crate::rate::{self, Run};
use crate::report::{Figure, Spread, cell};

const CLOSERS: [u16; 5] = [1, 2, 4, 8, 16];
/// With these one sees what is the hook's, what the ring's, and what the agent's.
const WHO: [Contender; 3] = [Contender::Filter, Contender::Record, Contender::Btf];

pub fn measure(setting: &Setting) -> Result<Figure> {
    let duration = Duration::from_secs_f64(setting.seconds);
    // Fewer turns, each with five sizes.
    let turns = setting.pairs.div_ceil(5);
    let mut samples: BTreeMap<(u16, &str), Vec<(Run, f64)>> = BTreeMap::new();
    for _ in 0..turns {
        for closers in CLOSERS {
            let bare = rate::run(Contender::Bare, setting, duration, closers)?;
            samples.entry((closers, Contender::Bare.name())).or_default().push((bare, 1.0));
            for who in WHO {
                let run = rate::run(who, setting, duration, closers)?;
                samples.entry((closers, who.name())).or_default().push((run, run.rate / bare.rate));
            }
        }
    }
    let of = |closers, who: Contender| samples.get(&(closers, who.name())).into_iter().flatten();
    let rows = CLOSERS.map(|closers| {
        let bare = Spread::of(of(closers, Contender::Bare).map(|(run, _)| run.rate));
        let mut row = vec![closers.to_string(), cell(bare, 1.0, 0)];
        row.extend(WHO.map(|who| cell(Spread::of(of(closers, who).map(|(_, ratio)| *ratio)), 1.0, 3)));
        row.push(of(closers, Contender::Btf).map(|(run, _)| run.lost).sum::<u64>().to_string());
        row
    });
    let samples: Vec<_> = samples
        .iter()
        .map(|((closers, who), runs)| json!({"closers": closers, "contender": who, "runs": runs}))
        .collect();
    Ok(Figure {
        name: "closers",
        title: "Many closers at once",
        method: format!(
            "As above, with 1 to 16 threads that each make connections to a port of their own, not pinned, \
             {} s a run, {turns} turns. All write to one ring, whose reservation takes a spinlock. Columns \
             3 to 5: of the bare rate. Median (quartiles).",
            setting.seconds
        ),
        columns: vec![
            "threads",
            "bare, connections/s",
            "filter only",
            "bare record",
            "tcpclose, tp_btf",
            "lost by tcpclose",
        ],
        rows: rows.to_vec(),
        samples: json!(samples),
    })
}
