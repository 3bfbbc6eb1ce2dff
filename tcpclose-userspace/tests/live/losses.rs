//! What a reconcile makes good, in two network namespaces: after a ring of one page has overflowed under load, the count
//! of what was lost is exact, and every gauge equals `ss` again. And that it mends nothing where nothing was lost.

use crate::common;
use crate::namespaces::named;

use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Agent, HOOKS, Metrics, free_port};
use named::{Named, Service};
use rustix::process::Signal;
use socket2::SockRef;

/// Of each namespace.
const CLOSE_WAITS: usize = 100;
const TIME_WAITS: usize = 1500;
/// A reconcile and what stretches it on a machine that does something else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the probe has made, by what the agent says of it: records taken, lost in the ring, and runs that the kernel left
/// out.
fn made(metrics: &Metrics) -> f64 {
    let lost = |stage| metrics.sum("tcpclose_events_lost_total", &[("stage", stage)]);
    metrics.sum("tcpclose_events_received_total", &[]) + lost("ring") + lost("recursion")
}

#[test]
#[ignore = "needs root"]
fn an_overflow_is_counted_exactly_and_corrected_in_every_namespace() {
    let namespaces = [Named::new("lossy"), Named::new("lossier")];
    let mut services = namespaces.each_ref().map(|netns| Service::listen(netns, free_port()));
    let ports = services.each_ref().map(Service::port);
    let names = ports.map(|port| format!("--name-port={port}"));
    let arguments = [names[0].as_str(), names[1].as_str(), "--reconcile-interval", "2s"];
    for hook in HOOKS {
        let arguments = [&arguments[..], &["--state-hook", hook]].concat();
        let whole = Agent::start(&arguments);
        let starved = Agent::start(&[&arguments[..], &["--ring-size", "4K"]].concat());
        // Other traffic of the host counts too: what one agent has seen before and after the other's look brackets it.
        let look = || (made(&whole.metrics()), made(&starved.metrics()), made(&whole.metrics()));
        let before = look();
        // Half of it with nobody to take records: that overflows one page however fast the agent is.
        starved.signal(Signal::STOP);
        close_half(&namespaces, &mut services);
        starved.signal(Signal::CONT);
        close_half(&namespaces, &mut services);
        let after = look();
        let (least, most) = (after.0 - before.2, after.2 - before.0);
        let counted = after.1 - before.1;
        let metrics = starved.metrics();
        let lost = metrics.sum("tcpclose_events_lost_total", &[("stage", "ring")]);
        println!("{hook}: {lost} of {counted} records lost; the whole ring has {least} to {most}");
        assert!(lost > 0.0, "the ring did not overflow");
        assert_eq!(whole.metrics().sum("tcpclose_events_lost_total", &[("stage", "ring")]), 0.0);
        // Of the whole ring only: a starved agent has unseen phases for what the ring lost.
        let missed = whole.metrics().sum("tcpclose_unseen_phases_total", &[("why", "lost")]);
        assert!(least - missed <= counted && counted <= most + missed, "{counted}, not {least} to {most}");

        let begun = Instant::now();
        for (netns, port) in namespaces.iter().zip(ports) {
            for (state, ss) in
                [("close_wait", "close-wait"), ("time_wait", "time-wait"), ("fin_wait_2", "fin-wait-2")]
            {
                let of = [("state", state), ("port", &*port.to_string())];
                let gauge = |metrics: &Metrics| metrics.sum("tcpclose_sockets", &of) as usize;
                let metrics =
                    starved.metrics_when(PATIENCE, &format!("{state} of {port} equals ss"), |metrics| {
                        gauge(metrics) == netns.ss(ss, port)
                    });
                println!("{hook}: {state} of {}: {}", netns.name, gauge(&metrics));
            }
        }
        println!("{hook}: equal after {:.1?}", begun.elapsed());
        for service in &mut services {
            service.half_closed.clear();
        }
    }
}

/// Half of the closes of each namespace, in both at once.
fn close_half(namespaces: &[Named], services: &mut [Service]) {
    std::thread::scope(|scope| {
        for (netns, service) in namespaces.iter().zip(services) {
            scope.spawn(move || service.close(netns, CLOSE_WAITS / 2, TIME_WAITS / 2));
        }
    });
}

/// One in a hundred leaves a TIME-WAIT; the others are over for both programs at once, with a RST behind the FIN.
#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_million_closes_without_loss_leave_nothing_to_mend() {
    const ALL: usize = 1_000_000;
    let namespaces = [Named::new("million"), Named::new("more")];
    let services = namespaces.each_ref().map(|netns| Service::listen(netns, free_port()));
    let agent = Agent::start(&["--ring-size", "64M", "--reconcile-interval", "2s"]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (netns, service) in namespaces.iter().zip(&services) {
            scope.spawn(move || {
                netns.inside(|| {
                    for nth in 0..ALL / 2 {
                        let (client, server) = service.connect();
                        client.shutdown(Shutdown::Write).unwrap();
                        drop(server);
                        if nth % 100 != 0 {
                            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                        }
                    }
                });
            });
        }
    });
    println!("{ALL} connections in {:.0?}", begun.elapsed());
    // Two reconciles more.
    std::thread::sleep(Duration::from_secs(10));
    let metrics = agent.metrics();
    let missed = metrics.missed_by_the_kernel();
    let corrections = metrics.sum("tcpclose_reconcile_corrections_total", &[]) as usize;
    println!("{corrections} corrections, {missed} missed by the kernel");
    assert!(corrections <= missed, "{}", metrics.text);
}
