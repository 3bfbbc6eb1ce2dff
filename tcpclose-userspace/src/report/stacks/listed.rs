//! Functions as a runtime lists the code that it has made, in their own language's words.

use crate::linux::stacks::frames::Frame;

/// The function of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedFunction<'a> {
    pub language: Language,
    /// As its language writes it: `leak`, `Server.handle`, `com.example.Server.handle`.
    pub name: &'a str,
    /// Its source file, where the runtime says it.
    pub file: Option<&'a str>,
    /// Where the function begins in that file.
    pub line: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Python,
    JavaScript,
    Java,
}

impl<'a> ListedFunction<'a> {
    /// What the list of a runtime says of a frame, whose code is in no file.
    pub fn of(frame: &'a Frame) -> Option<Self> {
        if frame.module.is_some() {
            return None;
        }
        let function = frame.function.as_deref()?;
        python(function).or_else(|| javascript(function)).or_else(|| java(function))
    }

    /// Whether it is of what the runtime comes with.
    pub fn is_library(&self) -> bool {
        let file = self.file.unwrap_or_default();
        match self.language {
            Language::Python => {
                file.starts_with("<frozen ")
                    || file.contains("/lib/python3")
                        && !file.contains("/site-packages/")
                        && !file.contains("/dist-packages/")
            }
            Language::JavaScript => file.starts_with("node:") || file.starts_with("internal/"),
            Language::Java => JAVA_LIBRARIES.iter().any(|package| self.name.starts_with(package)),
        }
    }

    /// Whether it is a loop's that serves all sockets.
    pub fn is_loop(&self) -> bool {
        let file = self.file.unwrap_or_default();
        let is = |names: &[&str]| names.contains(&self.name);
        match self.language {
            Language::Python => {
                let is_loops = PYTHON_LOOPS.iter().any(|name| self.name.starts_with(name));
                file.contains("/asyncio/") && is_loops
            }
            Language::JavaScript => {
                file.starts_with("node:internal/process/task_queues") && is(&["processTicksAndRejections"])
                    || file.starts_with("node:internal/timers") && is(&["processTimers", "listOnTimeout"])
            }
            Language::Java => JAVA_LOOPS.iter().any(|class| self.name.starts_with(class)),
        }
    }
}

/// Functions of asyncio's loops, and those that only a loop calls.
const PYTHON_LOOPS: &[&str] =
    &["BaseEventLoop.", "_SelectorSocketTransport._read_ready", "_SelectorSocketTransport._write_ready"];
/// Packages of the class library, and of Netty, which calls a program's handlers.
const JAVA_LIBRARIES: &[&str] = &["java.", "javax.", "jdk.", "sun.", "com.sun.", "io.netty."];
/// Classes of Netty's loops.
const JAVA_LOOPS: &[&str] = &[
    "io.netty.channel.nio.NioEventLoop",
    "io.netty.channel.epoll.EpollEventLoop",
    "io.netty.channel.SingleThreadEventLoop",
    "io.netty.util.concurrent.SingleThreadEventExecutor",
];

/// `py::Server.handle:/srv/app.py`.
fn python(function: &str) -> Option<ListedFunction<'_>> {
    let (name, file) = function.strip_prefix("py::")?.split_once(':')?;
    Some(ListedFunction { language: Language::Python, name, file: Some(file), line: None })
}

/// `JS:~handle /srv/app.js:12:5`: `~` is interpreted, `^` and `*` are compiled. Of Node ≥ 16; `LazyCompile:` and `Function:` before.
fn javascript(function: &str) -> Option<ListedFunction<'_>> {
    let kinds = ["JS:", "LazyCompile:", "Function:", "InterpretedFunction:"];
    let rest = kinds.iter().find_map(|kind| function.strip_prefix(kind))?;
    let rest = rest.trim_start_matches(['*', '~', '^', '+', '\'']);
    let (name, at) = rest.split_once(' ').unwrap_or((rest, ""));
    let name = if name.is_empty() { "(anonymous)" } else { name };
    let mut parts = at.rsplitn(3, ':');
    let (column, line) = (parts.next().and_then(|number| number.parse::<u32>().ok()), parts.next());
    let line = line.and_then(|number| number.parse().ok()).filter(|_| column.is_some());
    let file = if line.is_some() { parts.next() } else { Some(at).filter(|at| !at.is_empty()) };
    Some(ListedFunction { language: Language::JavaScript, name, file, line })
}

