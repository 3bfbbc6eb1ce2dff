//! `tcpclose exhaustion`: what it says of a namespace with a hundred ports is what connect() then finds there.

use crate::common;
use crate::namespaces::named;

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY};
use named::{Named, ip};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tcpclose::linux::ephemeral_ports;
use tcpclose::linux::netns::{Descriptors, NetnsPath, find};
use tcpclose::report::exhaustion::port_table::EphemeralUse;

/// No loopback address: TIME-WAITs of it are not taken again by default.
const HERE: &str = "10.77.0.1";

/// A namespace with ports 20000 to 20099, five of them reserved.
fn narrow(name: &str) -> Named {
    let netns = Named::new(name);
    ip(&["-n", &netns.name, "addr", "add", &format!("{HERE}/32"), "dev", "lo"]);
    set(&netns, "ip_local_port_range", "20000 20099");
    set(&netns, "ip_local_reserved_ports", "20010-20014,30000");
    netns
}

fn set(netns: &Named, name: &str, value: &str) {
    netns.inside(|| fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap());
}

/// A server in the namespace, and its connections: the client's end, the server's.
struct Server<'a> {
    netns: &'a Named,
    listener: TcpListener,
    open: Vec<(TcpStream, TcpStream)>,
}

impl<'a> Server<'a> {
    fn new(netns: &'a Named, address: &str) -> Self {
        let listener = netns.inside(|| TcpListener::bind(address).unwrap());
        Self { netns, listener, open: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Connects once more; the error that connect() says.
    fn connect(&mut self) -> Result<(), i32> {
        let client = self.netns.inside(|| TcpStream::connect(self.address()));
        let client = client.map_err(|error| error.raw_os_error().unwrap())?;
        self.open.push((client, self.listener.accept().unwrap().0));
        Ok(())
    }

    /// Closes the last `n`, the client first.
    fn close(&mut self, n: usize) {
        for (client, mut server) in self.open.split_off(self.open.len() - n) {
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
    }
}

fn exhaustion(arguments: &[&str]) -> Value {
    let output = Command::new(BINARY).args(["exhaustion", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `document` says of connections to `server`.
fn tuple(document: &Value, server: &Server<'_>) -> Value {
    let (remote, netns) = (server.address().to_string(), server.netns.inum);
    let ours = |tuple: &&Value| tuple["remote"] == *remote && tuple["netns"] == netns;
    document["tuples"].as_array().unwrap().iter().find(ours).expect("its tuple").clone()
}

fn number(tuple: &Value, key: &str) -> u64 {
    tuple[key].as_u64().unwrap()
}

#[test]
#[ignore = "needs root"]
fn connect_fails_when_it_says_so_and_not_before() {
    let netns = narrow("narrow");
    let agents = Agent::on_each_hook(&[]);
    // bind() takes a port of the range for every tuple.
    let _bound = Server::new(&netns, &format!("{HERE}:0"));
    let mut server = Server::new(&netns, &format!("{HERE}:9000"));
    let mut second = Server::new(&netns, &format!("{HERE}:9001"));
    let mut v6 = Server::new(&netns, "[::1]:9002");
    for _ in 0..39 {
        server.connect().unwrap();
    }
    server.close(10);
    let pid = u64::from(std::process::id());
    let ask = |agent: &Agent| exhaustion(&["--socket", agent.socket().to_str().unwrap(), "--limit", "1000"]);
    for (hook, agent) in &agents {
        let tuple = tuple(&ask(agent), &server);
        println!("{hook}: {tuple}");
        assert_eq!(
            (number(&tuple, "ports"), number(&tuple, "reserved"), number(&tuple, "bound")),
            (95, 5, 1)
        );
        assert_eq!(
            (number(&tuple, "used"), number(&tuple, "time_wait"), number(&tuple, "reusable")),
            (40, 10, 0)
        );
        assert_eq!(tuple["used_ratio"], 40.0 / 95.0);
        assert_eq!(tuple["netns_owner"], "container");
        assert_eq!((tuple["local"].as_str(), tuple["netns_name"].as_str()), (Some(HERE), Some(&*netns.name)));
        assert_eq!((number(&tuple["owners"][0], "pid"), number(&tuple["owners"][0], "sockets")), (pid, 29));
        assert_eq!(
            (number(&tuple["closed_by"][0], "pid"), number(&tuple["closed_by"][0], "sockets")),
            (pid, 10)
        );
    }
    while server.open.len() < 83 {
        server.connect().unwrap();
    }
    let (_, agent) = &agents[0];
    let almost = tuple(&ask(agent), &server);
    assert_eq!((number(&almost, "used"), number(&almost, "ports")), (94, 95));
    server.connect().expect("one is left");
    for (hook, agent) in &agents {
        let full = tuple(&ask(agent), &server);
        assert_eq!(
            (number(&full, "used"), &full["used_ratio"], &full["seconds_left"]),
            (95, &1.0.into(), &0.0.into())
        );
        // Nothing on a host is fuller than full, and the metric is that of the last look.
        let container = [("netns_owner", "container")];
        assert_eq!(agent.metrics().sum("tcpclose_ephemeral_ports_used_ratio", &container), 1.0, "{hook}");
    }
    assert_eq!(server.connect(), Err(libc::EADDRNOTAVAIL));
    second.connect().expect("another remote port has all the ports");
    v6.connect().expect("another family too");
    let document = ask(agent);
    for other in [&second, &v6] {
        let tuple = tuple(&document, other);
        assert_eq!((number(&tuple, "used"), number(&tuple, "ports")), (2, 95), "{tuple}");
    }
    // Most of the ports are in TIME-WAIT when all is closed, and as much in use.
    server.close(84);
    let closed = tuple(&ask(agent), &server);
    assert_eq!((number(&closed, "used"), number(&closed, "time_wait")), (95, 94));
    assert_eq!(server.connect(), Err(libc::EADDRNOTAVAIL));

    let text =
        Command::new(BINARY).args(["exhaustion", "--limit", "3", "--socket"]).arg(agent.socket()).output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    println!("{text}");
    let line = text.lines().find(|line| line.contains(&format!("{HERE}:9000"))).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((&words[2..6], words[8]), (&["95", "95", "100", "94"][..], "none"), "{text}");
    assert!(text.contains("taken by bind() 1"), "{text}");
}

/// A socket bound to HERE and to a port of the kernel's choice.
fn bind(netns: &Named, local: &str) -> Result<Socket, i32> {
    let local: SocketAddr = format!("{local}:0").parse().unwrap();
    netns.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&local.into()).map_err(|error| error.raw_os_error().unwrap())?;
        Ok(socket)
    })
}

/// As Envoy and squid do: bind() fails while each destination has a third of the ports.
#[test]
#[ignore = "needs root"]
fn bind_fails_when_it_says_so_though_every_destination_has_ports_left() {
    let netns = narrow("bind");
    let agent = Agent::start(&[]);
    let servers = [9000, 9001, 9002].map(|port| Server::new(&netns, &format!("{HERE}:{port}")));
    let mut open = Vec::new();
    let error = loop {
        let server = &servers[open.len() % 3];
        match bind(&netns, HERE) {
            Ok(client) => {
                client.connect(&server.address().into()).unwrap();
                open.push((client, server.listener.accept().unwrap()));
            }
            Err(error) => break error,
        }
    };
    assert_eq!((error, open.len()), (libc::EADDRINUSE, 95));
    let socket = agent.socket();
    let document = exhaustion(&["--socket", socket.to_str().unwrap(), "--limit", "1000"]);
    for server in &servers {
        let tuple = tuple(&document, server);
        assert!(tuple["used_ratio"].as_f64().unwrap() < 0.4, "{tuple}");
    }
    let here = |local: &&Value| local["netns"] == netns.inum && local["local"] == HERE;
    let local = document["locals"].as_array().unwrap().iter().find(here).expect("the local address");
    println!("{local}");
    assert_eq!((number(local, "used"), number(local, "ports"), number(local, "destinations")), (95, 95, 3));
    assert_eq!((&local["used_ratio"], &local["netns_owner"]), (&1.0.into(), &"container".into()));
    // Nothing on a host is fuller than full, and the metric is that of the last look.
    let container = [("netns_owner", "container")];
    assert_eq!(agent.metrics().sum("tcpclose_ephemeral_ports_bind_ratio", &container), 1.0);
    let text = Command::new(BINARY).args(["exhaustion", "--limit", "1000", "--socket"]).arg(&socket).output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    assert!(text.contains("BIND TO") && text.contains("IP_BIND_ADDRESS_NO_PORT"), "{text}");
    // connect() takes no port of bind()'s, though nothing is connected to this destination.
    let mut other = Server::new(&netns, &format!("{HERE}:9003"));
    assert_eq!(other.connect(), Err(libc::EADDRNOTAVAIL));
    bind(&netns, "127.0.0.1").expect("another address has all the ports");
    // A port that is given back by one destination is free again for bind().
    let (client, (server, _)) = open.pop().unwrap();
    client.set_linger(Some(Duration::ZERO)).unwrap();
    drop((client, server));
    bind(&netns, HERE).expect("one is free again");
}

#[test]
#[ignore = "needs root"]
fn a_look_begins_where_the_most_sockets_are_and_counts_what_it_leaves_out() {
    let namespaces = [narrow("few"), narrow("many")];
    let mut servers = namespaces.each_ref().map(|netns| Server::new(netns, &format!("{HERE}:9000")));
    for (server, connections) in servers.iter_mut().zip([2, 20]) {
        (0..connections).for_each(|_| server.connect().unwrap());
    }
    let places = find(&Descriptors::NONE).unwrap().places;
    let ours: Vec<NetnsPath> = places
        .into_iter()
        .filter(|place| namespaces.iter().any(|netns| netns.inum == u64::from(place.inum)))
        .collect();
    let seen = |budget| {
        let port_use: EphemeralUse = ephemeral_ports::look(&ours, budget).unwrap();
        let inums = port_use.tables.iter().map(|ports| u64::from(ports.netns.inum)).collect::<Vec<_>>();
        (inums, port_use.left)
    };
    let [few, many] = namespaces.each_ref().map(|netns| netns.inum);
    assert_eq!(seen(Duration::ZERO), (vec![many], 1));
    assert_eq!(seen(Duration::from_secs(60)), (vec![many, few], 0));
}

#[test]
#[ignore = "needs root"]
fn a_time_wait_on_loopback_is_reusable_when_it_says_so() {
    let netns = narrow("reuse");
    let mut server = Server::new(&netns, "127.0.0.1:9000");
    let ask = || exhaustion(&["--no-agent", "--for", "0s", "--limit", "1000"]);
    while server.open.len() < 95 {
        server.connect().unwrap();
    }
    assert_eq!(server.connect(), Err(libc::EADDRNOTAVAIL), "in use, not in TIME-WAIT");
    server.close(95);
    let until = Instant::now() + Duration::from_secs(20);
    let reusable = loop {
        let tuple = tuple(&ask(), &server);
        assert_eq!((number(&tuple, "used"), number(&tuple, "time_wait")), (95, 95));
        if number(&tuple, "reusable") == 95 {
            break tuple;
        }
        assert!(Instant::now() < until, "{tuple}");
        sleep(Duration::from_millis(200));
    };
    assert_eq!(reusable["seconds_left"], Value::Null);
    // The kernel counts whole seconds in places.
    sleep(Duration::from_secs(1));
    set(&netns, "tcp_tw_reuse", "0");
    assert_eq!(number(&tuple(&ask(), &server), "reusable"), 0);
    assert_eq!(server.connect(), Err(libc::EADDRNOTAVAIL));
    set(&netns, "tcp_tw_reuse", "2");
    server.connect().expect("it takes one again");
}

#[test]
#[ignore = "needs root"]
fn without_an_agent_two_looks_make_a_rate() {
    let netns = narrow("rate");
    let mut server = Server::new(&netns, &format!("{HERE}:9000"));
    let command = Command::new(BINARY)
        .args(["exhaustion", "--no-agent", "--for", "3s", "--limit", "1000", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let command = std::thread::spawn(move || command.wait_with_output().unwrap());
    while !command.is_finished() && server.open.len() < 90 {
        server.connect().unwrap();
        sleep(Duration::from_millis(250));
    }
    let output = command.join().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tuple = tuple(&document, &server);
    println!("{tuple}");
    let rate = tuple["taken_per_second"].as_f64().unwrap();
    // One each 250 ms at the most.
    assert!(rate > 0.0 && rate <= 5.0, "{tuple}");
    assert_eq!(tuple["growth_per_second"], rate);
    let left = (95 - number(&tuple, "used")) as f64 / rate;
    assert!((tuple["seconds_left"].as_f64().unwrap() - left).abs() < 1e-6, "{tuple}");
}
