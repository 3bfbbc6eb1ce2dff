//! The image of `deploy/Containerfile` in a container, with the rights that the DaemonSet gives its pod: an agent in a
//! network namespace of its own, with the runtime's usual filter of system calls.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};

use super::{arguments, container, daemonset, list, text, workspace};
use crate::common::podman::Podman;
use crate::common::{BINARY, free_port};
use crate::namespaces::named::{Named, enter};

const PATIENCE: Duration = Duration::from_secs(60);
/// The pod's address: for examples, and on no other interface than this namespace's (RFC 5737).
const ADDRESS: &str = "192.0.2.5";

/// A node: the folder that its pods share, and the image.
struct Node {
    podman: Podman,
    pod: Named,
    run: PathBuf,
}

impl Node {
    fn new() -> Result<Self, String> {
        let podman = Podman::new()?;
        let run = podman.folder().join("node");
        fs::create_dir(&run).unwrap();
        let pod = Named::new("pod");
        let address = Command::new("ip")
            .args(["-n", &pod.name, "address", "add", &format!("{ADDRESS}/32"), "dev", "lo"])
            .status();
        assert!(address.unwrap().success());
        let node = Self { podman, pod, run };
        node.build()?;
        Ok(node)
    }

    /// Builds the image, on one that has the libraries of the binary under test.
    fn build(&self) -> Result<(), String> {
        let context = self.podman.folder().join("context");
        // A static binary has no libraries to be put there.
        fs::create_dir_all(context.join("base")).unwrap();
        let libraries = Command::new("ldd").arg(BINARY).output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        let libraries = libraries.split_ascii_whitespace().filter(|word| word.starts_with('/'));
        for library in libraries.map(Path::new) {
            let copy = context.join("base").join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(library, copy).unwrap();
        }
        fs::write(context.join("Basefile"), "FROM scratch\nCOPY base/ /\n").unwrap();
        fs::copy(BINARY, context.join("tcpclose")).unwrap();
        let base = context.join("Basefile");
        let file = workspace("deploy/Containerfile");
        for (tag, file, arguments) in
            [("base", &base, &[][..]), ("tcpclose", &file, &["--build-arg=BASE=localhost/base"])]
        {
            let mut build = self.podman.command();
            build.args(["build", "--isolation=chroot", "--pull=never", "--tag", &format!("localhost/{tag}")]);
            let built = build.arg("--file").arg(file).args(arguments).arg(&context).output().unwrap();
            if !built.status.success() {
                return Err(String::from_utf8_lossy(&built.stderr).into_owned());
            }
        }
        Ok(())
    }

