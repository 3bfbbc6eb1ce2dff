use crate::commands::ports::*;
use crate::names::{Phase, Side};

pub fn document() -> PortsDocument {
    let at = |seconds, from_seconds, to_seconds| QuantileBounds { seconds, from_seconds, to_seconds };
    let durations = Durations {
        count: 200,
        sum_seconds: 1.0,
        median: at(Some(0.00042), 0.0, Some(0.001)),
        p99: at(None, 86400.0, None),
    };
    let state =
        |state, sockets, oldest_seconds, durations| StateUse { state, sockets, oldest_seconds, durations };
    let port = |side, port, states: Vec<StateUse>| PortUse {
        side,
        port,
        sockets: states.iter().map(|state| state.sockets).sum(),
        stuck: 0,
        possibly_stuck: 0,
        closes: Some(9),
        closes_per_second: Some(12.0),
        states,
    };
    let waits = vec![
        state(Phase::TimeWait, 4, Some(50.0), None),
        state(Phase::CloseWait, 12, Some(7384.0), Some(durations)),
    ];
    let many = vec![state(Phase::TimeWait, 4000, Some(60.5), None)];
    PortsDocument {
        schema: SCHEMA,
        host: "h".to_owned(),
        boot_id: String::new(),
        at: "2026-11-22T11:00:00.123456789Z".to_owned(),
        source: DocumentSource::Agent,
        age_seconds: Some(4.9),
        incomplete: vec!["something".to_owned()],
        stuck_after_seconds: 60.0,
        rate_seconds: Some(60.0),
        states: Vec::new(),
        transitions: Vec::new(),
        ports: vec![
            port(Side::Client, None, many),
            PortUse { stuck: 10, possibly_stuck: 2, ..port(Side::Server, Some(8080), waits) },
            port(Side::Server, Some(443), Vec::new()),
        ],
    }
}

#[test]
fn the_worst_port_comes_first_and_a_line_is_a_state() {
    let text = text(&mut document(), "agent", (2, false), Some(80));
    crate::ui::golden::check("ports.txt", &text);
    let old = PortsDocument { age_seconds: Some(40.2), ..document() };
    let text = crate::commands::ports::text(&mut old.clone(), "agent", (2, false), Some(80));
    assert!(text.contains("\nsource: agent, numbers 40 s old\n"), "{text}");
}

#[test]
fn a_limit_of_nothing_does_not_say_that_there_is_nothing() {
    let text = text(&mut document(), "agent", (0, false), Some(80));
    assert_eq!(text, "… 3 more\n\nsource: agent\nincomplete: something\n");
}

#[test]
fn a_quantile_is_a_bucket_and_never_longer_than_all_durations() {
    let quantile = |count, sum_seconds, from_seconds, to_seconds| {
        let median = QuantileBounds { seconds: None, from_seconds, to_seconds };
        let durations = Durations { count, sum_seconds, median, p99: median };
        (quantile(&median, &durations), quantile_at_most(&median, &durations))
    };
    let words = |long: &str, short: &str| (long.to_owned(), short.to_owned());
    assert_eq!(quantile(9, 1e4, 60.0, Some(300.0)), words("1–5m", "≤5m"));
    assert_eq!(quantile(2, 65.2, 60.0, Some(300.0)), words("1m–1m 5s", "≤1m 5s"));
    assert_eq!(quantile(1, 0.25, 0.1, Some(0.5)), words("250ms", "≤250ms"));
    assert_eq!(quantile(9, 1e9, 86_400.0, None), words(">1d", ">1d"));
}

#[test]
fn a_narrow_terminal_breaks_no_number() {
    let text = text(&mut document(), "agent", (9, false), Some(40));
    crate::ui::golden::check("ports-40.txt", &text);
    assert!(!table::overflows(&text, Some(40)) && text.contains("4000"), "{text}");
}

#[test]
fn a_snapshot_knows_how_old_the_oldest_is_at_least() {
    let mut snapshot = PortsDocument { source: DocumentSource::Snapshot, ..document() };
    let text = text(&mut snapshot, "snapshot", (9, false), Some(100));
    assert!(text.contains("≥2h 3m") && text.contains("≥50s") && text.contains("≥1m "), "{text}");
}

#[test]
fn only_the_wanted_ports_are_shown_and_one_that_shares_its_series_is_missing() {
    let mut chosen = document();
    select(&mut chosen, &[443, 8080, 443]);
    assert_eq!((chosen.ports.len(), chosen.incomplete.len()), (2, 1));
    let mut other = document();
    select(&mut other, &[81, 81, 443]);
    assert_eq!(other.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [Some(443)]);
    let missing = "port 81 has no series of its own: what it has is in port \"other\" (start the agent with --name-port 81)";
    assert_eq!(other.incomplete, ["something", missing]);
    // Without "other", every port has a series.
    let mut all = document();
    all.ports.retain(|port| port.port.is_some());
    select(&mut all, &[81]);
    assert_eq!(all.incomplete, ["something"]);
    let text = text(&mut all, "agent", (9, true), Some(100));
    assert!(text.starts_with("No matching port\n\nsource: agent\n"), "{text}");
}
