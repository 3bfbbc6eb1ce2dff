//! Namespaces to which no process and no name leads: one that a descriptor holds is found by it; one that nothing holds but
//! its sockets is known by records, and that is said.

use std::fs::File;

use super::*;

#[test]
#[ignore = "needs root"]
fn what_only_a_descriptor_holds_is_dumped_and_what_only_sockets_hold_is_reported() {
    let held = Named::new("held");
    let mut service = Service::listen(&held, free_port());
    let port = service.port();
    service.close(&held, 7, 3);
    let descriptor = File::open(held.file()).unwrap();
    held.delete();
    let names = named_ports(&[port]);
    let arguments = [names[0].as_str(), "--reconcile-interval", "1s"];
    let agents = Agent::on_each_hook(&arguments);
    let listed = |agent: &Agent| json(&agent.stuck(&["--older-than", "1ms", "--json"]));
    let inode = format!("net:[{}]", held.inum);
    for (hook, agent) in &agents {
        let metrics = agent.metrics();
        assert_eq!(
            (gauge(&metrics, port, "close_wait"), gauge(&metrics, port, "time_wait")),
            (7, 3),
            "{hook}"
        );
        let document = listed(agent);
        let sockets = at_port(&document, port);
        assert_eq!(sockets.len(), 7, "{hook}");
        assert!(
            sockets.iter().all(|socket| socket["netns"] == held.inum && socket["diagnosis"] == "not_closed")
        );
        assert!(!incomplete(&document).contains(&inode), "{hook}: {document}");
    }
    let words = ["stuck", "--no-agent", "--older-than", "1ms", "--json"];
    let snapshot = Command::new(BINARY).args(words).output().unwrap();
    let snapshot = json(&snapshot);
    assert_eq!(at_port(&snapshot, port).len(), 7, "{}", snapshot["incomplete"]);

    // The listener's namespace is that of the sockets that it accepts: the thread that connects needs a way in.
    let more = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            named::enter(std::path::Path::new(&format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&descriptor)
            )));
            let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            (client, service.accept())
        });
        inside.join().unwrap()
    });
    drop(descriptor);
    let reconciled =
        |agent: &Agent| agent.metrics().sum("tcpclose_reconcile_last_success_timestamp_seconds", &[]);
    for (hook, agent) in &agents {
        for _ in 0..3 {
            let last = reconciled(agent);
            agent.metrics_when(PATIENCE, "a round", |metrics| {
                metrics.sum("tcpclose_reconcile_last_success_timestamp_seconds", &[]) > last
            });
        }
        let metrics = agent.metrics_when(PATIENCE, "it is said", |metrics| {
            metrics.select("tcpclose_netns_info", &[("dumped", "found")]).next().is_some()
        });
        assert_eq!(gauge(&metrics, port, "close_wait"), 7, "{hook}: they are there");
    }
    // What happens there now, records tell.
    let (client, server) = more;
    drop(client);
    for (hook, agent) in &agents {
        agent.metrics_when(PATIENCE, "an eighth", |metrics| gauge(metrics, port, "close_wait") == 8);
        let document = listed(agent);
        let sockets = at_port(&document, port);
        assert_eq!(sockets.len(), 8, "{hook}");
        assert!(
            sockets.iter().all(|socket| socket["netns"] == held.inum && socket["diagnosis"] == "unknown")
        );
        // The iterator over files finds owners by cookie. The tracepoint tells none: a socket has it if it was dumped once.
        let own = |socket: &Value| socket["owners"][0]["pid"] == std::process::id();
        let named = sockets.iter().filter(|socket| own(socket)).count();
        assert_eq!(named, if *hook == "btf" { 8 } else { 7 }, "{hook}: {document}");
        let printed = incomplete(&document);
        // The number is that of all such namespaces, those of other tests among them.
        let sockets: Option<u64> = printed.split(" sockets are").next().and_then(|before| {
            before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
        });
        let exact = printed.matches("net:[").count() == 1;
        let right = sockets.is_some_and(|sockets| if exact { sockets == 8 } else { sockets >= 8 });
        assert!(printed.contains(&inode) && right, "{hook}: {printed}");
    }
    drop(server);
    service.abort();
    for (hook, agent) in &agents {
        let metrics = agent.metrics_when(PATIENCE, "all have ended", |metrics| {
            ["close_wait", "last_ack"].iter().all(|state| gauge(metrics, port, state) == 0)
        });
        let aborted = [("port", &*port.to_string()), ("outcome", "aborted")];
        assert_eq!(metrics.sum("tcpclose_closes_total", &aborted), 7.0, "{hook}: {}", metrics.text);
    }
}
