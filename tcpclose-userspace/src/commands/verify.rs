//! `tcpclose verify`: the agent's numbers beside the kernel's.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueHint};
use tcpclose_common::progress::Ticker;

use self::document::{Audit, Namespace, counted, sockstat};
use crate::client;
use crate::client::Client;
use crate::client::reconcile::reconcile;
use crate::client::sampling::Sampler;
use crate::commands::arguments::{duration, socket_path};
use crate::commands::output::{json, print};
use crate::failure::Failure;
use crate::linux::netns::Netns;
use crate::linux::{host, netns};
use crate::report::requests::{DEFAULT_SOCKET, INCOMPLETE_PREFIX, READY_PATH, STALE_PREFIX};
use crate::report::verify::samples::Samples;
use crate::report::verify::verdict::{Agreement, Causes};
use crate::report::verify::{
    AuditRow, AuditSample, BackendsInUse, Reach, counters, gauges, has_hidden, lost, reach,
};
use crate::ui::table;

mod document;
mod text;

/// The version of the document.
const SCHEMA: u32 = 1;
/// How often a sample is repeated while something differs. Under load a short state may begin and end between two dumps;
/// a real difference shows in every sample.
const TRIES: usize = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// The tracker leaves steps this short before a dump to the next one (`MARGIN_NS`); with some time for the agent itself.
const MARGIN: Duration = Duration::from_millis(500);
const OWN_ONLY: &str = "the agent does not dump every network namespace: it knows the others only from the probe, so its \
    counts lie between those of its own namespace and those of all";
const HIDDEN: &str = "the agent tracks sockets in network namespaces that no process, file in /run/netns, mount or \
    descriptor leads to: the kernel's numbers do not include them";

/// Compare the agent's metrics with the kernel's: sock_diag, sockstat and the MIB counters
///
/// The agent first reconciles itself with the kernel. Then this command takes two samples, --for apart. The counts between them
/// must be equal, and so must the sockets at the second one. The kernel's numbers are the sums over all network namespaces. The
/// agent is sampled between two samples of the kernel, so on a busy host the kernel's numbers are intervals. Each
/// difference is explained (events that the agent lost, namespaces that could not be entered or have gone) or flagged.
///
/// Exit status: 0 if nothing is flagged, 1 if something is, 2 if the comparison failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tcpclose verify\n  tcpclose verify --for 1m --json")]
pub struct Verify {
    /// Time between the two samples
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = duration, allow_hyphen_values = true, value_hint = ValueHint::Other)]
    period: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The agent's Unix socket [TCPCLOSE_SOCKET]
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_parser = socket_path(), value_hint = ValueHint::FilePath)]
    socket: PathBuf,
}

