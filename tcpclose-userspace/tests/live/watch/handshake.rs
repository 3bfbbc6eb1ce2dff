//! The drawing beside the segments on the wire.

use std::time::Duration;

use tcpclose::names::Flow;

use super::PATIENCE;
use super::capture::{Capture, Segment};
use super::closes::Stage;
use super::common::reader::Reader;
use super::common::{Agent, free_port};
use super::place::Netns;

/// The numbers of a close, from the wire: u of the first FIN, w of the other.
struct Wire {
    u: u32,
    w: u32,
}

impl Wire {
    fn of(segments: &[Segment], client: &Flow) -> Self {
        let (here, there) = (client.local_port, client.remote_port);
        let between =
            |from, to| segments.iter().filter(move |segment| (segment.from, segment.to) == (from, to));
        let fin = |from, to| between(from, to).find(|segment| segment.fin).unwrap().fin_seq();
        let wire = Self { u: fin(here, there), w: fin(there, here) };
        // The drawing's ACKs were on the wire too.
        assert!(between(there, here).any(|segment| segment.ack == wire.u.wrapping_add(1)));
        assert!(between(here, there).any(|segment| segment.ack == wire.w.wrapping_add(1)));
        wire
    }

    fn active(&self) -> [String; 4] {
        let Self { u, w } = self;
        [
            format!("①|FIN sent|seq={u}"),
            format!("②|ACK received|ack={}", u.wrapping_add(1)),
            format!("③|FIN received|seq={w}"),
            format!("④|ACK sent|ack={}", w.wrapping_add(1)),
        ]
    }

    fn passive(&self) -> [String; 4] {
        let Self { u, w } = self;
        [
            format!("①|FIN received|seq={u}"),
            format!("②|ACK sent|ack={}", u.wrapping_add(1)),
            format!("③|FIN sent|seq={w}"),
            format!("④|ACK received|ack={}", w.wrapping_add(1)),
        ]
    }
}

/// The steps of a drawing: number, words, sequence number.
fn steps(drawing: &str) -> Vec<String> {
    let step = |line: &str| {
        let line = line.trim_start();
        let number = line.chars().next().filter(|c| "①②③④✕".contains(*c))?;
        let what = ["FIN sent", "FIN received", "ACK sent", "ACK received", "RST received"];
        let what = what.into_iter().find(|what| line.contains(what))?;
        let reported =
            line.trim_end_matches(['─', '▶', '◀', ' ']).rsplit(['─', '◀']).next()?.trim().to_owned();
        Some(format!("{number}|{what}|{reported}"))
    };
    drawing.lines().filter_map(step).collect()
}

/// The drawing of the socket with this flow, once there is one.
fn drawing(reader: &mut Reader, flow: &Flow) -> String {
    let of = |lines: &[String]| {
        let whose = format!("local {}  peer {}  ", flow.local(), flow.remote());
        let text = lines.join("\n");
        text.split("\n\n").find(|drawing| drawing.contains(&whose)).map(str::to_owned)
    };
    reader.when(PATIENCE, &format!("a drawing of {flow:?}"), |lines| {
        // Whole: the blank line after it is there.
        of(lines).is_some_and(|drawing| drawing.contains("TIME-WAIT, ") || drawing.contains("CLOSED"))
    });
    of(&reader.lines()).unwrap()
}

#[test]
#[ignore = "needs root"]
fn the_drawing_has_the_sequence_numbers_of_the_wire() {
    // There before the agents are: one that comes later is dumped when it is found, and the host may have a thousand.
    let netns = Netns::new(&[]).unwrap();
    for (hook, agent) in Agent::on_each_hook(&[]) {
        let port = free_port();
        let mut reader = Reader::at(&agent.socket(), &["--handshake", "--port", &port.to_string()]);
        let hooked =
            agent.metrics().has("tcpclose_hook_info", &[("hook", "time_wait"), ("backend", "hooks")]);
        std::thread::scope(|scope| {
            let play = || {
                netns.enter().unwrap();
                in_a_namespace(&mut reader, port, hook, hooked);
            };
            scope.spawn(play).join().unwrap();
        });
    }
}

/// In a network namespace of its own, whose wire nobody else uses.
fn in_a_namespace(reader: &mut Reader, port: u16, hook: &str, hooked: bool) {
    let stage = Stage::at(port);

    let capture = Capture::begin();
    let close = stage.half_closed(b"fives");
    let (client, server) = (drawing(reader, &close.client), drawing(reader, &close.server));
    println!("--- {hook}\n{client}\n\n{server}\n");
    let wire = Wire::of(&capture.take(), &close.client);
    assert_eq!((steps(&client), steps(&server)), (wire.active().to_vec(), wire.passive().to_vec()));
    assert!(client.contains("active closer (this side)") && client.contains("passive closer (peer)"));
    assert!(server.contains("passive closer (this side)") && server.contains("active closer (peer)"));
    assert!(client.contains("half-close: 5 bytes received in FIN-WAIT-2"));
    assert!(server.contains("half-close: 5 bytes sent in CLOSE-WAIT"));
    let header = client.lines().next().unwrap();
    assert!(header.contains("  client  netns ") && header.ends_with("  graceful"), "{header}");
    assert!(header.contains("  closed by "), "{header}");

    // The peer's FIN comes to the minisocket, whose numbers hooks alone can see.
    let capture = Capture::begin();
    let close = stage.graceful(Duration::from_millis(50));
    let (client, server) = (drawing(reader, &close.client), drawing(reader, &close.server));
    println!("{client}\n\n{server}\n");
    let wire = Wire::of(&capture.take(), &close.client);
    let mut active = wire.active();
    if !hooked {
        active[2] = "③|FIN received|seq not observed".to_owned();
        active[3] = "④|ACK sent|ack not observed".to_owned();
    }
    assert_eq!((steps(&client), steps(&server)), (active.to_vec(), wire.passive().to_vec()));

    let close = stage.half_closed_and_aborted();
    let (client, server) = (drawing(reader, &close.client), drawing(reader, &close.server));
    println!("{client}\n\n{server}\n");
    assert!(client.contains("✕") && client.contains("aborted by the program"), "{client}");
    assert!(server.contains("RST received  ◀"), "{server}");
}
