//! Network namespaces in mount tables, and how much of those a search reads.
//!
//! Any local user can make mount namespaces of their own, with up to fs.mount-max mounts in each (100,000 by default,
//! fs/namespace.c, sysctl_mount_max). Reading such a table costs the kernel some 2 µs per mount (6.18), so a search
//! reads a bounded part per table and per user, and reports what it skipped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of the searcher's own mount table: more than fs.mount-max ordinary mounts make.
const OWN: u64 = 16 << 20;
/// Bytes per table, bytes per user, and tables per user: for root, who runs the container runtimes, and for others.
const ROOT: Share = Share { table: 4 << 20, all: 16 << 20, tables: 128 };
const USER: Share = Share { table: 256 << 10, all: 512 << 10, tables: 16 };
/// The most users besides root whose tables are read.
const USERS: usize = 64;
/// After this long no further table is read.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most users that are named; the rest are counted.
const NAMED: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Share {
    table: u64,
    all: u64,
    tables: u32,
}

const fn share(user: u32) -> Share {
    if user == 0 { ROOT } else { USER }
}

/// What was read of one user's tables so far.
#[derive(Clone, Copy, Debug, Default)]
struct UserSpent {
    bytes: u64,
    tables: u32,
}

/// The number of mount tables that a search skipped or read in part, by user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadMounts(BTreeMap<u32, u32>);

impl UnreadMounts {
    /// What was skipped, in words.
    pub fn words(&self) -> Option<String> {
        let tables: u32 = self.0.values().sum();
        if tables == 0 {
            return None;
        }
        let mut users: Vec<String> = self.0.keys().take(NAMED).map(u32::to_string).collect();
        if self.0.len() > NAMED {
            users.push(format!("{} more", self.0.len() - NAMED));
        }
        let (tables, them) = match tables {
            1 => ("1 mount table".to_owned(), "it"),
            n => (format!("{n} mount tables"), "them"),
        };
        let users = format!("user{} {}", if self.0.len() == 1 { "" } else { "s" }, users.join(", "));
        Some(format!(
            "{tables} of {users} not read to the end (too long or too many): network namespaces that only a mount in \
             {them} holds are missing"
        ))
    }
}

/// What a search may still read of mount tables.
#[derive(Debug)]
pub(super) struct Budget {
    spent: BTreeMap<u32, UserSpent>,
    unread: UnreadMounts,
    until: Instant,
}

impl Budget {
    pub fn begin(now: Instant) -> Self {
        Self { spent: BTreeMap::new(), unread: UnreadMounts::default(), until: now + PATIENCE }
    }

    /// How many bytes of `user`'s next table may be read; 0: it is skipped and counted.
    fn next(&mut self, user: u32, now: Instant) -> u64 {
        let users = self.spent.keys().filter(|user| **user != 0).count();
        let known = user == 0 || self.spent.contains_key(&user);
        let share = share(user);
        let spent = self.spent.get(&user).copied().unwrap_or_default();
        let left = share.all.saturating_sub(spent.bytes).min(share.table);
        if now >= self.until || !known && users >= USERS || spent.tables >= share.tables || left == 0 {
            *self.unread.0.entry(user).or_default() += 1;
            return 0;
        }
        left
    }

    fn took(&mut self, user: u32, bytes: u64, whole: bool) {
        let spent = self.spent.entry(user).or_default();
        spent.bytes += bytes;
        spent.tables += 1;
        if !whole {
            *self.unread.0.entry(user).or_default() += 1;
        }
    }

    /// Calls `visit` with each network namespace in `user`'s mount table, as far as that may be read.
    pub fn read(&mut self, table: &str, user: u32, visit: impl FnMut(u32, PathBuf)) {
        let most = self.next(user, Instant::now());
        if most > 0
            && let Ok((bytes, whole)) = read(table, most, visit)
        {
            self.took(user, bytes, whole);
        }
    }

    /// The same for the searcher's own table.
    pub fn read_own(&mut self, table: &str, visit: impl FnMut(u32, PathBuf)) {
        if let Ok((_, false)) = read(table, OWN, visit) {
            *self.unread.0.entry(0).or_default() += 1;
        }
    }

    pub fn unread(self) -> UnreadMounts {
        self.unread
    }
}