impl Verify {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let client = Client::new(&self.socket, client::PATIENCE)?;
        let audit = self.audit(&client)?;
        let differs = audit.rows.iter().filter(|row| row.verdict == Agreement::Differs).count();
        let text = match self.json {
            true => json(&audit)?,
            false => self.text(&audit, differs, table::width()),
        };
        print(&text)?;
        Ok(if differs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn audit(&self, client: &Client) -> Result<Audit, Failure> {
        let (own, mut incomplete) = self.ready(client)?;
        let reconciled = reconcile(client)?;
        let mut sampler = Sampler::new(client);
        let began = SystemTime::now();
        let start = host::monotonic_ns();
        let from = sampler.sample()?;
        let backends = BackendsInUse::of(&from.metrics);
        let lag = match (backends.dumps(), reconciled) {
            (false, _) => Duration::ZERO,
            (true, true) => MARGIN,
            (true, false) => lag(&from.metrics),
        };
        sampler.pause(self.period.saturating_sub(lag))?;
        let earlier = match backends.dumps() {
            true => Some(sampler.views()?),
            false => None,
        };
        let waiting = (lag > MARGIN).then(|| Ticker::start("waiting for the agent's dumps".to_owned()));
        sampler.pause(lag)?;
        drop(waiting);
        if backends.dumps() && reconciled {
            reconcile(client)?;
        }

        let mut best: Vec<AuditRow> = Vec::new();
        let mut to = sampler.sample()?;
        let seconds = (host::monotonic_ns() - start) as f64 / 1e9;
        let at = host::wall_clock();
        for again in 0..TRIES {
            if again > 0 {
                sleep(BETWEEN_TRIES);
                to = sampler.sample()?;
            }
            let began_at = |sample: &AuditSample| sample.metrics.sum("process_start_time_seconds", &[]);
            if began_at(&from) != began_at(&to) {
                return Err(Failure::new(
                    "verify",
                    "the agent was restarted during the comparison",
                    "run it again",
                ));
            }
            let hidden = has_hidden(&from.metrics) || has_hidden(&to.metrics);
            let elsewhere = hidden || sampler.unseen(&to).any();
            let meanwhile = Causes { lost: lost(&to.metrics) - lost(&from.metrics), elsewhere };
            let uncorrected = Causes { lost: uncorrected(&from.metrics, &to.metrics, began), elsewhere };
            let reach = reach(&to.metrics, own.id);
            let mut rows = gauges::agent(&to, earlier.as_ref(), reach, &uncorrected);
            rows.extend(counters::compare(&from, &to, &backends, (own.id, reach), &meanwhile));
            rows.extend(gauges::dumps(&to));
            best = match best.is_empty() {
                true => rows,
                false => best.into_iter().zip(rows).map(|(a, b)| better(a, b)).collect(),
            };
            if !best.iter().any(|row| row.verdict == Agreement::Differs) {
                break;
            }
        }
        incomplete.extend(sampler.unseen(&to).words());
        if has_hidden(&from.metrics) || has_hidden(&to.metrics) {
            incomplete.push(HIDDEN.to_owned());
        }
        if reach(&to.metrics, own.id) != Reach::All {
            incomplete.push(OWN_ONLY.to_owned());
        }
        let samples = to.namespaces.iter();
        let namespaces: Vec<Namespace> =
            samples.filter_map(|(id, sample)| Namespace::new(sample, from.namespaces.get(id))).collect();
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

    /// The agent's network namespace, once the agent is ready, and what is unknown about it.
    fn ready(&self, client: &Client) -> Result<(Netns, Vec<String>), Failure> {
        let answer = client.get(READY_PATH)?.required(&self.socket)?;
        // Numbers that are too old are fresh after the reconcile.
        let is_stale = answer.body.starts_with(STALE_PREFIX.as_bytes());
        let line = answer.first_line();
        let mut incomplete: Vec<String> =
            line.strip_prefix(INCOMPLETE_PREFIX).map(str::to_owned).into_iter().collect();
        let is_usable = is_stale || !incomplete.is_empty();
        if answer.status == hyper::StatusCode::SERVICE_UNAVAILABLE && !is_usable {
            let what = format!("agent at {}", self.socket.display());
            return Err(Failure::new(what, line, "try again in a moment"));
        }
        let agent = answer.agent_pid;
        if !is_usable {
            answer.expect_ok().map_err(|why| client.failure(why))?;
        }
        let own = netns::own()
            .map_err(|error| Failure::new("cannot identify this network namespace", error, "mount /proc"))?;
        let place = agent.and_then(|pid| netns::place_of(u32::try_from(pid).ok()?).ok().zip(Some(pid)));
        let Some((place, pid)) = place else {
            incomplete.push("the agent's network namespace is unknown (CAP_SYS_PTRACE is needed)".to_owned());
            return Ok((own, incomplete));
        };
        // The agent's numbers about its own namespace can only be compared with those of that namespace.
        let entered = netns::with_visitor(|visitor| visitor.enter(&place)).and_then(|entered| entered);
        match entered {
            Ok(agents) => Ok((agents, incomplete)),
            Err(why) => Err(Failure::new(
                "verify",
                format!("cannot enter the agent's network namespace, net:[{}]: {why}", place.inum),
                format!(
                    "run it with CAP_SYS_ADMIN, or in that namespace: nsenter --net=/proc/{pid}/ns/net tcpclose verify"
                ),
            )),
        }
    }
}

/// The maximum age of the minisockets of an agent without reconciles on request, where it dumps them: an interval, another
/// one for those too fresh for the dump in between, and the dumps themselves.
fn lag(metrics: &Samples) -> Duration {
    let seconds = |name| Duration::try_from_secs_f64(metrics.sum(name, &[])).unwrap_or_default();
    2 * (seconds("tcpclose_reconcile_interval_seconds") + seconds("tcpclose_dump_seconds")) + MARGIN
}

/// Losses that can still show in the gauges at `to`: all, unless a reconcile since the first sample has corrected the
/// earlier ones.
fn uncorrected(from: &Samples, to: &Samples, began: SystemTime) -> i64 {
    let reconciled = to.sum("tcpclose_reconcile_last_success_timestamp_seconds", &[]);
    let began = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if reconciled >= began { lost(to) - lost(from) } else { lost(to) }
}

/// Of two comparisons of the same metric, the one with the better verdict.
fn better(a: AuditRow, b: AuditRow) -> AuditRow {
    let rank = |row: &AuditRow| match row.verdict {
        Agreement::Equal | Agreement::NotTold(_) => 0,
        Agreement::Explained(_) => 1,
        Agreement::Differs => 2,
    };
    if rank(&b) < rank(&a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::verify::verdict::Span;

    #[test]
    fn a_later_sample_can_only_clear_a_difference() {
        let row = |n, verdict| AuditRow {
            what: "x".to_owned(),
            agent: Span::exact(n),
            kernel: None,
            verdict,
            namespaces: Vec::new(),
        };
        let differs = || row(1, Agreement::Differs);
        assert_eq!(better(differs(), row(2, Agreement::Equal)).agent, Span::exact(2));
        assert_eq!(better(row(2, Agreement::Equal), differs()).agent, Span::exact(2));
        assert_eq!(better(differs(), row(2, Agreement::Differs)).agent, Span::exact(1));
        assert_eq!(better(differs(), row(2, Agreement::Explained("y".to_owned()))).agent, Span::exact(2));
    }

    #[test]
    fn losses_before_a_reconcile_explain_nothing() {
        let samples = |lost: u32, at: u32| {
            Samples::parse(&format!(
                "tcpclose_events_lost_total{{stage=\"ring\"}} {lost}\n\
                 tcpclose_reconcile_last_success_timestamp_seconds {at}\n"
            ))
        };
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(uncorrected(&samples(5, 50), &samples(7, 50), began), 7);
        assert_eq!(uncorrected(&samples(5, 50), &samples(7, 101), began), 2);
    }

    #[test]
    fn minisockets_are_at_most_two_intervals_old() {
        let metrics = Samples::parse("tcpclose_reconcile_interval_seconds 1\ntcpclose_dump_seconds 0.25\n");
        assert_eq!(lag(&metrics), Duration::from_secs(3));
        assert_eq!(lag(&Samples::default()), MARGIN);
    }
}
