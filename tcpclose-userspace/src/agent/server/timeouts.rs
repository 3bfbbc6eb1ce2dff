//! How far a connection's client is, and how long it may take for that.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// From the connection, or a request's first byte, to the end of the request's head; a TLS handshake comes on top.
pub const HEAD: Duration = Duration::from_secs(10);
/// A TLS handshake, looks at certificates included.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between two requests: longer than most scrape intervals.
pub const IDLE: Duration = Duration::from_secs(130);
/// For taking an answer.
pub const ANSWER: Duration = Duration::from_secs(120);
/// For making one: longer than any search takes.
const WORK: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeoutState {
    Handshake,
    /// It is to send a request, or is sending one.
    Head,
    /// It has got its answer, and may ask again.
    Idle,
    /// Its answer is being made.
    Asked,
    /// It takes its answer.
    Answered,
}

/// Shared by a connection's parts.
#[derive(Debug)]
pub struct ConnectionTimeouts {
    step: Cell<TimeoutState>,
    since: Cell<Instant>,
    watches: Cell<bool>,
}

impl ConnectionTimeouts {
    pub fn begin() -> Rc<Self> {
        Rc::new(Self {
            step: Cell::new(TimeoutState::Handshake),
            since: Cell::new(Instant::now()),
            watches: Cell::new(false),
        })
    }

    fn go(&self, step: TimeoutState) {
        self.step.set(step);
        self.since.set(Instant::now());
    }

    /// Bytes are read as HTTP from now on.
    pub fn speaks(&self) {
        self.go(TimeoutState::Head);
    }

    pub fn is_asked(&self) {
        self.go(TimeoutState::Asked);
    }

    /// It watches: it stays for as long as it likes, and [`Hub`](crate::agent::watchers::Watchers) sees to how many do.
    pub fn watch(&self) {
        self.watches.set(true);
    }

    pub fn watches(&self) -> bool {
        self.watches.get()
    }

    /// Nothing is being done for it.
    pub fn waits(&self) -> bool {
        matches!(self.step.get(), TimeoutState::Handshake | TimeoutState::Head | TimeoutState::Idle)
    }

    /// When its time is up.
    fn deadline(&self) -> Option<Instant> {
        let time = match self.step.get() {
            _ if self.watches() => return None,
            TimeoutState::Handshake => HANDSHAKE,
            TimeoutState::Head => HEAD,
            TimeoutState::Idle => IDLE,
            TimeoutState::Asked => WORK,
            TimeoutState::Answered => ANSWER,
        };
        Some(self.since.get() + time)
    }

    /// Waits until its time is up. Polled after the connection itself, by the same task: whatever changes the step is
    /// then seen at once.
    pub async fn time_is_up(&self) {
        let mut timer = pin!(sleep_until(Instant::now() + HANDSHAKE));
        poll_fn(|cx| {
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            timer.as_mut().poll(cx)
        })
        .await;
    }
}

/// A connection's bytes, by which the stage sees what its client does.
pub struct TimedStream<S> {
    stream: S,
    stage: Rc<ConnectionTimeouts>,
}

impl<S> TimedStream<S> {
    pub fn new(stream: S, stage: &Rc<ConnectionTimeouts>) -> Self {
        Self { stream, stage: Rc::clone(stage) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.stage.step.get() == TimeoutState::Idle && buf.filled().len() > before {
            self.stage.go(TimeoutState::Head);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if self.stage.step.get() == TimeoutState::Answered && matches!(flushed, Poll::Ready(Ok(()))) {
            self.stage.go(TimeoutState::Idle);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer, which ends when hyper has taken all of it.
pub struct TimedBody<B> {
    body: B,
    stage: Rc<ConnectionTimeouts>,
}

impl<B> TimedBody<B> {
    pub fn new(body: B, stage: &Rc<ConnectionTimeouts>) -> Self {
        Self { body, stage: Rc::clone(stage) }
    }
}

impl<B> Drop for TimedBody<B> {
    fn drop(&mut self) {
        self.stage.watches.set(false);
        self.stage.go(TimeoutState::Answered);
    }
}

impl<B: Body + Unpin> Body for TimedBody<B>
where
    B::Data: Buf,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
