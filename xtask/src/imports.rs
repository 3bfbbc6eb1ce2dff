//! Which file of the agent's source imports which: the layers of ARCHITECTURE.md, and no circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, UseTree};

use crate::sh;

/// The modules below the crate's root, and those of them that each may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("names", &[]),
    ("failure", &[]),
    ("linux", &["names", "failure"]),
    ("probe", &["names", "failure", "linux"]),
    ("tracker", &["names"]),
    ("metrics", &["names", "tracker"]),
    ("report", &["names", "failure", "linux", "tracker", "metrics"]),
    ("collect", &["names", "failure", "linux", "report"]),
    ("kill", &["names", "failure", "linux", "report"]),
    ("agent", &["names", "failure", "linux", "probe", "tracker", "metrics", "report", "collect", "kill"]),
    ("ui", &["names", "failure", "report"]),
    ("client", &["names", "failure", "linux", "report", "collect", "ui"]),
    (
        "commands",
        &["names", "failure", "linux", "probe", "metrics", "report", "kill", "agent", "client", "ui"],
    ),
];

/// A module of the crate, from the root: `["tracker", "lookup"]`.
type Module = Vec<String>;

/// Whom each file imports.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

fn graph() -> Graph {
    let source = sh::workspace().join("tcpclose-userspace/src");
    let mut files = BTreeMap::new();
    read(&source, &mut Vec::new(), &mut files);
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    files
        .into_iter()
        .map(|(module, file)| {
            let mut imports = Imports { modules: &modules, here: module.clone(), found: BTreeSet::new() };
            imports.visit_file(&file);
            imports.found.remove(&module);
            (module, imports.found)
        })
        .collect()
}

/// Parses what is below `folder`, without tests.
fn read(folder: &Path, module: &mut Module, files: &mut BTreeMap<Module, syn::File>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() {
            module.push(name);
            read(&path, module, files);
            module.pop();
            continue;
        }
        let Some(stem) = name.strip_suffix(".rs").filter(|stem| *stem != "main") else { continue };
        let mut of_file = module.clone();
        if !matches!(stem, "mod" | "lib") {
            of_file.push(stem.to_owned());
        }
        if !of_file.iter().any(|part| part.ends_with("tests")) {
            files.insert(of_file, syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
        }
    }
}

struct Imports<'a> {
    modules: &'a BTreeSet<Module>,
    here: Module,
    found: BTreeSet<Module>,
}

impl Imports<'_> {
    /// Takes in the file that the path `parts` leads to.
    fn path(&mut self, parts: &[String]) {
        let mut parts = parts;
        let mut from = match parts.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.here.clone(),
            Some("super") => {
                let mut up = self.here.clone();
                while parts.first().is_some_and(|part| part == "super") {
                    up.pop();
                    parts = &parts[1..];
                }
                return self.add(up, parts);
            }
            // A child of this module, or a crate.
            Some(child) if self.modules.contains(&[&self.here[..], &[child.to_owned()]].concat()) => {
                return self.add(self.here.clone(), parts);
            }
            _ => return,
        };
        self.add(std::mem::take(&mut from), &parts[1..]);
    }

    fn add(&mut self, mut module: Module, below: &[String]) {
        module.extend_from_slice(below);
        while !self.modules.contains(&module) {
            if module.pop().is_none() {
                return;
            }
        }
        // The root has only the map.
        if !module.is_empty() {
            self.found.insert(module);
        }
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.leaf(name.ident.to_string(), before),
            UseTree::Rename(name) => self.leaf(name.ident.to_string(), before),
            UseTree::Glob(_) => self.path(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }

    fn leaf(&mut self, name: String, before: &[String]) {
        let parts = if name == "self" { before.to_vec() } else { [before, &[name]].concat() };
        self.path(&parts);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    let is = |attribute: &Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    };
    attributes.iter().any(is)
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.path(&parts);
        }
        visit::visit_path(self, path);
    }
}

/// The strongly connected components of more than one file (Tarjan's algorithm).
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    #[derive(Default)]
    struct Search {
        next: usize,
        seen: BTreeMap<Module, (usize, usize)>,
        stack: Vec<Module>,
        found: Vec<Vec<String>>,
    }
    fn visit(graph: &Graph, search: &mut Search, module: &Module) -> usize {
        let index = search.next;
        search.next += 1;
        search.seen.insert(module.clone(), (index, index));
        search.stack.push(module.clone());
        let mut low = index;
        for import in graph.get(module).into_iter().flatten() {
            let reached = match search.seen.get(import) {
                None => visit(graph, search, import),
                Some((index, _)) if search.stack.contains(import) => *index,
                Some(_) => continue,
            };
            low = low.min(reached);
        }
        if low == index {
            let at = search.stack.iter().position(|one| one == module).unwrap();
            let component = search.stack.split_off(at);
            if component.len() > 1 {
                search.found.push(component.iter().map(|module| module.join("::")).collect());
            }
        }
        low
    }
    let mut search = Search::default();
    for module in graph.keys() {
        if !search.seen.contains_key(module) {
            visit(graph, &mut search, module);
        }
    }
    search.found
}

#[test]
fn modules_import_only_what_is_below_them() {
    let wrong: Vec<String> = graph()
        .iter()
        .filter(|(module, _)| !module.is_empty())
        .flat_map(|(module, imports)| imports.iter().map(move |import| (module, import)))
        .filter(|(module, import)| module[0] != import[0])
        .filter(|(module, import)| {
            let may = LAYERS.iter().find(|(name, _)| *name == module[0]).map(|(_, may)| *may);
            !may.unwrap_or_else(|| panic!("{} is in no layer", module[0])).contains(&import[0].as_str())
        })
        .map(|(module, import)| format!("{} imports {}", module.join("::"), import.join("::")))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = circles(&graph());
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let to = |names: &[&str]| names.iter().map(|name| module(name)).collect();
    let graph = Graph::from([
        (module("a"), to(&["b"])),
        (module("b"), to(&["c"])),
        (module("c"), to(&["a", "d"])),
        (module("d"), to(&[])),
    ]);
    assert_eq!(circles(&graph), [["a", "b", "c"]]);
}
