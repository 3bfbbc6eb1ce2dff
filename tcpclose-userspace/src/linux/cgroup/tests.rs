//! Layouts as the managers make them, one each, from their documentation and from hosts.

use crate::linux::cgroup::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
const UID: &str = "2c48913c-b29f-4d4b-8d4c-5e0bb5c3a6f1";

/// The place that `layout` tells, with ID, INNER, UID and U_ID (its underscored form) written out.
fn reported(layout: &str) -> (Option<String>, Option<String>, Option<String>) {
    let text = layout.replace("INNER", INNER).replace("U_ID", &UID.replace('-', "_"));
    let Workload { unit, container_id, pod_uid } = parse(&text.replace("UID", UID).replace("ID", ID));
    (unit, container_id, pod_uid)
}

fn is(layout: &str, unit: Option<&str>, container: Option<&str>, pod: bool) {
    let container = container.map(|id| id.replace("INNER", INNER).replace("ID", ID));
    assert_eq!(
        reported(layout),
        (unit.map(str::to_owned), container, pod.then(|| UID.to_owned())),
        "{layout}"
    );
}

#[test]
fn systemd_units() {
    let unit = |path: &str, unit: &str| is(&format!("0::{path}\n"), Some(unit), None, false);
    unit("/system.slice/api.service", "api.service");
    unit("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service");
    unit("/a.slice/a-b.slice/a-b-c.slice/worker@7.service", "worker@7.service");
    unit("/user.slice/user-1000.slice/session-3.scope", "session-3.scope");
    unit("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", "web.service");
    unit("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service");
    unit("/init.scope", "init.scope");
    unit(r"/system.slice/dev-disk\x2d1.mount", r"dev-disk\x2d1.mount");
    unit("/system.slice/_cpu.service", "cpu.service");
    unit(
        "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
        "systemd-nspawn@web.service",
    );
    unit("/lxc.payload.web/system.slice/nginx.service", "nginx.service");
    // What a unit makes below itself is no unit.
    unit("/system.slice/api.service/evil.service", "api.service");
    unit("/system.slice/api.service/workers/7", "api.service");
    unit("/system.slice/api.service (deleted)", "api.service");
    for none in
        ["/", "/a.slice", "/user.slice/user-0.slice", "", "/.service", "/a b.service", "/a\u{1b}[31m.service"]
    {
        is(&format!("0::{none}\n"), None, None, false);
    }
}

#[test]
fn docker() {
    is("0::/system.slice/docker-ID.scope\n", None, Some("docker://ID"), false);
    is("0::/docker/ID\n", None, Some("docker://ID"), false);
    is("0::/../../docker/ID/init\n", None, Some("docker://ID"), false);
    // v1, and hybrid where the unified hierarchy holds the container elsewhere.
    is("12:memory:/docker/ID\n1:name=systemd:/docker/ID\n", None, Some("docker://ID"), false);
    let hybrid = "5:cpu,cpuacct:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n";
    is(hybrid, None, Some("docker://ID"), false);
    is("4:memory:/docker/ID\n0::/\n", None, Some("docker://ID"), false);
    // A container's own systemd.
    is("0::/docker/ID/system.slice/nginx.service\n", Some("nginx.service"), Some("docker://ID"), false);
    // Under a parent of the user's choice the path does not tell whose it is.
    is("0::/jobs/ID\n", None, Some("ID"), false);
}

