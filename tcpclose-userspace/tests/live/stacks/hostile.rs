//! Processes of a user who wants the agent to hang, to grow, or to say something wrong.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tcpclose::linux::stacks::frames::Stack;
use tcpclose::report::stacks::{Place, in_words, place};
use tcpclose_common::stack::Moment;
use tempfile::TempDir;

use super::{
    Agent, Leaker, PATIENCE, answer, arm, asked_agent, c, compile, expect_five, is_at, leak, stacks,
};

/// Somebody without any privilege.
const UID: u32 = 64_125;
/// Sockets of each hostile process.
const FEW: usize = 24;
/// How much larger the agent may get: what it keeps of stacks, and a message of a helper.
const GROWTH: u64 = 64 << 20;
/// How long an answer may take, on a machine that does much else.
const ANSWER: Duration = Duration::from_secs(30);

/// A folder that the user may enter.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs a program of the user's while it is armed.
fn start(agent: &Agent, program: &Path, words: &[&str], before: impl FnOnce(u32)) -> Leaker {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={UID}"), "--clear-groups"]).arg(program).args(words);
    let leaker = Leaker::start_by(command, FEW);
    before(leaker.child.id());
    arm(agent, &leaker);
    for _ in 0..FEW {
        drop(TcpStream::connect(("127.0.0.1", leaker.port)).unwrap());
    }
    leaker
}

/// How many stacks the agent has had to do with: kept, or said to have no names.
fn dealt_with(agent: &Agent) -> f64 {
    let metrics = agent.metrics();
    let of = |result: &str| metrics.sum("tcpclose_stacks_total", &[("result", result)]);
    of("unnamed")
}

/// Returns the stacks of the leaker's sockets when each has one, or when they are counted as not to be named. Meanwhile every answer
/// comes.
fn settled(agent: &Agent, leaker: &Leaker, unnamed_before: f64) -> Vec<Stack> {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let asked = Instant::now();
        let mut document = answer(agent);
        assert!(asked.elapsed() < ANSWER, "an answer takes {:?}", asked.elapsed());
        document.sockets.retain(is_at(leaker.port));
        let found: Vec<Stack> = stacks(&document, Moment::EndRead).cloned().collect();
        if found.len() == FEW || dealt_with(agent) >= unnamed_before + 1.0 {
            return found;
        }
        assert!(Instant::now() < until, "{} of {FEW} stacks\n{}", found.len(), agent.printed());
        sleep(Duration::from_millis(200));
    }
}

/// Names for others are still to be had, from an agent that is not larger than it may be.
fn expect_well(agent: &Agent, before: u64) {
    let folder = tempfile::tempdir().unwrap();
    expect_five(&leak(agent, &compile(c(&[]), "leak.c", folder.path())).1);
    let now = agent.allocated();
    println!("the agent has allocated {} KiB, {} KiB before", now >> 10, before >> 10);
    assert!(now < before + GROWTH, "{before} {now}");
    assert_eq!(agent.get("/readyz").0, 200);
}

/// Stack pointers and frame pointers to anywhere, and stacks that lead in circles.
#[test]
#[ignore = "needs root"]
fn forged_stacks_end_and_blame_nobody() {
    let agent = asked_agent();
    let folder = open_folder();
    let program = compile(c(&["-pthread"]), "odd.c", folder.path());
    let before = agent.allocated();
    let leaker = start(&agent, &program, &["garbage"], |_| {});
    for stack in settled(&agent, &leaker, dealt_with(&agent)) {
        assert!(stack.frames.len() <= 256);
        // The function that reads is on top, whatever its stack says.
        let Place::Code(frame) = place(&stack) else { panic!("{stack:?}") };
        let reader = ["read_with", "garbage"].contains(&frame.function.as_deref().unwrap());
        assert!(reader, "{stack:?}");
    }
    expect_well(&agent, before);
}

