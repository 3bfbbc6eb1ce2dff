//! The licences of the crates in the binary: a file for the packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Source;
use crate::sh;

/// Terms that ask for no more than to be named, with their texts, which is what this file does; and the LGPL, which asks
/// that the program can be linked anew with another version of the library. With free sources it can; what the packages
/// say of their terms names it (deploy/packages).
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "LGPL-2.1-or-later",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The packages of the workspace that a binary is made of: agent and probe.
const ROOTS: &[&str] = &["tcpclose", "tcpclose-ebpf"];

const INTRODUCTION: &str = "\
Third-party software in the tcpclose binary: the GNU C Library (LGPL-2.1-or-later), the Rust standard library (MIT OR
Apache-2.0) and the crates below, with the texts of their licences. The sources of tcpclose are free, so the binary can be
relinked with other versions of any of them.

";

/// The file's text. Fails if a crate has terms that are not allowed.
pub fn collect(source: &Source) -> Result<String> {
    let mut command = sh::cargo();
    command.current_dir(&source.folder).args(["metadata", "--format-version", "1", "--locked"]);
    let printed = sh::ask(command.args(["--filter-platform", &source.architecture.target()]))
        .context("cargo metadata failed")?;
    let metadata: Value = serde_json::from_str(&printed).context("cargo metadata printed no JSON")?;
    let mut crates = String::new();
    // Texts, the same ones once, with whose they are.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(&metadata) {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let (name, version) = (text("name"), text("version"));
        let terms = text("license");
        if !fits(terms) {
            bail!(
                "the licence of {name} {version}, {terms:?}, is not allowed in packages (allowed: {})",
                file!()
            );
        }
        crates.push_str(&format!("{name} {version}: {terms}\n    {}\n", text("repository")));
        let folder = Path::new(text("manifest_path")).parent().unwrap_or(Path::new("/"));
        for licence in licences(folder)? {
            texts.entry(licence).or_default().push(format!("{name} {version}"));
        }
    }
    let mut file = INTRODUCTION.to_owned();
    file.push_str(&crates);
    for (text, whose) in texts {
        file.push_str(&format!("\n{}\n{}\n\n{}\n", "-".repeat(80), whose.join(", "), text.trim_end()));
    }
    Ok(file)
}

/// The packages that the roots depend on when they run, not when they are built or tested. In order of their names.
fn linked(metadata: &Value) -> Vec<&Value> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let nodes: BTreeMap<String, Value> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .filter_map(|node| Some((node["id"].as_str()?.to_owned(), node)))
        .collect();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |package: &Value| package["id"].as_str().unwrap_or_default().to_owned();
    let is_ours = |package: &&Value| package["source"].is_null();
    let is_root = |package: &&Value| package["name"].as_str().is_some_and(|name| ROOTS.contains(&name));
    let mut todo: Vec<String> = packages.iter().filter(is_root).map(id).collect();
    let mut found = BTreeSet::new();
    while let Some(next) = todo.pop() {
        let Some(node) = nodes.get(&next) else { continue };
        if !found.insert(next) {
            continue;
        }
        let normal =
            |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let normal = list(&node["deps"]).into_iter().filter(normal);
        todo.extend(normal.filter_map(|dependency| dependency["pkg"].as_str().map(str::to_owned)));
    }
    let mut linked: Vec<&Value> =
        packages.iter().filter(|package| found.contains(&id(package)) && !is_ours(package)).collect();
    linked.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    linked
}

/// The licence texts in a crate's folder.
fn licences(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.sort();
    let is_licence = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().to_uppercase()).unwrap_or_default();
        let known = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
        path.is_file() && known.iter().any(|prefix| name.starts_with(prefix))
    };
    let files = files.iter().filter(|path| is_licence(path));
    // Some are in Latin-1.
    files
        .map(|path| Ok(String::from_utf8_lossy(&fs::read(path)?).replace("\r\n", "\n").trim().to_owned()))
        .collect()
}

/// True if the allowed terms satisfy this SPDX expression.
fn fits(terms: &str) -> bool {
    let terms = terms.trim();
    // How it was written before SPDX.
    let terms = &terms.replace('/', " OR ");
    if let Some(parts) = split(terms, " OR ") {
        return parts.into_iter().any(fits);
    }
    if let Some(parts) = split(terms, " AND ") {
        return parts.into_iter().all(fits);
    }
    match terms.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => fits(inner),
        None => ALLOWED.contains(&terms.as_str()),
    }
}

/// `terms` between the `separator`s that are in no parentheses; `None` where there is none.
fn split<'a>(terms: &'a str, separator: &str) -> Option<Vec<&'a str>> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in terms.match_indices(separator) {
        let before = &terms[..at];
        if before.matches('(').count() == before.matches(')').count() {
            parts.push(&terms[start..at]);
            start = at + separator.len();
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.push(&terms[start..]);
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_met_by_one_of_a_choice_and_by_all_of_a_sum() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "Apache-2.0 OR GPL-3.0-only",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Unlicense OR MIT",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "MIT AND (MIT OR GPL-2.0-only)",
        ] {
            assert!(fits(good), "{good}");
        }
        for bad in
            ["", "GPL-3.0-only", "MIT AND GPL-2.0-only", "(MIT OR Apache-2.0) AND OpenSSL", "LGPL-2.1-only"]
        {
            assert!(!fits(bad), "{bad}");
        }
    }

    #[test]
    fn only_what_runs_is_linked() {
        let node = |id: &str, deps: &[(&str, Option<&str>)]| {
            let deps: Vec<Value> = deps
                .iter()
                .map(|(id, kind)| serde_json::json!({"pkg": id, "dep_kinds": [{"kind": kind}]}))
                .collect();
            serde_json::json!({"id": id, "deps": deps})
        };
        let package = |id: &str, source: Option<&str>| serde_json::json!({"id": id, "name": id, "version": "1", "source": source});
        let metadata = serde_json::json!({
            "packages": [package("tcpclose", None), package("a", Some("r")), package("b", Some("r")),
                package("c", Some("r")), package("d", Some("r"))],
            "resolve": {"nodes": [
                node("tcpclose", &[("c", Some("build")), ("d", Some("dev")), ("b", None)]),
                node("b", &[("a", None)]), node("a", &[]), node("c", &[]), node("d", &[])]},
        });
        let names: Vec<&str> =
            linked(&metadata).iter().filter_map(|package| package["name"].as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
