//! What stacks say of the code that leaves sockets open: which frame is the program's own, and when that is an event loop. Pure.

mod listed;

use tcpclose_common::stack::Moment;

use crate::linux::stacks::frames::{Cut, Frame, Stack};
use crate::report::sockets::StuckSocket;
use crate::report::stacks::listed::ListedFunction;

/// Where in the program something was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The innermost frame of the program's own code.
    Code(&'a Frame),
    /// Only a loop that serves all sockets, with the function that it called, if that is the program's.
    EventLoop { of: &'a Frame, handler: Option<&'a Frame> },
    /// Only frames of a runtime that executes the program's code by itself, and does not list its functions.
    Inside(Interpreter),
    /// No frame of the program has a name; the innermost one outside libraries.
    Unnamed(&'a Frame),
    /// No user stack.
    Nowhere,
}

/// A runtime whose functions no symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpreter {
    Python,
    Jvm,
    Node,
}

impl Interpreter {
    /// The runtime that a frame is of.
    fn of(frame: &Frame) -> Option<Self> {
        let function = frame.function.as_deref().unwrap_or_default();
        let module = frame.module.as_deref().unwrap_or_default();
        if function.starts_with("_PyEval_EvalFrame") || function.starts_with("PyEval_Eval") {
            Some(Self::Python)
        } else if module.ends_with("/libjvm.so") {
            Some(Self::Jvm)
        } else if function.starts_with("Builtins_") || function.starts_with("v8::internal::Execution") {
            Some(Self::Node)
        } else {
            None
        }
    }

    /// What it is, and how it lists its functions.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Python => "in the Python interpreter (python -X perf, since 3.12, shows which function)",
            Self::Jvm => {
                "in the JVM (-XX:+PreserveFramePointer and `jcmd PID Compiler.perfmap` show which method)"
            }
            Self::Node => {
                "in Node.js (--perf-basic-prof --interpreted-frames-native-stack shows which function)"
            }
        }
    }
}

/// Functions of event loops, by how their names begin: what they call serves a socket, they themselves serve all.
const LOOPS: &[&str] = &[
    "uv_run",
    "uv__run",
    "uv__io_poll",
    "uv__io_uring",
    "uv__stream_io",
    "ngx_epoll_process_events",
    "ngx_process_events_and_timers",
    "ngx_worker_process_cycle",
    "ngx_single_process_cycle",
    "ngx_event_process_posted",
    "ngx_event_expire_timers",
    "ngx_event_accept",
    "event_base_loop",
    "event_process_active",
    "ev_run",
    "ev_invoke_pending",
    "aeMain",
    "aeProcessEvents",
    "g_main_context_iterate",
    "g_main_loop_run",
    "node::SpinEventLoop",
    "node::LibuvStreamWrap::OnUvRead",
    "node::EmitRead",
];

/// Functions of libraries and runtimes, by how their names begin: they do what the program asks of them.
const PLUMBING: &[&str] = &[
    // Go.
    "runtime.",
    "runtime/internal/",
    "internal/runtime/",
    "syscall.",
    "internal/poll.",
    "internal/syscall/",
    "net.",
    "bufio.",
    "io.",
    "crypto/tls.",
    // Rust.
    "std::",
    "<std::",
    "core::",
    "<core::",
    "alloc::",
    "<alloc::",
    "<&std::",
    "mio::",
    "<mio::",
    "<&mio::",
    "tokio::net::",
    "<tokio::net::",
    "tokio::io::",
    "<tokio::io::",
    "socket2::",
    "<socket2::",
    "rustix::",
    // C and C++.
    "__libc_",
    "__GI_",
    "SSL_",
    "ssl3_",
    "tls_",
    "BIO_",
    "bio_",
    "std::istream",
    // The JVM and its class library.
    "Java_java_net_",
    "Java_sun_nio_",
    "NET_",
    "Interpreter",
    "StubRoutines",
    "Stub<",
    "RuntimeStub",
    "I2C/C2I",
    "native nmethod",
    "Signature Handler",
    "call_stub",
    // CPython.
    "Py",
    "_Py",
    "py_",
    "sock_",
    "socket_",
    "method_vectorcall_",
    "cfunction_",
    "object_vacall",
    "slot_tp_",
    // nginx.
    "ngx_unix_",
    "ngx_readv_",
    "ngx_writev_",
    "ngx_linux_sendfile",
    "ngx_event_connect_peer",
    "ngx_event_pipe",
    // V8, libuv and Node.
    "uv_",
    "v8::",
    "Builtins_",
    "Builtin:",
    "Handler:",
    "BytecodeHandler:",
    "Stub:",
    "RegExp:",
    "node::",
];

