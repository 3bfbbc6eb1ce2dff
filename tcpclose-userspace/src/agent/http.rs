//! What is served to whom: aggregates on TCP, sockets on the unix socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::Level;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::caller::Caller;
use super::engine::Engine;
use super::lines::{self, Lines};
use super::page::Page;
use super::queries::Refused;
use super::{exhaustion, exposition, kill, ports, queries};

/// A client has this long to send its request's head. Longer than a scrape interval is likely to be, for it also bounds
/// how long a connection may idle between two scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// A connection is closed after this long, whatever its client does: one that stops reading holds its answer no
/// longer. But not one that watches.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// prometheus::TEXT_FORMAT with the charset that it is in.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const JSON_LINES: &str = "application/x-ndjson";

const NOT_READY: &str = "not ready: the first dump is not in yet\n";

type Answer = Response<Full<Bytes>>;

/// Which of the two faces a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Face {
    Aggregates,
    Sockets(Rc<Caller>),
}

/// Serves scrapes for as long as the agent runs.
pub async fn serve_scrapes(listener: TcpListener, room: Rc<RefCell<Room>>, engine: Rc<RefCell<Engine>>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("no scrapes: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => admit(&room, || serve(stream, Face::Aggregates, &engine)).await,
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// Serves the command line for as long as the agent runs.
pub async fn serve_queries(listener: UnixListener, room: Room, engine: Rc<RefCell<Engine>>) {
    let room = RefCell::new(room);
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("no queries: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let face = Face::Sockets(Rc::new(Caller::of(&stream)));
                admit(&room, || serve(stream, face, &engine)).await;
            }
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// Who is being served, the oldest first. Whoever comes is let in: if newcomers waited for a place, clients who ask
/// nothing or stop reading would keep Prometheus out until their time is up.
pub struct Room {
    /// One more sends the oldest away.
    most: usize,
    served: VecDeque<Served>,
}

/// A connection.
struct Served {
    task: JoinHandle<()>,
    /// Its client watches: it stays for as long as it likes, and [`Hub`](super::hub::Hub) sees to how many do.
    watches: Rc<Cell<bool>>,
}

impl Room {
    pub const fn new(most: usize) -> Self {
        Self { most, served: VecDeque::new() }
    }

    /// The connection that must go before another one is let in.
    fn too_many(&mut self) -> Option<Served> {
        if self.served.len() >= self.most {
            self.served.retain(|connection| !connection.task.is_finished());
        }
        if self.served.len() < self.most {
            return None;
        }
        log::info!("{} connections: the oldest is closed for a new one", self.most);
        let oldest = self.served.iter().position(|connection| !connection.watches.get());
        self.served.remove(oldest.unwrap_or(0))
    }
}

/// Lets a connection into `room`, whose service `begin` begins. When the room is full the oldest one is closed first,
/// descriptor and all: there may be none to spare.
async fn admit(room: &RefCell<Room>, begin: impl FnOnce() -> Served) {
    let oldest = room.borrow_mut().too_many();
    if let Some(oldest) = oldest {
        oldest.task.abort();
        // It ends as told, which is no news.
        let _ = oldest.task.await;
    }
    room.borrow_mut().served.push_back(begin());
}

/// A failed accept is the client's (it hung up) or the host's (no descriptors): a pause, so that the second does not
/// become a busy loop.
async fn not_accepted(why: &std::io::Error) {
    log::warn!("a connection was not accepted: {why}");
    sleep(Duration::from_millis(100)).await;
}

fn serve<S>(stream: S, face: Face, engine: &Rc<RefCell<Engine>>) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let engine = Rc::clone(engine);
    let watches = Rc::new(Cell::new(false));
    let watching = Rc::clone(&watches);
    let task = spawn_local(async move {
        let service = service_fn(|request| {
            let (face, engine, watching) = (face.clone(), Rc::clone(&engine), &watching);
            async move {
                let served = stream_or_answer(request, face, &engine).await;
                watching.set(matches!(served.body(), Either::Right(_)));
                Ok::<_, Infallible>(served)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let too_long = async {
            sleep(CONNECTION_TIMEOUT).await;
            while watching.get() {
                sleep(CONNECTION_TIMEOUT).await;
            }
        };
        let done = tokio::select! {
            done = connection => done,
            () = too_long => Ok(()),
        };
        // Whoever hangs up mid-answer has gone, and nothing else has happened.
        if let Err(why) = done {
            log::debug!("a connection ended: {why}");
        }
    });
    Served { task, watches }
}

/// A stream for who watches (`GET /v1/watch`), an answer for everybody else.
async fn stream_or_answer(
    request: Request<Incoming>,
    face: Face,
    engine: &Rc<RefCell<Engine>>,
) -> Response<Either<Full<Bytes>, Lines>> {
    if let Face::Sockets(caller) = &face {
        let level = if request.uri().path() == kill::PATH { Level::Info } else { Level::Debug };
        log::log!(level, "{} {} asked by {caller}", request.method(), request.uri().path());
    }
    if face == Face::Aggregates || request.uri().path() != lines::PATH {
        return answer(request, face, engine).await.map(Either::Left);
    }
    if request.method() != Method::GET {
        return not_allowed("GET only\n", "GET").map(Either::Left);
    }
    let refusal = match Lines::begin(request.uri().query().unwrap_or_default(), engine) {
        Ok(lines) => {
            let (head, _) = with_type(StatusCode::OK, JSON_LINES, "").into_parts();
            return Response::from_parts(head, Either::Right(lines));
        }
        Err(lines::Refused::Filter(why)) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Err(lines::Refused::TooMany) => {
            plain(StatusCode::SERVICE_UNAVAILABLE, lines::Refused::too_many() + "\n")
        }
    };
    refusal.map(Either::Left)
}

async fn answer(request: Request<Incoming>, face: Face, engine: &RefCell<Engine>) -> Answer {
    let path = request.uri().path();
    let known = matches!(
        (&face, path),
        (_, "/metrics" | "/healthz" | "/readyz" | ports::PATH)
            | (Face::Sockets(_), queries::PATH | exhaustion::PATH | kill::PATH)
    );
    let page = Page::at(path);
    if !known && page.is_none() {
        return plain(StatusCode::NOT_FOUND, "not found; try / or /metrics\n");
    }
    if let (Face::Sockets(caller), kill::PATH) = (&face, path) {
        if request.method() != Method::POST {
            return not_allowed("POST only\n", "POST");
        }
        return kill_one(request, caller, engine).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET and HEAD only\n", "GET, HEAD");
    }
    if let Some(page) = page {
        return page.answer(request.headers());
    }
    match path {
        "/metrics" => match exposition::render(&mut engine.borrow_mut()) {
            Ok(text) => with_type(StatusCode::OK, METRICS, text),
            Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        },
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if engine.borrow().ready => plain(StatusCode::OK, "ready\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, NOT_READY),
        ports::PATH => {
            match ports::document(&mut engine.borrow_mut()).map(|ports| serde_json::to_vec(&ports)) {
                Some(Ok(json)) => with_type(StatusCode::OK, JSON, json),
                Some(Err(why)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
                None => plain(StatusCode::SERVICE_UNAVAILABLE, NOT_READY),
            }
        }
        exhaustion::PATH => {
            match exhaustion::document(request.uri().query().unwrap_or_default(), engine).await {
                Ok(json) => with_type(StatusCode::OK, JSON, json),
                Err(why) => refused(why),
            }
        }
        _ => match queries::sockets(request.uri().query().unwrap_or_default(), engine).await {
            Ok(reply) => {
                let mut answer = with_type(StatusCode::OK, JSON, reply.json);
                if let Ok(bound) = HeaderValue::from_str(&reply.stuck_after) {
                    answer
                        .headers_mut()
                        .insert(HeaderName::from_static(crate::cli::client::STUCK_AFTER), bound);
                }
                answer
            }
            Err(why) => refused(why),
        },
    }
}

/// `POST /v1/kill`.
async fn kill_one(request: Request<Incoming>, caller: &Caller, engine: &RefCell<Engine>) -> Answer {
    if let Some(why) = kill::forbidden(caller, &engine.borrow()) {
        log::warn!("POST {} refused: {}", kill::PATH, why.trim_end());
        return plain(StatusCode::FORBIDDEN, why);
    }
    let body = match Limited::new(request.into_body(), kill::LONGEST_ORDER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("no order: {why}\n")),
    };
    match kill::kill(&body, caller, engine).await {
        Ok(json) => with_type(StatusCode::OK, JSON, json),
        Err(why) => refused(why),
    }
}

fn refused(why: Refused) -> Answer {
    match why {
        Refused::Request(why) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Refused::Failed(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why:#}\n")),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_type(status, TEXT, text)
}

fn not_allowed(text: &'static str, methods: &'static str) -> Answer {
    let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    refusal
}

fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
