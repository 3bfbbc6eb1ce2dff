//! The page at `/`, in headless Chromium against a live agent with real connections.

pub mod browser;
use crate::common;
pub mod figures;

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use browser::Browser;
use common::{Agent, free_port};
use rustix::process::Signal;
use serde_json::json;
use socket2::SockRef;

/// What leaks, and what has closed well.
const LEAKED: usize = 3;
const CLOSED: usize = 5;

/// A server that never closes `LEAKED` connections that its clients have, and closed `CLOSED` others after them.
struct Scene {
    _listener: TcpListener,
    _held: Vec<(TcpStream, TcpStream)>,
}

impl Scene {
    fn play(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let connect = || {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            (client, server)
        };
        for _ in 0..CLOSED {
            let (mut client, server) = connect();
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        let held = (0..LEAKED).map(|_| connect()).collect();
        Self { _listener: listener, _held: held }
    }
}

#[test]
#[ignore = "needs root"]
fn the_page_tells_what_metrics_tell_to_everybody_and_says_when_it_cannot() {
    let Some(mut browser) = Browser::start() else { return };
    let listen = format!("127.0.0.1:{}", free_port());
    let port = free_port();
    let named = port.to_string();
    let idle = free_port().to_string();
    // No more ports than the page shows, whatever other tests do.
    let bounds = [
        "--listen",
        &listen,
        "--stuck-after",
        "1s,1h",
        "--reconcile-interval",
        "1s",
        "--owner-interval",
        "1s",
        "--max-ports",
        "16",
    ];
    let arguments = [&bounds[..], &["--name-port", &named, "--name-port", &idle]].concat();
    let mut agent = Agent::start(&arguments);
    let _scene = Scene::play(port);
    let labels = [("side", "server"), ("port", &*named)];
    agent.metrics_when(Duration::from_secs(60), "the leak is stuck", |metrics| {
        metrics.sum("tcpclose_stuck_sockets", &labels) == LEAKED as f64
    });

    one_close(&agent, &idle);
    let address = format!("http://{listen}/");
    browser.look(1240, "light");
    browser.open(&address);
    browser.until("document.documentElement.dataset.agent === 'live'");
    println!("-- numbers");
    figures::equal_metrics(&mut browser);
    the_scene_is_shown(&mut browser, &agent, &named);
    rows_of_zeros_are_left_out(&mut browser, &named, &idle);
    println!("-- readable");
    readable(&mut browser);
    println!("-- keyboard");
    by_keyboard(&mut browser);
    by_screen_reader(&mut browser);
    println!("-- policy");
    nothing_from_elsewhere(&mut browser, &address);

    println!("-- without an agent");
    assert!(agent.end(Signal::TERM).success());
    drop(agent);
    browser.until("document.documentElement.dataset.agent === 'gone'");
    let status = browser.evaluate("document.querySelector('[role=status]').textContent");
    assert!(status.as_str().unwrap().starts_with("The agent does not answer. These numbers are as of "));
    readable_in(&mut browser, 1240, "light");
    let _next = Agent::start(&arguments);
    browser.until("document.documentElement.dataset.agent === 'live'");
    starting(&mut browser, &address);
}

/// A close at `port` of which nothing is left but the agent's count.
fn one_close(agent: &Agent, port: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    let client = common::half_closed_client(port.parse().unwrap(), b"");
    let server = listener.accept().unwrap().0;
    let waiting = [("port", port), ("state", "close_wait")];
    let counted = |metrics: &common::Metrics| metrics.sum("tcpclose_sockets", &waiting);
    agent.metrics_when(Duration::from_secs(60), "it waits", |metrics| counted(metrics) == 1.0);
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop((server, client));
    agent.metrics_when(Duration::from_secs(60), "it has ended", |metrics| counted(metrics) == 0.0);
}

/// The row of the scene's server, and what the agent says of it when asked by another.
fn the_scene_is_shown(browser: &mut Browser, agent: &Agent, port: &str) {
    let shown = browser.evaluate("probes.numbers()");
    let row = &shown["ports"][format!("server {port}")];
    println!("{row}");
    assert_eq!(row["close_wait"], json!(LEAKED.to_string()));
    assert_eq!(row["stuck"], json!(LEAKED.to_string()));
    assert_eq!(row["time_wait"], json!("0"));
    assert!(row["oldest"].as_str().unwrap().ends_with('s'), "{row}");
    let metrics = agent.metrics();
    let sockets = |state| {
        metrics.sum("tcpclose_sockets", &[("side", "server"), ("port", port), ("state", state)]) as u64
    };
    for state in ["close_wait", "last_ack", "fin_wait_1", "fin_wait_2", "closing", "time_wait"] {
        assert_eq!(row[state], json!(sockets(state).to_string()), "{state}");
    }
    // Whose they are, and what the program has not done: the scene has read everything.
    let listed = |id: &str, words: &str| {
        format!(
            "[...document.querySelectorAll('#{id} li')].some((line) => line.textContent.includes('{words}'))"
        )
    };
    browser.until(&listed("owners", "live"));
    browser.until(&listed("reasons", "read to the end, never closed"));
    browser.until(&listed("verdicts", " · server "));
    // The same page, where the sockets are answered for as well.
    let (status, body) = agent.get("/");
    assert!(status == 200 && body.starts_with("<!doctype html>"));
}

/// A pair without a socket that has closed nothing in the chosen time has no row but by the filter.
fn rows_of_zeros_are_left_out(browser: &mut Browser, port: &str, idle: &str) {
    let row = |pair: &str| format!("document.querySelector('#port-table tr[data-pair=\"{pair}\"]') !== null");
    let filter = |text: &str| {
        format!(
            "(() => {{ const filter = document.getElementById('filter'); filter.value = '{text}'; \
             filter.dispatchEvent(new Event('input')); }})()"
        )
    };
    let (used, idle_row) = (row(&format!("server {port}")), row(&format!("server {idle}")));
    // It has closed something since the agent began.
    browser.until(&format!("{used} && {idle_row}"));
    browser.evaluate("document.querySelector('input[value=minute]').click()");
    browser.until(&format!("{used} && !({idle_row})"));
    browser.evaluate(&filter(idle));
    browser.until(&format!("!({used}) && {idle_row}"));
    browser.evaluate(&filter(""));
    browser.until(&format!("{used} && !({idle_row})"));
    browser.evaluate("document.querySelector('input[value=start]').click()");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    browser.until(&format!("document.getElementById('host').textContent === {}", json!(host)));
}

fn readable(browser: &mut Browser) {
    browser.evaluate("document.querySelector('details').open = true");
    for scheme in ["light", "dark"] {
        for width in [1240, 980, 360] {
            readable_in(browser, width, scheme);
        }
    }
    browser.look(1240, "light");
}

/// Enough contrast for every text (WCAG 2.1, 1.4.3), nothing that sticks out, and no text over another's box.
fn readable_in(browser: &mut Browser, width: u32, scheme: &str) {
    browser.look(width, scheme);
    browser.until(&format!("document.documentElement.clientWidth <= {width}"));
    let contrasts = browser.evaluate("probes.contrasts()");
    let contrasts = contrasts.as_array().unwrap();
    assert!(contrasts.len() > 60, "{contrasts:?}");
    let of = |text: &serde_json::Value| text["contrast"].as_f64().unwrap();
    let least = contrasts.iter().min_by(|a, b| of(a).total_cmp(&of(b))).unwrap();
    println!("{scheme}, {width} wide: {} texts, the least contrast {least}", contrasts.len());
    assert!(of(least) >= 4.5, "{scheme}: {least}");
    let wide = browser.evaluate("document.documentElement.scrollWidth").as_u64().unwrap();
    assert!(wide <= width.into(), "{wide} wide on {width}: {}", browser.evaluate("probes.sticksOut()"));
    assert_eq!(browser.evaluate("probes.sticksOut()"), json!([]));
    assert_eq!(browser.evaluate("probes.collisions()"), json!([]), "{scheme}, {width}");
}

/// Tab reaches everything that can be used, in the page's order, and shows where it is.
fn by_keyboard(browser: &mut Browser) {
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)");
    let mut reached = Vec::new();
    for _ in 0..40 {
        browser.press("Tab", 9, "");
        let focus = browser.evaluate("probes.focus()");
        if focus["kind"] == "body" {
            break;
        }
        assert_eq!(focus["seen"], json!(true), "{focus}");
        reached.push(focus["name"].as_str().unwrap().to_owned());
        if focus["column"] == "CLOSE-WAIT" {
            browser.press("Enter", 13, "\r");
            let sorted = browser.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')");
            assert_eq!(sorted, json!("descending"));
        }
    }
    println!("{reached:?}");
    let order =
        ["Skip to the ports", "start", "filter", "Port", "Side", "CLOSE-WAIT", "Closes", "All transitions"];
    let order = order.map(|name| reached.iter().position(|reached| reached == name).ok_or(name));
    assert!(order.iter().all(Result::is_ok) && order.is_sorted(), "{order:?}");
}

