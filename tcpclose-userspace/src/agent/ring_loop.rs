//! Takes records from the ring on a timer.
//!
//! A wakeup for each burst costs a host most of its connection rate, so nobody is woken: the ring is drained each
//! 20 ms to 1 s, so that a drain takes some two hundred records. Between drains the probe wakes us only if the ring fills
//! past its mark. Whoever asks (a scrape, a query, a dump) drains first, so no answer is old.

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
/// While somebody watches, who is to see what happens as it does.
const WATCHED: Duration = Duration::from_millis(100);

/// Records that a drain should take: it costs a wakeup, some microseconds, and a record some tens of nanoseconds.
const BATCH: u64 = 200;

/// The records that a drain of a ring of so many bytes should take: [`BATCH`], unless those would fill an eighth of it.
fn batch(ring_size: u32) -> u64 {
    (u64::from(ring_size) / 8 / size_of::<OpenRecord>() as u64).clamp(1, BATCH)
}

/// The pause before the next drain, after one that took the `records` of so long: shorter at once where more come, longer
/// by steps where fewer do.
fn pause_after(records: u64, of: Duration, batch: u64) -> Duration {
    let pause = if records * 2 > batch { of.mul_f64(batch as f64 / records as f64) } else { of * 2 };
    pause.clamp(BUSY, IDLE)
}

/// The ring's descriptor, which the engine owns for as long as the tasks of this thread run.
struct RingFd(RawFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Drains for as long as the agent runs, and says each time that it does.
pub async fn run(engine: Rc<RefCell<Tracking>>, notify: Rc<Notify>) {
    let fd = RingFd(engine.borrow().probe.ring.as_raw_fd());
    // SAFETY: the descriptor belongs to the ring in `engine`, of which this task holds a reference until it ends, and
    // the AsyncFd ends before that.
    let called = match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
        Ok(called) => called,
        Err(why) => return log::error!("the ring cannot be polled: {why}"),
    };
    let batch = batch(engine.borrow().probe.ring.size());
    // As of the last pause; others have drained in the meantime.
    let (mut received, mut since) = (0, Instant::now());
    loop {
        let more = engine.borrow_mut().drain();
        notify.alive();
        if more {
            yield_now().await;
            continue;
        }
        let now = engine.borrow().received;
        let mut pause = pause_after(now - received, since.elapsed(), batch);
        (received, since) = (now, Instant::now());
        if engine.borrow().hub.is_watched() {
            pause = pause.min(WATCHED);
        }
        if let Err(why) = engine.borrow_mut().probe.ring.sleep() {
            log::warn!("the probe cannot call: {why:#}");
        }
        tokio::select! {
            () = sleep(pause.min(notify.pause())) => {}
            ready = called.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
        }
    }
}

/// Writes what the probe logs to our own log.
pub fn forward_the_probes_log(probe: &mut Probe) {
    let logger = match EbpfLogger::init(probe.ebpf_mut()) {
        Ok(logger) => logger,
        Err(why) => return log::warn!("the probe's log cannot be read: {why}"),
    };
    // SAFETY: the logger owns its descriptor and goes with the AsyncFd.
    let mut logger = match unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) } {
        Ok(logger) => logger,
        Err(why) => return log::warn!("the probe's log cannot be polled: {why}"),
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
