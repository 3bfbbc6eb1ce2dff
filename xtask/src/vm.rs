//! `cargo xtask vm`: the agent and its tests on other kernels, each in a virtual machine of its own.
//!
//! A guest is a Debian kernel and one archive that is its whole filesystem: busybox, the agent, the live
//! tests and vm/init.sh, which runs them and says how they ended. [`systemd`] is one with a whole Debian. Guests of
//! another architecture run the same programs, cross-built.

use std::fs;
use std::iter;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::archive::Architecture;
use crate::live::{self, When};
use crate::setup::{self, Purpose};
use crate::sh;
use guest::{Guest, Report};
use initramfs::Initramfs;
use kit::{Kernel, Part};
use programs::{Job, Program};

mod guest;
mod initramfs;
pub mod kit;
mod modules;
pub mod programs;
mod systemd;

/// Guests are emulated on this architecture only, which has a cross compiler for the other.
pub const POSSIBLE: bool = cfg!(target_arch = "x86_64");

/// The modules of the live tests that run in guests, with busybox's programs only.
const TESTS: &[&str] = &["closes", "cases"];
/// The modules for arm64, whose kernels have pages of several sizes.
const ARM64_TESTS: &[&str] = &["closes", "cases", "page_size", "start_stop"];
/// The modules that run with `--all` only.
const LONG_TESTS: &[&str] = &["start_stop", "reuse", "flood", "wall_clock", "left_errors", "resets"];

/// The kernel modules that the agent and the tests need: socket dumps and networks.
const MODULES: &[&str] = &["inet_diag", "tcp_diag", "veth", "tun", "dummy", "sch_netem"];
/// kTLS and dumps of MPTCP sockets, of which Debian's 5.10 for clouds has none.
const OPTIONAL_MODULES: &[&str] = &["tls", "mptcp_diag"];

/// Memory of a guest, MiB.
const MEMORY: u32 = 1024;

const DEFAULT_PATIENCE: u64 = 900;

/// Guests at a time. Their tests mostly wait for TIME-WAIT, and tolerate a slow machine.
const SIDE_BY_SIDE: usize = 2;

/// Run the agent's tests on other kernels, in virtual machines
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask vm\n  cargo xtask vm --arch arm64\n  cargo xtask vm --kernel 6.1 -- sh -c 'tcpclose agent & sleep 5; tcpclose stuck'\n  cargo xtask vm --kernel 6.12 --append lockdown=confidentiality -- tcpclose doctor"
)]
pub struct Arguments {
    /// Kernels to boot [default: 6.1 and newest]
    #[arg(long = "kernel", value_name = "KERNEL", value_enum)]
    kernels: Vec<Kernel>,
    /// Boot all kernels of this architecture
    #[arg(long = "arch", value_name = "ARCHITECTURE", value_enum, conflicts_with = "kernels")]
    architecture: Option<Architecture>,
    /// Boot Debian with systemd and the agent's unit, and test it there (needs root)
    #[arg(long, conflicts_with = "command")]
    systemd: bool,
    /// Time limit of a guest, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_PATIENCE)]
    patience: u64,
    /// More words for the kernel's command line, with a command
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, requires = "command")]
    append: String,
    /// Command to run instead of the tests: `tcpclose`, `live` (the live tests), the path of a static program or shell
    /// script, or a command of busybox
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    if !POSSIBLE {
        bail!("guests need an x86-64 machine");
    }
    let kernels = match (arguments.architecture, arguments.kernels.as_slice()) {
        (Some(architecture), _) => Kernel::all(architecture),
        (None, []) => &Kernel::QUICK,
        (None, kernels) => kernels,
    };
    if arguments.systemd {
        if kernels.iter().any(|kernel| kernel.architecture() != Architecture::Amd64) {
            bail!("the guest with systemd needs an amd64 kernel");
        }
        setup::ready_with(Purpose::Vm, kernels)?;
        return systemd::boot(kernels, Duration::from_secs(arguments.patience));
    }
    let job = arguments.command.split_first().map(|(program, words)| {
        let name = Path::new(program).file_name().unwrap_or(program.as_ref()).to_string_lossy().into_owned();
        let words = [std::slice::from_ref(&name), words].concat();
        Job { append: arguments.append.clone(), ..Job::new(name, words) }
    });
    setup::ready_with(Purpose::Vm, kernels)?;
    // A path is a program of this machine; a mere name is looked up.
    let given = arguments.command.first().filter(|program| program.contains('/'));
    let given = given.map(|program| programs::given(program.as_ref())).transpose()?;
    let mut summary = Summary::default();
    for architecture in Architecture::ALL {
        let kernels: Vec<Kernel> =
            kernels.iter().copied().filter(|kernel| kernel.architecture() == architecture).collect();
        let patience = Duration::from_secs(arguments.patience);
        boot_all(&mut summary, architecture, &kernels, job.as_ref(), false, given.as_ref(), patience)?;
    }
    summary.end()
}

