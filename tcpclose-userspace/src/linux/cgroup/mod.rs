//! A process's systemd unit, container and Kubernetes pod, from its cgroups.
//!
//! Only the paths of its cgroups are known, as the container manager named them:
//!
//! * systemd's own layout: slices, then the unit; below `user@UID.service` slices and a unit again.
//! * A container under the systemd driver is a scope with its runtime's prefix: `docker-`, `cri-containerd-`, `crio-`,
//!   `libpod-`, `nerdctl-`, and 64 hexadecimal digits. `…conmon-…` is a container's monitor, not a container.
//! * Under the cgroupfs driver it is a directory named by those 64 digits. Docker's are below `docker/`; CRI-O and podman
//!   write their prefix there too. `kubepods/…/podUID/ID` does not show whether containerd or Docker runs it: such an id is
//!   written without a runtime, and `pod_uid` can be joined all the same.
//!
//! A user who may make cgroups may name them like a container. A unit's name is taken only if systemd could have made it, so
//! that no other byte gets out of here.
//!
//! [`namespace`]: the cgroup namespace from which they are read.

pub mod namespace;

use std::fs;

/// The unit, container and pod of a process, as far as its cgroups show them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The systemd unit, as `systemctl` names it; below a user's manager, the user's unit. A container's own scope does not
    /// count, for [`Self::container_id`] names it.
    pub unit: Option<String>,
    /// `containerd://<64 hexadecimal digits>`, as kube-state-metrics writes it; the digits alone where the path does
    /// not show the runtime. Of nested containers the outermost, or in a pod the pod's: what is below it a container may have made
    /// itself, and named as it likes.
    pub container_id: Option<String>,
    /// The outermost pod's uid, with dashes. A static pod's is the hash of its manifest, which is not its uid in the API server.
    pub pod_uid: Option<String>,
}

/// The workload of the process `pid`; empty where its cgroups cannot be read. A cgroup namespace may hide a part of the paths
/// from the calling thread: [`namespace::with_whole_paths`].
pub fn of(pid: u32) -> Workload {
    fs::read(format!("/proc/{pid}/cgroup"))
        .map(|text| parse(&String::from_utf8_lossy(&text)))
        .unwrap_or_default()
}

/// Parses a `/proc/PID/cgroup`: one `id:controllers:path` per line, with id 0 and no controllers for the unified hierarchy.
pub fn parse(text: &str) -> Workload {
    let mut lines: Vec<(u8, Path)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let rank = match controllers {
                // systemd's own, which some hosts have besides the unified hierarchy.
                "name=systemd" => 0,
                "" => 1,
                _ => 2,
            };
            Some((rank, walk(path)))
        })
        .collect();
    lines.sort_by_key(|(rank, _)| *rank);
    // Units are systemd's: in the hierarchies of v1 a process may be elsewhere, and the unified one may be out of date (at
    // containerd's unit, say) where a manager moves processes in systemd's own only.
    let unit = lines
        .iter()
        .find(|(rank, path)| *rank < 2 && (path.unit.is_some() || path.containers > 0))
        .and_then(|(_, path)| path.unit.clone());
    // In a hybrid layout a container may be in the hierarchies of v1 only.
    let deepest = lines.iter().map(|(_, path)| path).rev().max_by_key(|path| path.containers);
    Workload {
        unit,
        container_id: deepest.and_then(|path| path.container_id.clone()),
        pod_uid: lines.iter().find_map(|(_, path)| path.pod_uid.clone()),
    }
}

/// The names found in one path.
#[derive(Default)]
struct Path {
    unit: Option<String>,
    container_id: Option<String>,
    /// The number of nested containers.
    containers: usize,
    pod_uid: Option<String>,
}