/// Files whose functions do what a program asks of them, by what their names begin with.
const LIBRARIES: &[&str] = &[
    "libc.so",
    "libc-",
    "libpthread",
    "ld-linux",
    "ld-musl",
    "libssl",
    "libcrypto",
    "libgnutls",
    "libuv",
    "libevent",
    "libjvm",
    "libnet.so",
    "libnio.so",
    "libjava.so",
    "libstdc++",
    "libgcc_s",
    "libcurl",
    "libnghttp2",
    "libnetty_",
    "libjli",
];

/// Finds the place in a stack.
pub fn place(stack: &Stack) -> Place<'_> {
    let runtime =
        stack.frames.iter().find_map(|frame| Some((Interpreter::of(frame)?, frame.module.as_deref())));
    // All of a runtime's own code does what the program asks of it, its main() as well.
    let is_of_runtime = |frame: &Frame| {
        frame.module.is_some() && runtime.is_some_and(|(_, module)| module == frame.module.as_deref())
    };
    let (mut unnamed, mut is_inside) = (None, false);
    for (nth, frame) in stack.frames.iter().enumerate() {
        if is_loop(frame) {
            return Place::EventLoop { of: frame, handler: None };
        }
        // What a runtime executes is in no file; what began the runtime is not the place.
        is_inside |= Interpreter::of(frame).is_some();
        if is_plumbing(frame) || is_of_runtime(frame) || is_inside && frame.module.is_some() {
            continue;
        }
        if frame.function.is_none() {
            unnamed = unnamed.or(Some(frame));
            continue;
        }
        // What a loop calls serves one socket.
        return match stack.frames.iter().skip(nth).find(|frame| is_loop(frame)) {
            Some(of) => Place::EventLoop { of, handler: Some(frame) },
            None => Place::Code(frame),
        };
    }
    match (runtime, unnamed.or(stack.frames.first())) {
        (Some((interpreter, _)), _) => Place::Inside(interpreter),
        (None, Some(frame)) => Place::Unnamed(frame),
        (None, None) => Place::Nowhere,
    }
}

fn is_loop(frame: &Frame) -> bool {
    begins_with_one_of(frame, LOOPS) || ListedFunction::of(frame).is_some_and(|listed| listed.is_loop())
}

fn is_plumbing(frame: &Frame) -> bool {
    let module = frame.module.as_deref().unwrap_or_default();
    let file = module.rsplit('/').next().unwrap_or(module);
    begins_with_one_of(frame, PLUMBING)
        || LIBRARIES.iter().any(|library| file.starts_with(library))
        || ListedFunction::of(frame).is_some_and(|listed| listed.is_library())
}

fn begins_with_one_of(frame: &Frame, names: &[&str]) -> bool {
    frame.function.as_deref().is_some_and(|function| names.iter().any(|name| function.starts_with(name)))
}

