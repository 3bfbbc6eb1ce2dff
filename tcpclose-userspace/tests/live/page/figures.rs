//! Whether the page's numbers are those of the scrape that it made.

use std::time::Instant;

use serde_json::{Value, json};

use super::browser::{Browser, PATIENCE};
use crate::common::Metrics;

/// A scrape that the page made: what it was answered, and the agent's clock then.
struct Scrape {
    metrics: Metrics,
    clock: f64,
}

/// The page is asked for all its numbers at one instant, and they are compared with the last answer that it got. That may
/// be one that it has not shown yet: so until they are equal, and a page with a wrong number never is.
pub fn equal_metrics(browser: &mut Browser) {
    browser.evaluate("document.querySelector('input[value=start]').click()");
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = browser.evaluate("probes.numbers()");
        let wrong = match last(browser) {
            Some(scrape) => differences(&shown, &scrape),
            None => vec!["no scrape yet".to_owned()],
        };
        if wrong.is_empty() {
            println!("{}", shown["boxes"]);
            return;
        }
        assert!(Instant::now() < until, "{wrong:#?}\n{shown:#}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

fn last(browser: &mut Browser) -> Option<Scrape> {
    // A call, so that what has happened is told.
    browser.evaluate("null");
    let ended: Vec<&Value> =
        browser.reported("Network.loadingFinished").map(|reported| &reported["requestId"]).collect();
    let of_metrics = |reported: &&Value| {
        let url = reported["response"]["url"].as_str().unwrap_or_default();
        url.ends_with("/metrics") && ended.contains(&&reported["requestId"])
    };
    let answer = browser.reported("Network.responseReceived").rfind(of_metrics)?.clone();
    let ask = json!({ "requestId": answer["requestId"] });
    let body = browser.try_call("Network.getResponseBody", ask).ok()?;
    let headers = answer["response"]["headers"].as_object().unwrap();
    let date = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("date")).unwrap().1;
    let clock = browser.evaluate(&format!("Date.parse({date}) / 1000")).as_f64().unwrap();
    Some(Scrape { metrics: Metrics::parse(body["body"].as_str().unwrap()), clock })
}

/// What the page says otherwise than the scrape.
fn differences(shown: &Value, scrape: &Scrape) -> Vec<String> {
    let metrics = &scrape.metrics;
    let mut wrong = Vec::new();
    let mut compare = |what: String, shown: &Value, reported: Value| {
        if *shown != reported {
            wrong.push(format!("{what}: {shown}, and /metrics {reported}"));
        }
    };
    for state in ["fin_wait_1", "fin_wait_2", "closing", "time_wait", "close_wait", "last_ack"] {
        let reported = metrics.sum("tcpclose_sockets", &[("state", state)]);
        compare(state.to_owned(), &shown["boxes"][state], json!(reported as u64));
    }
    let began = metrics.sum("tcpclose_transitions_total", &[("from", "established")]);
    compare("established".to_owned(), &shown["boxes"]["established"], json!(began as u64));
    compare(
        "closed".to_owned(),
        &shown["boxes"]["closed"],
        json!(metrics.sum("tcpclose_closes_total", &[]) as u64),
    );
    compare("stuck".to_owned(), &shown["stuck"], json!(metrics.sum("tcpclose_stuck_sockets", &[]) as u64));

    for (labels, _) in metrics.select("tcpclose_sockets", &[]) {
        let (side, port, state) = (&*labels["side"], &*labels["port"], &*labels["state"]);
        let reported = metrics.sum("tcpclose_sockets", &[("side", side), ("port", port), ("state", state)]);
        let pair = format!("{side} {port}");
        // A row without any number but zero is left out.
        if reported == 0.0 && shown["ports"][&pair].is_null() {
            continue;
        }
        compare(format!("{pair} {state}"), &shown["ports"][&pair][state], json!(grouped(reported as u64)));
    }
    for (list, family) in [
        ("owners", "tcpclose_stuck_owner_sockets"),
        ("reasons", "tcpclose_stuck_diagnosis_sockets"),
        ("verdicts", "tcpclose_stuck_verdict_sockets"),
    ] {
        let mut counts: Vec<u64> = metrics.select(family, &[]).map(|(_, n)| n as u64).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.truncate(8);
        compare(list.to_owned(), &shown[list], json!(counts));
    }
    let name = |state: &str| state.to_uppercase().replace('_', "-");
    let uptime = scrape.clock - metrics.sum("process_start_time_seconds", &[]);
    let mut steps = 0;
    for (labels, reported) in metrics.select("tcpclose_transitions_total", &[]) {
        let (from, to) = (&*labels["from"], &*labels["to"]);
        let step = &shown["steps"][format!("{} {}", name(from), name(to))];
        compare(format!("{from} to {to}"), &step["count"], json!(reported as u64));
        steps += 1;
        let arrow = &shown["arrows"][format!("{from} {to}")];
        if arrow.is_null() {
            continue;
        }
        compare(format!("{from} to {to}"), &arrow["rate"], step["rate"].clone());
        if !alike(parse(&arrow["rate"]), Some(reported / uptime), 0.01) {
            compare(format!("rate of {from} to {to}"), &arrow["rate"], json!(reported / uptime));
        }
        let median = metrics.duration_quantile(&[("state", from)], 0.5);
        if !arrow["median"].is_null() && !alike(parse(&arrow["median"]), median, 0.0) {
            compare(format!("median of {from}"), &arrow["median"], json!(median));
        }
    }
    compare("steps".to_owned(), &json!(shown["steps"].as_object().unwrap().len()), json!(steps));
    wrong
}

/// As the page groups digits.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join("\u{202f}")
}

/// `41 ms` and `3.2/s` as seconds and a rate; `None` for a dash.
fn parse(text: &Value) -> Option<f64> {
    let text = text.as_str()?;
    let (number, unit) = match text.strip_suffix("/s") {
        Some(rate) => (rate, 1.0),
        None => {
            let (number, unit) = text.split_once(' ')?;
            let unit = match unit {
                "ms" => 1e-3,
                "s" => 1.0,
                "min" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => panic!("{text}"),
            };
            (number, unit)
        }
    };
    let (number, thousands) = match number.strip_suffix('k') {
        Some(number) => (number, 1e3),
        None => (number, 1.0),
    };
    // `<0.01`: as good as nothing.
    Some(number.parse::<f64>().unwrap_or(0.0) * thousands * unit)
}

/// Whether what is shown is what is told, to its two digits; a rate has two decimals at most.
fn alike(shown: Option<f64>, reported: Option<f64>, coarse: f64) -> bool {
    match (shown, reported) {
        (Some(shown), Some(reported)) => (shown - reported).abs() <= coarse.max(0.06 * reported.max(shown)),
        (None, None) => true,
        _ => false,
    }
}
