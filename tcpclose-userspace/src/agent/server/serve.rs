//! Accepts connections and serves HTTP on them.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Either;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::agent::parts::Parts;
use crate::agent::server::access::ScrapeAccess;
use crate::agent::server::connections::{Connection, Connections, admit};
use crate::agent::server::peer_creds::Caller;
use crate::agent::server::respond::{Peer, respond};
use crate::agent::server::timeouts::{ConnectionTimeouts, TimedBody, TimedStream};
use crate::agent::server::web::source::ClientNetwork;

/// Bytes of a request's head; a longer one is answered by 431.
const LARGEST_HEAD: usize = 16 << 10;
const MOST_HEADERS: usize = 64;

/// The answer of Go's server.
const NO_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    this port speaks TLS; try https://\n";

/// Serves scrapes for as long as the agent runs. `connections`: of all TCP listeners together.
pub async fn serve_scrapes(
    listener: TcpListener,
    connections: Rc<RefCell<Connections>>,
    access: Rc<ScrapeAccess>,
    parts: Parts,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("cannot serve /metrics: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (access, parts) = (Rc::clone(&access), parts.clone());
                let source = ClientNetwork::from(from.ip());
                let serving = async move |timeouts: &Rc<ConnectionTimeouts>| {
                    serve_tcp(stream, access, source, &parts, timeouts).await
                };
                admit(&connections, || begin(source, serving)).await;
            }
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// Serves the command line for as long as the agent runs.
pub async fn serve_queries(listener: UnixListener, connections: Connections, parts: Parts) {
    let connections = RefCell::new(connections);
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return log::error!("cannot serve the Unix socket: {why}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = Peer::Local(Rc::new(Caller::of(&stream)));
                let parts = parts.clone();
                let serving = async move |timeouts: &Rc<ConnectionTimeouts>| {
                    serve(stream, peer, &parts, timeouts).await
                };
                admit(&connections, || begin(ClientNetwork::Here, serving)).await;
            }
            Err(why) => not_accepted(&why).await,
        }
    }
}

/// An accept fails because the client hung up, or because there are no descriptors; the pause keeps the
/// latter from becoming a busy loop.
async fn not_accepted(why: &std::io::Error) {
    log::warn!("cannot accept a connection: {why}");
    sleep(Duration::from_millis(100)).await;
}

/// Serves a TCP client, with TLS if the web configuration says so.
async fn serve_tcp(
    mut stream: TcpStream,
    access: Rc<ScrapeAccess>,
    source: ClientNetwork,
    parts: &Parts,
    timeouts: &Rc<ConnectionTimeouts>,
) {
    access.refresh().await;
    let tls = access.now().tls.clone();
    let peer = Peer::Scraper(access, source);
    let Some(tls) = tls else {
        return serve(stream, peer, parts, timeouts).await;
    };
    // A handshake begins with the byte 22, and no request does.
    let mut first = [0];
    if matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase() {
        log::info!("refused a client: HTTP on a port that speaks TLS");
        // It may be gone. Its request is read, since closing would reset the connection, and the answer be
        // lost with it.
        let _ = stream.write_all(NO_TLS).await;
        let _ = stream.shutdown().await;
        let mut scrap = [0; 1024];
        while matches!(stream.read(&mut scrap).await, Ok(n) if n > 0) {}
        return;
    }
    match tls.accept(stream).await {
        Ok(stream) => serve(stream, peer, parts, timeouts).await,
        // A wrong certificate, an old version, a scanner.
        Err(why) => log::info!("cannot finish a TLS handshake: {why}"),
    }
}

/// Serves HTTP on `stream` until its client has enough, or a failure.
async fn serve<S>(stream: S, peer: Peer, parts: &Parts, timeouts: &Rc<ConnectionTimeouts>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    timeouts.http_begins();
    let service = service_fn(|request| {
        timeouts.request_begins();
        let peer = peer.clone();
        async move {
            let response = respond(request, peer, parts).await;
            if matches!(response.body(), Either::Right(_)) {
                timeouts.watch_begins();
            }
            Ok::<_, Infallible>(response.map(|body| TimedBody::new(body, timeouts)))
        }
    });
    let done = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(TimedStream::new(stream, timeouts)), service)
        .await;
    // A client that hangs up is no failure.
    if let Err(why) = done {
        log::debug!("a connection ended: {why}");
    }
}

/// A connection, for as long as `serving` takes and its client is not too slow.
fn begin(source: ClientNetwork, serving: impl AsyncFnOnce(&Rc<ConnectionTimeouts>) + 'static) -> Connection {
    let timeouts = ConnectionTimeouts::begin();
    let of_task = Rc::clone(&timeouts);
    let task = spawn_local(async move {
        tokio::select! {
            biased;
            () = serving(&of_task) => {}
            () = of_task.time_is_up() => log::debug!("closed a connection: its client was too slow"),
        }
    });
    Connection { task, timeouts, source }
}
