//! What is served to whom: aggregates on TCP, sockets on the unix socket.

pub mod access;
pub mod connections;
pub mod handlers;
pub mod limits;
pub mod listener;
pub mod peer_creds;
pub mod timeouts;
pub mod web;

use std::cell::RefCell;
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
use hyper_util::rt::TokioIo;
use log::Level;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::agent::server::web::source::ClientNetwork;
use crate::report::encoding::{Form, JSON};
use crate::report::requests::{STALE_PREFIX, STUCK_AFTER_HEADER};

use crate::agent::server::access::ScrapeAccess;
use crate::agent::server::connections::{Connection, Connections, admit};
use crate::agent::server::handlers::page::Page;
use crate::agent::server::handlers::sockets::QueryError;
use crate::agent::server::handlers::watch;
use crate::agent::server::handlers::watch::WatchStream;
use crate::agent::server::handlers::{exhaustion, kill, metrics, ports, reconcile, sockets};
use crate::agent::server::peer_creds::Caller;
use crate::agent::server::timeouts::{ConnectionTimeouts, TimedBody, TimedStream};
use crate::agent::tracking::Tracking;
use crate::linux::host;

/// A request's head, in bytes; the answer to a longer one is 431.
const LARGEST_HEAD: usize = 16 << 10;
const MOST_HEADERS: usize = 64;

/// As Go's server says it.
const NO_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    this port speaks TLS; try https://\n";

/// prometheus::TEXT_FORMAT with the charset that it is in.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON_LINES: &str = "application/x-ndjson";

const NOT_READY: &str = "not ready: the first dump is not in yet\n";

type Answer = Response<Full<Bytes>>;

/// Which of the two faces a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listener {
    Aggregates,
    Sockets(Rc<Caller>),
}

