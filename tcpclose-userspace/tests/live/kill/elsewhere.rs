//! Sockets of other network namespaces.

use super::*;

/// A CLOSE-WAIT in a namespace with a name, one in our own, at the same port.
struct TwoNamespaces {
    other: Named,
    there: Service,
    here: Pair,
    port: u16,
    _listener: TcpListener,
}

impl TwoNamespaces {
    fn new(what: &str) -> Self {
        let other = Named::new(what);
        let (listener, port) = listen();
        let mut there = Service::listen(&other, port);
        there.close(&other, 1, 0);
        let here = Pair::new(&listener, port, b"");
        Self { other, there, here, port, _listener: listener }
    }

    fn lives_there(&self) -> bool {
        self.other.ss("close-wait", self.port) == 1
    }

    fn is_destroyed_there(&self) -> bool {
        let error = self.there.half_closed[0].take_error().unwrap();
        error.is_some_and(|error| error.kind() == ErrorKind::ConnectionAborted) && !self.lives_there()
    }

    fn run_there(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.other.name,
            BINARY,
            "kill",
            "--half-closed",
            "--older-than",
            BOUND,
        ]);
        command.args(["--port", &self.port.to_string(), "--no-agent"]).args(arguments).output().unwrap()
    }
}

#[test]
#[ignore = "needs root"]
fn a_socket_of_another_namespace_is_named_and_goes_and_ours_stays() {
    let mut two = TwoNamespaces::new("kill");
    grow_old();
    let printed = text(&without_agent(two.port, &[]));
    println!("{printed}");
    assert!(printed.contains("Would destroy 2 sockets") && printed.contains(&two.other.name), "{printed}");
    // Ours, and not the one there.
    let printed = text(&without_agent(two.port, &["--yes", "--netns", "current"]));
    assert!(printed.contains("destroyed 1 of 1") && !printed.contains(&two.other.name), "{printed}");
    two.here.assert_destroyed();
    assert!(two.lives_there());
    // The one there, and not ours.
    two.here = Pair::new(&two._listener, two.port, b"");
    grow_old();
    let done = two.run_there(&["--yes", "--netns", "current"]);
    assert!(text(&done).contains("destroyed 1 of 1"), "{done:?}");
    assert!(two.is_destroyed_there());
    two.here.assert_alive();
    // Both, each in its own.
    two.there.half_closed.clear();
    two.there.close(&two.other, 1, 0);
    grow_old();
    let printed = text(&without_agent(two.port, &["--yes"]));
    println!("{printed}");
    assert!(printed.contains("destroyed 2 of 2"), "{printed}");
    assert!(
        printed.contains(&format!("destroyed  127.0.0.1:{} in {}  ", two.port, two.other.name)),
        "{printed}"
    );
    two.here.assert_destroyed();
    assert!(two.is_destroyed_there());
}

#[test]
#[ignore = "needs root"]
fn an_agent_goes_into_the_namespace_of_the_socket() {
    for (hook, agent) in &Agent::on_each_hook(&["--allow-kill"]) {
        let mut two = TwoNamespaces::new(hook);
        grow_old();
        // The agent is to have found the namespace: a dump tells who neglects a socket.
        let until = Instant::now() + PATIENCE;
        while !text(&through(agent, two.port, &[])).contains("Would destroy 2 sockets") {
            assert!(Instant::now() < until, "{}", text(&through(agent, two.port, &[])));
            sleep(Duration::from_millis(100));
        }
        let printed = text(&through(agent, two.port, &["--yes"]));
        println!("{hook}: {printed}");
        assert!(printed.contains("destroyed 2 of 2") && printed.contains(&two.other.name), "{printed}");
        two.here.assert_destroyed();
        assert!(two.is_destroyed_there());
        let logged = format!("(net:[{}], cookie ", two.other.inum);
        agent.until_it_says_line(|line| line.contains("destroyed ") && line.contains(&logged));
    }
}

#[test]
#[ignore = "needs root"]
fn without_the_right_to_enter_it_is_refused_with_the_capabilitys_name() {
    let mut two = TwoNamespaces::new("closed");
    let setpriv = || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", BINARY]);
        command
    };
    grow_old();
    let done = setpriv()
        .args([
            "kill",
            "--half-closed",
            "--older-than",
            BOUND,
            "--no-agent",
            "--yes",
            "--port",
            &two.port.to_string(),
        ])
        .output()
        .unwrap();
    let printed = text(&done);
    println!("{printed}");
    assert!(printed.contains("destroyed 1 of 1") && printed.contains("CAP_SYS_ADMIN"), "{printed}");
    two.here.assert_destroyed();
    assert!(two.lives_there());
    // An agent that is to, and may not go there.
    let agent = match Agent::try_start_by(setpriv(), &["--allow-kill", "--stuck-after", BOUND]) {
        Ok(agent) => agent,
        Err(printed) => {
            return eprintln!("SKIPPED: this kernel loads no probe without CAP_SYS_ADMIN: {printed}");
        }
    };
    let mut document = stuck_in(&two);
    assert_eq!(document["sockets"].as_array().unwrap().len(), 1);
    let socket = document["sockets"][0].take();
    assert_eq!(socket["netns"], two.other.inum);
    let order = serde_json::json!({
        "schema": 1, "cookie": socket["cookie"], "local": socket["local"], "peer": socket["peer"],
        "netns": socket["netns"], "netns_id": socket["netns_id"], "state": "close_wait",
        "diagnoses": ["not_read", "not_closed"], "stuck_after_seconds": 0.3, "max_age_seconds": null,
    });
    let (status, body) =
        post_body(UnixStream::connect(agent.socket()).unwrap(), "/v1/kill", &order.to_string());
    println!("{status} {body}");
    assert_eq!(status, 200);
    let outcome: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(outcome["outcome"], "refused");
    assert!(outcome["why"].as_str().unwrap().contains("CAP_SYS_ADMIN is needed to enter"), "{outcome}");
    assert!(two.lives_there());
}

/// `stuck --json` without an agent, for all namespaces.
fn stuck_in(two: &TwoNamespaces) -> Value {
    let mut command = Command::new(BINARY);
    command.args(["stuck", "--no-agent", "--json", "--older-than", BOUND, "--port", &two.port.to_string()]);
    serde_json::from_str(&text(&command.output().unwrap())).unwrap()
}

#[test]
#[ignore = "needs root"]
fn without_the_capability_it_is_one_line_and_nothing_is_harmed() {
    let (listener, port) = listen();
    let pair = Pair::new(&listener, port, b"");
    grow_old();
    let powerless = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--bounding-set=-net_admin",
            BINARY,
            "kill",
            "--half-closed",
            "--older-than",
            BOUND,
            "--no-agent",
        ]);
        command.args(["--port", &port.to_string()]).args(arguments).output().unwrap()
    };
    assert!(text(&powerless(&[])).contains("Would destroy 1 socket ("));
    assert!(refusal(&powerless(&["--yes"])).contains("CAP_NET_ADMIN"));
    let agent = Command::new("setpriv")
        .args(["--bounding-set=-net_admin", BINARY, "agent", "--allow-kill", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(refusal(&agent).contains("--allow-kill: this process lacks CAP_NET_ADMIN"));
    pair.assert_alive();
}
