//! An agent that is in another network namespace than `tcpclose verify`, and a namespace whose table of TIME-WAITs is full.

use super::*;

/// Closes in `netns`, client first, at some hundred a second until told to stop. Returns how many.
fn client_closes(netns: &Named, stop: &AtomicBool) -> u64 {
    netns.inside(|| {
        let listener = listen().0;
        let mut made = 0;
        while made < 50_000 && !stop.load(Ordering::Relaxed) {
            one_close(&listener, 0);
            made += 1;
            sleep(Duration::from_millis(1));
        }
        made
    })
}

/// Where the kernel has no room for a minisocket nothing tells the agent on the `diag` backend, until a dump does.
#[test]
#[ignore = "needs root"]
fn a_full_table_of_time_waits_is_an_explanation() {
    let _alone = alone();
    let full = Named::new("full");
    full.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "20").unwrap());
    // More are skipped between two dumps than one looks up; a request looks up all.
    let agent = Agent::start(&["--time-wait", "diag", "--dump-interval", "30s"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| client_closes(&full, &stop));
        // Right after a dump both can have the same number.
        let explained = (0..LOOKS).any(|_| is_explained(&agent));
        stop.store(true, Ordering::Relaxed);
        println!("{} connections", load.join().unwrap());
        assert!(explained, "both had the same number of TIME-WAITs in each of {LOOKS} looks");
    });
}

const LOOKS: usize = 5;

/// Whether a look finds fewer TIME-WAITs in the kernel than the agent has, and says why; if not, then as many.
fn is_explained(agent: &Agent) -> bool {
    // Whatever else can be an excuse comes from tests that make namespaces meanwhile.
    let output = without_departures(|| verify(&agent.socket(), &["--for", "6s", "--json"]).output().unwrap());
    let document = document(&output);
    let overflows = document["counters"]["TCPTimeWaitOverflow"].as_u64().unwrap();
    println!("{overflows} overflows");
    assert!(overflows > 100);
    assert_eq!(flagged(&document), [""; 0]);
    assert_eq!(output.status.code(), Some(0));
    // What was closed within the margin of the last dump is not known by it, whenever that was.
    let time_wait = row(&document, "sockets in time_wait");
    if time_wait["verdict"] == "equal" {
        return false;
    }
    assert_eq!(time_wait["verdict"], "explained");
    assert!(time_wait["why"].as_str().unwrap().contains("TCPTimeWaitOverflow"), "{time_wait}");
    true
}

#[test]
#[ignore = "needs root"]
fn an_agent_in_another_network_namespace_is_held_against_its_own() {
    let _alone = alone();
    let other = Named::new("agents");
    let load = Load::start_in(Some(&other));
    for (netns, reaches_all) in [("all", true), ("current", false)] {
        let agent = other.inside(|| Agent::start(&["--netns", netns]));
        let output = verify(&agent.socket(), &["--for", "4s", "--json"]).output().unwrap();
        println!("--netns {netns}");
        let document = document(&output);
        assert_eq!(flagged(&document), [""; 0]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(document["netns"], other.inum);
        let printed = document["incomplete"].to_string();
        assert_eq!(printed.contains("does not dump every network namespace"), !reaches_all, "{printed}");

        let mut without = Command::new("setpriv");
        without.args([
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
            "--",
            BINARY,
            "verify",
            "--socket",
        ]);
        let output = without.arg(agent.socket()).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        println!("{printed}");
        assert_eq!((output.status.code(), printed.lines().count()), (Some(2), 1), "{printed}");
        assert!(printed.contains(&other.inum.to_string()) && printed.contains("CAP_SYS_ADMIN"), "{printed}");
    }
    load.end();
}