/// The kernels of `cargo xtask test`, and of its `--all`.
pub const fn kernels(long: bool) -> &'static [Kernel] {
    if long { &Kernel::EVERY } else { &Kernel::QUICK }
}

/// The step of `cargo xtask test`. The inner error is the reason why it was skipped.
pub fn test(long: bool) -> Result<Result<(), &'static str>> {
    let kernels = kernels(long);
    if !POSSIBLE {
        return Ok(Err("guests are x86-64 machines"));
    }
    let missing = Part::missing(kernels)?;
    let (there, absent): (Vec<Kernel>, Vec<Kernel>) =
        kernels.iter().partition(|kernel| !missing.iter().any(|part| part.is_for(**kernel)));
    let of = |architecture| -> Vec<Kernel> {
        there.iter().copied().filter(|kernel| kernel.architecture() == architecture).collect()
    };
    let hosts = of(Architecture::Amd64);
    if hosts.is_empty() {
        return Ok(Err("QEMU, busybox or all kernels are not here (`cargo xtask setup` fetches them)"));
    }
    let patience = Duration::from_secs(DEFAULT_PATIENCE);
    let mut summary = Summary::default();
    boot_all(&mut summary, Architecture::Amd64, &hosts, None, long, None, patience)?;
    // What takes long tells nothing new of the other architecture.
    boot_all(&mut summary, Architecture::Arm64, &of(Architecture::Arm64), None, false, None, patience)?;
    summary.end()?;
    if long && sh::can_be_root() {
        let with_systemd: Vec<Kernel> =
            hosts.iter().copied().filter(|kernel| Kernel::WITH_SYSTEMD.contains(kernel)).collect();
        systemd::boot(&with_systemd, patience)?;
    } else if long {
        eprintln!("\nSKIPPED: the guest with systemd: making its Debian needs root\n");
    }
    if !absent.is_empty() {
        let absent: Vec<&str> = absent.into_iter().map(Kernel::name).collect();
        eprintln!("\nSKIPPED: guests with these kernels: {}\n", absent.join(", "));
        return Ok(Err("some kernels are missing (`cargo xtask setup` fetches them)"));
    }
    Ok(Ok(()))
}

/// Runs the live tests with these arguments under `kernel`, and returns their output.
pub fn output(kernel: Kernel, arguments: &[&str]) -> Result<String> {
    if !POSSIBLE {
        bail!("guests need an x86-64 machine");
    }
    setup::ready_with(Purpose::Vm, &[kernel])?;
    let words = [live::PROGRAM].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
    let job = Job::new(live::PROGRAM, words);
    let mut summary = Summary::default();
    let patience = Duration::from_secs(DEFAULT_PATIENCE);
    boot_all(&mut summary, kernel.architecture(), &[kernel], Some(&job), false, None, patience)?;
    summary.end()?;
    let log = log(kernel, live::PROGRAM)?;
    fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
}

