//! Headless Chromium, driven over its DevTools pipe: messages of JSON, each ended by a zero byte, on the descriptors 3
//! and 4. So there is no port, no driver of another version, and nothing that outlives the browser's process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What the browser may take for one answer, and the page to become as expected, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Runs in the page before its own scripts: see there.
const PROBES: &str = include_str!("probes.js");

const NAMES: [&str; 2] = ["chromium", "chromium-browser"];

pub struct Browser {
    process: Child,
    /// `None` once it was told to end.
    to: Option<ChildStdin>,
    from: Receiver<Value>,
    session: Option<String>,
    calls: u64,
    /// What has been told without being asked.
    pub events: Vec<Value>,
    _home: TempDir,
}

impl Browser {
    /// `None`, said loudly, on a machine without Chromium; a failure on CI, where `cargo xtask setup` has installed it.
    pub fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
        let Some(program) = NAMES.into_iter().find(there) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "no Chromium: `cargo xtask setup --for test` installs it"
            );
            eprintln!("SKIPPED: the page is not tested: no Chromium here (`cargo xtask setup --for test`)");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        // The shell moves our pipes to where the browser expects them, and becomes the browser.
        command.args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>"$HOME/said""#, "sh", program]);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        // A stranger's name that has come to resolve to this host.
        command.arg("--host-resolver-rules=MAP evil.example 127.0.0.1");
        command.args(["--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", home.path().join("profile").display())).arg("about:blank");
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"] {
            command.env(variable, home.path());
        }
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (process.stdin.take(), process.stdout.take().unwrap());
        let (tell, reported) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                if tell.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { process, to, from: reported, session: None, calls: 0, events: Vec::new(), _home: home };
        browser.attach();
        Some(browser)
    }

    /// Takes the one tab that there is.
    fn attach(&mut self) {
        let until = Instant::now() + PATIENCE;
        let tab = loop {
            let targets = self.call("Target.getTargets", json!({}));
            let targets = targets["targetInfos"].as_array().unwrap().clone();
            match targets.into_iter().find(|target| target["type"] == "page") {
                Some(tab) => break tab,
                None => assert!(Instant::now() < until, "the browser opens no tab"),
            }
        };
        let attach = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", attach);
        self.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": PROBES }));
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|why| panic!("{method}: {why}"))
    }

    /// A call that the browser may refuse: why it did.
    pub fn try_call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.as_mut().unwrap().write_all(&bytes).unwrap_or_else(|why| self.died(method, &why.to_string()));
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let mut answer = answer.unwrap_or_else(|why| self.died(method, &why.to_string()));
            if answer["id"] != json!(self.calls) {
                self.events.push(answer);
            } else if answer["error"].is_null() {
                return Ok(answer["result"].take());
            } else {
                return Err(answer["error"].take());
            }
        }
    }

    fn died(&self, method: &str, why: &str) -> ! {
        let printed = std::fs::read_to_string(self._home.path().join("said")).unwrap_or_default();
        panic!("the browser does not answer {method}: {why}\n{printed}")
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let ask = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", ask);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Asks the page again until an expression is true.
    pub fn until(&mut self, expression: &str) {
        let until = Instant::now() + PATIENCE;
        while self.evaluate(expression) != json!(true) {
            if Instant::now() >= until {
                let text = self.evaluate("document.body.innerText");
                panic!("not within {PATIENCE:?}: {expression}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn open(&mut self, address: &str) {
        self.call("Page.navigate", json!({ "url": address }));
        self.until("document.readyState === 'complete'");
    }

    /// A viewport of this width, and the colours that its user prefers.
    pub fn look(&mut self, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Presses and lets go of a key; `text` is what it types.
    pub fn press(&mut self, key: &str, code: u32, text: &str) {
        let kinds = [("rawKeyDown", ""), ("char", text), ("keyUp", "")];
        for (kind, text) in kinds.into_iter().filter(|(kind, text)| *kind != "char" || !text.is_empty()) {
            let event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The events of this kind so far: their parameters.
    pub fn reported<'a>(&'a self, method: &'a str) -> impl DoubleEndedIterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["method"] == method).map(|event| &event["params"])
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends when nobody is left to command it.
        self.to = None;
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