/// `void com.example.Server.handle(java.net.Socket)`, without the type that it returns and those that it takes.
fn java(function: &str) -> Option<ListedFunction<'_>> {
    let (before, _) = function.split_once('(')?;
    let (_, name) = before.split_once(' ')?;
    let is_method = name.contains('.') && !name.contains(' ') && function.ends_with(')');
    is_method.then_some(ListedFunction { language: Language::Java, name, file: None, line: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(function: &str) -> Option<(Language, String, Option<String>, Option<u32>)> {
        let frame = Frame { function: Some(function.to_owned()), ..Frame::default() };
        let ListedFunction { language, name, file, line } = ListedFunction::of(&frame)?;
        Some((language, name.to_owned(), file.map(str::to_owned), line))
    }

    #[test]
    fn each_runtime_has_words_of_its_own() {
        let some = |text: &str| Some(text.to_owned());
        for (function, language, name, file, line) in [
            ("py::Server.handle:/srv/app.py", Language::Python, "Server.handle", some("/srv/app.py"), None),
            ("py::<lambda>:/a:b.py", Language::Python, "<lambda>", some("/a:b.py"), None),
            ("JS:~leak /srv/a b:c.js:12:5", Language::JavaScript, "leak", some("/srv/a b:c.js"), Some(12)),
            ("JS:*emit node:events:513:44", Language::JavaScript, "emit", some("node:events"), Some(513)),
            ("JS:^ /srv/app.js:1:1", Language::JavaScript, "(anonymous)", some("/srv/app.js"), Some(1)),
            ("JS:~leak", Language::JavaScript, "leak", None, None),
            ("void Leak.leak_0(java.net.Socket)", Language::Java, "Leak.leak_0", None, None),
            ("int sun.nio.ch.Net.poll(int, int)", Language::Java, "sun.nio.ch.Net.poll", None, None),
        ] {
            assert_eq!(listed(function), Some((language, name.to_owned(), file, line)), "{function}");
        }
        for other in ["Interpreter", "StubRoutines (1)", "handler(int)", "JSEntry", "py::x", "", "a b.c"] {
            assert_eq!(listed(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_runtime_comes_with_is_known() {
        let of = |function: &str| {
            let frame = Frame { function: Some(function.to_owned()), ..Frame::default() };
            let listed = ListedFunction::of(&frame).unwrap();
            (listed.is_library(), listed.is_loop())
        };
        assert_eq!(
            of("py::BaseEventLoop._run_once:/usr/lib/python3.13/asyncio/base_events.py"),
            (true, true)
        );
        let ready = "py::_SelectorSocketTransport._read_ready__data_received";
        assert_eq!(of(&format!("{ready}:/usr/lib/python3.13/asyncio/selector_events.py")), (true, true));
        assert_eq!(of(&format!("{ready}:/srv/own.py")), (false, false));
        assert_eq!(of("py::Handle._run:/usr/lib/python3.13/asyncio/events.py"), (true, false));
        assert_eq!(of("py::get:/usr/lib/python3/dist-packages/requests/api.py"), (false, false));
        assert_eq!(of("py::_run_once:/srv/app.py"), (false, false));
        assert_eq!(of("JS:~processTicksAndRejections node:internal/process/task_queues:67:35"), (true, true));
        assert_eq!(of("JS:~handle /srv/app.js:1:2"), (false, false));
        assert_eq!(of("int java.io.InputStream.read()"), (true, false));
        assert_eq!(of("void io.netty.channel.nio.NioEventLoop.run()"), (true, true));
        assert_eq!(of("int io.netty.buffer.AbstractByteBuf.writeBytes(int)"), (true, false));
        assert_eq!(of("void com.example.Api.handle(int)"), (false, false));
    }
}
