//! The parts of the book's pages that tests write: between two marks, compared unless the variable asks to write them.

use super::workspace;

/// Set, generated parts are written instead of compared.
const WRITE: &str = "TCPCLOSE_WRITE_DOCS";

/// Compares the part of the page with `text`, or writes it.
pub fn is_current(page: &str, name: &str, text: &str) {
    let old = read(page);
    let (before, part, after) = split(&old, page, name);
    let text = text.trim();
    if std::env::var_os(WRITE).is_some() {
        let path = workspace("docs/src").join(page);
        std::fs::write(path, format!("{before}\n{text}\n\n{after}")).unwrap();
        println!("docs/src/{page} is written");
        return;
    }
    let again = format!("{WRITE}=1 cargo test -p tcpclose --test live deploy:: -- --include-ignored");
    for (line, expected) in part.trim().lines().zip(text.lines()) {
        assert_eq!(line, expected, "docs/src/{page} is out of date; to write it again: {again}");
    }
    assert_eq!(
        part.trim().lines().count(),
        text.lines().count(),
        "docs/src/{page}; to write it again: {again}"
    );
}

fn read(page: &str) -> String {
    let path = workspace("docs/src").join(page);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// What stands before the part, the part, and what stands after it; the marks are not in the part.
fn split<'a>(text: &'a str, page: &str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- {name} begins -->\n"), format!("<!-- {name} ends -->"));
    let from = text.find(&begin).unwrap_or_else(|| panic!("docs/src/{page} has no {begin}")) + begin.len();
    let to = text.find(&end).unwrap_or_else(|| panic!("docs/src/{page} has no {end}"));
    (&text[..from], &text[from..to], &text[to..])
}
