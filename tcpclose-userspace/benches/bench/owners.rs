//! Who holds what: one pass over all open files, by each backend of the ladder.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use log::LevelFilter;
use rustc_hash::FxHashSet;
use serde::Serialize;
use serde_json::json;
use tcpclose::linux::host::thread_cpu_ns;
use tcpclose::linux::owners;
use tcpclose::linux::owners::OwnersLookup;
use tcpclose::linux::proc_fd;
use tcpclose::linux::proc_fd::{FileFilter, Urgency};
use tcpclose::linux::sock_diag;
use tcpclose::probe::{Builder, OwnersHook};
use tcpclose_common::state::TcpState;

use crate::Setting;
use crate::load::{self, Holders};
use crate::process::Took;
use crate::report::{Figure, Spread, cell};

/// Held by three processes.
const SOCKETS: usize = 45_000;
const RING: u32 = 64 << 10;
const BACKENDS: [OwnersHook; 2] = [OwnersHook::TaskFile, OwnersHook::Proc];

/// What the passes were over, and what each took.
#[derive(Serialize)]
struct Runs {
    /// Descriptors on sockets that all processes of this host had.
    sockets: usize,
    by_backend: Vec<(&'static str, Vec<Took>)>,
}

fn run(turns: usize) -> Result<Runs> {
    load::in_a_namespace(|| {
        let _holders = Holders::of(SOCKETS)?;
        let dump = sock_diag::dump(TcpState::CloseWait.bit(), false)?;
        let inodes: FxHashSet<u32> = dump.sockets.iter().map(|socket| socket.inode).collect();
        let mut probe = Builder {
            stacks: false,
            state: None,
            time_wait: None,
            owners: Some(OwnersHook::TaskFile),
            ring_size: RING,
            log_level: LevelFilter::Off,
        }
        .attach()
        .context("no probe")?;
        let mut by_backend = BACKENDS.map(|backend| (backend.name(), Vec::new()));
        for turn in 0..=turns {
            for (backend, (_, runs)) in BACKENDS.into_iter().zip(&mut by_backend) {
                let look = match backend {
                    OwnersHook::TaskFile => probe.owners_lookup(),
                    OwnersHook::Proc => OwnersLookup::Proc(Urgency::Leisurely),
                };
                let (begun, cpu) = (Instant::now(), thread_cpu_ns());
                let found = owners::find(&inodes, look)?;
                let cpu = (thread_cpu_ns() - cpu) as f64 / 1e9;
                let took = Took { wall: begun.elapsed().as_secs_f64(), cpu };
                ensure!(found.sockets() >= SOCKETS, "{} owners were found", found.sockets());
                // The first turn warms caches.
                if turn > 0 {
                    runs.push(took);
                }
            }
        }
        let sockets = proc_fd::read(Urgency::Leisurely, FileFilter::Sockets)?.sockets.len();
        Ok(Runs { sockets, by_backend: by_backend.to_vec() })
    })
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let runs = run(setting.pairs)?;
    let rows = runs.by_backend.iter().map(|(backend, runs)| {
        vec![
            format!("--owners {backend}"),
            cell(Spread::of(runs.iter().map(|took| took.wall)), 1e3, 1),
            cell(Spread::of(runs.iter().map(|took| took.cpu)), 1e3, 1),
        ]
    });
    let rows = rows.collect();
    Ok(Figure {
        name: "owners",
        title: "Whose 45,000 sockets are",
        method: format!(
            "One pass over the files of all processes (`linux::owners::find`, as the agent makes it for `stuck` and at \
             --owner-interval), {} of them sockets, for the owners of 45,000 CLOSE-WAITs that three processes hold; {} \
             turns; the probe is loaded before. Milliseconds, median (quartiles).",
            runs.sockets, setting.pairs
        ),
        columns: vec!["pass", "wall ms", "CPU ms"],
        rows,
        samples: json!(runs),
    })
}
