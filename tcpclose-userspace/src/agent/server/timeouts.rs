//! The state of a connection, and how long its client may take in each.

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

/// From the connection, or a request's first byte, to the end of the request's head; after a TLS handshake.
pub const HEAD: Duration = Duration::from_secs(10);
/// A TLS handshake, with a check of the certificate files.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between two requests: longer than most scrape intervals.
pub const IDLE: Duration = Duration::from_secs(130);
/// For reading an answer.
pub const ANSWER: Duration = Duration::from_secs(120);
/// For making an answer: longer than any search takes.
const WORK: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeoutState {
    Handshake,
    /// The client is to send a request, or is sending one.
    Head,
    /// The client has its answer, and may send another request.
    Idle,
    /// The agent makes the answer.
    Work,
    /// The client reads the answer.
    Answer,
}

/// Shared by the parts of a connection.
#[derive(Debug)]
pub struct ConnectionTimeouts {
    state: Cell<TimeoutState>,
    since: Cell<Instant>,
    watching: Cell<bool>,
}

impl ConnectionTimeouts {
    pub fn begin() -> Rc<Self> {
        Rc::new(Self {
            state: Cell::new(TimeoutState::Handshake),
            since: Cell::new(Instant::now()),
            watching: Cell::new(false),
        })
    }

    fn enter(&self, state: TimeoutState) {
        self.state.set(state);
        self.since.set(Instant::now());
    }

    /// The TLS handshake, if any, is over.
    pub fn http_begins(&self) {
        self.enter(TimeoutState::Head);
    }

    pub fn request_begins(&self) {
        self.enter(TimeoutState::Work);
    }

    /// The client watches, without a limit in time; [`Watchers`](crate::agent::watchers::Watchers) limits the
    /// number of such clients.
    pub fn watch_begins(&self) {
        self.watching.set(true);
    }

    pub fn is_watching(&self) -> bool {
        self.watching.get()
    }

    /// The agent waits for the client.
    pub fn is_idle(&self) -> bool {
        matches!(self.state.get(), TimeoutState::Handshake | TimeoutState::Head | TimeoutState::Idle)
    }

    /// When the client's time is up.
    fn deadline(&self) -> Option<Instant> {
        let time = match self.state.get() {
            _ if self.is_watching() => return None,
            TimeoutState::Handshake => HANDSHAKE,
            TimeoutState::Head => HEAD,
            TimeoutState::Idle => IDLE,
            TimeoutState::Work => WORK,
            TimeoutState::Answer => ANSWER,
        };
        Some(self.since.get() + time)
    }

    /// Returns when the client's time is up. Polled after the connection itself, by the same task, so that it
    /// notices each change of the state.
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

/// A stream whose bytes change the state of its connection.
pub struct TimedStream<S> {
    stream: S,
    timeouts: Rc<ConnectionTimeouts>,
}

impl<S> TimedStream<S> {
    pub fn new(stream: S, timeouts: &Rc<ConnectionTimeouts>) -> Self {
        Self { stream, timeouts: Rc::clone(timeouts) }
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
        if self.timeouts.state.get() == TimeoutState::Idle && buf.filled().len() > before {
            self.timeouts.enter(TimeoutState::Head);
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

    /// hyper flushes when it has written the whole answer.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if self.timeouts.state.get() == TimeoutState::Answer && matches!(flushed, Poll::Ready(Ok(()))) {
            self.timeouts.enter(TimeoutState::Idle);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of an answer; hyper drops it when it has taken all of it.
pub struct TimedBody<B> {
    body: B,
    timeouts: Rc<ConnectionTimeouts>,
}

impl<B> TimedBody<B> {
    pub fn new(body: B, timeouts: &Rc<ConnectionTimeouts>) -> Self {
        Self { body, timeouts: Rc::clone(timeouts) }
    }
}

impl<B> Drop for TimedBody<B> {
    fn drop(&mut self) {
        self.timeouts.watching.set(false);
        self.timeouts.enter(TimeoutState::Answer);
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
