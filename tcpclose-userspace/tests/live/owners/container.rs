//! A real container: podman, from a root directory with nothing in it but busybox.

use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::common::free_port;
use super::common::podman::Podman;
use super::stage::{Askers, only};

/// Runs `command` of busybox in the host's network namespace and in others of its own, and returns its id. An error says
/// why that cannot be here.
fn run(command: &[&str]) -> Result<(Podman, String), String> {
    let mut podman = Podman::new()?;
    let root = podman.busybox()?;
    let options = ["--network=host", "--rootfs", root.to_str().unwrap(), "/bin/busybox"];
    let id = podman.run(&[&options, command].concat())?;
    Ok((podman, id))
}

#[test]
#[ignore = "needs root"]
fn a_real_containers_process_is_named_with_its_container() {
    let askers = Askers::start();
    let port = free_port();
    // Its child gets the connection as its standard input, and never reads.
    let command = ["nc", "-l", "-p", &port.to_string(), "-e", "/bin/busybox", "sleep", "1000"];
    let (_podman, id) = match run(&command) {
        Ok(running) => running,
        Err(why) => {
            eprintln!("SKIPPED: no container runs here: {why}");
            return;
        }
    };
    let until = Instant::now() + PATIENCE;
    let client = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(client) => break client,
            Err(why) => assert!(Instant::now() < until, "the container does not listen: {why}"),
        }
        sleep(Duration::from_millis(50));
    };
    client.shutdown(Shutdown::Write).unwrap();
    let has_owner = |answers: &[(&str, tcpclose::report::sockets::SocketsDocument)]| {
        answers.iter().all(|(_, document)| document.sockets.iter().any(|socket| socket.inode != 0))
    };
    while !has_owner(&askers.ask(port)) {
        assert!(Instant::now() < until, "no socket in CLOSE-WAIT");
    }
    for (asker, document) in askers.ask(port) {
        let owners = &only(&document).owners;
        assert!(!owners.is_empty(), "{asker}");
        for owner in owners {
            println!("{asker}: {owner:?}");
            assert_eq!(owner.place.container_id, Some(format!("podman://{id}")), "{asker}");
            assert_eq!(owner.exe.as_deref(), Some("/bin/busybox"), "{asker}");
            assert_eq!((&owner.place.unit, &owner.place.pod_uid), (&None, &None), "{asker}");
        }
    }
}
