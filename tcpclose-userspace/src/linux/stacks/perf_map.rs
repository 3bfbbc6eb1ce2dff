//! `perf-PID.map`, in which a runtime lists the code that it has made.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use crate::linux::stacks::symbols::shortened;

/// The most bytes of a list that are read.
const LARGEST: u64 = 64 << 20;
/// The longest line; longer ones are no entries.
const LONGEST: u64 = 4096;
/// The most matches of lines and addresses: an honest list has few at each address.
const MOST_MATCHES: usize = 10_000_000;

/// Finds the functions at `addresses`, in their order, in the list of a process of the user `uid`, to whom it must belong.
///
/// # Errors
/// When it belongs to somebody else.
pub fn functions(list: File, uid: u32, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    if list.metadata()?.uid() != uid {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok(in_list(BufReader::new(list.take(LARGEST)), addresses))
}

/// A line for each function: `start size name`, the numbers in hexadecimal. Of several functions at an address the last one is
/// in use: a runtime reuses memory.
fn in_list(mut list: impl BufRead, addresses: &[u64]) -> Vec<Option<String>> {
    let mut order: Vec<usize> = (0..addresses.len()).collect();
    order.sort_unstable_by_key(|&at| addresses[at]);
    let sorted: Vec<u64> = order.iter().map(|&at| addresses[at]).collect();
    let mut names: Vec<Option<Rc<str>>> = vec![None; sorted.len()];
    let mut line = Vec::new();
    let mut left = MOST_MATCHES;
    loop {
        line.clear();
        match (&mut list).take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let Some((start, size, name)) = entry(&line) else { continue };
        let from = sorted.partition_point(|&address| address < start);
        let count = sorted[from..].partition_point(|&address| address - start < size);
        if count == 0 {
            continue;
        }
        let Some(rest) = left.checked_sub(count) else { return vec![None; addresses.len()] };
        left = rest;
        let name: Rc<str> = name.into();
        names[from..from + count].fill(Some(name));
    }
    let mut found = vec![None; addresses.len()];
    for (at, name) in order.into_iter().zip(names) {
        found[at] = name.as_deref().map(str::to_owned);
    }
    found
}

fn entry(line: &[u8]) -> Option<(u64, u64, String)> {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\n")?);
    let mut fields = line.splitn(3, ' ');
    let mut number = || u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok();
    let (start, size) = (number()?, number()?);
    let name = fields.next()?.trim();
    (!name.is_empty()).then(|| (start, size, shortened(name)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_function_at_an_address_counts() {
        let list = b"7f00 10 old\nzz 1 x\n7f00 10 Java leak(int)\n7f10 0x10 after\n\n7f20 5\ncut" as &[u8];
        let names = in_list(list, &[0x7f0f, 0x7f10, 0x7f20, 0x7eff]);
        assert_eq!(names, [Some("Java leak(int)".to_owned()), Some("after".to_owned()), None, None]);
    }

    #[test]
    fn a_hostile_list_takes_bounded_work() {
        let addresses: Vec<u64> = (0..32_000).collect();
        let list = b"0 ffffffff f\n".repeat(400);
        assert!(in_list(list.as_slice(), &addresses).iter().all(Option::is_none));
        let long = [b"0 ffffffff ".as_slice(), "\u{e9}".repeat(2_000).as_bytes(), b"\n"].concat();
        let names = in_list(long.as_slice(), &addresses);
        assert!(names.iter().flatten().all(|name| name.len() <= 512 && !name.is_empty()));
        assert_eq!(names.iter().flatten().count(), addresses.len());
    }

    proptest! {
        #[test]
        fn no_list_is_too_strange(list in vec(any::<u8>(), 0..512), address: u64) {
            in_list(list.as_slice(), &[address, 0, u64::MAX]);
        }

        #[test]
        fn what_is_listed_is_found(start: u64, size in 1..1_000_u64, into in 0..1_000_u64) {
            let list = format!("{start:x} {size:x} f g");
            let names = in_list((list + "\n").as_bytes(), &[start.saturating_add(into % size)]);
            prop_assert_eq!(names, [Some("f g".to_owned())]);
        }
    }

    #[test]
    fn another_users_list_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("perf-1.map");
        std::fs::write(&path, "10 10 f\n").unwrap();
        let open = || File::open(&path).unwrap();
        let uid = open().metadata().unwrap().uid();
        assert_eq!(functions(open(), uid, &[0x11]).unwrap(), [Some("f".to_owned())]);
        assert!(functions(open(), uid + 1, &[0x11]).is_err());
    }
}
