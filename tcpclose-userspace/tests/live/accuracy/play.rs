//! Closes of known length: what the script does, and when its segments passed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use super::diag;
use super::scene::{Family, Moment, Scene, now_ns};
use super::tap::{Passed, Tap, real_minus_monotonic};
use super::wire::{ACK, FIN};

/// How long a close stays in a state, milliseconds. A close takes one of them for its first state, and another for its
/// second.
const DWELLS_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 300, 1000, 3000];

/// The segment that makes the kernel's socket change its state, or that the change sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    KernelFin,
    PeerFin,
    /// The peer's ACK of the kernel's FIN.
    PeerAck,
}

/// A state of the kernel's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    FinWait1,
    FinWait2,
    FinWait2Orphan,
    Closing,
    CloseWait,
    LastAck,
    TimeWait,
}

impl Phase {
    pub const ALL: [Self; 7] = [
        Self::FinWait1,
        Self::FinWait2,
        Self::FinWait2Orphan,
        Self::Closing,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
    ];

    /// As the label `state` has it.
    pub const fn state(self) -> &'static str {
        match self {
            Self::FinWait1 => "fin_wait_1",
            Self::FinWait2 | Self::FinWait2Orphan => "fin_wait_2",
            Self::Closing => "closing",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::TimeWait => "time_wait",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2, full socket",
            Self::FinWait2Orphan => "FIN-WAIT-2, minisocket",
            Self::Closing => "CLOSING",
            Self::CloseWait => "CLOSE-WAIT",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
        }
    }
}

/// One way to close.
pub struct Script {
    /// Whether the program keeps the descriptor when it ends its half.
    half: bool,
    /// The segment at which a phase begins, in order.
    steps: [(Mark, Phase); 2],
    /// The segment that ends the last of them, and whether TIME-WAIT follows.
    last: (Mark, bool),
}

pub const SCRIPTS: [Script; 4] = [
    Script {
        half: false,
        steps: [(Mark::KernelFin, Phase::FinWait1), (Mark::PeerAck, Phase::FinWait2Orphan)],
        last: (Mark::PeerFin, true),
    },
    Script {
        half: true,
        steps: [(Mark::KernelFin, Phase::FinWait1), (Mark::PeerAck, Phase::FinWait2)],
        last: (Mark::PeerFin, true),
    },
    Script {
        half: false,
        steps: [(Mark::KernelFin, Phase::FinWait1), (Mark::PeerFin, Phase::Closing)],
        last: (Mark::PeerAck, true),
    },
    Script {
        half: false,
        steps: [(Mark::PeerFin, Phase::CloseWait), (Mark::KernelFin, Phase::LastAck)],
        last: (Mark::PeerAck, false),
    },
];

/// A connection that is about to be made and closed.
pub struct Close {
    script: &'static Script,
    scene: Scene,
    tap: Tap,
    dwells: [Duration; 2],
}

/// How long a phase really lasted.
pub struct Truth {
    pub port: u16,
    pub phase: Phase,
    pub ns: u64,
    /// What that may be wrong by, at most.
    pub error_ns: u64,
}

/// A TIME-WAIT that was entered.
pub struct Waiting {
    port: u16,
    kernel: SocketAddr,
    peer: SocketAddr,
    entered_ns: u64,
    error_ns: u64,
}

impl Close {
    /// Sets close `number` up in the calling thread's namespace.
    pub fn set(number: usize, port: u16) -> Self {
        let at = number as u16 + 1;
        let scene = Scene::set(at, port, Family::V4, true);
        let tap = Tap::open(&format!("case{at}")).unwrap();
        let dwell = |step: usize| Duration::from_millis(DWELLS_MS[(number + 3 * step) % DWELLS_MS.len()]);
        let script = &SCRIPTS[number / DWELLS_MS.len() % SCRIPTS.len()];
        Self { script, scene, tap, dwells: [dwell(0), dwell(1)] }
    }

