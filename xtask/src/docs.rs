//! `cargo xtask docs`: the book in docs/, built with mdBook, and the check of every link and anchor in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::archive::{self, Architecture, Archive, Suite};
use crate::{build, sh};

/// Build the book of docs/ into target/book, and check its links
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask docs\n  cargo xtask docs --check")]
pub struct Arguments {
    /// Write and build nothing: check links, anchors and generated tables (`cargo xtask test --step docs`)
    #[arg(long)]
    check: bool,
}

/// The book's pages.
const PAGES: &str = "docs/src";
/// The list of them that mdBook reads.
const SUMMARY: &str = "docs/src/SUMMARY.md";
/// Documents outside of the book.
const OTHERS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "REVIEW.md",
    "SECURITY.md",
    "deploy/README.md",
];
/// Where paths that documents name in code may begin.
const ROOTS: &[&str] = &["", "tcpclose-userspace", "tcpclose-userspace/src"];
/// Names files of other projects.
const FOREIGN: &str = "docs/src/comparison.md";
/// Tells of files that are gone.
const HISTORY: &str = "CHANGELOG.md";
/// Names pages of the book in `runbook_url`, as paths in the workspace or as packages install them.
const RULES: &str = "deploy/prometheus/rules.yml";

const COVERAGE: &str = "docs/coverage.toml";
const COVERAGE_PAGE: &str = "docs/src/coverage.md";

/// The suite that has mdBook.
const SUITE: Suite = Suite::Trixie;

/// Runs the command.
pub fn command(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check();
    }
    let page = sh::workspace().join(COVERAGE_PAGE);
    let old = read(&page)?;
    let new = coverage_page(&old)?;
    if new != old {
        fs::write(&page, new).with_context(|| format!("cannot write {}", page.display()))?;
        eprintln!("{COVERAGE_PAGE} is written");
    }
    check()?;
    let book = build::target_folder()?.join("book");
    sh::run(mdbook()?.arg("build").arg("--dest-dir").arg(&book).arg(sh::workspace().join("docs")))?;
    eprintln!("the book: {}", book.join("index.html").display());
    Ok(())
}

/// Fails with every broken link, every source file that is named and gone, every page that the summary lacks, and
/// every generated table that is out of date.
pub fn check() -> Result<()> {
    let workspace = sh::workspace();
    let mut wrong = Vec::new();
    let pages = pages(&workspace.join(PAGES))?;
    for path in pages.iter().cloned().chain(OTHERS.iter().map(|name| workspace.join(name))) {
        let text = read(&path)?;
        for link in links(&text) {
            if let Err(why) = resolve(&workspace, &path, &link.target) {
                wrong.push(format!("{}:{}: {}: {why:#}", shown(&workspace, &path), link.line, link.target));
            }
        }
        if [FOREIGN, HISTORY].iter().all(|name| path != workspace.join(name)) {
            let gone = source_files(&text).into_iter().filter(|(_, file)| !is_there(&workspace, file));
            wrong.extend(gone.map(|(line, file)| {
                format!("{}:{line}: `{file}`: there is no such file", shown(&workspace, &path))
            }));
        }
    }
    let rules = read(&workspace.join(RULES))?;
    for (number, line) in rules.lines().enumerate() {
        if let Some((_, target)) = line.split_once("runbook_url: ")
            && let Err(why) = resolve(&workspace, &workspace.join("rules.yml"), workspace_path(target.trim()))
        {
            wrong.push(format!("{RULES}:{}: {target}: {why:#}", number + 1));
        }
    }
    wrong.extend(unlisted(&workspace, &pages)?);
    let page = read(&workspace.join(COVERAGE_PAGE))?;
    if coverage_page(&page)? != page {
        wrong.push(format!("{COVERAGE_PAGE} does not match {COVERAGE}: run `cargo xtask docs`"));
    }
    if !wrong.is_empty() {
        bail!("{} errors in the documents:\n{}", wrong.len(), wrong.join("\n"));
    }
    eprintln!("{} pages: links, anchors and generated tables are right", pages.len());
    Ok(())
}

/// The path in the workspace of a document that packages install.
fn workspace_path(target: &str) -> &str {
    target.strip_prefix("/usr/share/doc/tcpclose/").unwrap_or(target)
}

/// Every page of the book, in order.
fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Pages that the summary does not list: mdBook would leave them out without a word.
fn unlisted(workspace: &Path, pages: &[PathBuf]) -> Result<Vec<String>> {
    let summary = workspace.join(SUMMARY);
    let text = read(&summary)?;
    let listed: BTreeSet<PathBuf> =
        links(&text).iter().map(|link| joined(&workspace.join(PAGES), &link.target)).collect();
    let pages = pages.iter().filter(|page| **page != summary && !listed.contains(*page));
    Ok(pages.map(|page| format!("{} is not in {SUMMARY}", shown(workspace, page))).collect())
}

