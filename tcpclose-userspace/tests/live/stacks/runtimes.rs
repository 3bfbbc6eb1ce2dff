//! Languages whose programs are not as the compiler of C makes them: names in their own words, code that no file has, and loops
//! that serve all sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use tcpclose::report::stacks::{Interpreter, Place, place};
use tcpclose_common::stack::Moment;

use super::common::free_port;
use super::{
    Agent, COUNT, Leaker, PATIENCE, answer, arm, asked_agent, compile, document, document_of, expect_named,
    fixture, is_at, leak_by, places, post, stacks,
};

/// Runs a program that opens sockets while it is armed, and expects the functions that open them.
fn expect_openers(who: &str, agent: &Agent, program: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = Command::new(program);
    command.arg(port.to_string());
    let mut leaker = Leaker::start_by(command, COUNT);
    arm(agent, &leaker);
    leaker.go();
    let (all, accepted) = mpsc::channel();
    std::thread::spawn(move || listener.incoming().take(COUNT).for_each(|stream| all.send(stream).unwrap()));
    // This side closes them, the other does not.
    accepted.iter().take(COUNT).for_each(|stream| drop(stream.unwrap()));
    let document = document_of(agent, COUNT, Moment::Opened, |socket| socket.peer.port() == port);
    expect_named(who, &document, Moment::Opened);
}

/// A program that is not there is what a test says that it is skipped for.
fn lacks(program: &str, argument: &str) -> bool {
    let runs = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let lacks = !runs.is_ok_and(|status| status.success());
    if lacks {
        eprintln!("SKIPPED: no {program} here (`cargo xtask setup --for test`)");
    }
    lacks
}

#[test]
#[ignore = "needs root"]
fn methods_of_a_class_are_named() {
    if lacks("g++", "--version") {
        return;
    }
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(["-O2", "-g", "-std=c++17"]);
    let program = compile(compiler, "leak.cpp", folder.path());
    let (_leaker, document) = leak_by(&agent, Command::new(&program));
    expect_named("C++", &document, Moment::EndRead);
    assert!(places(&document, Moment::EndRead)[0].0.contains("shop::Pool::leak_"));
    expect_openers("C++", &agent, &program);
}

#[test]
#[ignore = "needs root"]
fn long_a_leak_in_go_is_named() {
    if lacks("go", "version") {
        return;
    }
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("leaker");
    let mut compiler = Command::new("go");
    compiler.args(["build", "-o"]).arg(&program).arg(fixture("leak.go")).current_dir(folder.path());
    compiler
        .env("GOCACHE", folder.path().join("cache"))
        .env("GOFLAGS", "-mod=mod")
        .env("GOTOOLCHAIN", "local");
    assert!(compiler.status().unwrap().success());
    let (_leaker, document) = leak_by(&agent, Command::new(&program));
    expect_named("Go", &document, Moment::EndRead);
    expect_openers("Go", &agent, &program);
}

/// Compiles a class, and returns the command that runs it.
fn java(class: &str, classpath: &str, folder: &Path) -> Command {
    let paths = format!("{}:{classpath}", folder.display());
    let mut compiler = Command::new("javac");
    compiler.args(["-cp", &paths, "-d"]).arg(folder).arg(fixture(&format!("{class}.java")));
    assert!(compiler.status().unwrap().success());
    let mut command = Command::new("java");
    command.args(["-XX:+PreserveFramePointer", "-XX:CompileCommand=quiet"]);
    command.arg(format!("-XX:CompileCommand=dontinline,{class}*.leak_*")).args(["-cp", &paths, class]);
    command
}

/// Has a JVM list its compiled methods.
fn list_methods(leaker: &Leaker) {
    let mut jcmd = Command::new("jcmd");
    jcmd.args([&leaker.child.id().to_string(), "Compiler.perfmap"]);
    let output = jcmd.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The list of a runtime's functions, removed when dropped.
struct PerfMap(u32);

impl Drop for PerfMap {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(format!("/tmp/perf-{}.map", self.0));
    }
}

