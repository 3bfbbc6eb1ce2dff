//! Ways to read the end of a stream: on another thread, below many calls, by io_uring.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tcpclose::linux::stacks::frames::Cut;
use tcpclose::report::stacks::{Place, cut_in_words, place};
use tcpclose_common::stack::Moment;

use super::runtimes::python;
use super::{Agent, Leaker, arm, asked_agent, c, compile, document_of, is_at, places, stacks};

/// Sockets that each way leaks.
const FEW: usize = 20;

/// Leaks in a way, and returns what the agent says.
fn leak(
    agent: &Agent,
    program: &std::path::Path,
    way: &str,
) -> (Leaker, tcpclose::report::sockets::SocketsDocument) {
    leak_by(agent, Command::new(program), way)
}

fn leak_by(
    agent: &Agent,
    mut command: Command,
    way: &str,
) -> (Leaker, tcpclose::report::sockets::SocketsDocument) {
    command.arg(way);
    let leaker = Leaker::start_by(command, FEW);
    arm(agent, &leaker);
    let connect = |_| std::net::TcpStream::connect(("127.0.0.1", leaker.port)).unwrap();
    let clients: Vec<_> = (0..FEW).map(connect).collect();
    // Where reads do not block, most wait for their data by then.
    sleep(Duration::from_millis(500));
    drop(clients);
    let document = document_of(agent, FEW, Moment::EndRead, is_at(leaker.port));
    println!("{way}: {:?}", places(&document, Moment::EndRead));
    (leaker, document)
}

#[test]
#[ignore = "needs root"]
fn other_threads_and_deep_stacks_are_named() {
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    for flags in [&["-pthread"][..], &["-pthread", "-fno-omit-frame-pointer"]] {
        let program = compile(c(flags), "odd.c", folder.path());
        for way in ["thread", "deep"] {
            let (leaker, document) = leak(&agent, &program, way);
            for stack in stacks(&document, Moment::EndRead) {
                let Place::Code(frame) = place(stack) else { panic!("{flags:?} {way}: {stack:?}") };
                assert_eq!(frame.function.as_deref(), Some("leak_0"), "{flags:?} {way}: {stack:?}");
                let outer = stack.frames.iter().any(|frame| {
                    frame.function.as_deref() == Some(if way == "deep" { "recurse" } else { "in_thread" })
                });
                assert!(outer, "{flags:?} {way}: {stack:?}");
                // 200 frames are more than are kept: that must be said.
                assert_eq!(stack.cut.is_some(), way == "deep", "{flags:?} {way}: {stack:?}");
                let has_frame_pointers = flags.len() > 1;
                assert!(!has_frame_pointers || way != "deep" || stack.cut == Some(Cut::Depth), "{stack:?}");
            }
            if way == "deep" {
                let pid = leaker.child.id().to_string();
                let output = agent.stuck(&["--stacks", "--older-than", "0s", "--pid", &pid]);
                let text = String::from_utf8(output.stdout).unwrap();
                let cuts = [Cut::Depth, Cut::NoFramePointers];
                assert!(cuts.into_iter().any(|cut| text.contains(cut_in_words(cut))), "{text}");
            }
        }
    }
}

/// Reads that the kernel completes on a worker, or while the thread sleeps in a function that has nothing to do with them.
#[test]
#[ignore = "needs root"]
fn reads_by_io_uring_are_never_blamed_on_others() {
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let program = compile(c(&["-pthread"]), "odd.c", folder.path());
    let allowed = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if !allowed.is_ok_and(|disabled| disabled.trim() != "2") {
        return println!("SKIPPED: this kernel allows no io_uring");
    }
    // With this system's libc, and with that of a newer Python's system, which makes system calls at another place.
    let execute = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])";
    let by_python = python().map(|python| {
        let mut command = Command::new(python);
        command.args(["-c", execute]).arg(&program);
        command
    });
    let ways = [
        (Some(Command::new(&program)), "ring"),
        (by_python, "ring"),
        (Some(Command::new(&program)), "ring-worker"),
    ];
    for (command, way) in ways {
        let Some(command) = command else { continue };
        let (_leaker, document) = leak_by(&agent, command, way);
        for stack in stacks(&document, Moment::EndRead) {
            let place = place(stack);
            let is_right = match &place {
                Place::Nowhere => true,
                Place::Code(frame) => {
                    frame.function.as_deref().is_some_and(|name| name.contains("leak_by_ring"))
                }
                _ => false,
            };
            assert!(is_right, "{way}: {place:?} {stack:?}");
        }
    }
}