#[test]
fn kubernetes() {
    let burstable = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice";
    let scopes = [("cri-containerd", "containerd"), ("crio", "cri-o"), ("docker", "docker")];
    for (prefix, runtime) in scopes {
        let id = format!("{runtime}://ID");
        is(&format!("0::/{burstable}/{prefix}-ID.scope\n"), None, Some(&id), true);
        is(&format!("0::/{burstable}/{prefix}-ID.scope/inner\n"), None, Some(&id), true);
    }
    is(
        "0::/kubepods.slice/kubepods-podU_ID.slice/cri-containerd-ID.scope\n",
        None,
        Some("containerd://ID"),
        true,
    );
    is(
        "0::/../../kubelet-kubepods-podU_ID.slice/cri-containerd-ID.scope\n",
        None,
        Some("containerd://ID"),
        true,
    );
    // Through cgroupfs the path tells CRI-O only.
    is(
        "3:memory:/kubepods/burstable/podUID/ID\n1:name=systemd:/kubepods/burstable/podUID/ID\n",
        None,
        Some("ID"),
        true,
    );
    is("0::/kubepods/podUID/ID\n", None, Some("ID"), true);
    is("0::/kubepods/besteffort/podUID/crio-ID\n", None, Some("cri-o://ID"), true);
    is("0::/kubepods/besteffort/podUID/crio-conmon-ID\n", None, None, true);
    is(&format!("0::/{burstable}/crio-conmon-ID.scope\n"), None, None, true);
    is(
        "0::/system.slice/containerd.service/kubepods-burstable-podU_ID.slice:cri-containerd:ID\n",
        Some("containerd.service"),
        Some("containerd://ID"),
        true,
    );
    // kind: a node that is a container itself.
    let kind = "/docker/INNER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_ID.slice/cri-containerd-ID.scope";
    is(&format!("0::{kind}\n"), None, Some("containerd://ID"), true);
    // Docker in a pod.
    is("0::/kubepods/podUID/ID/docker/INNER\n", None, Some("ID"), true);
    // Whatever a container makes below itself, it is what it is.
    let other = "11111111-2222-3333-4444-555555555555";
    is(&format!("0::/kubepods/podUID/ID/kubepods/pod{other}/INNER\n"), None, Some("ID"), true);
    is("0::/system.slice/docker-ID.scope/docker/INNER\n", None, Some("docker://ID"), false);
    // A static pod's uid is a hash.
    let (_, _, pod) = reported("0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID\n");
    assert_eq!(pod.as_deref(), Some("0123456789abcdef0123456789abcdef"));
    for no_pod in ["podium", "pod", "tripod01234567-89ab-cdef-0123-456789abcdef", "pod01234567-89ab"] {
        assert_eq!(pod_uid(no_pod), None);
    }
}

