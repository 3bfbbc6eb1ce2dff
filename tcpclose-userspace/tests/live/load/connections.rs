//! Many short connections over loopback, closed in every usual order.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Servers' ends that stay open behind their clients' FINs, a thread.
const LATE: usize = 16;

/// What was played on one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Connections of which the client closed first.
    pub by_client: usize,
    /// Connections of which the server closed first.
    pub by_server: usize,
}

impl Played {
    pub fn all(self) -> usize {
        self.by_client + self.by_server
    }
}

/// Ports that are listened at, one after the other from `first` on.
pub struct Load {
    listeners: Vec<TcpListener>,
}

impl Load {
    pub fn listen(first: u16, ports: u16) -> Self {
        let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        Self { listeners: (first..first + ports).map(listen).collect() }
    }

    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let listeners = self.listeners.iter();
        listeners.map(|listener| listener.local_addr().unwrap().port())
    }

    pub fn listeners(&self) -> &[TcpListener] {
        &self.listeners
    }

    /// Plays `connections`, `in_total` long at the least. On a slow machine stops after `patience`. What was played
    /// port by port, and how long it took.
    pub fn play(
        &self,
        connections: usize,
        in_total: Duration,
        patience: Duration,
    ) -> (Vec<Played>, Duration) {
        let begun = Instant::now();
        let played = scope(|scope| {
            let half = self.listeners.len() / 2;
            let (one, other) = self.listeners.split_at(half);
            let share = |of: &[TcpListener]| connections * of.len() / self.listeners.len();
            let other = scope.spawn(move || play(other, share(other), in_total, begun + patience));
            let mut played = play(one, share(one), in_total, begun + patience);
            played.extend(other.join().unwrap());
            played
        });
        (played, begun.elapsed())
    }

    /// Connections whose clients have closed; the servers' ends.
    pub fn half_closed(&self, connections: usize) -> Vec<TcpStream> {
        (0..connections).map(|_| connect(&self.listeners[0])).map(|(_, server)| server).collect()
    }
}

fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// `end`, once it has taken the FIN that was sent to it. The softirq that takes it can come late (ksoftirqd), and an end
/// that closes before is a second first one: a simultaneous close.
fn reported(mut end: TcpStream) -> TcpStream {
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
    end
}

fn play(listeners: &[TcpListener], connections: usize, in_total: Duration, until: Instant) -> Vec<Played> {
    let begun = Instant::now();
    let mut played = vec![Played::default(); listeners.len()];
    let mut late = VecDeque::new();
    for n in 0..connections {
        let due = in_total.mul_f64(n as f64 / connections as f64);
        if let Some(ahead) = due.checked_sub(begun.elapsed()).filter(|ahead| ahead.as_millis() > 0) {
            sleep(ahead);
        }
        if n % 256 == 0 && Instant::now() > until {
            break;
        }
        let at = n % listeners.len();
        let (client, server) = connect(&listeners[at]);
        // The order changes from round to round, so that every port has them all.
        match (n / listeners.len()) % 4 {
            0 | 1 => {
                drop(client);
                drop(reported(server));
                played[at].by_client += 1;
            }
            2 => {
                drop(server);
                drop(reported(client));
                played[at].by_server += 1;
            }
            // The peer's FIN comes when a FIN-WAIT-2 minisocket waits for it.
            _ => {
                drop(client);
                late.push_back(server);
                if late.len() > LATE {
                    late.pop_front();
                }
                played[at].by_client += 1;
            }
        }
    }
    played
}
