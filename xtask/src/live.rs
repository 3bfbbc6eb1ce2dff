//! The live tests: one program, whose modules run side by side, each in a process of its own.
//!
//! A test that fails after an agent said that the kernel had left it out ("records lost") is run again: an event for which the kernel
//! runs no program spoils what a test expects, and the agent has counted it, as it must. How it deals with losses, tests of its own show.
//!
//! Most of them wait most of the time (a TIME-WAIT takes a minute), so several at once take little longer than the longest.
//! What a module prints goes to target/live/MODULE.log, and to the terminal if it fails. Nobody waits for a module that
//! hangs: it is killed with everything that it started, and counts as failed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::{build, sh, test, tools};
use tcpclose_common::progress::{self, Ticker};

/// The program with all live tests.
pub const PROGRAM: &str = "live";

/// Modules at a time: more than processors, since they mostly wait.
const SIDE_BY_SIDE: usize = 6;
/// Tests of one module at a time.
const THREADS: &str = "2";
/// The number of a module's run: each takes its ports from a place of its own.
const NUMBER: &str = "TCPCLOSE_TEST_RUN";
/// Time limit of a module.
const PATIENCE: Duration = Duration::from_secs(900);
const PATIENCE_LONG: Duration = Duration::from_secs(3600);

/// Modules that start first, since they take longest.
const FIRST: &[&str] = &["owners", "deploy", "watch", "namespaces", "restart"];
/// Modules that run only beside each other: they check every event, and bursts of other tests make the kernel drop events.
const EXACT: &[&str] = &["closes", "cases"];
/// Modules that run alone, since they use or check the whole machine.
const ALONE: &[&str] = &[
    "backpressure",
    "cardinality",
    "flood",
    "losses",
    "many_namespaces",
    "nginx",
    "opens",
    "page_size",
    "reuse",
    "start_stop",
    "time_wait_memory",
    "torture",
    "verify",
    "volume",
    "wakeup",
];

/// Of those, the ones that mostly wait for TIME-WAITs to end: they may run while guests do.
const WAITING: &[&str] = &["verify", "volume"];

/// Which modules a run is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    WithoutWaiting,
    Waiting,
}

impl Selection {
    fn has(self, module: &Module) -> bool {
        let waits = WAITING.contains(&module.name.as_str());
        match self {
            Self::All => true,
            Self::WithoutWaiting => !waits,
            Self::Waiting => waits,
        }
    }
}

/// Runs of a test whose agents lost events to the kernel.
const TRIES: u32 = 3;
/// The agent's log line in that case.
const LEFT_OUT: &str = "records lost";

/// When a test runs, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With `cargo xtask test`.
    Always,
    /// With `cargo xtask test --all`: `long_…`.
    Long,
    /// In guests only, with `--all`: `guest_…`.
    Guest,
    /// By a command of its own: `measure_…`, and `program_…`, which another test starts.
    ByItself,
}

impl When {
    /// The kind of a test by its whole name, `module::name`.
    pub fn of(test: &str) -> Self {
        let name = test.rsplit("::").next().unwrap_or(test);
        match name.split('_').next() {
            Some("long") => Self::Long,
            Some("guest") => Self::Guest,
            Some("measure" | "program") => Self::ByItself,
            _ => Self::Always,
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    /// What tests have skipped, and why.
    pub skipped: Vec<String>,
}

/// The tests of one module.
pub struct Module {
    pub name: String,
    pub tests: Vec<String>,
    /// The number of its runs.
    tries: u32,
}

/// A running module.
struct Running {
    module: Module,
    process: Child,
    log: PathBuf,
    begun: Instant,
}

/// Runs the selected modules of `program`, with their long tests if `all`. Without root it names what it skipped.
///
/// # Errors
/// When a test failed, or something that running them takes.
pub fn run(program: &Path, all: bool, selection: Selection) -> Result<Tally> {
    let folder = build::target_folder()?.join("live");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let names = listed(program)?;
    let mut modules = modules(&names, |when| when == When::Always || all && when == When::Long);
    modules.retain(|module| selection.has(module));
    let is_in = |list: &'static [&str]| move |module: &Module| list.contains(&module.name.as_str());
    let (alone, others): (Vec<Module>, Vec<Module>) = modules.into_iter().partition(is_in(ALONE));
    let (exact, together) = others.into_iter().partition(is_in(EXACT));
    let patience = if all { PATIENCE_LONG } else { PATIENCE };
    // A terminal's Ctrl-C does not reach the modules, each of which is a process group: so they are ended when it comes. After
    // that a signal does what it always does.
    let (asked_to_end, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&over)).context("cannot wait for signals")?;
        flag::register(signal, Arc::clone(&asked_to_end)).context("cannot wait for signals")?;
    }
    let mut run = Run { program, folder: &folder, all, patience, asked_to_end, begun: 0 };
    let mut tally = Tally::default();
    let ran = run
        .side_by_side(exact, EXACT.len(), &mut tally)
        .and_then(|()| run.side_by_side(together, SIDE_BY_SIDE, &mut tally))
        .and_then(|()| run.side_by_side(alone, 1, &mut tally));
    over.store(true, Ordering::Relaxed);
    ran.map(|()| tally)
}

