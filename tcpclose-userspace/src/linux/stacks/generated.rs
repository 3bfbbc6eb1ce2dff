//! Code that a runtime has made: its functions are in the process's `perf-PID.map`, if it writes one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::linux::stacks::frames::{Frame, Stack};
use crate::linux::stacks::perf_map;
use crate::linux::stacks::process_files::ProcessFiles;

/// Names the frames of `stacks` that are in no file.
pub fn name(stacks: &mut [Stack], pid: u32, files: &ProcessFiles) {
    let mut addresses: Vec<u64> = unnamed(stacks).map(|frame| frame.offset).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return;
    }
    let Ok(names) = functions(pid, files, &addresses) else { return };
    for frame in unnamed(stacks) {
        if let Ok(at) = addresses.binary_search(&frame.offset) {
            frame.function = names.get(at).cloned().flatten();
        }
    }
}

fn unnamed(stacks: &mut [Stack]) -> impl Iterator<Item = &mut Frame> {
    let frames = stacks.iter_mut().flat_map(|stack| &mut stack.frames);
    frames.filter(|frame| frame.module.is_none() && frame.function.is_none())
}

/// The functions at these addresses, by the list that the process writes below its own root, under the pid that it has in its
/// own namespace.
fn functions(pid: u32, files: &ProcessFiles, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let uid = fs::metadata(format!("/proc/{pid}"))?.uid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let own = own.and_then(|pids| pids.split_whitespace().next_back()).map_or(pid.to_string(), str::to_owned);
    perf_map::functions(files.open_path(&format!("/tmp/perf-{own}.map"))?, uid, addresses)
}