#[test]
#[ignore = "needs root"]
fn long_a_leak_in_java_is_named() {
    if lacks("javac", "-version") {
        return;
    }
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let mut leaker = Leaker::start_by(java("Leak", "", folder.path()), COUNT);
    let _list = PerfMap(leaker.child.id());
    arm(&agent, &leaker);
    // Without a list it is the JVM's; what is inside, nobody says.
    leaker.leak();
    let before = document(&agent, leaker.port);
    let inside = Place::Inside(Interpreter::Jvm);
    println!("Java without a list: {:?}", places(&before, Moment::EndRead));
    assert!(stacks(&before, Moment::EndRead).all(|stack| place(stack) == inside));
    drop(leaker);

    leaker = Leaker::start_by(java("Leak", "", folder.path()), COUNT);
    let _list = PerfMap(leaker.child.id());
    list_methods(&leaker);
    arm(&agent, &leaker);
    leaker.leak();
    let document = document(&agent, leaker.port);
    expect_named("Java", &document, Moment::EndRead);
}

/// A Python that lists its functions.
pub fn python() -> Option<&'static str> {
    let can = |python: &&str| {
        let lists = "import sys; sys.exit(not hasattr(sys, 'activate_stack_trampoline'))";
        let runs = Command::new(python).args(["-c", lists]).stderr(Stdio::null()).status();
        runs.is_ok_and(|status| status.success())
    };
    let found = ["python3.14", "python3.13", "python3.12", "python3"].into_iter().find(can);
    if found.is_none() {
        eprintln!("SKIPPED: no Python 3.12 or later here (`cargo xtask setup --for test`)");
    }
    found
}

#[test]
#[ignore = "needs root"]
fn long_a_leak_in_python_is_named() {
    let Some(python) = python() else { return };
    let agent = asked_agent();
    let mut command = Command::new(python);
    command.args(["-X", "perf"]).arg(fixture("leak.py"));
    let (leaker, document) = leak_by(&agent, command);
    let _list = PerfMap(leaker.child.id());
    expect_named("Python", &document, Moment::EndRead);
    // Without a list it is the interpreter's; what is inside, nobody says.
    for python in [python, "python3"] {
        let mut command = Command::new(python);
        command.arg(fixture("leak.py"));
        let (_leaker, document) = leak_by(&agent, command);
        println!("{python} without a list: {:?}", places(&document, Moment::EndRead));
        let inside = Place::Inside(Interpreter::Python);
        let other = stacks(&document, Moment::EndRead).find(|stack| place(stack) != inside);
        assert!(other.is_none(), "{other:?}");
    }
}

