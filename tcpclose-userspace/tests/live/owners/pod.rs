//! An agent with a cgroup namespace of its own, as the container of a pod has one.

use std::ffi::OsStr;
use std::process::{Command, Output};

use tcpclose::report::sockets::{Owner, SocketsDocument};

use super::cgroups::Cgroups;
use super::common::{Agent, BINARY};
use super::stage::{Child, Server, alone, only};

const UID: &str = "2c48913c-b29f-4d4b-8d4c-5e0bb5c3a6f1";

/// Whose the one socket is, by a document in JSON.
fn owner(output: &Output, pid: u32) -> Owner {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
    only(&document).owners.iter().find(|owner| owner.pid == pid).unwrap().clone()
}

#[test]
#[ignore = "needs root"]
fn a_container_of_the_agents_own_pod_is_reported_with_its_pod() {
    let _alone = alone();
    let [agents, others, elsewheres] = ["0", "1", "2"].map(|digit| digit.repeat(64));
    let pod = format!("kubepods-pod{}.slice", UID.replace('-', "_"));
    for mut cgroups in Cgroups::of_each_hierarchy() {
        println!("in {}", cgroups.root.display());
        let server = Server::new();
        let pair = server.pair();
        let hold = || Child::holding(Command::new("sleep").arg("1000"), &pair.server);
        let (sibling, elsewhere) = (hold(), hold());
        cgroups.take(sibling.pid(), OsStr::new(&format!("{pod}/cri-containerd-{others}.scope")));
        cgroups.take(elsewhere.pid(), OsStr::new(&format!("docker/{elsewheres}")));

        // What follows runs in the container of the agent, which is the root of its cgroup namespace.
        let container = cgroups.make(OsStr::new(&format!("{pod}/cri-containerd-{agents}.scope")));
        let within = |privileges: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", r#"echo $$ >"$0"/cgroup.procs && exec unshare --cgroup "$@""#]);
            command.arg(&container).args(privileges).arg(BINARY);
            command
        };
        let port = server.port().to_string();
        let question = ["--older-than", "0s", "--port", &port, "--json"];
        let agent = Agent::start_by(within(&[]), &[]);
        let snapshot = || within(&[]).args(["stuck", "--no-agent"]).args(question).output().unwrap();
        for output in [agent.stuck(&question), snapshot()] {
            let of_pod = owner(&output, sibling.pid());
            assert_eq!(of_pod.place.container_id, Some(format!("containerd://{others}")));
            assert_eq!((of_pod.place.pod_uid.as_deref(), &of_pod.place.unit), (Some(UID), &None));
            assert_eq!(
                owner(&output, elsewhere.pid()).place.container_id,
                Some(format!("docker://{elsewheres}"))
            );
        }
        // Who may not leave the namespace tells what is left of the paths, and nothing besides.
        let bound = within(&["setpriv", "--bounding-set=-sys_admin"])
            .args(["stuck", "--no-agent"])
            .args(question)
            .output()
            .unwrap();
        let of_pod = owner(&bound, sibling.pid());
        assert_eq!(of_pod.place.container_id, Some(format!("containerd://{others}")));
        assert_eq!((of_pod.place.pod_uid.clone(), of_pod.place.unit.clone()), (None, None));
        drop((agent, sibling, elsewhere));
    }
}
