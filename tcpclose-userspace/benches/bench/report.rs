//! A figure: a table with medians and quartiles, and every sample behind it as JSON.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// One section of docs/src/benchmarks.md.
pub struct Figure {
    /// As `--only` has it; names the files.
    pub name: &'static str,
    pub title: &'static str,
    /// How it was measured.
    pub method: String,
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
    /// Every sample.
    pub samples: Value,
}

impl Figure {
    /// Prints it, and writes `NAME.md` and `NAME.json` into `folder`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = self.markdown();
        println!("## {}\n\n{text}", self.title);
        let json = json!({
            "schema": 1, "figure": self.name, "title": self.title, "machine": Machine::now(),
            "method": self.method, "columns": self.columns, "rows": self.rows, "samples": self.samples,
        });
        // The title is the first line, so that whoever puts sections together need not read JSON.
        for (kind, text) in [("md", format!("## {}\n\n{text}", self.title)), ("json", format!("{json:#}\n"))]
        {
            let file = folder.join(format!("{}.{kind}", self.name));
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("{}\n\n{}\n\n", self.method, Machine::now());
        text += &line(&self.columns);
        text += &line(&vec!["---"; self.columns.len()]);
        for row in &self.rows {
            text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        }
        text
    }
}

/// Where and when, and how busy.
#[derive(Serialize)]
pub struct Machine {
    date: String,
    kernel: String,
    cpus: usize,
    model: String,
    memory_mib: u64,
    load_average: String,
    tcpclose: &'static str,
    commit: String,
    libbpf_tools: String,
    iproute2: String,
    node_exporter: String,
}

/// The commit that is measured, with a word where the tree is not as it says. To be asked for when the run begins: at its end
/// another may be checked out.
pub fn commit() -> &'static str {
    static COMMIT: LazyLock<String> = LazyLock::new(|| {
        let reported = output("git", &["describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]);
        reported.unwrap_or_else(|| "unknown".to_owned())
    });
    &COMMIT
}

impl Machine {
    fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = read("/proc/meminfo");
        let memory =
            memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            model: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            memory_mib: memory.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            tcpclose: env!("CARGO_PKG_VERSION"),
            commit: commit().to_owned(),
            libbpf_tools: package("libbpf-tools"),
            iproute2: package("iproute2"),
            node_exporter: package("prometheus-node-exporter"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, Linux {}, {} CPUs ({}), {} MiB, load average {} at the end; tcpclose {} ({}), libbpf-tools {}, \
             iproute2 {}, node_exporter {}.",
            self.date,
            self.kernel,
            self.cpus,
            self.model,
            self.memory_mib,
            self.load_average,
            self.tcpclose,
            self.commit,
            self.libbpf_tools,
            self.iproute2,
            self.node_exporter
        )
    }
}

/// The version of one of Debian's packages.
fn package(name: &str) -> String {
    let version = output("dpkg-query", &["--show", "--showformat=${Version}", name]);
    version.unwrap_or_else(|| "of unknown version".to_owned())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Median and quartiles of some samples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub q1: f64,
    pub median: f64,
    pub q3: f64,
    pub samples: usize,
}

impl Spread {
    /// `None` of no samples.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            values[low] + (values[high] - values[low]) * place.fract()
        };
        if values.is_empty() {
            return None;
        }
        Some(Self { q1: at(0.25), median: at(0.5), q3: at(0.75), samples: values.len() })
    }

    /// `median (q1–q3)`, times `scale`.
    pub fn show(&self, scale: f64, digits: usize) -> String {
        let [q1, median, q3] = [self.q1, self.median, self.q3].map(|value| value * scale);
        format!("{median:.digits$} ({q1:.digits$}–{q3:.digits$})")
    }
}

/// A cell for samples that may be none.
pub fn cell(spread: Option<Spread>, scale: f64, digits: usize) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.show(scale, digits))
}

/// A cell that says whether `value` reached what it should.
pub fn reached(met: bool, target: &str) -> String {
    format!("{target}: {}", if met { "met" } else { "NOT MET" })
}
