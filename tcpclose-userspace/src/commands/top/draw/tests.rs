use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

use crate::commands::top::app::tests::{app, press, sockets};
use crate::commands::top::draw::*;
use crate::commands::top::poller::Update;
use crate::failure::Failure;
use crate::names::Side;

fn buffer(app: &App, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(app, frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// The lines of the picture, without the blanks at their ends.
fn picture(app: &App, width: u16, height: u16) -> Vec<String> {
    let buffer = buffer(app, width, height);
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

#[test]
fn ports_fill_eighty_columns_and_twenty_four_lines() {
    let expected = "\
tcpclose top  h  11:00:00Z  rates over 1m  times in CLOSE-WAIT
                    CLOSE LAST   FIN   FIN CLOS  TIME CLOSE
SIDE     PORT STUCK  WAIT  ACK WAIT1 WAIT2  ING  WAIT    /S OLDEST MEDIAN    P99
server   8080 10–12    12    0     0     0    0     4    12  2h 3m   ≤1ms    >1d
client  other     0     0    0     0     0    0  4000    12      -      -      -
server    443     0     0    0     0     0    0     0    12      -      -      -









server port 8080: 9 closes, 12/s, 10–12 stuck
STATE       SOCKETS   OLDEST     EXITED          MEDIAN             P99
TIME-WAIT         4      50s          0               -               -
CLOSE-WAIT       12    2h 3m        200           0–1ms             >1d




q quit  ? keys  Enter sockets  s sort  r reverse  p state  / filter  by stuck ↓";
    let picture = picture(&app(), 80, 24);
    assert_eq!(picture.join("\n"), expected);
}

#[test]
fn sockets_and_one_of_them_with_its_owners() {
    let mut app = app();
    press(&mut app, "\n");
    assert!(picture(&app, 80, 24)[1].contains("asking the agent"));
    app.receive(sockets(PortLabel { side: Side::Server, port: Some(8080) }));
    let list = picture(&app, 80, 24);
    assert_eq!(list[0], "tcpclose top  h  11:00:00Z  server port 8080");
    assert!(list[1].starts_with("AGE") && list[1].contains("OWNER[PID]:FD"), "{list:?}");
    assert!(list[2].starts_with("1m 30s") && list[2].contains("api[42]"), "{list:?}");
    assert!(list[3].starts_with("20s") && list[3].contains("api[7]"), "{list:?}");
    // Where there is no room for all, addresses are whole and the owner is there.
    let narrow = picture(&app, 40, 12);
    assert!(
        narrow[1].contains("PEER") && narrow[1].contains("OWNER") && !narrow[1].contains("LOCAL"),
        "{narrow:?}"
    );
    assert!(narrow[2].contains("10.0.0.9:41234") && narrow[2].contains("api[42]"), "{narrow:?}");
    press(&mut app, "j\n");
    let one = picture(&app, 80, 24).join("\n");
    for words in ["CLOSE-WAIT for 20s", "owner       api[7]:", "q quit  ? keys  Esc back"] {
        assert!(one.contains(words), "{one}");
    }
    app.receive(Update::Sockets(crate::commands::top::poller::PortSockets {
        label: PortLabel { side: Side::Server, port: Some(8080) },
        sockets: Vec::new(),
        stacks: Vec::new(),
        verdicts: Vec::new(),
        left_out: vec!["34000 in time_wait".to_owned()],
    }));
    assert!(picture(&app, 80, 24)[1].contains("This socket is closed"));
    press(&mut app, "\u{1b}");
    let empty = picture(&app, 80, 24);
    assert!(
        empty[1].contains("No socket of port 8080") && empty[22].contains("34000 in time_wait"),
        "{empty:?}"
    );
}

#[test]
fn any_size_is_drawn_and_what_is_chosen_is_in_sight() {
    let mut app = app();
    let port = app.ports.ports[0].clone();
    app.ports.ports = (1..=200).map(|n| PortUse { port: Some(n), ..port.clone() }).collect();
    press(&mut app, "G");
    for (width, height) in [(80, 24), (40, 8), (200, 60), (120, 19), (39, 24), (80, 7), (1, 1)] {
        let shown = picture(&app, width, height).join("\n");
        let large = width >= SMALLEST.0 && height >= SMALLEST.1;
        assert_eq!(shown.contains("  200 "), large, "{width}×{height}:\n{shown}");
    }
}

#[test]
fn without_colours_there_are_none_and_hostile_names_are_escaped() {
    let mut app = app();
    app.ports.host = "a\u{1b}[2J".to_owned();
    let coloured = |app: &App| buffer(app, 80, 24).content().iter().any(|cell| cell.fg != Color::Reset);
    assert!(!coloured(&app));
    app.receive(Update::Trouble(Failure::new("agent at /x", "no answer", "")));
    assert!(!coloured(&app) && picture(&app, 80, 24)[0].starts_with("tcpclose: agent at /x: no answer"));
    app.colour = true;
    app.trouble = None;
    assert!(coloured(&app));
    assert!(picture(&app, 80, 24)[0].contains(r"a\u{1b}[2J"));
}

#[test]
fn the_keys_are_listed_until_the_next_key() {
    let mut app = app();
    press(&mut app, "?");
    for (width, height) in [(80, 24), (40, 13)] {
        let keys = picture(&app, width, height);
        assert!(keys[1].starts_with("up, down") && keys[11].starts_with("q, Ctrl-C        quit"), "{keys:?}");
    }
    press(&mut app, "s");
    assert!(!app.help && app.ports_by.name() == "stuck", "the key only closes the list");
    assert!(picture(&app, 80, 24)[1].contains("CLOSE"));
}