/// Runs a binary of the packages in a guest: it starts, attaches its probe, serves, answers and ends.
pub fn try_binary(architecture: Architecture, binary: &Path) -> Result<()> {
    let kernels = Kernel::all(architecture);
    setup::ready_with(Purpose::Vm, kernels)?;
    let words = ["sh", "-c", include_str!("vm/packaged.sh")].map(str::to_owned);
    let job = Job::new("packaged", words.into());
    let program = Program { name: "tcpclose".to_owned(), file: binary.to_path_buf() };
    let mut summary = Summary::default();
    for kernel in kernels {
        let patience = Duration::from_secs(DEFAULT_PATIENCE);
        let guest = prepare(*kernel, &job, std::slice::from_ref(&program), patience)?;
        summary.run(*kernel, &job, &guest)?;
    }
    summary.end()
}

/// The log of a guest's programs.
fn log(kernel: Kernel, job: &str) -> Result<PathBuf> {
    Ok(kit::folder()?.join(format!("{}-{job}.log", kernel.name())))
}

/// The tests for guests of an architecture, one job per module. `program` is this machine's.
fn tests(program: &Path, architecture: Architecture, long: bool) -> Result<Vec<Job>> {
    let wanted = |when| when == When::Always || long && matches!(when, When::Long | When::Guest);
    let names = match architecture {
        Architecture::Amd64 => TESTS,
        Architecture::Arm64 => ARM64_TESTS,
    };
    let names = [names, if long { LONG_TESTS } else { &[] }].concat();
    let job = |module: live::Module| {
        let words = [live::PROGRAM, "--exact", "--include-ignored", "--show-output"].map(str::to_owned);
        Job::new(module.name, [words.to_vec(), module.tests].concat())
    };
    let modules = live::modules(&live::listed(program)?, wanted).into_iter();
    Ok(modules.filter(|module| names.contains(&module.name.as_str())).map(job).collect())
}