/// Serves scrapes for as long as the agent runs.
pub async fn serve_scrapes(
    listener: TcpListener,
    room: Rc<RefCell<Connections>>,
    access: Rc<ScrapeAccess>,
    engine: Rc<RefCell<Tracking>>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("no scrapes: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (access, engine) = (Rc::clone(&access), Rc::clone(&engine));
                let source = ClientNetwork::from(from.ip());
                let serving = async move |stage: &Rc<ConnectionTimeouts>| {
                    serve_at((&access, source), stream, &engine, stage).await
                };
                admit(&room, || begin(source, serving)).await;
            }
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// Serves the command line for as long as the agent runs.
pub async fn serve_queries(listener: UnixListener, room: Connections, engine: Rc<RefCell<Tracking>>) {
    let room = RefCell::new(room);
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("no queries: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let face = Listener::Sockets(Rc::new(Caller::of(&stream)));
                let engine = Rc::clone(&engine);
                let serving = async move |stage: &Rc<ConnectionTimeouts>| {
                    serve(stream, face, None, &engine, stage).await
                };
                admit(&room, || begin(ClientNetwork::Here, serving)).await;
            }
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// A failed accept is the client's (it hung up) or the host's (no descriptors): a pause, so that the second does not
/// become a busy loop.
async fn not_accepted(why: &std::io::Error) {
    log::warn!("a connection was not accepted: {why}");
    sleep(Duration::from_millis(100)).await;
}

/// Serves one who came to the TCP face: TLS first, where the access says so.
async fn serve_at(
    by: (&Rc<ScrapeAccess>, ClientNetwork),
    mut stream: TcpStream,
    engine: &Rc<RefCell<Tracking>>,
    stage: &Rc<ConnectionTimeouts>,
) {
    let (access, _) = by;
    access.look().await;
    let Some(tls) = access.now().tls.clone() else {
        return serve(stream, Listener::Aggregates, Some(by), engine, stage).await;
    };
    // A handshake's first byte is 22; no request begins with that.
    let mut first = [0];
    if matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase() {
        log::info!("a client speaks HTTP where TLS is spoken");
        // It may have gone. What it has sent is read, or closing would reset the connection, and what it is told with it.
        let _ = stream.write_all(NO_TLS).await;
        let _ = stream.shutdown().await;
        let mut scrap = [0; 1024];
        while matches!(stream.read(&mut scrap).await, Ok(n) if n > 0) {}
        return;
    }
    match TlsAcceptor::from(tls).accept(stream).await {
        Ok(stream) => serve(stream, Listener::Aggregates, Some(by), engine, stage).await,
        // A wrong certificate, an old version, a scanner: the client's doing, which the log can be asked for.
        Err(why) => log::info!("no TLS with a client: {why}"),
    }
}

/// Serves HTTP on `stream` until its client has enough, or a failure.
async fn serve<S>(
    stream: S,
    face: Listener,
    by: Option<(&Rc<ScrapeAccess>, ClientNetwork)>,
    engine: &Rc<RefCell<Tracking>>,
    stage: &Rc<ConnectionTimeouts>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    stage.speaks();
    let service = service_fn(|request| {
        stage.is_asked();
        let face = face.clone();
        async move {
            let served = stream_or_answer(request, face, by, engine).await;
            if matches!(served.body(), Either::Right(_)) {
                stage.watch();
            }
            Ok::<_, Infallible>(served.map(|body| TimedBody::new(body, stage)))
        }
    });
    let done = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(TimedStream::new(stream, stage)), service)
        .await;
    // Whoever hangs up mid-answer has gone, and nothing else has happened.
    if let Err(why) = done {
        log::debug!("a connection ended: {why}");
    }
}

/// A connection, for as long as `serving` takes and its client is not too slow.
fn begin(source: ClientNetwork, serving: impl AsyncFnOnce(&Rc<ConnectionTimeouts>) + 'static) -> Connection {
    let stage = ConnectionTimeouts::begin();
    let of_task = Rc::clone(&stage);
    let task = spawn_local(async move {
        tokio::select! {
            biased;
            () = serving(&of_task) => {}
            () = of_task.time_is_up() => log::debug!("a connection ended: its client was too slow"),
        }
    });
    Connection { task, stage, source }
}

/// A stream for who watches (`GET /v1/watch`), an answer for everybody else.
async fn stream_or_answer(
    request: Request<Incoming>,
    face: Listener,
    by: Option<(&Rc<ScrapeAccess>, ClientNetwork)>,
    engine: &Rc<RefCell<Tracking>>,
) -> Response<Either<Full<Bytes>, WatchStream>> {
    if let Listener::Sockets(caller) = &face {
        let level = if request.uri().path() == kill::PATH { Level::Info } else { Level::Debug };
        log::log!(level, "{} {} asked by {caller}", request.method(), request.uri().path());
    }
    if let Some((access, source)) = by {
        let mut answer = match access.refuses(request.headers(), source).await {
            Some(refusal) => refusal,
            None => answer(request, face, engine).await,
        };
        access.add_headers(answer.headers_mut());
        return answer.map(Either::Left);
    }
    if face == Listener::Aggregates || request.uri().path() != watch::PATH {
        return answer(request, face, engine).await.map(Either::Left);
    }
    if request.method() != Method::GET {
        return not_allowed("GET only\n", "GET").map(Either::Left);
    }
    let refusal = match WatchStream::begin(request.uri().query().unwrap_or_default(), engine) {
        Ok(lines) => {
            let (head, _) = with_type(StatusCode::OK, JSON_LINES, "").into_parts();
            return Response::from_parts(head, Either::Right(lines));
        }
        Err(watch::WatchRefused::Filter(why)) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Err(watch::WatchRefused::TooMany) => {
            plain(StatusCode::SERVICE_UNAVAILABLE, watch::WatchRefused::too_many() + "\n")
        }
    };
    refusal.map(Either::Left)
}

async fn answer(request: Request<Incoming>, face: Listener, engine: &RefCell<Tracking>) -> Answer {
    let path = request.uri().path();
    let known = matches!(
        (&face, path),
        (_, "/metrics" | "/healthz" | "/readyz" | ports::PATH)
            | (Listener::Sockets(_), sockets::PATH | exhaustion::PATH | kill::PATH | reconcile::PATH)
    );
    let page = Page::at(path);
    if !known && page.is_none() {
        return plain(StatusCode::NOT_FOUND, "not found; try / or /metrics\n");
    }
    if let (Listener::Sockets(caller), kill::PATH) = (&face, path) {
        if request.method() != Method::POST {
            return not_allowed("POST only\n", "POST");
        }
        return kill_one(request, caller, engine).await;
    }
    if path == reconcile::PATH {
        return reconcile(request.method(), engine);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET and HEAD only\n", "GET, HEAD");
    }
    if let Some(page) = page {
        return page.answer(request.headers());
    }
    let form = Form::accepted(request.headers());
    match path {
        "/metrics" => match metrics::render(&mut engine.borrow_mut()) {
            Ok(text) => with_type(StatusCode::OK, METRICS, text),
            Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        },
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => readiness(&engine.borrow()),
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
        _ => match sockets::sockets(request.uri().query().unwrap_or_default(), form, engine).await {
            Ok(reply) => {
                let mut answer = with_type(StatusCode::OK, form.media_type(), reply.written);
                if let Ok(bound) = HeaderValue::from_str(&reply.stuck_after) {
                    answer.headers_mut().insert(HeaderName::from_static(STUCK_AFTER_HEADER), bound);
                }
                answer
            }
            Err(why) => refused(why),
        },
    }
}

/// `GET /readyz`: ready while the numbers are there and not too old.
fn readiness(engine: &Tracking) -> Answer {
    if !engine.ready {
        return plain(StatusCode::SERVICE_UNAVAILABLE, NOT_READY);
    }
    match engine.staleness(host::monotonic_ns()) {
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{STALE_PREFIX}{why}\n")),
        None => plain(StatusCode::OK, "ready\n"),
    }
}

/// `POST /v1/reconcile`, and `GET` to see how far that is.
fn reconcile(method: &Method, engine: &RefCell<Tracking>) -> Answer {
    if !engine.borrow().ready {
        return plain(StatusCode::SERVICE_UNAVAILABLE, NOT_READY);
    }
    let progress = match *method {
        Method::POST => reconcile::ask(&mut engine.borrow_mut()),
        Method::GET | Method::HEAD => reconcile::progress(&engine.borrow()),
        _ => return not_allowed("GET, HEAD and POST only\n", "GET, HEAD, POST"),
    };
    match serde_json::to_vec(&progress) {
        Ok(json) => with_type(StatusCode::OK, JSON, json),
        Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// `POST /v1/kill`.
async fn kill_one(request: Request<Incoming>, caller: &Caller, engine: &RefCell<Tracking>) -> Answer {
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

fn refused(why: QueryError) -> Answer {
    match why {
        QueryError::Request(why) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        QueryError::Failed(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why:#}\n")),
    }
}

pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
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
