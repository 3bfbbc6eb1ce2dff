//! `tcpclose verify`: the agent's account beside the kernel's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use crate::client;
use crate::client::reconcile::reconcile;
use crate::client::sampling::Sampler;
use crate::client::{Client, Said};
use crate::commands::{DEFAULT_SOCKET, duration, json, print};
use crate::failure::{Failure, printable};
use crate::linux::netns::Netns;
use crate::linux::proc_net::SockStat;
use crate::linux::{host, netns};
use crate::report::api::STALE;
use crate::report::verify::samples::Samples;
use crate::report::verify::verdict::{Causes, Verdict};
use crate::report::verify::{
    AuditRow, AuditSample, BackendsInUse, NetnsSample, Reach, counters, gauges, has_hidden, lost, reach,
};
use crate::ui::progress::Ticker;
use crate::ui::table;

/// The version of the document.
const SCHEMA: u32 = 1;
/// How often a look is repeated while something differs: under load the agent may be asked just when a short state came
/// and went between two dumps. What really differs differs each time.
const TRIES: usize = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// Steps of this long before a dump began are left to the next one (`MARGIN_NS` of the tracker), and a little for the
/// agent's own turn.
const MARGIN: Duration = Duration::from_millis(500);
const OWN_ONLY: &str = "the agent does not dump every network namespace: of those that it does not, it knows what hooks \
    tell, and what it counts lies between its own namespace's numbers and those of all";
const HIDDEN: &str = "the agent tracks sockets in network namespaces to which no process, file in /run/netns, mount or \
    descriptor leads: the kernel's numbers lack them";

/// Hold the agent's numbers against the kernel's own: sock_diag, sockstat and the MIB counters
///
/// Has the agent reconcile itself with the kernel first, then looks twice, --for apart: what both counted meanwhile must be the same, and what the agent says is there must be there
/// at the second look. Every network namespace is looked into, and the kernel's numbers are their sums. The agent is asked
/// between two looks at the kernel, so that on a busy host a number of the kernel's is an interval. Each difference is
/// explained (events that the agent says were lost, namespaces that could not be entered or have gone) or flagged.
///
/// Exits with 0 when nothing is flagged, with 1 when something is, with 2 when it cannot be told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose verify\n  tcpclose verify --for 1m --json")]
pub struct Verify {
    /// The time over which counters are compared
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    period: Duration,
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = crate::commands::socket_path())]
    socket: PathBuf,
}

/// What `tcpclose verify --json` prints.
#[derive(Debug, Serialize)]
struct Audit {
    /// [`SCHEMA`].
    schema: u32,
    host: String,
    boot_id: String,
    /// When the second look was, RFC 3339, UTC.
    at: String,
    /// From the first look to the second.
    seconds: f64,
    /// The inode of the agent's network namespace.
    netns: u32,
    /// Every one that was looked into.
    namespaces: Vec<Namespace>,
    backends: BackendsInUse,
    /// Events that the agent lost meanwhile, as it says.
    lost: i64,
    rows: Vec<AuditRow>,
    /// What the kernel counted meanwhile in all of them, also what is compared with nothing.
    counters: BTreeMap<&'static str, u64>,
    /// The sums of all of them at the end; but `orphan`, which the kernel counts of the host.
    sockstat: SockStat,
    incomplete: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns_name: Option<String>,
    counters: BTreeMap<&'static str, u64>,
    sockstat: SockStat,
}

impl Namespace {
    /// Of `sight`, which was `earlier` at the first look; `None` when it has gone.
    fn new(sight: &NetnsSample, earlier: Option<&NetnsSample>) -> Option<Self> {
        let after = sight.after.as_ref()?;
        let before = earlier.and_then(|sight| sight.before.as_ref());
        let counted = |(name, n): (&&'static str, &u64)| {
            (*name, n.saturating_sub(before.map_or(0, |before| before.counters.get(name))))
        };
        Some(Self {
            netns: sight.netns.inum,
            netns_name: sight.netns.name.clone(),
            counters: after.counters.0.iter().map(counted).collect(),
            sockstat: after.stat,
        })
    }
}