/// Builds what the guests run, and runs each job in a guest of its own, away from the TIME-WAITs of others.
fn boot_all(
    summary: &mut Summary,
    architecture: Architecture,
    kernels: &[Kernel],
    job: Option<&Job>,
    long: bool,
    given: Option<&Program>,
    patience: Duration,
) -> Result<()> {
    if kernels.is_empty() {
        return Ok(());
    }
    let jobs = match job {
        Some(job) => vec![job.clone()],
        None => tests(&programs::build(Architecture::host()?)?.live, architecture, long)?,
    };
    let mut programs = programs::build(architecture)?.programs();
    programs.extend(given.cloned());
    let all: Vec<(Kernel, &Job)> =
        kernels.iter().flat_map(|kernel| jobs.iter().map(|job| (*kernel, job))).collect();
    let queue = Mutex::new(all.iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = |(place, (kernel, job)): (usize, &(Kernel, &Job))| {
        let guest = prepare(*kernel, job, &programs, patience)?;
        Ok((place, guest.run()?, guest))
    };
    let ran: Vec<Vec<(usize, Report, Guest)>> = thread::scope(|threads| {
        let hand = || iter::from_fn(next).map(run).collect::<Result<Vec<_>>>();
        let hands: Vec<_> = (0..SIDE_BY_SIDE).map(|_| threads.spawn(hand)).collect();
        let joined = hands.into_iter().map(|hand| hand.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let mut ran: Vec<(usize, Report, Guest)> = ran.into_iter().flatten().collect();
    ran.sort_unstable_by_key(|(place, ..)| *place);
    for (place, report, guest) in &ran {
        let (kernel, job) = all[*place];
        summary.add(kernel, job, guest, report);
    }
    Ok(())
}

/// The results of guests, in order.
#[derive(Default)]
struct Summary {
    lines: Vec<String>,
    failed: Vec<String>,
}

impl Summary {
    fn run(&mut self, kernel: Kernel, job: &Job, guest: &Guest) -> Result<()> {
        self.add(kernel, job, guest, &guest.run()?);
        Ok(())
    }

    fn add(&mut self, kernel: Kernel, job: &Job, guest: &Guest, report: &Report) {
        let (line, ok) = summarize(kernel.name(), job, report);
        self.lines.push(line);
        if !ok {
            self.lines.push(format!("     see {} and {}", guest.log.display(), guest.console.display()));
            self.failed.push(format!("{} under Linux {}", job.name, kernel.name()));
        }
    }

    fn end(self) -> Result<()> {
        eprintln!("\n{}", self.lines.join("\n"));
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

/// Makes the guest's filesystem.
fn prepare(kernel: Kernel, job: &Job, programs: &[Program], patience: Duration) -> Result<Guest> {
    let busybox = kit::busybox(kernel.architecture())?;
    let mut root = Initramfs::new();
    root.file("/init", include_bytes!("vm/init.sh"));
    root.file("/bin/busybox", &read(&busybox)?);
    root.link("/bin/sh", "busybox");
    put_modules(&mut root, kernel)?;
    for program in programs {
        root.file(&format!("/programs/{}", program.name), &read(&program.file)?);
        // A test knows the agent by the path that cargo told it when it was compiled.
        root.link(&program.file.to_string_lossy(), &format!("/programs/{}", program.name));
    }
    root.file("/commands", commands(kernel, job, environment()).as_bytes());

    let guest = guest(kernel, &job.name, root, MEMORY, patience)?;
    Ok(Guest { append: job.append.clone(), ..guest })
}

/// The guest for the job `name` in `root`, with so many MiB of memory.
fn guest(kernel: Kernel, name: &str, root: Initramfs, memory: u32, patience: Duration) -> Result<Guest> {
    let folder = kit::folder()?;
    let file = |kind: &str| folder.join(format!("{}-{name}.{kind}", kernel.name()));
    let initramfs = file("cpio");
    fs::write(&initramfs, root.finish()).with_context(|| format!("cannot write {}", initramfs.display()))?;
    Ok(Guest {
        name: format!("{} {name}", kernel.name()),
        architecture: kernel.architecture(),
        kernel: kit::image(kernel)?,
        initramfs,
        log: log(kernel, name)?,
        console: file("console.log"),
        memory,
        append: String::new(),
        patience,
    })
}

/// The modules that guests need, and the order in which they load.
fn put_modules(root: &mut Initramfs, kernel: Kernel) -> Result<()> {
    // Unpacked here, by this machine's own.
    let busybox = kit::busybox(Architecture::host()?)?;
    let modules = modules::resolve(&kit::modules(kernel)?, MODULES, OPTIONAL_MODULES, &busybox)?;
    for (name, content) in &modules {
        root.file(&format!("/modules/{name}.ko"), content);
    }
    let order: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    root.file("/modules/order", order.join("\n").as_bytes());
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// This process's environment, as far as a script can express it.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// What init.sh runs, as a shell script. The project's own variables are passed on, and those that say that a test which
/// cannot run in a guest, or a backend that does not load there, is a failure and not skipped, which backends this kernel is
/// known to refuse, and that a flood is to be one for an emulated machine.
fn commands(kernel: Kernel, job: &Job, environment: impl Iterator<Item = (String, String)>) -> String {
    let mut script = "export CI=1\nexport TCPCLOSE_NO_SKIP=1\nexport TCPCLOSE_EMULATED=1\n".to_owned();
    script.push_str(&format!("export TCPCLOSE_LACKING={}\n", kernel.lacking()));
    for (name, value) in environment.filter(|(name, _)| name.starts_with("TCPCLOSE_")) {
        script.push_str(&format!("export {name}={}\n", sh::quote(&value)));
    }
    let words: Vec<String> = job.words.iter().map(|word| sh::quote(word)).collect();
    script.push_str(&format!("run {} {}\n", sh::quote(&job.name), words.join(" ")));
    script
}

/// A line about a guest, and whether its job succeeded.
fn summarize(name: &str, job: &Job, report: &Report) -> (String, bool) {
    let mut words = Vec::new();
    if let Some((release, took)) = &report.up {
        words.push(format!("{release} up in {:.1} s", took.as_secs_f64()));
    }
    let ended = report.ran.iter().find(|(ran, _, _)| *ran == job.name);
    words.push(match ended {
        Some((_, status, took)) => format!("exit status {status} after {:.1} s", took.as_secs_f64()),
        None => "no end".to_owned(),
    });
    words.extend(report.trouble.clone());
    words.extend(report.skipped.iter().map(|what| format!("must not be skipped: {what}")));
    let ok = report.trouble.is_none()
        && report.skipped.is_empty()
        && ended.is_some_and(|(_, status, _)| *status == 0);
    let verdict = if ok { "ok" } else { "FAILED" };
    let line = format!(
        "{name:<14} {:<9} {verdict}: {} ({:.1} s)",
        job.name,
        words.join("; "),
        report.took.as_secs_f64()
    );
    (line, ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job::new("closes", vec!["closes".to_owned(), "it's".to_owned()])
    }

    fn report(ran: &[(&str, u8)], trouble: Option<&str>) -> Report {
        Report {
            up: Some(("6.1.0-56".to_owned(), Duration::from_millis(5210))),
            ran: ran
                .iter()
                .map(|(name, status)| ((*name).to_owned(), *status, Duration::from_secs(9)))
                .collect(),
            skipped: Vec::new(),
            trouble: trouble.map(str::to_owned),
            took: Duration::from_secs(15),
        }
    }

    #[test]
    fn every_test_for_guests_is_run_by_them() {
        let folder = sh::workspace().join("tcpclose-userspace/tests/live");
        let mut ran_nowhere = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_for_guests = path.is_file()
                && fs::read_to_string(&path).unwrap().lines().any(|line| line.starts_with("fn guest_"));
            if is_for_guests && !TESTS.iter().chain(LONG_TESTS).any(|ran| *ran == module) {
                ran_nowhere.push(module);
            }
        }
        assert_eq!(ran_nowhere, Vec::<String>::new());
    }

    #[test]
    fn commands_survive_the_guests_shell() {
        let environment = [("TCPCLOSE_TEST_LONG", "1"), ("HOME", "/home/me")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            commands(Kernel::V5_10, &job(), environment.into_iter()),
            "export CI=1\nexport TCPCLOSE_NO_SKIP=1\nexport TCPCLOSE_EMULATED=1\nexport TCPCLOSE_LACKING=btf,hooks,destroy_minisockets,ktls,sockmap\nexport TCPCLOSE_TEST_LONG=1\nrun closes closes 'it'\\''s'\n"
        );
    }

    #[test]
    fn a_guest_succeeds_when_its_job_did() {
        let (line, ok) = summarize("6.1", &job(), &report(&[("closes", 0)], None));
        assert_eq!(
            line,
            "6.1            closes    ok: 6.1.0-56 up in 5.2 s; exit status 0 after 9.0 s (15.0 s)"
        );
        assert!(ok);
    }

    #[test]
    fn a_guest_fails_with_a_job_that_failed_or_never_ended_or_with_its_kernel() {
        let (line, ok) = summarize("6.1", &job(), &report(&[("closes", 101)], None));
        assert!(line.contains("FAILED") && line.contains("exit status 101 after"), "{line}");
        assert!(!ok);
        let (line, ok) = summarize("6.1", &job(), &report(&[], Some("not done after 900 s")));
        assert!(line.contains("no end; not done after 900 s"), "{line}");
        assert!(!ok);
        assert!(!summarize("6.1", &job(), &report(&[("closes", 0)], Some("panic"))).1);
    }

    #[test]
    fn a_guest_fails_with_what_it_skipped() {
        let skipped = Report { skipped: vec!["btf: no hooks".to_owned()], ..report(&[("closes", 0)], None) };
        let (line, ok) = summarize("6.1", &job(), &skipped);
        assert!(line.contains("FAILED") && line.contains("must not be skipped: btf: no hooks"), "{line}");
        assert!(!ok);
    }
}