fn walk(path: &str) -> Path {
    let mut found = Path::default();
    // Whether the next unit is nested in the one found so far.
    let mut inner = true;
    let mut parent = "";
    // The path of a removed cgroup ends so (kernel/cgroup/cgroup.c, proc_cgroup_show(), 5.8 to 6.18).
    for name in path.strip_suffix(" (deleted)").unwrap_or(path).split('/').filter(|name| !name.is_empty()) {
        if let Some(uid) = pod_uid(name).filter(|_| found.pod_uid.is_none()) {
            found.pod_uid = Some(uid);
            // A node that is a container itself (kind) has pods in it.
            found.container_id = None;
        }
        if let Some(id) = container(name, parent) {
            found.container_id = found.container_id.or(Some(id));
            found.containers += 1;
            // It may run a systemd of its own.
            inner = true;
        } else if let Some(unit) = unit(name)
            && inner
            && !(unit == "init.scope" && found.unit.is_some())
        {
            // A user's manager is a unit of the system and has units itself; cgroups that other units make below themselves
            // are not units, whatever their names.
            inner = unit.starts_with("user@");
            found.unit = Some(unit.to_owned());
        }
        parent = name;
    }
    found
}

/// The unit of this name: not a slice, which holds units, nor the scope of a container or of its monitor.
fn unit(name: &str) -> Option<&str> {
    // systemd escapes a name that would look like the kernel's (src/basic/cgroup-util.c, cg_escape()).
    let name = name.strip_prefix('_').unwrap_or(name);
    let (stem, kind) = name.rsplit_once('.')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    let is_unit = matches!(kind, "service" | "scope" | "socket" | "mount" | "swap")
        && !stem.is_empty()
        && name.len() < 256
        && name.chars().all(valid);
    let is_monitor = kind == "scope" && stem.contains("conmon-");
    (is_unit && !is_monitor).then_some(name)
}

/// The container whose cgroup has this name, under one named `parent`.
fn container(name: &str, parent: &str) -> Option<String> {
    if is_id(name) {
        return match parent {
            // One of podman's pods.
            "libpod_parent" => None,
            "docker" => Some(format!("docker://{name}")),
            _ => Some(name.to_owned()),
        };
    }
    // A path for the systemd driver, given to the cgroupfs driver: `SLICE:PREFIX:ID`.
    if let Some((rest, id)) = name.rsplit_once(':') {
        let (_, prefix) = rest.rsplit_once(':')?;
        return is_id(id).then(|| with_runtime(prefix, id));
    }
    let scope = name.strip_suffix(".scope");
    let (prefix, id) = scope.unwrap_or(name).rsplit_once('-')?;
    let is_monitor = prefix.ends_with("conmon");
    let is_container = is_id(id) && !is_monitor && (scope.is_some() || runtime(prefix).is_some());
    is_container.then(|| with_runtime(prefix, id))
}

fn with_runtime(prefix: &str, id: &str) -> String {
    runtime(prefix).map_or_else(|| id.to_owned(), |runtime| format!("{runtime}://{id}"))
}

/// The runtime that writes `prefix` before its containers' ids, as Kubernetes names it.
fn runtime(prefix: &str) -> Option<&'static str> {
    Some(match prefix {
        "docker" => "docker",
        "cri-containerd" | "nerdctl" => "containerd",
        "crio" => "cri-o",
        "libpod" | "libpod-payload" => "podman",
        _ => return None,
    })
}

/// 64 hexadecimal digits, as all these runtimes generate them.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The uid in `podUID` (cgroupfs) or `kubepods-burstable-podUID.slice` (systemd, with underscores for dashes).
fn pod_uid(name: &str) -> Option<String> {
    let name = name.split(':').next()?;
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    if !before.is_empty() && !before.ends_with('-') {
        return None;
    }
    let uid = uid.replace('_', "-");
    let lengths = uid.split('-').map(|part| part.bytes().all(is_hex).then_some(part.len()));
    let lengths: Option<Vec<usize>> = lengths.collect();
    (lengths? == [8, 4, 4, 4, 12] || uid.len() == 32 && uid.bytes().all(is_hex)).then_some(uid)
}

#[cfg(test)]
mod tests;
