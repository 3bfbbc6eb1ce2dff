//! Where names come from: the file that is mapped, whatever its path leads to by now, and the file with its debugging information.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tcpclose::report::sockets::SocketsDocument;
use tcpclose::report::stacks::{Place, in_words, place};
use tcpclose_common::stack::Moment;

use super::{COUNT, Leaker, arm, asked_agent, c, compile, document, expect_five, leak_by, stacks};

/// Compiles a program like the leaker whose functions have other names, at the same addresses.
fn other(folder: &Path) -> PathBuf {
    let folder = folder.join("other");
    fs::create_dir(&folder).unwrap();
    let names: Vec<String> = (0..5).map(|nth| format!("-Dleak_{nth}=wrong_{nth}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    compile(c(&names), "leak.c", &folder)
}

/// Expects modules and offsets, and no names.
fn expect_no_names(document: &SocketsDocument) {
    for stack in stacks(document, Moment::EndRead) {
        let Place::Unnamed(frame) = place(stack) else { panic!("{stack:?}") };
        assert!(frame.function.is_none() && frame.line.is_none() && frame.offset != 0, "{frame:?}");
        assert!(in_words(&place(stack)).ends_with("(no symbols)"), "{}", in_words(&place(stack)));
    }
    assert_eq!(stacks(document, Moment::EndRead).count(), COUNT);
}

/// An upgrade: another file takes the executable's name while the process runs.
#[test]
#[ignore = "needs root"]
fn a_replaced_executable_gives_no_wrong_names() {
    let agent = asked_agent();
    for build_id in ["-Wl,--build-id", "-Wl,--build-id=none"] {
        let folder = tempfile::tempdir().unwrap();
        let program = compile(c(&[build_id]), "leak.c", folder.path());
        let leaker = Leaker::start(&program);
        fs::rename(other(folder.path()), &program).unwrap();
        arm(&agent, &leaker);
        leaker.leak();
        let document = document(&agent, leaker.port);
        let is_old = |name: &str| name.starts_with("leak_");
        for stack in stacks(&document, Moment::EndRead) {
            let Place::Code(frame) = place(stack) else { panic!("{stack:?}") };
            assert!(is_old(frame.function.as_deref().unwrap()), "{stack:?}");
            assert!(frame.module.as_deref().unwrap().ends_with(" (deleted)"), "{stack:?}");
        }
    }
}

/// A replaced library is not to be had: that takes a capability that the helper does not keep.
#[test]
#[ignore = "needs root"]
fn a_replaced_library_gives_no_names() {
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libleak.so");
    let built = |flags: &[&str], to: &Path| {
        let mut compiler = c(&["-shared", "-fPIC"]);
        compiler.args(flags).arg(super::fixture("leak.c")).arg("-o").arg(to);
        assert!(compiler.status().unwrap().success());
    };
    built(&["-Dmain=leaker_main"], &library);
    let main = folder.path().join("main.c");
    fs::write(
        &main,
        "int leaker_main(int, char **);\nint main(int c, char **v) { return leaker_main(c, v) + 1; }\n",
    )
    .unwrap();
    let program = folder.path().join("leaker");
    let mut compiler = c(&[]);
    compiler.arg(&main).arg(&library).arg("-o").arg(&program);
    assert!(compiler.status().unwrap().success());
    let leaker = Leaker::start(&program);
    let new = folder.path().join("new.so");
    built(&["-Dmain=leaker_main", "-Dleak_0=wrong_0", "-Dleak_1=wrong_1"], &new);
    fs::rename(&new, &library).unwrap();
    arm(&agent, &leaker);
    leaker.leak();
    let document = document(&agent, leaker.port);
    for stack in stacks(&document, Moment::EndRead) {
        let of_library = |frame: &&tcpclose::linux::stacks::frames::Frame| {
            frame.module.as_deref().is_some_and(|module| module.contains("libleak.so"))
        };
        let mut frames = stack.frames.iter().filter(of_library).peekable();
        assert!(frames.peek().is_some(), "{stack:?}");
        assert!(frames.all(|frame| frame.function.is_none() && frame.build_id.is_some()), "{stack:?}");
    }
}

/// A process whose paths lead elsewhere than ours: another program has its executable's path here.
#[test]
#[ignore = "needs root"]
fn a_process_in_its_own_mount_namespace_has_names() {
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let there = tempfile::tempdir().unwrap();
    let program = compile(c(&["-static"]), "leak.c", folder.path());
    fs::rename(other(folder.path()), there.path().join("leaker")).unwrap();
    for script in [
        // The same path, and another file.
        "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1/leaker\" && exec \"$1/leaker\" \"$2\"",
        // Another root.
        "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1/leaker\" && exec chroot \"$1\" /leaker \"$2\"",
    ] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&program).arg(there.path());
        let (_leaker, document) = leak_by(&agent, command);
        expect_five(&document);
    }
}

