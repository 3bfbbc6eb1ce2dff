//! What Kubernetes takes.
//!
//! `kubernetes.schema.json` has the definitions of its API that the manifests use, in which every field that they could have
//! there is named. For another version, or when a manifest uses more:
//!
//!     pip download --no-deps kubernetes-validate && unzip kubernetes_validate-*.whl
//!     TCPCLOSE_KUBERNETES_SCHEMAS=kubernetes_validate/kubernetes-json-schema/v1.30.0-local-strict TCPCLOSE_WRITE_DOCS=1 \
//!         cargo test -p tcpclose --test live kubernetes::
//!
//! Without TCPCLOSE_WRITE_DOCS the manifests are held against that folder's version. `operator.schema.json` is ours, and narrower
//! than the operator's CRDs, whose folder TCPCLOSE_OPERATOR_CRDS may name (example/prometheus-operator-crd/ of
//! github.com/prometheus-operator/prometheus-operator; last agreed with at v0.93.0).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::{schema, workspace, yaml};

const FOLDER: &str = "TCPCLOSE_KUBERNETES_SCHEMAS";
const CRDS: &str = "TCPCLOSE_OPERATOR_CRDS";
const WRITE: &str = "TCPCLOSE_WRITE_DOCS";

const HERE: &str = "tcpclose-userspace/tests/live/kubernetes";
const NOTICE: &str = "Definitions of the Kubernetes API that deploy/kubernetes uses, without their descriptions. Copyright The \
                      Kubernetes Authors, Apache License 2.0 (LICENSE-APACHE). Written by schemas.rs, which tells from what";

/// Keywords that `schema` knows; the others describe, or say what is checked elsewhere.
const KEYWORDS: [&str; 9] =
    ["type", "enum", "required", "properties", "additionalProperties", "items", "anyOf", "oneOf", "$ref"];

/// The definition of an object by its apiVersion and kind.
fn definition(manifest: &Value) -> &'static str {
    match (manifest["apiVersion"].as_str(), manifest["kind"].as_str()) {
        (Some("v1"), Some("Namespace")) => "io.k8s.api.core.v1.Namespace",
        (Some("v1"), Some("Service")) => "io.k8s.api.core.v1.Service",
        (Some("networking.k8s.io/v1"), Some("NetworkPolicy")) => "io.k8s.api.networking.v1.NetworkPolicy",
        (Some("v1"), Some("ServiceAccount")) => "io.k8s.api.core.v1.ServiceAccount",
        (Some("scheduling.k8s.io/v1"), Some("PriorityClass")) => "io.k8s.api.scheduling.v1.PriorityClass",
        (Some("apps/v1"), Some("DaemonSet")) => "io.k8s.api.apps.v1.DaemonSet",
        other => panic!("{other:?} is not known here"),
    }
}

/// What the manifests are held against.
pub fn versions() -> String {
    let named = |variable| std::env::var_os(variable).map(|path| path.display().to_string());
    let kubernetes = named(FOLDER).unwrap_or_else(|| "kubernetes.schema.json".to_owned());
    let operator = named(CRDS).map_or(String::new(), |path| format!(" and {path}"));
    format!("{kubernetes}, operator.schema.json{operator}")
}

/// What is wrong with an object of Kubernetes' own.
pub fn errors(manifest: &Value) -> Vec<String> {
    static KEPT: OnceLock<Value> = OnceLock::new();
    let document = KEPT.get_or_init(kept);
    schema::errors(manifest, &document["definitions"][definition(manifest)], document)
}

