//! Destroying the sockets one by one, by this process or through the agent.

use std::cell::RefCell;
use std::time::Instant;

use super::text::{KillProgress, result_line};
use super::{Done, Kill};
use crate::client;
use crate::client::Client;
use crate::client::reply::{Alone, Reply};
use crate::commands::filter;
use crate::commands::filter::Findings;
use crate::commands::output::print;
use crate::commands::signals::Interrupt;
use crate::failure::Failure;
use crate::kill::places::Places;
use crate::kill::{KillOrder, KillOutcome, execute};
use crate::linux::host;
use crate::linux::host::{Capability, has_cap};
use crate::names::Phase;
use crate::report::kill::pace::KillPace;
use crate::report::kill::plan::Leave;
use crate::report::kill::summary::{Fate, Tally};
use crate::report::requests::{KILL_NOT_ALLOWED, KILL_PATH};
use crate::report::sockets::{DocumentSource, StuckSocket};

/// What destroys the sockets.
pub(super) enum Executor {
    /// This process.
    Own(RefCell<Places>),
    Agent(Client),
}

impl Kill {
    pub(super) fn destroy(
        &self,
        findings: &Findings,
        going: Vec<StuckSocket>,
        leave: &Leave,
        found_at: Instant,
    ) -> Result<Done, Failure> {
        let mut done = Done { fates: Vec::new(), tally: Tally::default(), interrupted: false };
        if going.is_empty() {
            return Ok(done);
        }
        let executor = self.executor(findings)?;
        let own = filter::own_netns();
        // In one namespace the others fail as the first one does.
        let alike = going.windows(2).all(|pair| matches!(pair, [a, b] if a.netns == b.netns));
        let interrupt = Interrupt::catch()?;
        let (mut pace, began, all) = (KillPace::new(self.rate), Instant::now(), going.len());
        let mut progress = KillProgress::new(self.json);
        for (at, socket) in going.into_iter().enumerate() {
            let pause = pace.wait(began.elapsed());
            done.interrupted = done.interrupted || interrupt.within(pause);
            if done.interrupted {
                done.fates.push(Fate { socket, result: None, tried_at: None });
                continue;
            }
            pace.take(began.elapsed());
            let elapsed = found_at.elapsed().as_secs_f64();
            let order = KillOrder::new(&socket, &leave.diagnoses, leave.bound, elapsed);
            let tried_at = host::wall_clock();
            let outcome = self.one(&executor, &order).map_err(|mut failure| {
                if at > 0 {
                    failure.why.push_str(&format!(", after {} of {all}", done.tally.words()));
                }
                failure
            })?;
            if alike
                && done.tally.destroyed == 0
                && let Some(why) = hopeless(&outcome, order.state, &executor)
            {
                return Err(why);
            }
            done.tally.add(&outcome);
            if !self.json {
                progress.clear();
                print(&result_line(&socket, socket.netns != own, &outcome))?;
            }
            let left = pace.left(began.elapsed(), all - at - 1);
            progress.show(at + 1, all, left);
            done.fates.push(Fate { socket, result: Some(outcome), tried_at: Some(tried_at) });
        }
        progress.clear();
        Ok(done)
    }

    fn executor(&self, findings: &Findings) -> Result<Executor, Failure> {
        if findings.document.source == DocumentSource::Agent {
            let client = Client::for_command(&self.address.socket, client::PATIENCE, Alone::Destroy);
            return client.map(Executor::Agent);
        }
        if !has_cap(Capability::NetAdmin) {
            return Err(Failure::new(
                "destroying sockets",
                format!("this process lacks {}", Capability::NetAdmin.name()),
                "run it as root, or start an agent with --allow-kill",
            ));
        }
        Ok(Executor::Own(RefCell::default()))
    }

    fn one(&self, executor: &Executor, order: &KillOrder) -> Result<KillOutcome, Failure> {
        let client = match executor {
            Executor::Own(places) => return Ok(execute(order, &mut places.borrow_mut())),
            Executor::Agent(client) => client,
        };
        let body = serde_json::to_vec(order).map_err(|why| client.failure(why.to_string()))?;
        let Reply::Answer(answer) = client.post(KILL_PATH, body)? else { return Err(client.gone()) };
        if answer.status == hyper::StatusCode::FORBIDDEN {
            let what = format!("agent at {}", self.address.socket.display());
            let why = answer.first_line();
            let todo = match why == KILL_NOT_ALLOWED.trim_end() {
                true => "restart the agent with --allow-kill, or add --no-agent to destroy them without it",
                false if has_cap(Capability::NetAdmin) => {
                    "run tcpclose kill as such a user, or add --no-agent to destroy them without the agent"
                }
                false => "run tcpclose kill as root or as such a user",
            };
            return Err(Failure::new(what, why, todo));
        }
        let answer = answer.expect_ok().map_err(|why| client.failure(why))?;
        serde_json::from_slice(&answer.body)
            .map_err(|why| client.failure(format!("this version cannot read its answer ({why})")))
    }
}

/// A refusal that every other socket would meet too, as a failure.
pub(super) fn hopeless(outcome: &KillOutcome, state: Phase, executor: &Executor) -> Option<Failure> {
    let KillOutcome::Refused { errno: Some(errno), why } = outcome else { return None };
    let minisockets = matches!(state, Phase::TimeWait | Phase::FinWait2);
    match *errno {
        libc::EPERM => {
            let who = match executor {
                Executor::Own(_) => "this process",
                Executor::Agent(_) => "the agent",
            };
            Some(Failure::new(
                "destroying sockets",
                format!("{who} lacks {} in this network namespace ({why})", Capability::NetAdmin.name()),
                "run it as root of the namespace's user namespace",
            ))
        }
        // Before 6.1, tcp_abort() knows no minisocket.
        libc::EOPNOTSUPP if !minisockets => Some(Failure::new(
            "destroying sockets",
            "this kernel cannot (CONFIG_INET_DIAG_DESTROY is not set)",
            "stop the program that holds them instead: tcpclose stuck names it",
        )),
        _ => None,
    }
}