/// Moves the debugging information of a program to a file of its own.
fn split(program: &Path, to: &Path) {
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("objcopy").arg("--only-keep-debug").arg(program).arg(to));
    run(Command::new("strip").arg("--strip-all").arg(program));
}

fn link(program: &Path, to: &Path) {
    let mut command = Command::new("objcopy");
    command.arg(format!("--add-gnu-debuglink={}", to.display())).arg(program);
    assert!(command.status().unwrap().success());
}

/// A file that is installed on this host for a moment.
struct Installed(PathBuf);

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(self.0.parent().unwrap());
    }
}

#[test]
#[ignore = "needs root"]
fn a_stripped_program_has_the_names_of_its_debug_file() {
    let agent = asked_agent();
    let folder = tempfile::tempdir().unwrap();
    let debug = folder.path().join("leaker.debug");
    let stripped = |build_id: &str| {
        let program = compile(c(&[build_id]), "leak.c", folder.path());
        split(&program, &debug);
        program
    };
    // By the link, whose checksum is the proof where there is no build id.
    let program = stripped("-Wl,--build-id=none");
    link(&program, &debug);
    expect_five_but_for_build_ids(&leak_by(&agent, Command::new(&program)).1);
    let hidden = folder.path().join(".debug");
    fs::create_dir(&hidden).unwrap();
    fs::rename(&debug, hidden.join("leaker.debug")).unwrap();
    expect_five_but_for_build_ids(&leak_by(&agent, Command::new(&program)).1);
    // Another program's has no names for this one.
    fs::copy(other(folder.path()), hidden.join("leaker.debug")).unwrap();
    expect_no_names(&leak_by(&agent, Command::new(&program)).1);
    fs::remove_dir_all(&hidden).unwrap();

    // By the build id, in the process's root and in ours.
    let program = stripped("-Wl,--build-id");
    let build_id = build_id(&program);
    let (first, rest) = build_id.split_at(2);
    let below = format!("/usr/lib/debug/.build-id/{first}");
    let installs = format!(
        "mkdir -p /usr/lib/debug && mount -t tmpfs none /usr/lib/debug && mkdir -p {below} && \
         cp \"$1\" {below}/{rest}.debug && exec \"$0\" \"$2\""
    );
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&program).arg(&debug);
        command
    };
    expect_five(&leak_by(&agent, in_namespace(&installs)).1);
    fs::create_dir_all(&below).unwrap();
    let installed = Installed(PathBuf::from(format!("{below}/{rest}.debug")));
    fs::copy(&debug, &installed.0).unwrap();
    let hides = "mkdir -p /usr/lib/debug && mount -t tmpfs none /usr/lib/debug && exec \"$0\" \"$2\"";
    expect_five(&leak_by(&agent, in_namespace(hides)).1);
    drop(installed);
    expect_no_names(&leak_by(&agent, Command::new(&program)).1);
}

fn expect_five_but_for_build_ids(document: &SocketsDocument) {
    for stack in stacks(document, Moment::EndRead) {
        let Place::Code(frame) = place(stack) else { panic!("{stack:?}") };
        assert!(frame.function.as_deref().unwrap().starts_with("leak_"), "{stack:?}");
        assert!(frame.line.is_some() && frame.file.as_deref().unwrap().ends_with("leak.c"), "{stack:?}");
    }
}

fn build_id(program: &Path) -> String {
    let output = Command::new("readelf").arg("-n").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap().to_owned()
}