    /// Makes and closes the connection: what its phases lasted, and its TIME-WAIT if it comes to that.
    pub fn play(&mut self) -> (Vec<Truth>, Option<Waiting>) {
        let offset = real_minus_monotonic();
        let script = self.script;
        self.scene.accepted();
        let mut moments = Vec::new();
        for ((mark, _), dwell) in script.steps.iter().zip(self.dwells) {
            moments.push((*mark, self.act(*mark)));
            sleep(dwell);
        }
        let (last, waits) = script.last;
        moments.push((last, self.act(last)));
        self.scene.app.take();

        let passed = self.tap.take(offset).unwrap();
        let marks: Vec<(u64, u64)> =
            moments.iter().map(|&(mark, moment)| self.time(mark, moment, &passed)).collect();
        let port = self.scene.port;
        let truth = |(pair, (_, phase)): (&[(u64, u64)], &(Mark, Phase))| {
            let [from, to] = [pair[0], pair[1]];
            Truth { port, phase: *phase, ns: to.0 - from.0, error_ns: from.1 + to.1 }
        };
        let truths = marks.windows(2).zip(&script.steps).map(truth).collect();
        let waiting = waits.then(|| Waiting {
            port,
            kernel: self.scene.peer.kernel,
            peer: self.scene.peer.here,
            entered_ns: marks[2].0,
            error_ns: marks[2].1,
        });
        (truths, waiting)
    }

    /// Has `mark` sent. A write to the wire returns when the segment has been through the kernel's TCP, close() when
    /// the FIN is on the wire.
    fn act(&mut self, mark: Mark) -> Moment {
        let before_ns = now_ns();
        match mark {
            Mark::KernelFin if self.script.half => self.scene.shutdown_write(),
            Mark::KernelFin => self.scene.close(),
            Mark::PeerFin => self.scene.peer.fin(),
            Mark::PeerAck => self.scene.peer.ack(),
        }
        let after_ns = now_ns();
        if mark == Mark::KernelFin {
            self.scene.peer.expect(FIN | ACK);
        }
        Moment { before_ns, after_ns }
    }

    /// When `mark` passed, and how far from it the kernel's step can be: both lie within `moment`.
    fn time(&self, mark: Mark, moment: Moment, passed: &[Passed]) -> (u64, u64) {
        let here = self.scene.peer.here;
        let is_kernel_fin = |p: &Passed| p.segment.from != here && p.segment.has(FIN);
        let found = match mark {
            Mark::KernelFin => passed.iter().find(|p| is_kernel_fin(p)),
            Mark::PeerFin => passed.iter().find(|p| p.segment.from == here && p.segment.has(FIN)),
            Mark::PeerAck => passed
                .iter()
                .skip_while(|p| !is_kernel_fin(p))
                .find(|p| p.segment.from == here && !p.segment.has(FIN)),
        };
        let ns = found.expect("the segment passed").ns;
        let Moment { before_ns, after_ns } = moment;
        // The two clocks are compared to some microseconds.
        assert!(
            (before_ns - 50_000..=after_ns + 50_000).contains(&ns),
            "a segment passed at {ns}, outside {moment:?}"
        );
        (ns, ns.saturating_sub(before_ns).max(after_ns.saturating_sub(ns)))
    }
}

/// Asks the kernel for each of these TIME-WAITs, over and over, from shortly before the first can end until the last has:
/// how long they lasted.
pub fn outwait(waiting: Vec<Waiting>) -> Vec<Truth> {
    /// TIME-WAIT lasts 60 s, and its timer is up to 5.1 s late.
    const LEAST_NS: u64 = 59_900_000_000;
    const MOST_NS: u64 = 70_000_000_000;
    let Some(first) = waiting.iter().map(|w| w.entered_ns).min() else { return Vec::new() };
    sleep(Duration::from_nanos((first + LEAST_NS).saturating_sub(now_ns())));
    let mut truths = Vec::new();
    let mut left: Vec<(Waiting, Option<u64>)> = waiting.into_iter().map(|w| (w, None)).collect();
    while !left.is_empty() {
        // One look for all of them, one for each family: a look at each alone took 0.1 s for a hundred.
        let before_ns = now_ns();
        let tables = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            .map(|any: IpAddr| diag::Table::of((any, 0).into()));
        let after_ns = now_ns();
        left.retain_mut(|(w, seen_ns)| {
            let [v4, v6] = &tables;
            if (if w.kernel.is_ipv4() { v4 } else { v6 }).state(w.kernel, w.peer).is_some() {
                assert!(before_ns < w.entered_ns + MOST_NS, "a TIME-WAIT does not end");
                *seen_ns = Some(before_ns);
                return true;
            }
            // One that was gone at the first look lasted nobody knows how long.
            if let Some(seen_ns) = *seen_ns {
                let half = (after_ns - seen_ns) / 2;
                let ns = seen_ns + half - w.entered_ns;
                truths.push(Truth { port: w.port, phase: Phase::TimeWait, ns, error_ns: w.error_ns + half });
            }
            false
        });
        sleep(Duration::from_millis(1));
    }
    truths
}