    /// Starts the agent as the DaemonSet does, with these arguments more, and waits until it is ready.
    fn agent(&mut self, more: &[&str]) -> Result<String, String> {
        let daemonset = daemonset();
        let container = container(&daemonset);
        let context = &container["securityContext"];
        let mut options = vec![
            format!("--network=ns:{}", self.pod.file().display()),
            // As containerd and CRI-O give it to a pod that is not privileged, where cgroups are v2.
            "--cgroupns=private".to_owned(),
            format!("--user={}:{}", context["runAsUser"], context["runAsGroup"]),
            format!("--volume={}:{}", self.run.display(), text(&container["volumeMounts"][0]["mountPath"])),
        ];
        let switch = |on: &Value, option: &str| (on == true).then(|| option.to_owned());
        options.extend(switch(&daemonset["spec"]["template"]["spec"]["hostPID"], "--pid=host"));
        options.extend(switch(&context["readOnlyRootFilesystem"], "--read-only"));
        options.push("--read-only-tmpfs=false".to_owned());
        for (verb, which) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
            options.extend(
                list(&context["capabilities"][verb]).iter().map(|one| format!("{which}={}", text(one))),
            );
        }
        options.push("localhost/tcpclose".to_owned());
        options.extend(arguments(container, ADDRESS));
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let id = self.podman.run(&options)?;
        let until = Instant::now() + PATIENCE;
        while !self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(Instant::now() < until, "the agent is not ready: {}", self.printed(&id));
            sleep(Duration::from_millis(100));
        }
        println!("{}", self.printed(&id));
        Ok(id)
    }

    fn printed(&self, id: &str) -> String {
        let output = self.podman.command().args(["logs", id]).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// `GET path` at the pod's address; `None` while nobody serves there.
    fn get(&self, path: &str) -> Option<String> {
        let address: SocketAddr = format!("{ADDRESS}:9923").parse().unwrap();
        let mut stream = self.pod.inside(|| TcpStream::connect(address)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

/// The one socket of the network namespace `inum` that `stuck` lists.
fn only(output: &Output, inum: u64) -> StuckSocket {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!document.incomplete.iter().any(|why| why.contains("CAP_")), "{:?}", document.incomplete);
    let there = document.sockets.iter().filter(|socket| u64::from(socket.netns) == inum);
    let [socket] = there.collect::<Vec<_>>()[..] else { panic!("{document:?}") };
    socket.clone()
}

#[test]
#[ignore = "needs root"]
fn with_the_rights_of_its_pod_the_agent_finds_what_is_stuck_in_another_container() {
    let started = Node::new().and_then(|mut node| {
        let agent = node.agent(&[])?;
        Ok((node, agent))
    });
    let (mut node, agent) = match started {
        Ok(started) => started,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "no container runs here: {why}");
            return eprintln!("SKIPPED: no container runs here: {why}");
        }
    };
    let pid = node.podman.inspect(&agent, "{{.State.Pid}}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // What it may have at the most; a filter is in force; and its cgroup namespace is its own.
    let most = [2, 19, 21, 38, 39].iter().fold(0u64, |set, bit| set | 1 << bit);
    let permitted = u64::from_str_radix(&line("CapPrm:"), 16).unwrap();
    assert!(permitted != 0 && permitted & !most == 0, "{permitted:x}");
    assert_eq!(line("Seccomp:"), "2");
    let cgroupns = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/cgroup")).unwrap().ino();
    assert_ne!(cgroupns(&pid), cgroupns("self"));

    // Another container, whose program never reads.
    let port = free_port();
    let root = node.podman.busybox().unwrap();
    let served = ["nc", "-l", "-p", &port.to_string(), "-e", "/bin/busybox", "sleep", "1000"];
    let options =
        ["--network=none", "--user=65534:65534", "--rootfs", root.to_str().unwrap(), "/bin/busybox"];
    let other = node.podman.run(&[&options, &served[..]].concat()).unwrap();
    let netns = PathBuf::from(format!("/proc/{}/ns/net", node.podman.inspect(&other, "{{.State.Pid}}")));
    let inum = fs::metadata(&netns).unwrap().ino();
    let connect = || {
        std::thread::scope(|scope| {
            let connect = || {
                enter(&netns);
                TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            };
            scope.spawn(connect).join().unwrap()
        })
    };
    let until = Instant::now() + PATIENCE;
    let client = loop {
        match connect() {
            Ok(client) => break client,
            Err(why) => assert!(Instant::now() < until, "the container does not listen: {why}"),
        }
        sleep(Duration::from_millis(50));
    };
    client.shutdown(Shutdown::Write).unwrap();

    let question = ["stuck", "--older-than", "0s", "--port", &port.to_string(), "--json"];
    let from_the_node = |node: &Node| {
        let socket = node.run.join("tcpclose.sock");
        Command::new(BINARY).args(question).arg("--socket").arg(socket).output().unwrap()
    };
    // Until the connection is accepted and the agent's search has found the namespace, which is a few seconds old.
    let known = |output: &Output| {
        let socket = only(output, inum);
        socket.inode != 0 && !socket.owners.is_empty()
    };
    while !known(&from_the_node(&node)) {
        assert!(Instant::now() < until, "{:?}", only(&from_the_node(&node), inum));
        sleep(Duration::from_millis(50));
    }
    // As `kubectl exec` does it.
    let mut exec = node.podman.command();
    exec.args(["exec", &agent, "/usr/bin/tcpclose"]).args(question);
    for output in [from_the_node(&node), exec.output().unwrap()] {
        let socket = only(&output, inum);
        assert!(!socket.owners.is_empty(), "{socket:?}");
        for owner in &socket.owners {
            assert_eq!(owner.place.container_id, Some(format!("podman://{other}")));
            assert_eq!(owner.exe.as_deref(), Some("/bin/busybox"));
        }
        assert!(socket.age.exact, "{socket:?}");
        println!("{socket:?}");
    }
    assert!(node.get("/metrics").unwrap().contains("tcpclose_sockets{state=\"close_wait\",side=\"server\""));

    // The next one, when the first has gone: what it knew has stayed. The classic tracepoint needs nothing more.
    node.podman.stop(&agent);
    let next = node.agent(&["--state-hook=tracepoint"]).unwrap();
    let after = only(&from_the_node(&node), inum);
    assert!(after.age.exact, "{after:?}");
    node.podman.stop(&next);
    // It leaves neither a socket nor a mount, and what stays is for root's eyes.
    assert!(!node.run.join("tcpclose.sock").exists());
    for file in fs::read_dir(&node.run).unwrap().map(|file| file.unwrap().metadata().unwrap()) {
        assert_eq!((file.uid(), file.mode() & 0o777), (0, 0o600));
    }
}