/// Reads at most `most` bytes of a table. Returns how many were read, and whether that was all.
fn read(table: &str, most: u64, mut visit: impl FnMut(u32, PathBuf)) -> io::Result<(u64, bool)> {
    let mut reader = BufReader::with_capacity(64 << 10, File::open(table)?.take(most));
    let (mut bytes, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        bytes += read as u64;
        // Mount points are any bytes, but no newlines (fs/proc_namespace.c, show_mountinfo()).
        let Some(line) = line.strip_suffix(b"\n") else { return Ok((bytes, bytes < most)) };
        if let Some((inum, point)) = mounted(line) {
            visit(inum, point);
        }
    }
}

/// The network namespace that a line of a mountinfo mounts, and its mount point.
pub(super) fn mounted(line: &[u8]) -> Option<(u32, PathBuf)> {
    // 36 25 0:4 net:[4026532008] /run/netns/blue rw shared:7 - nsfs nsfs rw (Documentation/filesystems/proc.rst, 3.5)
    let mut fields = line.split(|byte| *byte == b' ');
    let root = str::from_utf8(fields.nth(3)?).ok()?;
    let inum = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    let point = unescaped(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    (rest.next()? == b"nsfs").then(|| (inum, OsString::from_vec(point).into()))
}

/// Decodes the escapes that the kernel writes for space, tab, newline and backslash: `\040` (fs/seq_file.c, mangle_path()).
pub(super) fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = match rest {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => out.push(*first),
        }
    }
    out
}

/// The name of a namespace by its mount point, as `ip netns` has it.
pub(super) fn name_of(point: &Path) -> Option<String> {
    let folder = point.parent()?;
    let named = [Path::new("/run/netns"), Path::new("/var/run/netns")].contains(&folder);
    named.then(|| point.file_name().map(|name| name.to_string_lossy().into_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_users_long_tables_take_their_share_and_leave_the_others_theirs() {
        let now = Instant::now();
        let mut budget = Budget::begin(now);
        let mut taken = 0;
        for _ in 0..12 {
            let most = budget.next(1000, now);
            if most > 0 {
                budget.took(1000, most, false);
            }
            taken += most;
        }
        assert_eq!(taken, USER.all, "two tables in part, ten not at all");
        assert_eq!(budget.next(1001, now), USER.table);
        assert_eq!(budget.next(0, now), ROOT.table);
        assert_eq!(
            budget.unread().words().unwrap(),
            "12 mount tables of user 1000 not read to the end (too long or too many): network namespaces that only a \
             mount in them holds are missing"
        );
    }

    #[test]
    fn many_tables_many_users_and_much_time_are_bounded() {
        let now = Instant::now();
        let mut budget = Budget::begin(now);
        for _ in 0..USER.tables {
            assert!(budget.next(7, now) > 0);
            budget.took(7, 10, true);
        }
        assert_eq!(budget.next(7, now), 0, "empty tables cost too");
        for user in 1000..1000 + USERS as u32 {
            if budget.next(user, now) > 0 {
                budget.took(user, 10, true);
            }
        }
        assert_eq!(budget.next(5000, now), 0);
        assert!(budget.next(0, now) > 0, "root's are read whoever else is there");
        assert_eq!(budget.next(0, now + PATIENCE), 0);
        assert!(budget.unread().words().unwrap().contains("users 0, 7, "));
        assert_eq!(UnreadMounts::default().words(), None);
    }

    #[test]
    fn a_table_that_is_cut_says_so_and_its_last_line_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mountinfo");
        let line = |n| format!("36 25 0:4 net:[{n}] /run/netns/{n} rw - nsfs nsfs rw\n");
        let text: String = (10..20).map(line).collect();
        std::fs::write(&path, &text).unwrap();
        let read = |most| {
            let mut seen = Vec::new();
            let done = read(path.to_str().unwrap(), most, |inum, _| seen.push(inum)).unwrap();
            (seen, done)
        };
        let length = text.len() as u64;
        assert_eq!(read(length + 1), ((10..20).collect(), (length, true)));
        assert_eq!(read(length / 2 + 3), ((10..15).collect(), (length / 2 + 3, false)));
    }
}
