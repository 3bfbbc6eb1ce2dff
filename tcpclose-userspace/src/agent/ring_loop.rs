//! Takes records from the ring buffer on a timer.
//!
//! A wakeup for each burst would cost a host most of its connection rate. So the ring is drained each 20 ms
//! to 1 s, such that a drain takes some two hundred records, and the probe wakes this thread only when the
//! ring fills past its mark. A scrape, a query and a dump drain first, so no answer is old.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use aya_log::EbpfLogger;
use tcpclose_common::event::OpenRecord;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{spawn_local, yield_now};
use tokio::time::{Instant, sleep};

use crate::probe::Probe;

use crate::agent::systemd::notify::Notify;
use crate::agent::tracking::Tracking;

const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(1);
/// The longest pause while somebody watches.
const WATCHED: Duration = Duration::from_millis(100);

/// Records that a drain should take. A drain costs a wakeup, some microseconds; a record costs some tens of
/// nanoseconds.
const BATCH: u64 = 200;

/// The records that a drain of a ring of `ring_size` bytes should take: [`BATCH`], or what fills an eighth of
/// it.
fn batch(ring_size: u32) -> u64 {
    (u64::from(ring_size) / 8 / size_of::<OpenRecord>() as u64).clamp(1, BATCH)
}

/// The pause before the next drain, if `records` came in the time `within`: shorter at once when more come,
/// longer by steps when fewer do.
fn pause_after(records: u64, within: Duration, batch: u64) -> Duration {
    let pause = if records * 2 > batch { within.mul_f64(batch as f64 / records as f64) } else { within * 2 };
    pause.clamp(BUSY, IDLE)
}

/// The ring's descriptor, which `Tracking` owns for as long as the tasks of this thread run.
struct RingFd(RawFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Drains for as long as the agent runs, and reports to systemd's watchdog each time.
pub async fn run(tracking: Rc<RefCell<Tracking>>, notify: Rc<Notify>) {
    let fd = RingFd(tracking.borrow().probe.ring.as_raw_fd());
    // SAFETY: the descriptor belongs to the ring in `tracking`, of which this task holds a reference until it
    // ends, and the AsyncFd ends before that.
    let wakeup = match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
        Ok(wakeup) => wakeup,
        Err(why) => {
            return log::error!(
                "cannot poll the ring buffer: {why} (no records are read until the agent is restarted)"
            );
        }
    };
    let batch = batch(tracking.borrow().probe.ring.size());
    // As of the last pause; handlers have drained in the meantime.
    let (mut received, mut since) = (0, Instant::now());
    loop {
        let more = tracking.borrow_mut().drain();
        notify.alive();
        if more {
            yield_now().await;
            continue;
        }
        let now = tracking.borrow().ring.received;
        let mut pause = pause_after(now - received, since.elapsed(), batch);
        (received, since) = (now, Instant::now());
        if tracking.borrow().output.watchers.is_watched() {
            pause = pause.min(WATCHED);
        }
        if let Err(why) = tracking.borrow_mut().probe.ring.sleep() {
            log::warn!("cannot arm the ring-buffer wakeup: {why:#}");
        }
        tokio::select! {
            () = sleep(pause.min(notify.pause())) => {}
            ready = wakeup.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
        }
    }
}

/// Writes the probe's log messages to our own log.
pub fn forward_probe_log(probe: &mut Probe) {
    let logger = match EbpfLogger::init(probe.ebpf_mut()) {
        Ok(logger) => logger,
        Err(why) => return log::warn!("cannot read the probe's log: {why}"),
    };
    // SAFETY: the logger owns its descriptor and goes with the AsyncFd.
    let mut logger = match unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) } {
        Ok(logger) => logger,
        Err(why) => return log::warn!("cannot poll the probe's log: {why}"),
    };
    spawn_local(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_backs_off_to_a_second_and_comes_back_at_once() {
        let mut pause = BUSY;
        let mut pauses = Vec::new();
        for records in [0, 1, BATCH / 2, 0, 0, 0, 0, 0] {
            pause = pause_after(records, pause, BATCH);
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(pause_after(1_000_000, pause, BATCH), BUSY);
    }

    #[test]
    fn a_small_ring_is_drained_more_often() {
        assert_eq!([8 << 20, 1 << 20, 4096].map(batch), [BATCH, BATCH, 6]);
    }

    #[test]
    fn a_steady_stream_is_taken_in_batches() {
        for a_second in [400, 1000, 5000, 9900] {
            let mut pause = IDLE;
            for _ in 0..10 {
                let records = (a_second as f64 * pause.as_secs_f64()) as u64;
                pause = pause_after(records, pause, BATCH);
            }
            let records = a_second as f64 * pause.as_secs_f64();
            assert!((100.0..=201.0).contains(&records), "{records} of {a_second} a second");
        }
    }
}
