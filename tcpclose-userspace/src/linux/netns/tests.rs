//! Namespaces of this test's own: made, found, entered, and gone with their last holder.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::linux::netns::mounts::{mounted, name_of, unescaped};
use crate::linux::netns::place::{Way, here, mounted_at};
use crate::linux::netns::*;

/// Runs `test` while a thread is in a new network namespace, with that one's identity; `None` where none may be made.
fn beside_a_namespace(test: impl FnOnce(&Netns)) -> Option<()> {
    thread::scope(|scope| {
        let (say, heard) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            // SAFETY: a network namespace is of this thread alone.
            let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
            say.send(made.ok().and_then(|()| own().ok())).unwrap();
            let _ = ended.recv();
        });
        let made = heard.recv().unwrap();
        if made.is_none() {
            eprintln!("SKIPPED: no network namespace may be made");
        }
        let done = made.map(|netns| test(&netns));
        drop(end);
        done
    })
}

#[test]
fn a_threads_namespace_is_found_and_entered_and_distinguished_from_our_own() {
    beside_a_namespace(|other| {
        let here = own().unwrap();
        assert!(here.id != other.id && here.inum != other.inum);
        let found = find(&Descriptors::NONE).unwrap();
        assert_eq!(found.places[0].inum, here.inum, "the caller's own comes first");
        let place = found.places.iter().find(|place| place.inum == other.inum).unwrap();
        let (entered, population) =
            with_visitor(|visitor| (visitor.enter(place).unwrap(), population().unwrap())).unwrap();
        assert_eq!(&entered, other);
        assert_eq!(population, Population::default());
        assert_eq!(own().unwrap(), here, "this thread has not moved");
        // And back: the first place is that of this very thread.
        let back = with_visitor(|visitor| {
            visitor.enter(place).unwrap();
            visitor.enter(&found.places[0]).unwrap()
        });
        assert_eq!(back.unwrap(), here);
    });
}

#[test]
fn a_namespace_that_is_gone_is_not_found_and_its_place_is_no_other() {
    let mut place = None;
    let made = beside_a_namespace(|other| {
        let found = find(&Descriptors::NONE).unwrap();
        place = found.places.into_iter().find(|place| place.inum == other.inum);
        assert!(place.is_some());
    });
    if made.is_some() {
        let place = place.unwrap();
        // A thread is joined a moment before the kernel lets go of its namespace.
        while with_visitor(|visitor| visitor.enter(&place)).unwrap().is_ok() {
            thread::yield_now();
        }
        // A way that leads to another namespace by now.
        let moved = NetnsPath { inum: 1, ways: vec![here()], name: None, user: 0 };
        let entered = with_visitor(|visitor| visitor.enter(&moved)).unwrap();
        assert_eq!(entered.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_namespace_that_only_a_descriptor_holds_is_found_by_it() {
    let mut held = None;
    let made = beside_a_namespace(|other| {
        let found = find(&Descriptors::NONE).unwrap();
        let place = found.places.into_iter().find(|place| place.inum == other.inum).unwrap();
        held = Some((File::open(place.ways[0].path()).unwrap(), other.clone()));
    });
    let Some((_, (file, other))) = made.zip(held) else { return };
    let there = |descriptors: &Descriptors| {
        find(descriptors).unwrap().places.into_iter().find(|place| place.inum == other.inum)
    };
    // Its thread has been joined, and leaves /proc a moment later.
    while there(&Descriptors::NONE).is_some() {
        thread::yield_now();
    }
    let place = there(&Descriptors::All).unwrap();
    assert!(place.is_held_open());
    assert_eq!(with_visitor(|visitor| visitor.enter(&place)).unwrap().unwrap(), other);
    // It is found again without a look at all.
    let known = Descriptors::Those(vec![place]);
    assert!(there(&known).is_some());
    drop(file);
    assert!(there(&known).is_none() && there(&Descriptors::All).is_none());
}

/// A way that leads to something else by now: to open it would be to wait for its other end.
#[test]
fn a_descriptor_that_is_another_file_by_now_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let inum = fs::metadata(&path).unwrap().ino() as u32;
    let place = NetnsPath { inum, name: None, user: 0, ways: vec![Way::File(path)] };
    let entered = with_visitor(|visitor| visitor.enter(&place)).unwrap();
    assert_eq!(entered.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_mount_of_a_namespace_is_read_from_its_line() {
    let line = b"36 25 0:4 net:[4026532008] /run/netns/blue\\040sky rw shared:7 - nsfs nsfs rw";
    let (inum, point) = mounted(line).unwrap();
    assert_eq!((inum, point.as_path()), (4026532008, Path::new("/run/netns/blue sky")));
    assert_eq!(name_of(&point).as_deref(), Some("blue sky"));
    assert_eq!(name_of(Path::new("/run/docker/netns/abc")), None);
    for other in [
        &b"36 25 0:4 mnt:[4026532008] /run/x rw shared:7 - nsfs nsfs rw"[..],
        b"36 25 0:4 net:[4026532008] /run/x rw - ext4 /dev/sda rw",
        b"36 25 0:4 net:[] /run/x rw - nsfs nsfs rw",
        b"36 25 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        b"36 25",
        b"",
    ] {
        assert_eq!(mounted(other), None);
    }
    assert_eq!(unescaped(b"a\\134b\\9\\0"), b"a\\b\\9\\0");
}

/// Whoever owns a mount namespace can have a link stand where a mount table has a directory.
#[test]
fn a_mount_is_looked_for_without_links_and_below_its_root() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("inside")).unwrap();
    fs::write(folder.path().join("inside/file"), "").unwrap();
    std::os::unix::fs::symlink("inside", folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/proc/self/ns/net", folder.path().join("inside/net")).unwrap();
    let found = |point: &str| mounted_at(folder.path(), Path::new(point)).is_ok();
    assert!(found("inside/file"));
    for refused in ["link/file", "inside/net", "etc/passwd", "inside/other"] {
        assert!(!found(refused), "{refused}");
    }
}