impl Verify {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let client = Client::new(&self.socket, client::PATIENCE)?;
        let audit = self.audit(&client)?;
        let differs = audit.rows.iter().filter(|row| row.verdict == Verdict::Differs).count();
        let text = match self.json {
            true => json(&audit)?,
            false => self.text(&audit, differs),
        };
        print(&text)?;
        Ok(if differs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn audit(&self, client: &Client) -> Result<Audit, Failure> {
        let (own, mut incomplete) = self.ready(client)?;
        let asked = reconcile(client)?;
        let mut looks = Sampler::new(client);
        let began = SystemTime::now();
        let start = host::monotonic_ns();
        let from = looks.look()?;
        let backends = BackendsInUse::of(&from.metrics);
        let lag = match (backends.dumps(), asked) {
            (false, _) => Duration::ZERO,
            (true, true) => MARGIN,
            (true, false) => lag(&from.metrics),
        };
        looks.pause(self.period.saturating_sub(lag))?;
        let earlier = match backends.dumps() {
            true => Some(looks.views()?),
            false => None,
        };
        let waiting = (lag > MARGIN).then(|| Ticker::start("waiting for the agent's dumps".to_owned()));
        looks.pause(lag)?;
        drop(waiting);
        if backends.dumps() && asked {
            reconcile(client)?;
        }

        let mut best: Vec<AuditRow> = Vec::new();
        let mut to = looks.look()?;
        let seconds = (host::monotonic_ns() - start) as f64 / 1e9;
        let at = host::wall_clock();
        for again in 0..TRIES {
            if again > 0 {
                sleep(BETWEEN_TRIES);
                to = looks.look()?;
            }
            let began_at = |look: &AuditSample| look.metrics.sum("process_start_time_seconds", &[]);
            if began_at(&from) != began_at(&to) {
                return Err(Failure::new("verify", "the agent was started anew meanwhile", "run it again"));
            }
            let hidden = has_hidden(&from.metrics) || has_hidden(&to.metrics);
            let elsewhere = hidden || looks.unseen(&to).any();
            let meanwhile = Causes { lost: lost(&to.metrics) - lost(&from.metrics), elsewhere };
            let unmended = Causes { lost: unmended(&from.metrics, &to.metrics, began), elsewhere };
            let reach = reach(&to.metrics, own.id);
            let mut rows = gauges::agent(&to, earlier.as_ref(), reach, &unmended);
            rows.extend(counters::compare(&from, &to, &backends, (own.id, reach), &meanwhile));
            rows.extend(gauges::dumps(&to));
            best = match best.is_empty() {
                true => rows,
                false => best.into_iter().zip(rows).map(|(a, b)| better(a, b)).collect(),
            };
            if !best.iter().any(|row| row.verdict == Verdict::Differs) {
                break;
            }
        }
        incomplete.extend(looks.unseen(&to).words());
        if has_hidden(&from.metrics) || has_hidden(&to.metrics) {
            incomplete.push(HIDDEN.to_owned());
        }
        if reach(&to.metrics, own.id) != Reach::All {
            incomplete.push(OWN_ONLY.to_owned());
        }
        let sights = to.namespaces.iter();
        let namespaces: Vec<Namespace> =
            sights.filter_map(|(id, sight)| Namespace::new(sight, from.namespaces.get(id))).collect();
        Ok(Audit {
            schema: SCHEMA,
            host: host::hostname(),
            boot_id: host::boot_id(),
            at,
            seconds,
            netns: own.inum,
            backends,
            lost: lost(&to.metrics) - lost(&from.metrics),
            rows: best,
            counters: counted(&namespaces),
            sockstat: sockstat(&namespaces),
            namespaces,
            incomplete,
        })
    }

    /// Whether the agent can be held against anything yet: its network namespace, and what cannot be told of it.
    fn ready(&self, client: &Client) -> Result<(Netns, Vec<String>), Failure> {
        let answer = match client.get("/readyz")? {
            Said::Answer(answer) => answer,
            Said::NoAgent => return Err(client::none_there(&self.socket)),
            Said::Denied => return Err(client::denied(&self.socket)),
        };
        // What is too old is as of now after the reconcile.
        let is_stale = answer.body.starts_with(STALE.as_bytes());
        if answer.status == hyper::StatusCode::SERVICE_UNAVAILABLE && !is_stale {
            let what = format!("agent at {}", self.socket.display());
            return Err(Failure::new(what, answer.first_line(), "try again in a moment"));
        }
        let agent = answer.agent;
        if !is_stale {
            answer.expect_ok().map_err(|why| client.failure(why))?;
        }
        let own =
            netns::own().map_err(|error| Failure::new("this network namespace", error, "mount /proc"))?;
        let place = agent.and_then(|pid| netns::place_of(u32::try_from(pid).ok()?).ok().zip(Some(pid)));
        let Some((place, pid)) = place else {
            let unknown = "whether the agent is in this network namespace is unknown (CAP_SYS_PTRACE is needed to tell)";
            return Ok((own, vec![unknown.to_owned()]));
        };
        // Its own numbers are those of its own namespace, which another namespace's are no measure of.
        let entered = netns::travel(|traveller| traveller.enter(&place)).and_then(|entered| entered);
        match entered {
            Ok(agents) => Ok((agents, Vec::new())),
            Err(why) => Err(Failure::new(
                "verify",
                format!(
                    "the agent is in another network namespace, net:[{}], not entered: {why}",
                    place.inum
                ),
                format!(
                    "run it with CAP_SYS_ADMIN, or there: nsenter --net=/proc/{pid}/ns/net tcpclose verify"
                ),
            )),
        }
    }

    fn text(&self, audit: &Audit, differs: usize) -> String {
        let width = table::width();
        let wrapped = |line: String| table::wrap(&line, width) + "\n";
        let mut text = wrapped(format!(
            "The agent at {} beside the kernel, over {:.1} s (state hook {}, time wait {})",
            printable(&self.socket.to_string_lossy()),
            audit.seconds,
            printable(&audit.backends.state),
            printable(&audit.backends.time_wait)
        ));
        let rows: Vec<Vec<String>> = audit
            .rows
            .iter()
            .map(|row| {
                let kernel = row.kernel.map_or_else(|| "-".to_owned(), |span| span.to_string());
                vec![row.what.clone(), row.agent.to_string(), kernel, row.verdict.to_string()]
            })
            .collect();
        let header = ["WHAT", ">AGENT", ">KERNEL", "VERDICT"];
        text.push_str(&format!("\n{}\n\n", table::render(&header, &rows, width)));
        text.push_str(&wrapped(match differs {
            0 => "nothing differs without a known cause".to_owned(),
            n => format!("{n} of {} differ, and nothing known makes it", audit.rows.len()),
        }));
        for line in audit.rows.iter().filter_map(breakdown) {
            text.push_str(&wrapped(line));
        }
        if audit.lost > 0 {
            text.push_str(&wrapped(format!("the agent says that it lost {} events meanwhile", audit.lost)));
        }
        text.push_str(&wrapped(counters::NOT_COMPARED.to_owned()));
        for remark in &audit.incomplete {
            text.push_str(&wrapped(format!("incomplete: {}", printable(remark))));
        }
        text
    }
}

/// How old the word of an agent that cannot be asked for a reconcile may be on minisockets, where it follows them by dumps: one interval, one more for what was
/// too fresh for the dump in between, and the dumps themselves.
fn lag(metrics: &Samples) -> Duration {
    let seconds = |name| Duration::try_from_secs_f64(metrics.sum(name, &[])).unwrap_or_default();
    2 * (seconds("tcpclose_reconcile_interval_seconds") + seconds("tcpclose_dump_seconds")) + MARGIN
}

/// Losses that can still show in the gauges at `to`: all, unless a reconcile since the first look has mended those
/// before it.
fn unmended(from: &Samples, to: &Samples, began: SystemTime) -> i64 {
    let reconciled = to.sum("tcpclose_reconcile_last_success_timestamp_seconds", &[]);
    let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if reconciled >= began { lost(to) - lost(from) } else { lost(to) }
}

/// Of two comparisons of the same thing the one in which the two agree, if there is one.
fn better(a: AuditRow, b: AuditRow) -> AuditRow {
    let rank = |row: &AuditRow| match row.verdict {
        Verdict::Equal | Verdict::NotTold(_) => 0,
        Verdict::Explained(_) => 1,
        Verdict::Differs => 2,
    };
    if rank(&b) < rank(&a) { b } else { a }
}

/// What was counted in all of them.
fn counted(namespaces: &[Namespace]) -> BTreeMap<&'static str, u64> {
    let mut sum = BTreeMap::new();
    for (name, n) in namespaces.iter().flat_map(|namespace| &namespace.counters) {
        *sum.entry(*name).or_default() += n;
    }
    sum
}

