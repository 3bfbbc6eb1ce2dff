//! `GET /v1/watch?port=…`: transitions as they happen, one JSON document a line, for as long as the client
//! reads.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame};
use hyper::{Response, StatusCode};

use crate::linux::{host, process};
use crate::report::sockets::{Cookie, seconds};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::{CloserLine, Item, Line, More};
use crate::tracker::socket;
use crate::tracker::transition::Transition;

use crate::agent::server::response::{plain, with_type};
use crate::agent::tracking::Tracking;
use crate::agent::watchers::{MOST_WATCHERS, Subscription, WatchItem};

const JSON_LINES: &str = "application/x-ndjson";

/// Lines that are written at a time.
const AT_ONCE: usize = 256;

/// How long a process's name is used before it is read again, and how many are kept.
const NAMES_LAST: Duration = Duration::from_secs(1);
const MOST_NAMES: usize = 1024;

/// There are [`MOST_WATCHERS`].
#[derive(Debug)]
pub struct TooManyWatchers;

/// The stream, or why there is none.
pub fn answer(query: &str, tracking: &Rc<RefCell<Tracking>>) -> Response<Either<Full<Bytes>, WatchStream>> {
    let filter = match WatchFilter::parse(query) {
        Ok(filter) => filter,
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")).map(Either::Left),
    };
    match WatchStream::begin(filter, tracking) {
        Ok(stream) => with_type(StatusCode::OK, JSON_LINES, "").map(|_| Either::Right(stream)),
        Err(TooManyWatchers) => {
            let why = format!("{MOST_WATCHERS} clients are watching, the limit: end one of them\n");
            plain(StatusCode::SERVICE_UNAVAILABLE, why).map(Either::Left)
        }
    }
}

/// The lines for one watcher.
pub struct WatchStream {
    subscription: Subscription,
    tracking: Rc<RefCell<Tracking>>,
    names: ProcessNames,
}

impl WatchStream {
    /// Watches from now on, without what is in the ring already.
    pub fn begin(filter: WatchFilter, tracking: &Rc<RefCell<Tracking>>) -> Result<Self, TooManyWatchers> {
        let subscription = {
            let mut tracking = tracking.borrow_mut();
            tracking.drain_all();
            tracking.output.watchers.watch(filter).ok_or(TooManyWatchers)?
        };
        Ok(Self { subscription, tracking: Rc::clone(tracking), names: ProcessNames::default() })
    }

    /// What has come; never none.
    pub async fn next(&mut self) -> Vec<Item> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Vec<Item>> {
        let items = ready!(self.subscription.poll_take(context, AT_ONCE));
        let tracking = self.tracking.borrow();
        let now = Clocks::now();
        let more = self.subscription.filter().more;
        let mut item = |item| match item {
            WatchItem::Step(step, wall_ns) => {
                let time = UNIX_EPOCH + Duration::from_nanos(wall_ns);
                let time = humantime::format_rfc3339_nanos(time).to_string();
                let owner = step.closer.map(|closer| self.names.of(closer, &now));
                Item::Line(Box::new(line(&step, time, owner, more, &tracking)))
            }
            WatchItem::Lost(lost) => Item::Lost(lost),
        };
        Poll::Ready(items.into_iter().map(&mut item).collect())
    }
}

/// The stream never ends by itself.
impl Body for WatchStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let items = ready!(self.poll_next(context));
        let mut text = Vec::with_capacity(items.len() * 512);
        for item in items {
            // Serialization of a line cannot fail.
            if serde_json::to_writer(&mut text, &item).is_ok() {
                text.push(b'\n');
            }
        }
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

/// Both clocks at one moment.
struct Clocks {
    monotonic_ns: u64,
    uptime_ns: u64,
}

impl Clocks {
    fn now() -> Self {
        Self { monotonic_ns: host::monotonic_ns(), uptime_ns: host::uptime_ns() }
    }

    fn ago_ns(&self, at_ns: u64) -> u64 {
        self.monotonic_ns.saturating_sub(at_ns)
    }
}

fn line(step: &Transition, time: String, owner: Option<CloserLine>, more: bool, tracking: &Tracking) -> Line {
    let netns = tracking.namespaces.get(step.netns);
    let more = more.then(|| More {
        netns_name: netns.and_then(|netns| netns.name.clone()),
        snd: step.snd,
        rcv: step.rcv,
        time_wait_ms: tracking.tracker.time_wait_ns().map(|ns| ns / 1_000_000),
    });
    Line {
        time,
        time_ns: step.at_ns,
        cookie: Cookie(step.cookie),
        netns: netns.map_or(step.inum, |netns| netns.inum),
        side: step.side,
        port: step.port,
        local: step.flow.local(),
        peer: step.flow.remote(),
        from: step.from,
        to: step.to,
        min_seconds: seconds(step.spent.min_ns),
        max_seconds: step.spent.max_ns.map(seconds),
        role: step.role,
        outcome: step.outcome,
        stale_write: step.stale_write,
        reset_reason: step.reset_reason.map(Cow::Borrowed),
        owner,
        source: step.source,
        more,
    }
}

/// Names of processes: a busy process is not looked up for each of its closes, and one that has ended keeps
/// its name.
#[derive(Default)]
struct ProcessNames(HashMap<u32, Name>);

/// The name of a process.
struct Name {
    /// When it was read, by two clocks.
    checked: Instant,
    checked_ns: u64,
    /// Start of the process, nanoseconds since boot.
    began_ns: u64,
    comm: String,
}

impl ProcessNames {
    fn of(&mut self, closer: socket::Closer, now: &Clocks) -> CloserLine {
        let pid = closer.pid.get();
        let (closed_ns, closed_since_boot_ns) =
            (closer.at_ns, now.uptime_ns.saturating_sub(now.ago_ns(closer.at_ns)));
        let is_current = |name: &Name| closed_ns <= name.checked_ns || name.checked.elapsed() < NAMES_LAST;
        if !self.0.get(&pid).is_some_and(is_current) {
            if self.0.len() >= MOST_NAMES {
                self.0.clear();
            }
            match process::started(pid) {
                Some((began_ns, comm)) => {
                    let checked_ns = now.monotonic_ns;
                    self.0.insert(pid, Name { checked: Instant::now(), checked_ns, began_ns, comm });
                }
                None => drop(self.0.remove(&pid)),
            }
        }
        // A process that began later has only the same pid.
        let name = self.0.get(&pid).filter(|name| name.began_ns <= closed_since_boot_ns);
        CloserLine { pid, comm: name.map(|name| name.comm.clone()) }
    }
}
