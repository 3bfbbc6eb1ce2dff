//! `deploy/kubernetes`: manifests by the schemas of what takes them, with arguments that the agent takes; and, with the
//! rights that they give and no others, an agent in a container, which finds what is stuck in another one.

use crate::common;
mod image;
use crate::deploy::schema;
mod schemas;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::BINARY;
use serde_json::Value;

/// What Kubernetes puts for `$(POD_IP)`.
const POD_IP: &str = "10.0.0.5";

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).canonicalize().unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Every file of the folder but kustomize's own, by name.
fn manifests() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(workspace("deploy/kubernetes")).unwrap().map(|entry| entry.unwrap());
    let named = files.map(|file| (file.file_name().into_string().unwrap(), yaml::read(&file.path())));
    named.filter(|(name, _)| name != "kustomization.yaml").collect()
}

fn daemonset() -> Value {
    yaml::read(&workspace("deploy/kubernetes/daemonset.yaml"))
}

fn container(daemonset: &Value) -> &Value {
    let [container] = list(&daemonset["spec"]["template"]["spec"]["containers"]) else { panic!("not one") };
    container
}

/// Whether it is an object of the Prometheus operator.
fn is_operators(manifest: &Value) -> bool {
    manifest["apiVersion"] == "monitoring.coreos.com/v1"
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The arguments, in a pod of this address.
fn arguments(container: &Value, address: &str) -> Vec<String> {
    list(&container["args"]).iter().map(|argument| text(argument).replace("$(POD_IP)", address)).collect()
}

/// The value of an argument `--name=value`.
fn argument(container: &Value, name: &str) -> String {
    let start = format!("--{name}=");
    let all = arguments(container, POD_IP);
    all.iter().find_map(|argument| argument.strip_prefix(&start)).unwrap().to_owned()
}

fn errors(manifest: &Value) -> Vec<String> {
    if is_operators(manifest) { schemas::errors_of_operator(manifest) } else { schemas::errors(manifest) }
}

#[test]
fn every_manifest_fits_its_schema() {
    let manifests = manifests();
    for (name, manifest) in &manifests {
        println!("{name}: {} {}", manifest["apiVersion"], manifest["kind"]);
        assert_eq!(errors(manifest), [""; 0], "{name}");
        let namespace = if manifest["kind"] == "Namespace" {
            &manifest["metadata"]["name"]
        } else {
            &manifest["metadata"]["namespace"]
        };
        // A priority class is of no namespace.
        assert!(manifest["kind"] == "PriorityClass" || namespace == "tcpclose", "{name}");
    }
    println!("held against {}", schemas::versions());
    let kustomization = yaml::read(&workspace("deploy/kubernetes/kustomization.yaml"));
    let resources: BTreeSet<&str> = list(&kustomization["resources"]).iter().map(text).collect();
    let text = std::fs::read_to_string(workspace("deploy/kubernetes/kustomization.yaml")).unwrap();
    for (name, manifest) in &manifests {
        let applied = resources.contains(name.as_str());
        assert!(applied || text.contains(&format!("# - {name}")), "kustomization.yaml lacks {name}");
        // A cluster without the operator has no such kinds.
        assert!(!(applied && is_operators(manifest)), "{name}");
    }
    assert!(resources.iter().all(|name| manifests.contains_key(*name)), "{resources:?}");
    let replaced = list(&kustomization["images"]).iter().map(|image| &image["name"]);
    assert_eq!(replaced.collect::<Vec<_>>(), [&container(&daemonset())["image"]]);
}

/// Every key of `value`, by pointer, that a person could misspell: not of a map, whose keys are anybody's.
fn keys(value: &Value, at: &str, found: &mut Vec<String>) {
    const MAPS: [&str; 6] = ["labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits"];
    match value {
        Value::Object(object) => {
            // A label, as a Service's selector has it.
            for (key, inner) in object.iter().filter(|(key, _)| !key.contains('/')) {
                let at = format!("{at}/{key}");
                found.push(at.clone());
                if !MAPS.contains(&key.as_str()) {
                    keys(inner, &at, found);
                }
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(nth, inner)| keys(inner, &format!("{at}/{nth}"), found))
        }
        _ => {}
    }
}

#[test]
fn a_misspelt_field_is_found_wherever_it_stands() {
    let mut misspelt = 0;
    for (name, manifest) in manifests() {
        let mut all = Vec::new();
        keys(&manifest, "", &mut all);
        for key in all.iter().filter(|key| !["/apiVersion", "/kind"].contains(&key.as_str())) {
            let (parent, last) = key.rsplit_once('/').unwrap();
            let mut manifest = manifest.clone();
            let object = manifest.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
            let value = object.remove(last).unwrap();
            object.insert(format!("{last}s"), value);
            // Or there is such a field, of another type.
            let printed = format!("{key}s: ");
            let found = errors(&manifest);
            let is_found = found.iter().any(|what| what.starts_with(&printed));
            assert!(is_found, "{name}: {key} can be misspelt: {found:?}");
            misspelt += 1;
        }
    }
    println!("{misspelt} misspelt fields were found");
    assert!(misspelt > 100);
}

#[test]
fn the_agent_takes_its_arguments_and_serves_where_it_is_asked() {
    let daemonset = daemonset();
    let container = container(&daemonset);
    let output = Command::new(BINARY)
        .args(arguments(container, POD_IP))
        .arg("--check-config")
        .env_clear()
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains(&format!("listen = [\"{POD_IP}:9923\"]  # argument")), "{printed}");

    let template = &daemonset["spec"]["template"];
    let [port] = list(&container["ports"]) else { panic!("not one port") };
    let number = argument(container, "listen").rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(port["containerPort"].to_string(), number);
    assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], number.as_str());
    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        let asked = &container[probe]["httpGet"];
        assert_eq!((&asked["port"], text(&asked["path"])), (&port["name"], path), "{probe}");
    }
    let podmonitor = yaml::read(&workspace("deploy/kubernetes/podmonitor.yaml"));
    assert_eq!(podmonitor["spec"]["podMetricsEndpoints"][0]["port"], port["name"]);
    let labels = &template["metadata"]["labels"];
    assert_eq!(&podmonitor["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&daemonset["spec"]["selector"]["matchLabels"], labels);
    // By the name of its job an alert tells that an agent is away.
    assert_eq!(labels[text(&podmonitor["spec"]["jobLabel"])], "tcpclose");
    let service = yaml::read(&workspace("deploy/kubernetes/service.yaml"));
    assert_eq!(&service["spec"]["selector"], labels);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    let servicemonitor = yaml::read(&workspace("deploy/kubernetes/servicemonitor.yaml"));
    assert_eq!(servicemonitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(servicemonitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]);
    assert_eq!(service["metadata"]["labels"][text(&servicemonitor["spec"]["jobLabel"])], "tcpclose");
    let policy = yaml::read(&workspace("deploy/kubernetes/networkpolicy.yaml"));
    assert_eq!(&policy["spec"]["podSelector"]["matchLabels"], labels);
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], port["name"]);

    // What it keeps and where it answers is on the host.
    let [mount] = list(&container["volumeMounts"]) else { panic!("not one mount") };
    let [volume] = list(&template["spec"]["volumes"]) else { panic!("not one volume") };
    assert_eq!(mount["name"], volume["name"]);
    assert_eq!(mount["mountPath"], volume["hostPath"]["path"]);
    let folder = Path::new(text(&mount["mountPath"]));
    assert_eq!(Path::new(&argument(container, "state-dir")), folder);
    assert_eq!(Path::new(&argument(container, "socket")).parent(), Some(folder));
    // The command line's own default, so that it needs no --socket.
    assert_eq!(argument(container, "socket"), tcpclose::report::requests::DEFAULT_SOCKET);
}

