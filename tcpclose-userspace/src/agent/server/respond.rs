//! Hands a request to its handler.

use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use log::Level;

use crate::agent::parts::Parts;
use crate::agent::server::access::ScrapeAccess;
use crate::agent::server::allowed_hosts;
use crate::agent::server::handlers::watch::WatchStream;
use crate::agent::server::handlers::{
    exhaustion, idle, kill, metrics, ports, readiness, reconcile, sockets, stacks, watch,
};
use crate::agent::server::peer_creds::Caller;
use crate::agent::server::response::{Answer, QueryError, plain, written_json};
use crate::agent::server::routes::{Endpoint, ListenerKind, find};
use crate::agent::server::web::source::ClientNetwork;
use crate::report::encoding::Form;
use crate::report::{query, requests};

/// The client of a connection.
#[derive(Clone)]
pub enum Peer {
    /// By TCP.
    Scraper(Rc<ScrapeAccess>, ClientNetwork),
    /// By the unix socket.
    Local(Rc<Caller>),
}

type Body = Either<Full<Bytes>, WatchStream>;

pub async fn respond(request: Request<Incoming>, peer: Peer, parts: &Parts) -> Response<Body> {
    match peer {
        Peer::Scraper(access, source) => {
            let mut response = match access.refuses(request.headers(), source).await {
                Some(refusal) => refusal.map(Either::Left),
                None => match refusal_by_name(&request, parts) {
                    Some(refusal) => refusal.map(Either::Left),
                    None => route(request, None, parts).await,
                },
            };
            access.add_headers(response.headers_mut());
            response
        }
        Peer::Local(caller) => {
            let path = request.uri().path();
            let level = if path == requests::KILL_PATH { Level::Info } else { Level::Debug };
            log::log!(level, "{} {path} asked by {caller}", request.method());
            route(request, Some(&caller), parts).await
        }
    }
}

/// The refusal of a browser that came by a name which others may own.
fn refusal_by_name(request: &Request<Incoming>, parts: &Parts) -> Option<Answer> {
    allowed_hosts::refusal(&parts.allowed_hosts.borrow(), request.uri(), request.headers())
}

/// `caller`: of the unix socket.
async fn route(request: Request<Incoming>, caller: Option<&Caller>, parts: &Parts) -> Response<Body> {
    let listener = if caller.is_some() { ListenerKind::Everything } else { ListenerKind::Aggregates };
    let endpoint = match find(listener, request.method(), request.uri().path()) {
        Ok(endpoint) => endpoint,
        Err(refusal) => return refusal.answer().map(Either::Left),
    };
    let query = request.uri().query().unwrap_or_default();
    if !endpoint.reads_query()
        && let Err(why) = query::none(query)
    {
        return QueryError::Request(why).answer().map(Either::Left);
    }
    let answer: Answer = match endpoint {
        Endpoint::Metrics => metrics::answer(parts, request.headers()),
        Endpoint::Health => plain(StatusCode::OK, "ok\n"),
        Endpoint::Readiness => readiness::answer(&parts.tracking.borrow()),
        Endpoint::Ports => ports::answer(&mut parts.tracking.borrow_mut(), &parts.rates.borrow()),
        Endpoint::Sockets => sockets::answer(query, Form::accepted(request.headers()), parts).await,
        Endpoint::Stacks => stacks::answer(query, caller, parts),
        Endpoint::Exhaustion => {
            written_json(exhaustion::document(query, &parts.tracking, &parts.port_usage, &parts.looks).await)
        }
        Endpoint::Idle => written_json(idle::document(query, &parts.tracking, &parts.looks).await),
        Endpoint::Reconcile => {
            let tracking = parts.tracking.borrow();
            reconcile::answer(request.method(), &tracking, &parts.reconcile_requests)
        }
        Endpoint::Kill => kill::answer(request, caller, &parts.kill).await,
        Endpoint::Watch => return watch::answer(query, &parts.tracking),
        Endpoint::Page(page) => page.answer(request.headers()),
    };
    answer.map(Either::Left)
}