/// How modules are run.
struct Run<'a> {
    program: &'a Path,
    folder: &'a Path,
    all: bool,
    patience: Duration,
    asked_to_end: Arc<AtomicBool>,
    /// The number of modules that were started.
    begun: u32,
}

impl Run<'_> {
    fn side_by_side(&mut self, modules: Vec<Module>, most: usize, tally: &mut Tally) -> Result<()> {
        let mut waiting = VecDeque::from(modules);
        let mut running: Vec<Running> = Vec::new();
        let _ticker = Ticker::start("live tests".to_owned());
        loop {
            if self.asked_to_end.load(Ordering::Relaxed) {
                running.iter().for_each(|one| end_group(&one.process));
                bail!("the live tests were interrupted");
            }
            while running.len() < most {
                let Some(module) = waiting.pop_front() else { break };
                running.push(self.start(module)?);
            }
            if running.is_empty() {
                return Ok(());
            }
            let mut going_on = Vec::new();
            for mut one in running {
                let ended = one.process.try_wait().context("cannot wait for a live test")?;
                let hangs = ended.is_none() && one.begun.elapsed() > self.patience;
                if ended.is_none() && !hangs {
                    going_on.push(one);
                    continue;
                }
                end_group(&one.process);
                let status = match ended {
                    Some(status) => status,
                    None => one.process.wait().context("cannot wait for a live test")?,
                };
                waiting.extend(report(one, status, hangs, tally));
            }
            running = going_on;
            sleep(Duration::from_millis(50));
        }
    }

    fn start(&mut self, module: Module) -> Result<Running> {
        let log = self.folder.join(format!("{}.log", module.name));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let number = self.begun.to_string();
        self.begun += 1;
        let mut environment = vec![(NUMBER, number.as_str())];
        if self.all {
            environment.push((test::LONG, "1"));
        }
        let mut command = if sh::is_root() {
            let mut command = Command::new(self.program);
            command.envs(environment);
            command
        } else {
            let mut command = Command::new("sudo");
            // sudo has a PATH of its own.
            command.args(["-E", "env", &format!("PATH={}", tools::path().to_string_lossy())]);
            command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
            command.arg(self.program);
            command
        };
        command.args(["--exact", "--include-ignored", "--show-output", "--test-threads", THREADS]);
        command.args(&module.tests);
        command.current_dir(sh::workspace().join("tcpclose-userspace"));
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let process = command.spawn().context("cannot start the live tests")?;
        Ok(Running { module, process, log, begun: Instant::now() })
    }
}

/// Kills a module's process group.
fn end_group(process: &Child) {
    let group = format!("-{}", process.id());
    // It fails where nothing is left, as it should be.
    let _ = sh::ask(Command::new("kill").args(["-KILL", "--", &group]));
}

/// Counts a finished module and prints a line about it, or its whole output if it failed. Returns the tests to run again.
fn report(ran: Running, status: ExitStatus, hangs: bool, tally: &mut Tally) -> Option<Module> {
    let printed = fs::read(&ran.log).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let seconds = ran.begun.elapsed().as_secs_f64();
    // A module whose process ended without a count has failed as a whole.
    let (passed, failed) = match counted(&printed) {
        Some((passed, failed)) if status.success() == (failed == 0) => (passed, failed),
        _ => (0, ran.module.tests.len() as u32),
    };
    let Module { name, tests, tries } = ran.module;
    tally.passed += passed;
    progress::clear();
    if failed > 0 {
        let why = if hangs { "does not end, killed".to_owned() } else { status.to_string() };
        eprintln!("{printed}\nlive {name}: FAILED ({why}), see {}", ran.log.display());
    }
    let mut left_out: Vec<String> = printed.lines().filter_map(skipped).collect();
    left_out.sort_unstable();
    left_out.dedup();
    for what in &left_out {
        eprintln!("SKIPPED: {name}: {what}");
    }
    eprintln!("live {name:<16} {passed:>3} passed, {failed} failed  {seconds:>6.1} s");
    tally.skipped.extend(left_out.into_iter().map(|what| format!("{name}: {what}")));
    let again = failures(&printed, &tests);
    if failed == 0 {
        None
    } else if printed.contains(LEFT_OUT) && !again.is_empty() && tries + 1 < TRIES {
        eprintln!(
            "AGAIN: the kernel did not run the probe for some events (by the agents' logs): {}",
            again.join(" ")
        );
        // The log of this run is kept beside the next one's.
        let _ = fs::rename(&ran.log, ran.log.with_extension(format!("{tries}.log")));
        Some(Module { name, tests: again, tries: tries + 1 })
    } else {
        tally.failed += failed;
        None
    }
}