/// A link in Markdown text.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    target: String,
}

/// The links and images of a document, without those in code.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        let mut rest = line.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            links.push(Link { line: number, target: target.to_owned() });
            rest = after;
        }
    }
    links
}

/// The source files and folders that a document names in code, with the numbers of their lines.
fn source_files(text: &str) -> Vec<(usize, &str)> {
    let is_path = |code: &&str| {
        let ends = [".rs", ".sh"].iter().any(|end| code.ends_with(end)) || code.ends_with('/');
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
        ends && code.contains('/') && code.chars().all(plain) && !code.starts_with(['/', '.'])
    };
    let codes = prose(text).into_iter().flat_map(|(number, line)| {
        line.split('`').skip(1).step_by(2).map(move |code| (number, code)).collect::<Vec<_>>()
    });
    codes.filter(|(_, code)| is_path(code)).collect()
}

fn is_there(workspace: &Path, file: &str) -> bool {
    ROOTS.iter().any(|root| workspace.join(root).join(file).exists())
}

/// The lines of a document with their numbers, without code blocks.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let (mut fence, mut indented, mut blank) = (None, false, true);
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
            (None, None) => {
                indented = line.starts_with("    ") && (blank || indented);
                if !indented {
                    lines.push((number + 1, line));
                }
            }
        }
        blank = trimmed.is_empty();
    }
    lines
}

fn without_code(line: &str) -> String {
    let mut parts = line.split('`');
    let mut text = parts.next().unwrap_or_default().to_owned();
    while let Some(code) = parts.next() {
        match parts.next() {
            Some(after) => {
                text.push_str("code");
                text.push_str(after);
            }
            // A backtick without a second one is no code.
            None => text.push_str(code),
        }
    }
    text
}

/// Finds what `target` names in the document `from`.
fn resolve(workspace: &Path, from: &Path, target: &str) -> Result<()> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = match target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (target, None),
    };
    let folder = from.parent().unwrap_or(workspace);
    let path = if file.is_empty() { from.to_path_buf() } else { joined(folder, file) };
    let pages = workspace.join(PAGES);
    if from.starts_with(&pages) && !path.starts_with(&pages) {
        bail!("leaves the book");
    }
    if !path.exists() {
        bail!("there is no {}", shown(workspace, &path));
    }
    if let Some(anchor) = anchor
        && !anchors(&read(&path)?).contains(anchor)
    {
        bail!("{} has no heading #{anchor}", shown(workspace, &path));
    }
    Ok(())
}

/// `folder` and `below`, which may go up.
fn joined(folder: &Path, below: &str) -> PathBuf {
    let mut path = folder.to_path_buf();
    for component in Path::new(below).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

/// The anchors of a document's headings, as mdBook and GitHub make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        let is_heading = !fenced && heading.len() < line.len() && heading.starts_with(' ');
        if is_heading {
            let slug = slug(heading);
            let numbered = (1..).map(|number| format!("{slug}-{number}"));
            let free = std::iter::once(slug.clone()).chain(numbered).find(|slug| !anchors.contains(slug));
            anchors.extend(free);
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let heading = heading.trim().to_lowercase();
    let kept = heading.chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        letter if letter.is_alphanumeric() || letter == '-' || letter == '_' => Some(letter),
        _ => None,
    });
    kept.collect()
}

/// `page` with the tables of the data file between its marks.
fn coverage_page(page: &str) -> Result<String> {
    let text = read(&sh::workspace().join(COVERAGE))?;
    replaced(page, "coverage", &coverage(&text)?).with_context(|| COVERAGE_PAGE.to_owned())
}

/// `page` with `body` between the marks of this name.
fn replaced(page: &str, name: &str, body: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name} begins -->\n"), format!("<!-- {name} ends -->"));
    let Some((before, rest)) = page.split_once(&begin) else { bail!("no line {begin}") };
    let Some((_, after)) = rest.split_once(&end) else { bail!("no line {end}") };
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", body.trim()))
}

/// A heading and a table for each section of the data file.
fn coverage(text: &str) -> Result<String> {
    let file: toml::Table = text.parse().with_context(|| format!("cannot read {COVERAGE}"))?;
    let backends = words(file.get("backends"))?;
    let mut out = String::new();
    for section in list(file.get("section"))? {
        let (title, about) = (word(section.get("title"))?, word(section.get("about"))?);
        out += &format!("## {title}\n\n{about}\n\n| what happened | {} |\n", backends.join(" | "));
        out += &format!("|---|{}\n", "---|".repeat(backends.len()));
        for row in list(section.get("rows"))? {
            let (truth, reported) = (word(row.get("truth"))?, words(row.get("reported"))?);
            if reported.len() != backends.len() {
                bail!("{COVERAGE}: `{truth}` has {} values for {} backends", reported.len(), backends.len());
            }
            out += &format!("| {truth} | {} |\n", reported.join(" | "));
        }
        out.push('\n');
    }
    Ok(out)
}