/// What people have posted of their nodes, with the ids replaced: where, and what is told.
#[test]
fn nodes_as_they_were_recorded() {
    let pod = |layout: &str, container: &str| is(layout, None, Some(container), true);
    let v1 = |path: &str| {
        format!("12:cpuset:{path}\n11:files:/\n10:hugetlb:{path}\n1:name=systemd:{path}\n0::{path}\n")
    };
    let burstable = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice";
    let besteffort = "kubepods-besteffort-podU_ID.slice";

    // CRI-O, systemd, v1 (opencontainers/runc#4620); cgroupfs (cri-o/cri-o#812, google/cadvisor#3538).
    pod(&v1(&format!("{burstable}/crio-ID.scope")), "cri-o://ID");
    pod(&v1("/kubepods/burstable/podUID/crio-ID"), "cri-o://ID");
    // Its sandbox, where it makes no infra container (containerd/nri#227); what crun makes below a container.
    pod(&format!("0::{burstable}/crio-ID\n"), "cri-o://ID");
    pod(&format!("0::{burstable}/crio-ID.scope/container\n"), "cri-o://ID");
    // Docker and cri-dockerd: systemd (open-telemetry/opentelemetry-java#4732), cgroupfs (cri-o/cri-o#842).
    pod(
        &v1(&format!("/kubepods.slice/kubepods-besteffort.slice/{besteffort}/docker-ID.scope")),
        "docker://ID",
    );
    pod(&v1("/kubepods/burstable/podUID/ID"), "ID");
    // containerd: v2, systemd (cryptnono/cryptnono#47); cgroupfs: k3s (rancher/k3k#792), Talos (spinningfactory/kloak#177).
    pod(
        &format!("0::/kubepods.slice/kubepods-besteffort.slice/{besteffort}/cri-containerd-ID.scope\n"),
        "containerd://ID",
    );
    pod("0::/kubepods/burstable/podUID/ID\n", "ID");
    pod("0::/kubepods/podUID/ID\n", "ID");
    // The systemd driver's path taken literally, below another service in some hierarchies and below none in others
    // (open-telemetry/opentelemetry-java#4507).
    let literal = format!("{besteffort}:cri-containerd:ID");
    let service = "/system.slice/containerd.service";
    is(
        &format!(
            "11:perf_event:/{literal}\n10:blkio:{service}/{literal}\n1:name=systemd:{service}/{literal}\n"
        ),
        Some("containerd.service"),
        Some("containerd://ID"),
        true,
    );
    // kind: Docker by systemd around it, v1 (sustainable-computing-io/kepler#153); v2 seen from within the node
    // (containerd/nri#227). The container asked for is the inner one.
    let kubelet = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU_ID.slice";
    pod(
        &v1(&format!("/system.slice/docker-INNER.scope/{kubelet}/cri-containerd-ID.scope")),
        "containerd://ID",
    );
    pod(&format!("0::/{kubelet}/cri-containerd-ID.scope\n"), "containerd://ID");
    pod(&v1("/docker/INNER/kubelet/kubepods/besteffort/podUID/ID"), "ID");
    // minikube: CRI-O in Docker (kubernetes/minikube#11280).
    pod(
        &v1(&format!("/docker/INNER/kubepods.slice/kubepods-besteffort.slice/{besteffort}/crio-ID.scope")),
        "cri-o://ID",
    );
    // From another pod, of the same class and of a better one, and of the own pod: what the namespace leaves
    // (inspektor-gadget/inspektor-gadget#3085).
    pod(&format!("0::/../../{besteffort}/cri-containerd-ID.scope\n"), "containerd://ID");
    pod("0::/../../../kubepods-podU_ID.slice/cri-containerd-ID.scope\n", "containerd://ID");
    is("0::/../cri-containerd-ID.scope\n", None, Some("containerd://ID"), false);
    is("0::/../../../../system.slice/sshd.service\n", Some("sshd.service"), None, false);
    is("0::/../ID\n", None, Some("ID"), false);
    // What is no pod's: the node's own services, where systemd does not run (siderolabs/talos#3950); a build (cryptnono#47).
    is("0::/kubelet\n", None, None, false);
    is("0::/docker/buildkit/t4967jvf8rbufklrhkicskyes\n", None, None, false);
    // A hybrid node whose systemd stayed at the root (moby/moby#33352), or at containerd's unit (ctrsploit/ctrsploit#280).
    is("10:perf_event:/docker/ID\n9:net_cls:/\n1:name=systemd:/\n", None, Some("docker://ID"), false);
    is(
        "9:blkio:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n",
        None,
        Some("docker://ID"),
        false,
    );
}

#[test]
fn podman() {
    let podman =
        |path: &str, unit: Option<&str>| is(&format!("0::{path}\n"), unit, Some("podman://ID"), false);
    podman("/machine.slice/libpod-ID.scope", None);
    podman("/machine.slice/libpod-ID.scope/container", None);
    podman("/libpod_parent/libpod-ID", None);
    podman("/libpod_parent/libpod-ID/ctr", None);
    podman("/libpod_parent/INNER/libpod-ID", None);
    podman("/machine.slice/machine-libpod_pod_INNER.slice/libpod-ID.scope", None);
    podman("/system.slice/web.service/libpod-payload-ID", Some("web.service"));
    podman(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
        Some("user@1000.service"),
    );
    for monitor in ["/machine.slice/libpod-conmon-ID.scope", "/libpod_parent/conmon", "/libpod_parent/INNER"]
    {
        is(&format!("0::{monitor}\n"), None, None, false);
    }
}

#[test]
fn other_runtimes_have_an_id_without_a_name() {
    is("0::/system.slice/nerdctl-ID.scope\n", None, Some("containerd://ID"), false);
    is("0::/system.slice/isulad-ID.scope\n", None, Some("ID"), false);
    is("0::/ecs/11112222333344445555666677778888/ID\n", None, Some("ID"), false);
    is("0::/system.slice/run-ID.service\n", Some(&format!("run-{ID}.service")), None, false);
}

#[test]
fn any_bytes_are_read() {
    for garbage in
        ["", "\n", ":", "::", "0::", "a:b", "0::/\u{fffd}\u{fffd}", "0::/docker/..", "::::/docker/ID"]
    {
        let _ = reported(garbage);
    }
    let long = format!("0::/{}.service", "a".repeat(4096));
    assert_eq!(parse(&long), Workload::default());
    assert_eq!(of(u32::MAX), Workload::default());
}
