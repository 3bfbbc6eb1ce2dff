//! What stacks cost: nothing while no process is armed; an armed process's connection rate and the time of a stack; what taking those
//! of accept() costs others' system calls.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use rustix::process::getppid;
use serde_json::json;
use tcpclose_common::progress;

use crate::Setting;
use crate::contender::Agent;
use crate::load::{self, Load, PORT};
use crate::process;
use crate::report::{Figure, Spread, cell, reached};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Bare,
    Off,
    Ready,
    Armed,
    Accepting,
}

impl State {
    const ALL: [Self; 5] = [Self::Bare, Self::Off, Self::Ready, Self::Armed, Self::Accepting];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Off => "agent, --stacks off",
            Self::Ready => "agent, --stacks ask, nobody armed",
            Self::Armed => "agent, the load armed",
            Self::Accepting => "agent, the load armed, accept() as well",
        }
    }

    fn start(self) -> Result<Option<Agent>> {
        let mode = match self {
            Self::Bare => return Ok(None),
            Self::Off => "off",
            Self::Ready | Self::Armed | Self::Accepting => "ask",
        };
        let agent = Agent::start(&["--state-hook", "btf", "--stacks", mode])?;
        let pid = std::process::id();
        match self {
            Self::Armed => drop(agent.post(&format!("/v1/stacks?pid={pid}&for=60s"))?),
            Self::Accepting => drop(agent.post(&format!("/v1/stacks?pid={pid}&for=60s&accept=true"))?),
            Self::Bare | Self::Off | Self::Ready => {}
        }
        Ok(Some(agent))
    }
}

#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Sample {
    /// Connections a second, as many as one core makes.
    rate: f64,
    /// Connections a second, of [`PACE`].
    paced: f64,
    /// Of a system call of another thread, nanoseconds.
    call_ns: f64,
    /// The CPU time of the agent and its helper, seconds.
    cpu: f64,
}

/// Connections a second of a busy server.
const PACE: f64 = 5000.0;

/// Names of the programs, as the kernel cuts them, and what each sees.
const PROGRAMS: [(&str, &str); 4] = [
    ("set_state_btf", "every state change"),
    ("stack_opened", "connect(), and the end of a socket"),
    ("stack_received", "the end of a stream"),
    ("stack_accepted", "every system call"),
];