#[test]
fn a_pod_has_what_it_needs_and_no_more() {
    let daemonset = daemonset();
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(pod["automountServiceAccountToken"], false);
    let context = &container(&daemonset)["securityContext"];
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["privileged"], Value::Null);
    // Kubernetes is to refuse it together with SYS_ADMIN.
    assert_eq!(context["allowPrivilegeEscalation"], Value::Null);
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    let roll_out = &daemonset["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!((&roll_out["maxUnavailable"], &roll_out["maxSurge"]), (&1.into(), &0.into()));

    let given = |name: &Value| format!("CAP_{}", text(name));
    let given: BTreeSet<String> = list(&context["capabilities"]["add"]).iter().map(given).collect();
    let expected = ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]
        .map(str::to_owned);
    assert_eq!(given, BTreeSet::from(expected));

    // The unit has the same, and the table says of each what it is for.
    let root = workspace(".");
    if let Ok(unit) = std::fs::read_to_string(root.join("deploy/systemd/tcpclose.service")) {
        for set in ["CapabilityBoundingSet=", "AmbientCapabilities="] {
            let line = unit.lines().find_map(|line| line.strip_prefix(set)).unwrap();
            assert_eq!(line.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), given, "{set}");
        }
    }
    if let Ok(table) = std::fs::read_to_string(root.join("docs/src/privileges.md")) {
        for one in &given {
            assert!(table.lines().any(|line| line.starts_with(&format!("| `{one}`"))), "{one}");
        }
    }
}