/// Whatever has a meaning has a name, the table is one even where it does not look like one, and the drawing says what
/// it is.
fn by_screen_reader(browser: &mut Browser) {
    for width in [1240, 360] {
        browser.look(width, "light");
        let tree = browser.call("Accessibility.getFullAXTree", json!({}));
        let nodes: Vec<(&str, &str)> = tree["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["ignored"] == json!(false))
            .map(|node| {
                (node["role"]["value"].as_str().unwrap_or(""), node["name"]["value"].as_str().unwrap_or(""))
            })
            .collect();
        let named =
            ["button", "link", "searchbox", "radio", "table", "image", "img", "navigation", "heading"];
        for (role, name) in nodes.iter().filter(|(role, _)| named.contains(role)) {
            assert!(!name.is_empty(), "a {role} has no name: {nodes:?}");
        }
        let count = |wanted: &str| nodes.iter().filter(|(role, _)| *role == wanted).count();
        assert!(count("table") == 2 && count("columnheader") >= 17 && count("rowheader") >= 2, "{nodes:?}");
        assert!(count("image") + count("img") == 1 && count("status") == 1, "{nodes:?}");
    }
    browser.look(1240, "light");
}

/// No violation of the policy, no error, no request but to the agent; and the policy does forbid.
fn nothing_from_elsewhere(browser: &mut Browser, address: &str) {
    let document =
        browser.reported("Network.responseReceived").find(|reported| reported["type"] == "Document").unwrap();
    let policy = document["response"]["headers"]["content-security-policy"]
        .as_str()
        .or(document["response"]["headers"]["Content-Security-Policy"].as_str());
    let policy = policy.unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");

    let asked: Vec<&str> = browser
        .reported("Network.requestWillBeSent")
        .map(|reported| reported["request"]["url"].as_str().unwrap())
        .collect();
    for file in ["", "page.js", "page.css", "metrics"] {
        assert!(asked.contains(&&*format!("{address}{file}")), "{asked:?}");
    }
    assert!(asked.iter().all(|url| url.starts_with(address)), "{asked:?}");
    assert_eq!(browser.evaluate("probes.violations"), json!([]));
    for reported in ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"] {
        assert_eq!(browser.reported(reported).collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());
    }

    browser.evaluate("fetch('http://127.0.0.1:9/').catch(() => {}).then(() => null)");
    browser.until("probes.violations.includes('connect-src')");
    browser.evaluate(
        "document.head.append(Object.assign(document.createElement('style'), { textContent: '*{}' }))",
    );
    browser.until("probes.violations.includes('style-src-elem')");
}

/// An agent whose first dump is not in has none of the gauges and no time of a comparison: what a live one told, less
/// these, since no real one stays so for long enough to be looked at.
fn starting(browser: &mut Browser, address: &str) {
    let early = r#"(() => {
        const real = fetch;
        globalThis.fetch = async (...ask) => {
            const answer = await real(...ask);
            const text = (await answer.text()).split("\n");
            const later = /^tcpclose_(sockets|stuck_|oldest_|reconcile_last_success)/;
            return new Response(text.filter((line) => !later.test(line)).join("\n"), answer);
        };
    })()"#;
    browser.evaluate(early);
    browser.until("document.documentElement.dataset.agent === 'starting'");
    let status = browser.evaluate("document.querySelector('[role=status]').textContent");
    assert!(status.as_str().unwrap().starts_with("The agent is starting: "));
    let shown = browser.evaluate("probes.numbers()");
    assert!(shown["boxes"]["close_wait"].is_null() && shown["stuck"].is_null(), "{shown}");
    browser.open(address);
    browser.until("document.documentElement.dataset.agent === 'live'");
}