/// The same of one of the operator's.
pub fn errors_of_operator(manifest: &Value) -> Vec<String> {
    let ours = super::json(&workspace(HERE).join("operator.schema.json"));
    let kind = super::text(&manifest["kind"]);
    let mut found = schema::errors(manifest, &ours["definitions"][kind], &ours);
    if let Some(folder) = std::env::var_os(CRDS).map(PathBuf::from) {
        let name = format!("monitoring.coreos.com_{}s.yaml", kind.to_ascii_lowercase());
        let crd = yaml::read(&folder.join(name));
        let version = super::list(&crd["spec"]["versions"]).iter().find(|one| one["name"] == "v1").unwrap();
        let theirs = strict(&version["schema"]["openAPIV3Schema"]);
        found.extend(schema::errors(manifest, &theirs, &theirs));
    }
    found
}

/// The definitions that are kept; made anew, or instead all of the folder's version, where that is asked for.
fn kept() -> Value {
    let path = workspace(HERE).join("kubernetes.schema.json");
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return super::json(&path) };
    let all = all(&folder);
    if std::env::var_os(WRITE).is_some() {
        let mut names = BTreeSet::new();
        for manifest in super::manifests().values().filter(|manifest| !super::is_operators(manifest)) {
            reach(
                manifest,
                &json!({"$ref": format!("#/definitions/{}", definition(manifest))}),
                &all,
                &mut names,
            );
        }
        let mut definitions = all["definitions"].as_object().unwrap().clone();
        definitions.retain(|name, _| names.contains(name));
        let version = folder.file_name().unwrap().to_string_lossy().into_owned();
        let document = json!({"$comment": format!("{NOTICE}: {version}."), "definitions": definitions});
        std::fs::write(&path, serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
        println!("{} is written", path.display());
    }
    all
}

/// The definitions of a whole version.
fn all(folder: &Path) -> Value {
    let theirs = super::json(&folder.join("_definitions.json"));
    let definitions = theirs.get("$defs").or(theirs.get("definitions")).and_then(Value::as_object).unwrap();
    let definitions: Map<String, Value> =
        definitions.iter().map(|(name, schema)| (name.clone(), plain(schema))).collect();
    json!({ "definitions": definitions })
}

/// Collects the definitions that `value` is held against.
fn reach(value: &Value, schema: &Value, document: &Value, names: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        names.insert(name.to_owned());
        reach(value, &document["definitions"][name], document, names);
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let of_name = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
        reach(inner, of_name, document, names);
    }
    for inner in value.as_array().into_iter().flatten() {
        reach(inner, &schema["items"], document, names);
    }
}

/// `schema` with the keywords that are known here alone, and references into the same document.
fn plain(schema: &Value) -> Value {
    let Value::Object(schema) = schema else { return schema.clone() };
    let kept = schema.iter().filter(|(keyword, _)| KEYWORDS.contains(&keyword.as_str()));
    let kept = kept.map(|(keyword, inner)| {
        let inner = match (keyword.as_str(), inner) {
            ("properties", Value::Object(inner)) => {
                inner.iter().map(|(name, schema)| (name.clone(), plain(schema))).collect()
            }
            ("items" | "additionalProperties", inner) => plain(inner),
            ("anyOf" | "oneOf", Value::Array(inner)) => inner.iter().map(plain).collect(),
            ("$ref", Value::String(to)) => format!("#/definitions/{}", to.rsplit('/').next().unwrap()).into(),
            (_, inner) => inner.clone(),
        };
        (keyword.clone(), inner)
    });
    Value::Object(kept.collect())
}

/// A CRD's schema, in which nothing may be that it does not name: the API server would drop it, and kubectl complain.
fn strict(schema: &Value) -> Value {
    let mut schema = plain(schema);
    let free = schema.as_object().is_none_or(|schema| !schema.contains_key("properties"));
    if let Some(object) = schema.as_object_mut().filter(|_| !free) {
        object.insert("additionalProperties".to_owned(), false.into());
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            *inner = strict(inner);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(|inner| *inner = strict(inner));
        // Its type is said in the schema of all objects.
        if let Some(metadata) = properties.get_mut("metadata") {
            *metadata = json!({"type": "object"});
        }
    }
    schema
}