pub fn measure(setting: &Setting) -> Result<Figure> {
    let mut samples: BTreeMap<State, Vec<Sample>> = BTreeMap::new();
    let mut times: BTreeMap<(State, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..setting.pairs {
        let mut order = State::ALL;
        order.rotate_left(round % State::ALL.len());
        for state in order {
            samples.entry(state).or_default().push(sample(state, setting)?);
            for (program, ns) in program_times(state, setting)? {
                times.entry((state, program)).or_default().push(ns);
            }
        }
        progress::note(&format!("stacks: round {} of {}", round + 1, setting.pairs));
    }
    let of =
        |state, what: fn(&Sample) -> f64| Spread::of(samples.get(&state).into_iter().flatten().map(what));
    let pairs = |state, what: fn(&Sample) -> f64| {
        let bare = samples.get(&State::Bare).into_iter().flatten();
        let both = samples.get(&state).into_iter().flatten().zip(bare);
        Spread::of(both.map(|(one, bare)| what(one) / what(bare)))
    };
    let time = |state, program| Spread::of(times.get(&(state, program)).into_iter().flatten().copied());
    let median = |spread: Option<Spread>| spread.map_or(0.0, |spread| spread.median);
    let rows = State::ALL.into_iter().map(|state| {
        let verdict = match state {
            State::Ready => {
                let [off, ready] =
                    [State::Off, State::Ready].map(|state| median(time(state, "set_state_btf")));
                reached(ready <= off + 5.0, "the state program within 5 ns of --stacks off")
            }
            State::Armed => {
                let stacks = ["stack_opened", "stack_received"].map(|program| median(time(state, program)));
                [
                    reached(median(pairs(state, |one| one.paced)) >= 0.95, "≥ 0.95 of bare at 5,000/s"),
                    reached(stacks.iter().all(|ns| *ns <= 2000.0), "≤ 2 µs a run"),
                ]
                .join("; ")
            }
            State::Bare | State::Off | State::Accepting => "–".to_owned(),
        };
        let mut row = vec![
            state.name().to_owned(),
            cell(of(state, |sample| sample.rate), 1.0, 0),
            cell(pairs(state, |one| one.rate), 1.0, 3),
            cell(pairs(state, |one| one.paced), 1.0, 3),
            cell(of(state, |sample| sample.call_ns), 1.0, 0),
            cell(of(state, |sample| sample.cpu), 1000.0, 0),
        ];
        row.extend(PROGRAMS.iter().map(|(program, _)| match time(state, program) {
            None => "–".to_owned(),
            spread => cell(spread, 1.0, 0),
        }));
        row.push(verdict);
        row
    });
    let rows = rows.collect();
    let samples: BTreeMap<&str, _> = samples.iter().map(|(state, all)| (state.name(), all)).collect();
    let mut columns = vec![
        "state",
        "connections/s",
        "÷ bare",
        "at 5,000/s ÷ bare",
        "others' system call, ns",
        "agent's CPU, ms",
    ];
    columns.extend(PROGRAMS.iter().map(|(program, _)| *program));
    columns.push("to reach");
    Ok(Figure {
        name: "stacks",
        title: "Stacks of leaking programs",
        method: format!(
            "Whole loopback connections (connect, accept, close by the client, a read of the end, close by the server) from one busy \
             thread pinned to a core, {} s a run, as fast as it can and then at {PACE} a second; {} runs of each state, in turns and in an order that rotates; a ratio is that of the \
             runs of one round. The load's own process is armed, so each connection has a stack of its opening and one of its read. \
             Meanwhile another thread on any core calls getppid() as fast as it can. Programs: run_time_ns ÷ run_cnt in further runs \
             with BPF_ENABLE_STATS: {}. A run includes those in which nothing is taken. Median (quartiles).",
            setting.seconds,
            setting.pairs,
            PROGRAMS.map(|(program, sees)| format!("{program} sees {sees}")).join(", "),
        ),
        columns,
        rows,
        samples: json!(samples),
    })
}

fn sample(state: State, setting: &Setting) -> Result<Sample> {
    load::in_a_namespace(|| {
        let agent = state.start()?;
        let cpu = || agent.as_ref().map_or(Ok(Duration::ZERO), |agent| process::cpu(agent.pid()));
        let before = cpu()?;
        let duration = Duration::from_secs_f64(setting.seconds);
        let (rate, call_ns) = std::thread::scope(|scope| {
            let calls = scope.spawn(|| calls(duration));
            load::pin()?;
            let rate = connections(duration, None)?;
            anyhow::Ok((rate, calls.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
        })?;
        let paced = connections(duration, Some(PACE))?;
        Ok(Sample { rate, paced, call_ns, cpu: cpu()?.saturating_sub(before).as_secs_f64() })
    })
}

/// Makes whole connections, whose end the server reads; no more than `pace` a second. Returns how many a second.
fn connections(duration: Duration, pace: Option<f64>) -> Result<f64> {
    let mut load = Load::listen(if pace.is_some() { PORT + 1 } else { PORT })?;
    let (begun, mut made) = (Instant::now(), 0_u32);
    while begun.elapsed() < duration {
        for (client, mut server) in load.open(16)? {
            drop(client);
            while server.read(&mut [0; 64])? > 0 {}
            made += 1;
        }
        let due = pace.map_or(Duration::ZERO, |pace| Duration::from_secs_f64(f64::from(made) / pace));
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    Ok(f64::from(made) / begun.elapsed().as_secs_f64())
}

/// Nanoseconds of a system call.
fn calls(duration: Duration) -> f64 {
    let (begun, mut made) = (Instant::now(), 0_u64);
    while begun.elapsed() < duration {
        for _ in 0..1000 {
            std::hint::black_box(getppid());
        }
        made += 1000;
    }
    begun.elapsed().as_nanos() as f64 / made as f64
}

/// Nanoseconds of a run of each program that ran.
fn program_times(state: State, setting: &Setting) -> Result<Vec<(&'static str, f64)>> {
    if state == State::Bare {
        return Ok(Vec::new());
    }
    load::in_a_namespace(|| {
        let _kept = enable_stats(Stats::RunTime)?;
        let agent = state.start()?;
        let pid = agent.as_ref().map_or(0, Agent::pid);
        load::pin()?;
        let before = process::programs(pid)?;
        connections(Duration::from_secs_f64(setting.seconds / 2.0), None)?;
        let after = process::programs(pid)?;
        let mut times = Vec::new();
        for program in loaded_programs() {
            let program = program?;
            let name = program.name_as_str().unwrap_or_default();
            let known = PROGRAMS.iter().find(|(known, _)| *known == name);
            let (Some((name, _)), Some(after)) = (known, after.get(&program.id())) else { continue };
            let before = before.get(&program.id()).copied().unwrap_or_default();
            let runs = after.count - before.count;
            if runs > 0 {
                times.push((*name, (after.ns - before.ns) as f64 / runs as f64));
            }
        }
        Ok(times)
    })
}
