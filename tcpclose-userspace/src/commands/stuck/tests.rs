use crate::commands::stuck::*;
use crate::commands::suggest::StackSource;
use crate::names::Diagnosis;
use crate::report::fixtures::{owner, socket};
use crate::report::sockets::{AgeSeconds, DocumentSource, SCHEMA, SocketsDocument, StuckSocket};
use std::time::Duration;

pub fn findings(bound: u64) -> Findings {
    let document = SocketsDocument {
        schema: SCHEMA,
        host: "h".into(),
        boot_id: "b".into(),
        at: "t".into(),
        source: DocumentSource::Snapshot,
        incomplete: vec![
            "owners of 1 sockets are unknown: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed".into(),
        ],
        sockets: Vec::new(),
        stacks: Vec::new(),
        groups: Vec::new(),
        chains: Vec::new(),
    };
    Findings {
        document,
        bound: Duration::from_secs(bound),
        source: "snapshot (no agent at /x)".into(),
        stack_source: StackSource::Nobody,
    }
}

fn arguments(words: &[&str]) -> Stuck {
    use clap::Parser;
    match crate::commands::cli::Cli::try_parse_from(["tcpclose", "stuck"].iter().chain(words)).unwrap() {
        crate::commands::cli::Cli::Stuck(stuck) => stuck,
        other => panic!("{other:?}"),
    }
}

/// One socket of each kind.
fn zoo() -> Vec<StuckSocket> {
    let leaking = owner(4_194_304, "fifteen-letters", (1023, 1024));
    let far: StuckSocket = StuckSocket {
        local: "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321".parse().unwrap(),
        peer: "[2001:db8:1234:5678:9abc:def0:1234:9999]:54321".parse().unwrap(),
        unread_bytes: 6_291_456,
        diagnosis: Some(Diagnosis::NotRead),
        ..socket(90_061, &[leaking.clone(), owner(7, "a\nb", (3, 1024))])
    };
    vec![
        far,
        socket(61, std::slice::from_ref(&leaking)),
        StuckSocket {
            age: AgeSeconds { exact: false, min_seconds: 3.0, max_seconds: None },
            diagnosis: Some(Diagnosis::NotAccepted),
            ..socket(0, &[])
        },
        StuckSocket { diagnosis: Some(Diagnosis::StillSending), ..socket(100, &[leaking]) },
        socket(59, &[]),
    ]
}

#[test]
fn every_layout_fits_eighty_columns_and_breaks_no_number() {
    for words in [
        &[][..],
        &["--sockets"],
        &["--by", "port"],
        &["--by", "peer"],
        &["--by", "unit"],
        &["--by", "container"],
    ] {
        let stuck = arguments(words);
        let sorted = Sorted::new(stuck.filter.select(zoo()), 60.0);
        let text = stuck.text(&findings(60), &sorted, &FdRates::default(), Some(80));
        println!("{text}");
        assert!(!table::overflows(&text, Some(80)), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
        assert!(text.starts_with(
            "2 sockets in CLOSE-WAIT for 1m or longer, 1 possibly; 1 still sending (not\n  listed); 1 younger one\n"
        ));
        assert!(
            text.contains("possibly") && text.contains("incomplete: ") && text.contains("source: snapshot")
        );
        for width in [40, 80] {
            let text = stuck.text(&findings(60), &sorted, &FdRates::default(), Some(width));
            println!("{text}");
            for whole in ["8080"].iter().chain(words.is_empty().then_some(&"[4194304]")) {
                assert!(text.contains(whole), "{width}: no {whole} in\n{text}");
            }
        }
        let pipe = stuck.text(&findings(60), &sorted, &FdRates::default(), None);
        assert!(pipe.lines().all(|line| !line.ends_with(' ')));
    }
}

#[test]
fn filters_narrow_down_and_the_oldest_comes_first() {
    let ages = |words: &[&str]| -> Vec<u64> {
        arguments(words).filter.select(zoo()).iter().map(|socket| socket.age.min_seconds as u64).collect()
    };
    assert_eq!(ages(&[]), [90_061, 100, 61, 59, 3]);
    assert_eq!(ages(&["--pid", "7"]), [90_061]);
    assert_eq!(ages(&["--port", "8080", "--port", "1"]).len(), 5);
    assert!(ages(&["--port", "1"]).is_empty());
    assert!(ages(&["--state", "LAST-ACK"]).is_empty());
}

#[test]
fn nothing_stuck_is_reported_clearly() {
    let stuck = arguments(&[]);
    let printed = |sockets: Vec<StuckSocket>| {
        let sorted = Sorted::new(sockets, 60.0);
        stuck.text(&findings(60), &sorted, &FdRates::default(), None).lines().next().unwrap().to_owned()
    };
    assert_eq!(printed(Vec::new()), "No socket has been in CLOSE-WAIT for 1m or longer");
    assert_eq!(
        printed(zoo()[4..].to_vec()),
        "No socket has been in CLOSE-WAIT for 1m or longer; 1 younger one"
    );
    assert_eq!(
        printed(zoo()[2..3].to_vec()),
        "No socket is proven to have been in CLOSE-WAIT for 1m or longer, 1 possibly"
    );
    assert_eq!(
        printed(zoo()[3..4].to_vec()),
        "No socket has been in CLOSE-WAIT for 1m or longer; 1 still sending (not listed)"
    );
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let stuck = arguments(&["--sockets", "--limit", "1"]);
    let sorted = Sorted::new(stuck.filter.select(zoo()), 60.0);
    let text = stuck.text(&findings(60), &sorted, &FdRates::default(), None);
    assert!(text.contains("\n… 2 more\n"), "{text}");
    for words in [&["--limit", "0"][..], &["--sockets", "--limit", "0"]] {
        let text = arguments(words).text(&findings(60), &sorted, &FdRates::default(), None);
        assert!(
            text.contains("or longer, 1 possibly") && text.contains(" more") && !text.contains("PORT"),
            "{text}"
        );
        assert!(!text.contains("AGE"), "{text}");
    }
}

#[test]
fn the_whole_text_of_each_layout() {
    for (name, words) in [
        ("stuck.txt", &[][..]),
        ("stuck-sockets.txt", &["--sockets"]),
        ("stuck-by-peer.txt", &["--by", "peer"]),
    ] {
        let stuck = arguments(words);
        let sorted = Sorted::new(stuck.filter.select(zoo()), 60.0);
        let rates = FdRates::of(&zoo(), 60.0);
        let narrow = stuck.text(&findings(60), &sorted, &rates, Some(40));
        let texts = [None, Some(80)].map(|width| stuck.text(&findings(60), &sorted, &rates, width));
        crate::ui::golden::check(name, &[&texts[..], &[narrow]].concat().join("\n-----\n"));
    }
}