/// Those of `tests` that failed, by libtest's output.
fn failures(printed: &str, tests: &[String]) -> Vec<String> {
    let failed = |test: &&String| printed.lines().any(|line| line == format!("test {test} ... FAILED"));
    tests.iter().filter(failed).cloned().collect()
}

/// What a line of a test's output says was skipped. All tests of this project use this word.
pub fn skipped(line: &str) -> Option<String> {
    line.trim_start().strip_prefix("SKIPPED: ").map(|what| what.trim_end().to_owned())
}

/// Passed and failed, from libtest's last line.
fn counted(printed: &str) -> Option<(u32, u32)> {
    let line = printed.lines().rev().find(|line| line.starts_with("test result: "))?;
    let count = |what: &str| {
        let before = line.split(what).next().filter(|before| before.len() < line.len())?;
        before.split_whitespace().next_back()?.parse().ok()
    };
    Some((count(" passed")?, count(" failed")?))
}

/// The names of all tests of `program`.
pub fn listed(program: &Path) -> Result<Vec<String>> {
    let list = sh::ask(Command::new(program).args(["--list", "--format", "terse"]));
    let Some(list) = list else { bail!("{} cannot list its tests", program.display()) };
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The tests to run, by module, in the order in which modules start.
pub fn modules(names: &[String], wanted: impl Fn(When) -> bool) -> Vec<Module> {
    let mut modules: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in names.iter().filter(|name| wanted(When::of(name))) {
        let module = name.split("::").next().unwrap_or(name);
        modules.entry(module).or_default().push(name.clone());
    }
    let mut modules: Vec<Module> =
        modules.into_iter().map(|(name, tests)| Module { name: name.to_owned(), tests, tries: 0 }).collect();
    modules.sort_by_key(|module| FIRST.iter().position(|name| *name == module.name).unwrap_or(FIRST.len()));
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when_its_test_runs() {
        assert_eq!(When::of("leak::a_leak_is_told"), When::Always);
        assert_eq!(When::of("leak::longest_first"), When::Always);
        assert_eq!(When::of("torture::long_killed_a_hundred_times"), When::Long);
        assert_eq!(When::of("wall_clock::guest_a_clock_is_set"), When::Guest);
        assert_eq!(When::of("accuracy::measure_durations"), When::ByItself);
    }

    #[test]
    fn tests_are_run_by_module_and_the_long_ones_begin_first() {
        let names = ["ages::a", "ages::b::c", "watch::d", "web::long_e"].map(str::to_owned);
        let modules = modules(&names, |when| when == When::Always);
        let reported: Vec<(&str, usize)> =
            modules.iter().map(|module| (module.name.as_str(), module.tests.len())).collect();
        assert_eq!(reported, [("watch", 1), ("ages", 2)]);
    }

    #[test]
    fn every_module_that_is_named_is_there() {
        let main = fs::read_to_string(sh::workspace().join("tcpclose-userspace/tests/live/main.rs")).unwrap();
        let lacking = [FIRST, EXACT, ALONE, WAITING].concat();
        let lacking = lacking.iter().filter(|name| !main.lines().any(|line| line == format!("mod {name};")));
        assert_eq!(lacking.collect::<Vec<_>>(), Vec::<&&str>::new());
        assert!(WAITING.iter().all(|name| ALONE.contains(name)));
    }

    #[test]
    fn a_modules_end_is_counted() {
        let printed = "running 3 tests\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out\n";
        assert_eq!(counted(printed), Some((2, 1)));
        assert_eq!(counted("killed\n"), None);
    }

    #[test]
    fn what_failed_is_known_by_name() {
        let printed = "test a::b ... ok\ntest a::c ... FAILED\ntest a::cd ... ok\n";
        let tests = ["a::b", "a::c", "a::cd"].map(str::to_owned);
        assert_eq!(failures(printed, &tests), ["a::c"]);
    }

    #[test]
    fn what_is_skipped_is_heard() {
        assert_eq!(skipped("SKIPPED: live tests need root\r").as_deref(), Some("live tests need root"));
        assert_eq!(skipped("none is SKIPPED: all run"), None);
    }
}