/// A frame in a line: `handle_conn (server.go:88)`, or the offset in its file.
pub fn in_a_line(frame: &Frame) -> String {
    let short = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    if let Some(ListedFunction { name, file, line, .. }) = ListedFunction::of(frame) {
        return match (file, line) {
            (Some(file), Some(line)) => format!("{name} ({}:{line})", short(file)),
            (Some(file), None) => format!("{name} ({})", short(file)),
            (None, _) => name.to_owned(),
        };
    }
    let at = match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => format!("{}:{line}", short(file)),
        (Some(file), None, _) => short(file),
        (None, _, Some(module)) if frame.function.is_none() => {
            return format!("{}+{:#x}", short(module), frame.offset);
        }
        (None, _, Some(module)) => short(module),
        (None, _, None) if frame.function.is_none() => return format!("{:#x}", frame.offset),
        (None, _, None) => return frame.function.clone().unwrap_or_default(),
    };
    format!("{} ({at})", frame.function.as_deref().unwrap_or("?"))
}

/// Moments in the order of what they tell of a socket that was not closed.
pub const BY_WEIGHT: [Moment; 4] = [Moment::EndRead, Moment::Accepted, Moment::Opened, Moment::Written];

/// The stacks of a socket, what tells most first. `stacks`: of its document.
pub fn of_socket<'a>(
    socket: &StuckSocket,
    stacks: &'a [Stack],
) -> impl Iterator<Item = (Moment, &'a Stack)> + use<'a> {
    let indices = socket.stacks.unwrap_or_default();
    BY_WEIGHT.into_iter().filter_map(move |moment| Some((moment, stacks.get(indices.get(moment)? as usize)?)))
}

/// What a moment is, before the place.
pub const fn words(moment: Moment) -> &'static str {
    match moment {
        Moment::Opened => "opened",
        Moment::EndRead => "end of stream read",
        Moment::Written => "last written to after the peer's FIN",
        Moment::Accepted => "accepted",
    }
}

/// A place in words, after those of the moment: `in handle_conn (server.go:88)`.
pub fn in_words(place: &Place<'_>) -> String {
    match place {
        Place::Code(frame) => format!("in {}", in_a_line(frame)),
        Place::EventLoop { of, handler: Some(handler) } => {
            format!("in {}, called by the event loop {}", in_a_line(handler), in_a_line(of))
        }
        Place::EventLoop { of, handler: None } => {
            format!("by the event loop {}, which serves all sockets", in_a_line(of))
        }
        Place::Inside(interpreter) => interpreter.words().to_owned(),
        Place::Unnamed(frame) => format!("at {} (no symbols)", in_a_line(frame)),
        Place::Nowhere => "by io_uring, which has no user stack".to_owned(),
    }
}

/// A moment and its place: `end of stream read in handle_conn (server.go:88)`.
pub fn in_one_phrase(moment: Moment, stack: &Stack) -> String {
    format!("{} {}", words(moment), in_words(&place(stack)))
}

