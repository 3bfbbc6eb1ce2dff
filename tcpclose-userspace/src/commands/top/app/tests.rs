use crate::commands::ports::tests::document;
use crate::commands::top::app::*;
use crate::commands::top::poller::PortSockets;
use crate::failure::Failure;
use crate::names::Side;
use crate::report::fixtures::{owner, socket};

pub fn app() -> App {
    App::new(document(), false)
}

pub fn press(app: &mut App, keys: &str) {
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        };
        assert_eq!(app.key(KeyEvent::from(code)), AppStep::Stay, "{c:?}");
    }
}

pub fn sockets(label: PortLabel) -> Update {
    let held = |age, cookie, pid| StuckSocket {
        cookie: Cookie(cookie),
        ..socket(age, &[owner(pid, "api", (10, 100))])
    };
    Update::Sockets(PortSockets {
        label,
        sockets: vec![held(20, 1, 7), held(90, 2, 42)],
        stacks: Vec::new(),
        verdicts: Vec::new(),
        left_out: Vec::new(),
    })
}

fn first_port(app: &App) -> Option<u16> {
    app.rows().first().and_then(|port| port.port)
}

#[test]
fn keys_choose_sort_and_filter() {
    let mut app = app();
    assert_eq!((first_port(&app), app.chosen_port()), (Some(8080), Some(0)));
    press(&mut app, "j");
    let chosen = app.rows()[1].label();
    press(&mut app, "s");
    assert_eq!((app.ports_by.name(), app.rows()[0].label()), ("sockets", chosen), "4000 TIME-WAITs");
    assert_eq!(app.chosen_port(), Some(0), "what is chosen moves along");
    press(&mut app, "sss");
    assert_eq!((app.ports_by.name(), first_port(&app)), ("port", Some(443)));
    press(&mut app, "r");
    assert_eq!(first_port(&app), None, "other is last, and so first when turned");
    press(&mut app, "/80\n");
    assert_eq!((app.rows().len(), first_port(&app), app.editing), (1, Some(8080), false));
    press(&mut app, "/x");
    assert_eq!((app.filter.as_str(), app.rows().len(), app.chosen_port()), ("80x", 0, None));
    press(&mut app, "\u{8}\u{1b}");
    assert_eq!(app.rows().len(), 3);
    assert_eq!(app.phase, Phase::CloseWait);
    press(&mut app, "p");
    assert_eq!(app.phase, Phase::LastAck);
    press(&mut app, "/q");
    assert_eq!(app.filter, "q", "a letter like any other while one writes");
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), AppStep::Quit);
    press(&mut app, "\n");
    assert_eq!(app.key(KeyEvent::from(KeyCode::Char('q'))), AppStep::Quit);
}

#[test]
fn one_goes_down_to_a_socket_and_back() {
    let mut app = app();
    press(&mut app, "\n");
    let label = PortLabel { side: Side::Server, port: Some(8080) };
    assert_eq!((app.view, app.wanted(), app.sockets.is_none()), (View::Sockets(label), Some(label), true));
    press(&mut app, "\njkG");
    assert_eq!(app.view, View::Sockets(label), "there is none yet");
    app.receive(sockets(PortLabel { side: Side::Client, port: None }));
    assert!(app.sockets.is_none(), "the answer to another question");
    app.receive(sockets(label));
    assert_eq!(
        app.socket_rows().iter().map(|socket| socket.cookie.0).collect::<Vec<_>>(),
        [2, 1],
        "the oldest first"
    );
    press(&mut app, "/[7]\n\n");
    assert_eq!(app.view, View::Socket(label, Cookie(1)));
    press(&mut app, "j\n\u{1b}");
    assert_eq!((app.view, app.socket_rows().len()), (View::Sockets(label), 1));
    press(&mut app, "\u{1b}");
    assert_eq!((app.view, app.wanted(), app.filter.as_str()), (View::Ports, None, ""));
}

#[test]
fn trouble_is_shown_until_the_agent_answers() {
    let mut app = app();
    app.receive(Update::Trouble(Failure::new("agent at /x", "no answer", "")));
    assert_eq!(app.trouble.as_deref(), Some("tcpclose: agent at /x: no answer"));
    app.receive(Update::Ports(Box::new(document())));
    assert_eq!(app.trouble, None);
}

#[test]
fn the_other_ports_are_those_without_a_name() {
    let ports = document().ports;
    let socket = StuckSocket { side: Side::Client, port: 443, ..socket(1, &[]) };
    let other = PortLabel { side: Side::Client, port: None };
    assert!(order::is_of(&socket, other, &ports));
    let named = StuckSocket { side: Side::Server, port: 8080, ..socket };
    assert!(!order::is_of(&named, PortLabel { side: Side::Server, port: None }, &ports));
    assert!(order::is_of(&named, PortLabel { side: Side::Server, port: Some(8080) }, &ports));
}
