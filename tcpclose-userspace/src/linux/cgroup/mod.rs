//! What a process's cgroups tell of its place: systemd unit, container, Kubernetes pod.
//!
//! A path is all that there is to go by, and it tells what the container manager wrote into it:
//!
//! * systemd's own layout: slices, then the unit; below `user@UID.service` slices and a unit again.
//! * A container under the systemd driver is a scope with its runtime's prefix: `docker-`, `cri-containerd-`, `crio-`,
//!   `libpod-`, `nerdctl-`, and 64 hexadecimal digits. `…conmon-…` is the monitor of one, not one.
//! * Under the cgroupfs driver it is a directory of those 64 digits. Docker's own stand under `docker/`, CRI-O and
//!   podman write their prefix there too. `kubepods/…/podUID/ID` does not tell whether containerd or Docker runs it:
//!   such an id is written without a runtime, and `pod_uid` joins all the same.
//!
//! Whoever may make cgroups may name them like a container. A unit's name is taken only where systemd could have made
//! it, so that no other byte gets out of here.
//!
//! [`namespace`]: whose view of them is read.

pub mod namespace;

use std::fs;

/// Where a process runs, as far as its cgroups tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The systemd unit, as `systemctl` names it; of a user's manager the unit that it runs. A container's own scope
    /// is none, for [`Self::container_id`] says the same.
    pub unit: Option<String>,
    /// `containerd://<64 hexadecimal digits>`, as kube-state-metrics writes it; the digits alone where the path does
    /// not tell the runtime. Of nested containers the innermost.
    pub container_id: Option<String>,
    /// The pod's uid, with dashes. A static pod's is the hash of its manifest, which the API server does not know it by.
    pub pod_uid: Option<String>,
}

/// The place of the process `pid`; an empty one where its cgroups cannot be read. Of what a cgroup namespace hides from the
/// calling thread nothing is told: [`namespace::with_whole_paths`].
pub fn of(pid: u32) -> Workload {
    fs::read(format!("/proc/{pid}/cgroup"))
        .map(|text| parse(&String::from_utf8_lossy(&text)))
        .unwrap_or_default()
}

/// Reads a `/proc/PID/cgroup`: `id:controllers:path` a line, the unified hierarchy's with the id 0 and no controllers.
pub fn parse(text: &str) -> Workload {
    let mut lines: Vec<(u8, Path)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let rank = match controllers {
                // systemd's own, where there is one besides the unified hierarchy.
                "name=systemd" => 0,
                "" => 1,
                _ => 2,
            };
            Some((rank, walk(path)))
        })
        .collect();
    lines.sort_by_key(|(rank, _)| *rank);
    // Units are systemd's: the hierarchies of v1 may hold processes elsewhere, and of its own two the unified one may
    // be left behind (at containerd's unit, say) by who moves processes in the other alone.
    let unit = lines
        .iter()
        .find(|(rank, path)| *rank < 2 && (path.unit.is_some() || path.containers > 0))
        .and_then(|(_, path)| path.unit.clone());
    // In a hybrid layout a container may be in the hierarchies of v1 alone.
    let deepest = lines.iter().map(|(_, path)| path).rev().max_by_key(|path| path.containers);
    Workload {
        unit,
        container_id: deepest.and_then(|path| path.container_id.clone()),
        pod_uid: lines.iter().find_map(|(_, path)| path.pod_uid.clone()),
    }
}

/// What one path tells.
#[derive(Default)]
struct Path {
    unit: Option<String>,
    container_id: Option<String>,
    /// How many containers are nested.
    containers: usize,
    pod_uid: Option<String>,
}

fn walk(path: &str) -> Path {
    let mut told = Path::default();
    // Whether a unit that comes now is further in than the one that we have.
    let mut inner = true;
    let mut parent = "";
    // The path of a cgroup that was removed ends so (kernel/cgroup/cgroup.c, proc_cgroup_show(), 5.8 to 6.18).
    for name in path.strip_suffix(" (deleted)").unwrap_or(path).split('/').filter(|name| !name.is_empty()) {
        if let Some(uid) = pod_uid(name) {
            told.pod_uid = Some(uid);
        }
        if let Some(id) = container(name, parent) {
            told.container_id = Some(id);
            told.containers += 1;
            // It may run a systemd of its own.
            inner = true;
        } else if let Some(unit) = unit(name)
            && inner
            && !(unit == "init.scope" && told.unit.is_some())
        {
            // A user's manager is a unit of the system and has units itself; what other units make below them are
            // no units, whatever they are called.
            inner = unit.starts_with("user@");
            told.unit = Some(unit.to_owned());
        }
        parent = name;
    }
    told
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
            // A pod of podman's.
            "libpod_parent" => None,
            "docker" => Some(format!("docker://{name}")),
            _ => Some(name.to_owned()),
        };
    }
    // What the systemd driver was to make of it, made by the cgroupfs driver: `SLICE:PREFIX:ID`.
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

/// 64 hexadecimal digits, as every runtime here makes them.
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