/// Half-closes connections to a server that keeps them.
fn half_closed(port: u16) -> Vec<TcpStream> {
    let half_closed = |_| {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    (0..COUNT).map(half_closed).collect()
}

/// The loop itself reads the ends: it must not be what the leak is blamed on.
fn expect_loop(who: &str, agent: &Agent, leaker: &Leaker) {
    let document = document_of(agent, COUNT, Moment::EndRead, is_at(leaker.port));
    println!("{who}: {:?}", places(&document, Moment::EndRead));
    for stack in stacks(&document, Moment::EndRead) {
        assert!(matches!(place(stack), Place::EventLoop { handler: None, .. }), "{who}: {stack:?}");
    }
}

/// The handler that wrote after the end is named beside the loop.
fn expect_handler(who: &str, agent: &Agent, leaker: &Leaker) {
    let document = document_of(agent, COUNT, Moment::Written, is_at(leaker.port));
    let places = places(&document, Moment::Written);
    println!("{who}: {places:?}");
    let mut named = 0;
    for stack in stacks(&document, Moment::Written) {
        let Place::EventLoop { handler, .. } = place(stack) else { panic!("{who}: {stack:?}") };
        named +=
            usize::from(handler.is_some_and(|handler| handler.function.as_ref().unwrap().contains("leak_")));
    }
    assert!(named * 100 >= COUNT * 95, "{who}: {places:?}");
}

#[test]
#[ignore = "needs root"]
fn long_a_loop_of_node_is_not_the_place() {
    if lacks("node", "--version") {
        return;
    }
    let agent = asked_agent();
    let mut command = Command::new("node");
    command.args(["--perf-basic-prof", "--interpreted-frames-native-stack"]).arg(fixture("loop.js"));
    // It writes a log where it runs.
    let folder = tempfile::tempdir().unwrap();
    command.current_dir(folder.path());
    let leaker = Leaker::start_by(command, COUNT);
    let _list = PerfMap(leaker.child.id());
    arm(&agent, &leaker);
    let _clients = half_closed(leaker.port);
    expect_loop("Node", &agent, &leaker);
    expect_handler("Node", &agent, &leaker);
}

#[test]
#[ignore = "needs root"]
fn long_a_loop_of_asyncio_is_not_the_place() {
    let Some(python) = python() else { return };
    let agent = asked_agent();
    let mut command = Command::new(python);
    command.args(["-X", "perf"]).arg(fixture("loop.py"));
    let leaker = Leaker::start_by(command, COUNT);
    let _list = PerfMap(leaker.child.id());
    arm(&agent, &leaker);
    let _clients = half_closed(leaker.port);
    expect_loop("asyncio", &agent, &leaker);
}

#[test]
#[ignore = "needs root"]
fn long_a_loop_of_netty_is_not_the_place() {
    const FOLDER: &str = "/usr/share/java";
    let netty =
        ["buffer", "common", "resolver", "transport"].map(|part| format!("{FOLDER}/netty-{part}.jar"));
    if lacks("javac", "-version") {
        return;
    }
    if !netty.iter().all(|jar| Path::new(jar).exists()) {
        return eprintln!("SKIPPED: no Netty here (`cargo xtask setup --for test`)");
    }
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let leaker = Leaker::start_by(java("Loop", &netty.join(":"), folder.path()), COUNT);
    let _list = PerfMap(leaker.child.id());
    list_methods(&leaker);
    arm(&agent, &leaker);
    let _clients = half_closed(leaker.port);
    expect_loop("Netty", &agent, &leaker);
    expect_handler("Netty", &agent, &leaker);
    assert!(!answer(&agent).sockets.is_empty());
}

/// Upstream connections that nginx does not read, since its clients do not read: the loop opened them, on a handler's behalf.
#[test]
#[ignore = "needs root"]
fn long_a_loop_of_nginx_is_not_the_place() {
    if lacks("nginx", "-v") {
        return;
    }
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, upstream_port) = (free_port(), upstream.local_addr().unwrap().port());
    let at = folder.path().display();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log stderr error;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  proxy_buffering off;\n  proxy_buffer_size 4k;\n\
         client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n\
         server {{ listen 127.0.0.1:{port} sndbuf=4k; location / {{ proxy_pass http://127.0.0.1:{upstream_port}; }} }}\n}}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.args(["-e", "stderr", "-p"]).arg(folder.path()).args(["-c", "nginx.conf"]).stdin(Stdio::null());
    let nginx = Ended(nginx.spawn().unwrap());
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "nginx does not listen");
        sleep(Duration::from_millis(50));
    }
    let (status, text) = post(&agent, &format!("/v1/stacks?pid={}&for=60s", nginx.0.id()));
    assert_eq!(status, 200, "{text}");
    const FEW: usize = 20;
    std::thread::spawn(move || {
        for stream in upstream.incoming().take(FEW) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
            let _ = stream.write_all(&[b'x'; 48 << 10]);
        }
    });
    let ask = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let _clients: Vec<TcpStream> = (0..FEW).map(ask).collect();
    let document = document_of(&agent, FEW, Moment::Opened, |socket| socket.peer.port() == upstream_port);
    println!("nginx: {:?}", places(&document, Moment::Opened));
    for stack in stacks(&document, Moment::Opened) {
        let Place::EventLoop { handler, .. } = place(stack) else { panic!("{stack:?}") };
        let handler = handler.and_then(|handler| handler.function.as_deref());
        assert!(handler.is_some_and(|name| name.starts_with("ngx_http_")), "{stack:?}");
    }
}

/// A process that ends when dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
