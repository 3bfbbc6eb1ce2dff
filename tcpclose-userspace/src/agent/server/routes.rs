//! The table of routes. An unknown path is answered by 404 and a wrong method by 405 before any handler runs.

use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, StatusCode};

use crate::agent::server::handlers::page::Page;
use crate::agent::server::response::{Answer, plain};
use crate::report::requests;

/// What answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Metrics,
    Health,
    Readiness,
    Ports,
    Sockets,
    Stacks,
    Exhaustion,
    Idle,
    Reconcile,
    Kill,
    Watch,
    /// A file of the page.
    Page(Page),
}

impl Endpoint {
    /// Whether it reads its query, or takes any: scrapers and monitors add keys of their own. The others have no keys.
    pub fn reads_query(self) -> bool {
        match self {
            Self::Sockets | Self::Stacks | Self::Exhaustion | Self::Idle | Self::Watch => true,
            Self::Metrics | Self::Health | Self::Readiness | Self::Page(_) => true,
            Self::Ports | Self::Reconcile | Self::Kill => false,
        }
    }
}

/// Where a route is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// TCP: no single socket can be told from what is served there.
    Aggregates,
    /// The unix socket, which serves everything.
    Everything,
}

#[derive(Clone, Copy, Debug)]
pub struct Route {
    path: &'static str,
    methods: &'static [Method],
    listener: ListenerKind,
    pub endpoint: Endpoint,
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const READ_OR_POST: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const POST: &[Method] = &[Method::POST];
const GET: &[Method] = &[Method::GET];

const fn route(
    path: &'static str,
    methods: &'static [Method],
    listener: ListenerKind,
    endpoint: Endpoint,
) -> Route {
    Route { path, methods, listener, endpoint }
}

const ROUTES: [Route; 11] = [
    route(requests::METRICS_PATH, READ, ListenerKind::Aggregates, Endpoint::Metrics),
    route(requests::HEALTH_PATH, READ, ListenerKind::Aggregates, Endpoint::Health),
    route(requests::READY_PATH, READ, ListenerKind::Aggregates, Endpoint::Readiness),
    route(requests::PORTS_PATH, READ, ListenerKind::Aggregates, Endpoint::Ports),
    route(requests::SOCKETS_PATH, READ, ListenerKind::Everything, Endpoint::Sockets),
    route(requests::STACKS_PATH, POST, ListenerKind::Everything, Endpoint::Stacks),
    route(requests::EXHAUSTION_PATH, READ, ListenerKind::Everything, Endpoint::Exhaustion),
    route(requests::IDLE_PATH, READ, ListenerKind::Everything, Endpoint::Idle),
    route(requests::RECONCILE_PATH, READ_OR_POST, ListenerKind::Everything, Endpoint::Reconcile),
    route(requests::KILL_PATH, POST, ListenerKind::Everything, Endpoint::Kill),
    route(requests::WATCH_PATH, GET, ListenerKind::Everything, Endpoint::Watch),
];

/// The answer by TCP where only the Unix socket has the path.
const UNIX_SOCKET_ONLY: &str =
    "not found: only on the agent's Unix socket (the tcpclose commands, or curl --unix-socket)\n";

/// Why a request has no endpoint.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    UnknownPath,
    /// The path is served on the Unix socket only.
    UnixSocketOnly,
    /// The path has only these.
    WrongMethod(&'static [Method]),
}

/// The endpoint of a request that came to `listener`.
pub fn find(listener: ListenerKind, method: &Method, path: &str) -> Result<Endpoint, Refusal> {
    let page =
        Page::at(path).map(|page| route(page.path(), READ, ListenerKind::Aggregates, Endpoint::Page(page)));
    let mut routes = ROUTES.into_iter().chain(page);
    let served =
        |route: &Route| listener == ListenerKind::Everything || route.listener == ListenerKind::Aggregates;
    let route = routes.find(|route| route.path == path).ok_or(Refusal::UnknownPath)?;
    if !served(&route) {
        return Err(Refusal::UnixSocketOnly);
    }
    if route.methods.contains(method) { Ok(route.endpoint) } else { Err(Refusal::WrongMethod(route.methods)) }
}

impl Refusal {
    pub fn answer(self) -> Answer {
        let methods = match self {
            Self::UnknownPath => return plain(StatusCode::NOT_FOUND, "not found; try / or /metrics\n"),
            Self::UnixSocketOnly => return plain(StatusCode::NOT_FOUND, UNIX_SOCKET_ONLY),
            Self::WrongMethod(methods) => methods,
        };
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        let words = match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, first)) => format!("{} and {last}", first.join(", ")),
            None => String::new(),
        };
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{words} only\n"));
        if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
            answer.headers_mut().insert(ALLOW, names);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(listener: ListenerKind, method: &Method, path: &str) -> u16 {
        find(listener, method, path).map_or_else(|refusal| refusal.answer().status().as_u16(), |_| 200)
    }

    #[test]
    fn every_route_answers_its_methods_at_its_listener_and_refuses_all_else() {
        let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS];
        for Route { path, methods: allowed, listener, endpoint } in ROUTES {
            for method in &methods {
                let expected = if allowed.contains(method) { 200 } else { 405 };
                assert_eq!(status(ListenerKind::Everything, method, path), expected, "{method} {path}");
                let expected = if listener == ListenerKind::Aggregates { expected } else { 404 };
                assert_eq!(
                    status(ListenerKind::Aggregates, method, path),
                    expected,
                    "{method} {path} on TCP"
                );
            }
            assert_eq!(find(ListenerKind::Everything, &allowed[0], path).unwrap(), endpoint);
        }
        for listener in [ListenerKind::Aggregates, ListenerKind::Everything] {
            assert_eq!(status(listener, &Method::GET, "/"), 200);
            assert_eq!(status(listener, &Method::POST, "/page.js"), 405);
            for path in ["", "/x", "/metrics/", "/v1/", "//"] {
                assert_eq!(status(listener, &Method::GET, path), 404, "{path}");
            }
        }
    }

    #[test]
    fn what_only_the_unix_socket_has_is_not_found_by_tcp_and_why() {
        let body = |path| {
            let refusal = find(ListenerKind::Aggregates, &Method::GET, path).unwrap_err();
            format!("{:?}", refusal.answer().body())
        };
        for Route { path, listener, .. } in ROUTES {
            if listener == ListenerKind::Everything {
                assert!(body(path).contains("only on the agent's Unix socket"), "{path}");
            }
        }
        assert!(body("/v1/banana").contains("try / or /metrics"));
    }

    #[test]
    fn no_path_has_two_routes() {
        for (at, route) in ROUTES.iter().enumerate() {
            assert!(Page::at(route.path).is_none(), "{}", route.path);
            assert!(ROUTES.iter().skip(at + 1).all(|other| other.path != route.path), "{}", route.path);
        }
    }

    #[test]
    fn a_wrong_method_learns_the_right_ones() {
        for (methods, text, allow) in [
            (READ, "GET and HEAD only\n", "GET, HEAD"),
            (READ_OR_POST, "GET, HEAD and POST only\n", "GET, HEAD, POST"),
            (POST, "POST only\n", "POST"),
            (GET, "GET only\n", "GET"),
        ] {
            let answer = Refusal::WrongMethod(methods).answer();
            assert_eq!(answer.headers()[ALLOW], allow);
            let body = format!("{:?}", answer.body());
            assert!(body.contains(text.trim_end()), "{body}");
        }
    }
}