fn sockstat(namespaces: &[Namespace]) -> SockStat {
    namespaces.iter().map(|namespace| namespace.sockstat).fold(SockStat::default(), |sum, of| SockStat {
        inuse: sum.inuse + of.inuse,
        orphan: sum.orphan.max(of.orphan),
        tw: sum.tw + of.tw,
    })
}

/// Which part of a row that differs is whose: nothing where one namespace has it all.
fn breakdown(row: &AuditRow) -> Option<String> {
    if row.verdict != Verdict::Differs || row.namespaces.len() < 2 {
        return None;
    }
    let parts = row.namespaces.iter().map(|part| {
        let name = part.netns_name.clone().unwrap_or_else(|| format!("net:[{}]", part.netns));
        match part.dumped {
            Some(dumped) if dumped.beyond(part.kernel) != 0 => {
                format!("{} and {} in {}", dumped, part.kernel, printable(&name))
            }
            _ => format!("{} in {}", part.kernel, printable(&name)),
        }
    });
    Some(format!("{}: {}", row.what, parts.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::verify::verdict::Span;

    #[test]
    fn a_later_look_can_only_clear_a_difference() {
        let row = |n, verdict| AuditRow {
            what: "x".to_owned(),
            agent: Span::exact(n),
            kernel: None,
            verdict,
            namespaces: Vec::new(),
        };
        let differs = || row(1, Verdict::Differs);
        assert_eq!(better(differs(), row(2, Verdict::Equal)).agent, Span::exact(2));
        assert_eq!(better(row(2, Verdict::Equal), differs()).agent, Span::exact(2));
        assert_eq!(better(differs(), row(2, Verdict::Differs)).agent, Span::exact(1));
        assert_eq!(better(differs(), row(2, Verdict::Explained("y".to_owned()))).agent, Span::exact(2));
    }

    #[test]
    fn losses_that_a_reconcile_has_mended_explain_nothing() {
        let samples = |lost: u32, at: u32| {
            Samples::parse(&format!(
                "tcpclose_events_lost_total{{stage=\"ring\"}} {lost}\n\
                 tcpclose_reconcile_last_success_timestamp_seconds {at}\n"
            ))
        };
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(unmended(&samples(5, 50), &samples(7, 50), began), 7);
        assert_eq!(unmended(&samples(5, 50), &samples(7, 101), began), 2);
    }

    #[test]
    fn the_agents_word_on_minisockets_is_two_intervals_old_at_the_most() {
        let metrics = Samples::parse("tcpclose_reconcile_interval_seconds 1\ntcpclose_dump_seconds 0.25\n");
        assert_eq!(lag(&metrics), Duration::from_secs(3));
        assert_eq!(lag(&Samples::default()), MARGIN);
    }
}