/// Why a stack is cut, in words.
pub const fn cut_in_words(cut: Cut) -> &'static str {
    match cut {
        Cut::Depth => "deeper frames are not kept",
        Cut::NoFramePointers => "deeper frames are unknown: the program keeps no frame pointers",
        Cut::NoUserStack => "no user stack: read or written by io_uring",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, module: &str) -> Frame {
        Frame { function: Some(function.to_owned()), module: Some(module.to_owned()), ..Frame::default() }
    }

    fn stack(frames: &[Frame]) -> Stack {
        Stack { frames: frames.to_vec(), cut: None }
    }

    #[test]
    fn the_programs_own_function_is_the_place() {
        let libc = frame("__libc_recv", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        let own =
            Frame { file: Some("/src/server.c".to_owned()), line: Some(88), ..frame("handle", "/opt/api") };
        let main = frame("main", "/opt/api");
        let c = stack(&[libc.clone(), own.clone(), main.clone()]);
        assert_eq!(place(&c), Place::Code(&own));
        assert_eq!(in_words(&place(&c)), "in handle (server.c:88)");
        let go = stack(&[
            frame("internal/runtime/syscall.Syscall6", "/opt/api"),
            frame("internal/poll.(*FD).Read", "/opt/api"),
            frame("net.(*conn).Read", "/opt/api"),
            frame("main.handle", "/opt/api"),
            frame("runtime.goexit.abi0", "/opt/api"),
        ]);
        assert_eq!(place(&go), Place::Code(&go.frames[3]));
        let dialled = stack(&[
            frame("syscall.connect", "/opt/api"),
            frame("net.(*netFD).connect", "/opt/api"),
            frame("net.Dial", "/opt/api"),
            frame("main.(*Pool).get", "/opt/api"),
        ]);
        assert_eq!(place(&dialled), Place::Code(&dialled.frames[3]));
        let stripped = stack(&[libc.clone(), Frame { function: None, offset: 0x1234, ..main.clone() }]);
        assert_eq!(in_words(&place(&stripped)), "at api+0x1234 (no symbols)");
        assert_eq!(place(&stack(&[])), Place::Nowhere);
        let python = stack(&[
            libc.clone(),
            frame("sock_recv", "/usr/bin/python3.12"),
            frame("_PyEval_EvalFrameDefault", "/usr/bin/python3.12"),
            frame("main", "/usr/bin/python3.12"),
        ]);
        assert_eq!(place(&python), Place::Inside(Interpreter::Python));
        let embedded = stack(&[python.frames.as_slice(), &[frame("run_script", "/opt/game")]].concat());
        assert_eq!(place(&embedded), Place::Inside(Interpreter::Python));
        let made = Frame { offset: 0x7f00, ..Frame::default() };
        let jvm = [
            libc.clone(),
            made,
            frame("JavaCalls::call_helper", "/jvm/libjvm.so"),
            frame("JavaMain", "/jvm/libjli.so"),
        ];
        assert_eq!(place(&stack(&jvm)), Place::Inside(Interpreter::Jvm));
        let started =
            stack(&[python.frames.as_slice(), &[frame("run_eval_code_obj", "/usr/bin/python3.12")]].concat());
        assert_eq!(place(&started), Place::Inside(Interpreter::Python));
        let listed = Frame { function: Some("py::leak:/srv/app.py".to_owned()), ..Frame::default() };
        let python = stack(&[libc.clone(), python.frames[1].clone(), listed, python.frames[2].clone()]);
        assert_eq!(in_words(&place(&python)), "in leak (app.py)");
        assert_eq!(place(&stack(std::slice::from_ref(&libc))), Place::Unnamed(&libc));
    }

    #[test]
    fn an_event_loop_is_never_the_place() {
        let nginx = stack(&[
            frame("recv", "/usr/lib/libc.so.6"),
            frame("ngx_epoll_process_events", "/usr/sbin/nginx"),
            frame("ngx_process_events_and_timers", "/usr/sbin/nginx"),
        ]);
        let Place::EventLoop { of, handler: None } = place(&nginx) else { panic!("{:?}", place(&nginx)) };
        assert_eq!(of.function.as_deref(), Some("ngx_epoll_process_events"));
        assert!(in_words(&place(&nginx)).contains("serves all sockets"));
        let upstream = stack(&[
            frame("connect", "/usr/lib/libc.so.6"),
            frame("ngx_event_connect_peer", "/usr/sbin/nginx"),
            frame("ngx_http_upstream_connect", "/usr/sbin/nginx"),
            frame("ngx_process_events_and_timers", "/usr/sbin/nginx"),
        ]);
        assert_eq!(
            in_words(&place(&upstream)),
            "in ngx_http_upstream_connect (nginx), called by the event loop ngx_process_events_and_timers (nginx)"
        );
        let node = stack(&[frame("uv__read", "/usr/bin/node"), frame("uv__io_poll", "/usr/bin/node")]);
        assert!(matches!(place(&node), Place::EventLoop { handler: None, .. }));
        let called = stack(&[frame("on_read", "/opt/api"), frame("uv_run", "/opt/api")]);
        assert_eq!(in_words(&place(&called)), "in on_read (api), called by the event loop uv_run (api)");
    }
}
