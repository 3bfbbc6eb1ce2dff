//! `GET /v1/watch?port=…`: what a watcher is told, as lines of JSON, for as long as it listens.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use crate::linux::{host, process};
use crate::report::sockets::{Cookie, seconds};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::{CloserLine, Item, Line, More};
use crate::tracker::socket;
use crate::tracker::transition::Transition;

use crate::agent::tracking::Tracking;
use crate::agent::watchers::{MOST_WATCHERS, Subscription, WatchItem};

/// Where the command line watches.
pub const PATH: &str = "/v1/watch";

/// Lines that are written at a time.
const AT_ONCE: usize = 256;

/// How long a process's name is believed without another look, and how many are kept.
const NAMES_LAST: Duration = Duration::from_secs(1);
const MOST_NAMES: usize = 1024;

/// Why nobody more may watch.
pub enum WatchRefused {
    /// The filter makes no sense: what is wrong with it.
    Filter(String),
    TooMany,
}

impl WatchRefused {
    pub fn too_many() -> String {
        format!("{MOST_WATCHERS} watch already, and no more may: end one of them")
    }
}

/// The lines for one watcher.
pub struct WatchStream {
    watch: Subscription,
    engine: Rc<RefCell<Tracking>>,
    names: ProcessNames,
}

impl WatchStream {
    /// Watches from now on: what has been drained by now is not told.
    pub fn begin(query: &str, engine: &Rc<RefCell<Tracking>>) -> Result<Self, WatchRefused> {
        Self::of(WatchFilter::parse(query).map_err(WatchRefused::Filter)?, engine)
    }

    pub fn of(filter: WatchFilter, engine: &Rc<RefCell<Tracking>>) -> Result<Self, WatchRefused> {
        let watch = {
            let mut engine = engine.borrow_mut();
            engine.drain_all();
            engine.hub.watch(filter).ok_or(WatchRefused::TooMany)?
        };
        Ok(Self { watch, engine: Rc::clone(engine), names: ProcessNames::default() })
    }

    /// What has come; never nothing.
    pub async fn next(&mut self) -> Vec<Item> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Vec<Item>> {
        let told = ready!(self.watch.poll_take(context, AT_ONCE));
        let engine = self.engine.borrow();
        let now = Clocks::now();
        let more = self.watch.filter().more;
        let mut item = |told| match told {
            WatchItem::Step(step, wall_ns) => {
                let time = UNIX_EPOCH + Duration::from_nanos(wall_ns);
                let time = humantime::format_rfc3339_nanos(time).to_string();
                let owner = step.closer.map(|closer| self.names.of(closer, &now));
                Item::Line(Box::new(line(&step, time, owner, more, &engine)))
            }
            WatchItem::Lost(lost) => Item::Lost(lost),
        };
        Poll::Ready(told.into_iter().map(&mut item).collect())
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
            // Nothing in a line can fail to be written.
            if serde_json::to_writer(&mut text, &item).is_ok() {
                text.push(b'\n');
            }
        }
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

/// What both clocks say at one moment.
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

fn line(step: &Transition, time: String, owner: Option<CloserLine>, more: bool, engine: &Tracking) -> Line {
    let netns = engine.namespaces.get(step.netns);
    let more = more.then(|| More {
        netns_name: netns.and_then(|netns| netns.name.clone()),
        snd: step.snd,
        rcv: step.rcv,
        time_wait_ms: engine.tracker.time_wait_ns().map(|ns| ns / 1_000_000),
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
        owner,
        source: step.source,
        more,
    }
}

/// Names of processes, so that a busy one is not looked up for each of its closes, and one that has ended since keeps its
/// own.
#[derive(Default)]
struct ProcessNames(HashMap<u32, Name>);

/// What a look at a process has found.
struct Name {
    /// When that was, by two clocks.
    looked: Instant,
    looked_ns: u64,
    /// When the process began, nanoseconds since boot.
    began_ns: u64,
    comm: String,
}

impl ProcessNames {
    fn of(&mut self, closer: socket::Closer, now: &Clocks) -> CloserLine {
        let pid = closer.pid.get();
        let (closed_ns, closed_since_boot_ns) =
            (closer.at_ns, now.uptime_ns.saturating_sub(now.ago_ns(closer.at_ns)));
        let believed = |name: &Name| closed_ns <= name.looked_ns || name.looked.elapsed() < NAMES_LAST;
        if !self.0.get(&pid).is_some_and(believed) {
            if self.0.len() >= MOST_NAMES {
                self.0.clear();
            }
            match process::started(pid) {
                Some((began_ns, comm)) => {
                    let looked_ns = now.monotonic_ns;
                    self.0.insert(pid, Name { looked: Instant::now(), looked_ns, began_ns, comm });
                }
                None => drop(self.0.remove(&pid)),
            }
        }
        // Who began later only has its number.
        let name = self.0.get(&pid).filter(|name| name.began_ns <= closed_since_boot_ns);
        CloserLine { pid, comm: name.map(|name| name.comm.clone()) }
    }
}
