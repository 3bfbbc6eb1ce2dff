//! What the agent takes when nothing happens.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Setting;
use crate::contender::Agent;
use crate::load;
use crate::process;
use crate::report::{Figure, reached};

/// Until the drain's pause has grown to its most.
const BACKED_OFF: Duration = Duration::from_secs(4);

pub fn measure(setting: &Setting) -> Result<Figure> {
    let duration = Duration::from_secs_f64((setting.seconds * 20.0).min(20.0));
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    for hook in ["btf", "tracepoint"] {
        let (cpu, wakeups) = load::in_a_namespace(|| {
            let agent = Agent::start(&["--state-hook", hook])?;
            sleep(BACKED_OFF);
            let (cpu, sleeps) = (process::cpu(agent.pid())?, process::sleeps(agent.pid())?);
            sleep(duration);
            let cpu = process::cpu(agent.pid())?.saturating_sub(cpu).as_secs_f64() / duration.as_secs_f64();
            let wakeups = (process::sleeps(agent.pid())? - sleeps) as f64 / duration.as_secs_f64();
            anyhow::Ok((cpu, wakeups))
        })?;
        samples.push(json!({"hook": hook, "cpu": cpu, "wakeups": wakeups}));
        rows.push(vec![
            format!("tcpclose agent, {hook}"),
            format!("{:.4} %", cpu * 100.0),
            format!("{wakeups:.2}"),
            format!("{}; {}", reached(cpu <= 0.001, "≤ 0.1 %"), reached(wakeups <= 5.0, "≤ 5/s")),
        ]);
    }
    Ok(Figure {
        name: "idle",
        title: "The agent, idle",
        method: format!(
            "CPU time and voluntary context switches of all of its threads over {:.0} s, {} s after its \
             start, in a namespace without sockets, not scraped. It sees the closes of the whole host: the \
             host should have none.",
            duration.as_secs_f64(),
            BACKED_OFF.as_secs()
        ),
        columns: vec!["agent", "of a core", "wakeups/s", "to reach"],
        rows,
        samples: json!(samples),
    })
}