/// A path that looks like another line of /proc/PID/maps, and one that would speak to a terminal.
#[test]
#[ignore = "needs root"]
fn paths_with_control_characters_are_paths() {
    let agent = asked_agent();
    let folder = open_folder();
    let program = compile(c(&["-pthread"]), "odd.c", folder.path());
    let name = b"odd\n0000000000000000-7fffffffffff r-xp 00000000 00:01 1  usr bin passwd\n\x1b[2J\xff";
    let named = folder.path().join(std::ffi::OsStr::from_bytes(name));
    // Not by this process: a child of another test would have the copy open for writing.
    assert!(Command::new("cp").arg(&program).arg(&named).status().unwrap().success());
    let leaker = start(&agent, &named, &["plain"], |_| {});
    let found = settled(&agent, &leaker, f64::MAX);
    assert_eq!(found.len(), FEW);
    for stack in found {
        let Place::Code(frame) = place(&stack) else { panic!("{stack:?}") };
        assert_eq!(frame.function.as_deref(), Some("leak_0"), "{stack:?}");
        assert!(stack.frames.iter().all(|frame| frame.module.as_deref() != Some("usr bin passwd")));
    }
    let pid = leaker.child.id().to_string();
    for arguments in [&["--stacks"][..], &[], &["--json"]] {
        let output = agent.stuck(&[arguments, &["--older-than", "0s", "--pid", &pid]].concat());
        assert!(String::from_utf8_lossy(&output.stdout).contains("leak_0"), "{output:?}");
        assert!(!output.stdout.contains(&0x1b), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

fn is_named(stack: &Stack) -> bool {
    matches!(place(stack), Place::Code(frame) if frame.function.as_deref() == Some("leak_0"))
}

/// What a program's list of its functions may be: a pipe, somebody else's, endless, or full of lies.
#[test]
#[ignore = "needs root"]
fn lists_of_functions_are_read_within_bounds() {
    let agent = asked_agent();
    let folder = open_folder();
    let program = compile(c(&["-pthread"]), "odd.c", folder.path());
    let before = agent.allocated();
    let own = |file: &Path| chown(file, Some(UID), Some(UID)).unwrap();
    type Make = Box<dyn Fn(&Path)>;
    let kinds: [(&str, Make); 4] = [
        (
            "a pipe",
            Box::new(move |path| {
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
                own(path);
            }),
        ),
        ("another user's", Box::new(|path| fs::write(path, "0 ffffffffffffffff py::wrong:/x\n").unwrap())),
        (
            "endless",
            Box::new(move |path| {
                let list = File::create(path).unwrap();
                list.set_len(1 << 40).unwrap();
                own(path);
            }),
        ),
        (
            "full of lines",
            Box::new(move |path| {
                let mut list = std::io::BufWriter::new(File::create(path).unwrap());
                for nth in 0..100_000 {
                    writeln!(list, "{:x} ffffffffffff py::\x1b[2J{nth}:/x", nth).unwrap();
                }
                drop(list);
                own(path);
            }),
        ),
    ];
    for (kind, make) in kinds {
        let unnamed = dealt_with(&agent);
        let mut list = PathBuf::new();
        // Code that no file has: the list is asked for.
        let leaker = start(&agent, &program, &["made"], |pid| {
            list = PathBuf::from(format!("/tmp/perf-{pid}.map"));
            make(&list);
        });
        let found = settled(&agent, &leaker, unnamed);
        fs::remove_file(&list).unwrap();
        println!("{kind}: {} stacks", found.len());
        let wrong = |stack: &&Stack| {
            stack
                .frames
                .iter()
                .any(|frame| frame.function.as_deref().is_some_and(|name| name.contains("wrong")))
        };
        assert_eq!(found.iter().find(wrong), None, "{kind}");
        // A list is no reason to lose what files say.
        assert!(found.len() == FEW && found.iter().all(is_named), "{kind}: {found:?}");
        drop(leaker);
    }
    expect_well(&agent, before);
}

/// Executables with damaged or endless tables of symbols and debugging information.
#[test]
#[ignore = "needs root"]
fn damaged_executables_harm_only_themselves() {
    let agent = asked_agent();
    let folder = open_folder();
    let program = compile(c(&["-pthread", "-gz=none"]), "odd.c", folder.path());
    let original = fs::read(&program).unwrap();
    let before = agent.allocated();
    for damage in 0..5_u64 {
        let mut bytes = original.clone();
        let sections = sections(&bytes);
        let mut state = damage.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let hurt = |name: &str| match damage {
            0 => name == ".symtab",
            1 => name == ".debug_info",
            2 => name == ".debug_line" || name == ".debug_abbrev",
            3 => name == ".eh_frame" || name == ".eh_frame_hdr",
            _ => false,
        };
        // A process that reads its own .eh_frame only throws exceptions by it; this one does not.
        for (_, range, _) in sections.iter().filter(|(name, ..)| hurt(name)) {
            for at in range.clone().step_by(3) {
                bytes[at] = random() as u8;
            }
        }
        let path = folder.path().join(format!("damaged-{damage}"));
        fs::write(&path, &bytes).unwrap();
        if damage == 4 {
            // Symbols in a hole of 64 GiB.
            let (.., header) = sections.iter().find(|(name, ..)| name == ".symtab").unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&(1_u64 << 30).to_le_bytes(), *header as u64 + 24).unwrap();
            file.write_all_at(&(64_u64 << 30).to_le_bytes(), *header as u64 + 32).unwrap();
            file.set_len(66 << 30).unwrap();
        }
        // Not the file that this process wrote: a child of another test would have it open for writing.
        let copy = path.with_extension("copy");
        assert!(Command::new("cp").arg("--sparse=always").arg(&path).arg(&copy).status().unwrap().success());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let unnamed = dealt_with(&agent);
        let leaker = start(&agent, &copy, &["plain"], |_| {});
        let found = settled(&agent, &leaker, unnamed);
        let place = found.first().map(|stack| in_words(&place(stack)));
        let unnamed = dealt_with(&agent) - unnamed;
        println!("damage {damage}: {} stacks, {unnamed} not to be had: {place:?}", found.len());
        fs::remove_file(&path).unwrap();
    }
    expect_well(&agent, before);
}

/// Debugging information of which little is read, and which takes all memory that the helper may have: it ends, and the agent counts
/// what has no names for that.
#[test]
#[ignore = "needs root"]
fn debugging_information_without_end_is_refused_and_counted() {
    const UNITS: usize = 400_000;
    let agent = asked_agent();
    let folder = open_folder();
    let before = agent.allocated();
    let small = folder.path().join("small.c");
    fs::write(&small, "int small(void) { return 1; }\n").unwrap();
    let program = compile(c(&["-pthread", "-gz=none", small.to_str().unwrap()]), "odd.c", folder.path());
    let mut bytes = fs::read(&program).unwrap();
    let (_, range, header) = sections(&bytes).into_iter().find(|(name, ..)| name == ".debug_info").unwrap();
    let info = &bytes[range];
    let mut units = Vec::new();
    let mut at = 0;
    while at < info.len() {
        let length = 4 + u32::from_le_bytes(info[at..at + 4].try_into().unwrap()) as usize;
        units.push(&info[at..at + length]);
        at += length;
    }
    let unit = units.into_iter().min_by_key(|unit| unit.len()).unwrap().repeat(UNITS);
    let (offset, size) = (bytes.len() as u64, unit.len() as u64);
    bytes.extend_from_slice(&unit);
    bytes[header + 24..header + 32].copy_from_slice(&offset.to_le_bytes());
    bytes[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
    let (path, copy) = (folder.path().join("large"), folder.path().join("large.copy"));
    fs::write(&path, &bytes).unwrap();
    assert!(Command::new("cp").arg(&path).arg(&copy).status().unwrap().success());
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let unnamed = dealt_with(&agent);
    let leaker = start(&agent, &copy, &["plain"], |_| {});
    let found = settled(&agent, &leaker, unnamed);
    let unnamed = dealt_with(&agent) - unnamed;
    println!("{} MiB of units: {} stacks, {unnamed} without names", size >> 20, found.len());
    assert!(unnamed >= 1.0 && found.is_empty(), "{}", agent.printed());
    agent.until_it_says(&format!("cannot name stacks of process {}", leaker.child.id()));
    expect_well(&agent, before);
}

/// The sections of an ELF file: their names, where they are, and where their headers are.
fn sections(bytes: &[u8]) -> Vec<(String, std::ops::Range<usize>, usize)> {
    let number = |at: usize, width: usize| {
        bytes[at..at + width].iter().rev().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte))
    };
    let (table, count, names) = (number(40, 8), number(60, 2), number(62, 2));
    let header = |nth: usize| table + 64 * nth;
    let names = number(header(names) + 24, 8);
    let section = |nth| {
        let at = header(nth);
        let name = &bytes[names + number(at, 4)..];
        let name = name.split(|&byte| byte == 0).next().unwrap();
        let from = number(at + 24, 8);
        (String::from_utf8_lossy(name).into_owned(), from..from + number(at + 32, 8), at)
    };
    // The first has no contents, and one of zeros has a size only.
    (1..count).map(section).filter(|(name, ..)| name != ".bss").collect()
}
