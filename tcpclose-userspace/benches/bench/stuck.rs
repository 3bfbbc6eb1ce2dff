//! `tcpclose stuck` against `ss -tanp`.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use tcpclose::linux::host::thread_cpu_ns;
use tcpclose::linux::proc_fd;
use tcpclose::linux::proc_fd::{FileFilter, Urgency};
use tcpclose::linux::sock_diag;
use tcpclose_common::state::TcpState;

use crate::Setting;
use crate::common::BINARY;
use crate::contender::Agent;
use crate::load::{self, Holders};
use crate::process::{self, Took};
use crate::report::{Figure, Spread, cell, reached};

const SOCKETS: usize = 15_000;

/// What lists sockets with their owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lister {
    Ss,
    /// A dump of what is asked for and a walk over /proc, of which nothing is made.
    Floor,
    NoAgent,
    NoAgentJson,
    Agent,
    AgentJson,
}

impl Lister {
    pub const ALL: [Self; 6] =
        [Self::Ss, Self::Floor, Self::NoAgent, Self::NoAgentJson, Self::Agent, Self::AgentJson];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ss => "ss -tanp",
            Self::Floor => "floor: a bare dump, a bare walk",
            Self::NoAgent => "tcpclose stuck --no-agent",
            Self::NoAgentJson => "tcpclose stuck --no-agent --json",
            Self::Agent => "tcpclose stuck",
            Self::AgentJson => "tcpclose stuck --json",
        }
    }

    fn time(self, agent: &Agent) -> Result<Took> {
        if self != Self::Floor {
            return process::time(&mut self.command(agent));
        }
        let (begun, cpu) = (Instant::now(), thread_cpu_ns());
        let dump = sock_diag::visit(TcpState::CloseWait.bit(), true, |_| {})?;
        let cpu = thread_cpu_ns() - cpu;
        let files = proc_fd::read(Urgency::Hurried, FileFilter::Sockets)?;
        anyhow::ensure!(dump.malformed == 0 && !files.sockets.is_empty(), "not all could be seen");
        Ok(Took { wall: begun.elapsed().as_secs_f64(), cpu: (cpu + files.cpu_ns) as f64 / 1e9 })
    }

    fn command(self, agent: &Agent) -> Command {
        let mut command = Command::new(if self == Self::Ss { "ss" } else { BINARY });
        match self {
            Self::Ss => command.arg("-tanp"),
            // As old as they are: all are listed, whenever this runs.
            _ => command.args(["stuck", "--older-than", "0s"]),
        };
        match self {
            Self::NoAgent | Self::NoAgentJson => {
                command.arg("--no-agent");
            }
            Self::Agent | Self::AgentJson => {
                command.arg("--socket").arg(agent.socket());
            }
            Self::Ss | Self::Floor => {}
        }
        if matches!(self, Self::NoAgentJson | Self::AgentJson) {
            command.arg("--json");
        }
        command
    }
}

/// Each lister's runs with so many CLOSE-WAITs, in turns.
pub fn run(sockets: usize, turns: usize) -> Result<Vec<(Lister, Vec<Took>)>> {
    load::in_a_namespace(|| {
        let agent = Agent::start(&[])?;
        let _holders = Holders::of(sockets)?;
        let mut runs = Lister::ALL.map(|lister| (lister, Vec::new()));
        for turn in 0..=turns {
            for (lister, runs) in &mut runs {
                let took = lister.time(&agent)?;
                // The first turn warms caches.
                if turn > 0 {
                    runs.push(took);
                }
            }
        }
        Ok(runs.to_vec())
    })
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let runs = run(SOCKETS, setting.pairs)?;
    let median = |wanted| {
        let runs = runs.iter().find(|(lister, _)| *lister == wanted).map(|(_, runs)| runs);
        Spread::of(runs.into_iter().flatten().map(|took| took.wall)).map_or(0.0, |wall| wall.median)
    };
    let ss = median(Lister::Ss);
    let rows = runs.iter().map(|(lister, runs)| {
        let wall = median(*lister);
        vec![
            lister.name().to_owned(),
            cell(Spread::of(runs.iter().map(|took| took.wall)), 1e3, 1),
            cell(Spread::of(runs.iter().map(|took| took.cpu)), 1e3, 1),
            format!("{:.2}", wall / ss),
            match lister {
                Lister::Ss | Lister::Floor => "–".to_owned(),
                _ => reached(wall <= ss / 3.0, "≤ 1/3 of ss"),
            },
        ]
    });
    let rows = rows.collect();
    let samples: Vec<_> =
        runs.iter().map(|(lister, runs)| json!({"command": lister.name(), "runs": runs})).collect();
    Ok(Figure {
        name: "stuck",
        title: "Who holds 15,000 CLOSE-WAITs",
        method: format!(
            "Wall and CPU time of the command from start to end, output to /dev/null, {} turns, all \
             sockets held by one process in a namespace of its own; `--older-than 0s`, so that all are \
             listed. The agent's own CPU time is not in the command's. The floor is what listing and owners cost at least without \
             an agent: one dump of CLOSE-WAITs with their times and one walk over all processes' files, on as many threads as \
             the command takes, in a process that runs already. Milliseconds, median (quartiles).",
            setting.pairs
        ),
        columns: vec!["command", "wall ms", "CPU ms", "wall ÷ ss", "to reach"],
        rows,
        samples: json!(samples),
    })
}