fn list(value: Option<&toml::Value>) -> Result<&Vec<toml::Value>> {
    value.and_then(toml::Value::as_array).with_context(|| format!("{COVERAGE}: a list is missing"))
}

fn word(value: Option<&toml::Value>) -> Result<&str> {
    value.and_then(toml::Value::as_str).with_context(|| format!("{COVERAGE}: a string is missing"))
}

fn words(value: Option<&toml::Value>) -> Result<Vec<&str>> {
    list(value)?.iter().map(|value| word(Some(value))).collect()
}

/// MdBook: the host's, or Debian's, unpacked below target/ and run through its own loader, which takes no root.
fn mdbook() -> Result<Command> {
    if let Some(program) = sh::find("mdbook") {
        return Ok(Command::new(program));
    }
    let machine = Architecture::of_this_machine();
    let machine = machine.context("no mdbook here, and no Debian packages for this kind of machine")?;
    let root = build::target_folder()?.join("tools/mdbook");
    Archive::open(SUITE, machine)?
        .unpack_closure(&["mdbook"], &root)
        .context("mdbook is not installed and cannot be fetched from Debian (install it, or use --check)")?;
    let words = archive::through_loader(&root, "usr/bin/mdbook");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    Ok(command)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn shown(workspace: &Path, path: &Path) -> String {
    path.strip_prefix(workspace).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md#c), ![d](e.png) `[f](g)`\n\n```\n[h](i)\n```\n\n    [j](k)\n\n* l\n  [m](n)\n";
        let found: Vec<(usize, String)> =
            links(text).into_iter().map(|link| (link.line, link.target)).collect();
        assert_eq!(found, [(1, "b.md#c".to_owned()), (1, "e.png".to_owned()), (10, "n".to_owned())]);
    }

    #[test]
    fn source_files_are_found_in_code() {
        let text =
            "`a/b.rs`, `c.rs`, `d/`, `/proc/net/`, `e/{f,g}.rs` a/h.rs\n\n    `i/j.rs`\n`tests/live/k.sh`\n";
        assert_eq!(source_files(text), [(1, "a/b.rs"), (1, "d/"), (4, "tests/live/k.sh")]);
    }

    #[test]
    fn anchors_are_made_as_mdbook_makes_them() {
        let text =
            "# Why `TIME-WAIT` ends\n```sh\n# no heading\n```\n## Who may scrape?\n## Who may scrape?\n#no\n";
        let expected = ["who-may-scrape", "who-may-scrape-1", "why-time-wait-ends"];
        assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_link_must_lead_to_a_file_and_a_heading() {
        let workspace = std::env::temp_dir().join(format!("tcpclose-docs-{}", std::process::id()));
        let pages = workspace.join(PAGES);
        fs::create_dir_all(&pages).unwrap();
        fs::write(pages.join("a.md"), "# One two\n").unwrap();
        fs::write(workspace.join("README.md"), "").unwrap();
        let page = pages.join("b.md");
        let from_page = |target: &str| resolve(&workspace, &page, target).map_err(|why| why.to_string());
        assert_eq!(from_page("a.md"), Ok(()));
        assert_eq!(from_page("a.md#one-two"), Ok(()));
        assert_eq!(from_page("https://example.org/x"), Ok(()));
        assert_eq!(from_page("a.md#two"), Err("docs/src/a.md has no heading #two".to_owned()));
        assert_eq!(from_page("c.md"), Err("there is no docs/src/c.md".to_owned()));
        assert_eq!(from_page("../../README.md"), Err("leaves the book".to_owned()));
        assert!(resolve(&workspace, &workspace.join("README.md"), "docs/src/a.md#one-two").is_ok());
        fs::remove_dir_all(&workspace).unwrap();
    }

    #[test]
    fn the_coverage_table_has_a_column_a_backend() {
        let text = "backends = [\"x\", \"y\"]\n[[section]]\ntitle = \"T\"\nabout = \"A.\"\n\
                    rows = [{ truth = \"t\", reported = [\"1\", \"2\"] }]\n";
        let table = "## T\n\nA.\n\n| what happened | x | y |\n|---|---|---|\n| t | 1 | 2 |\n\n";
        assert_eq!(coverage(text).unwrap(), table);
        assert!(coverage(&text.replace(", \"2\"", "")).is_err());
        let page = "a\n<!-- coverage begins -->\nold\n<!-- coverage ends -->\nb\n";
        let new = "a\n<!-- coverage begins -->\n\nnew\n\n<!-- coverage ends -->\nb\n";
        assert_eq!(replaced(page, "coverage", "new\n").unwrap(), new);
    }
}
