//! The stacks of stuck sockets as folded lines, or as a flame graph.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::commands::filter::Sorted;
use crate::failure::{Failure, printable};
use crate::linux::stacks::frames::Stack;
use crate::report::stacks::{in_a_line, of_socket, words};

/// Writes the stacks of the listed sockets to `file`: as SVG if its name ends so, else folded.
///
/// # Errors
/// When no socket has a stack, or the file cannot be written.
pub fn write(file: &Path, sorted: &Sorted, stacks: &[Stack]) -> Result<(), Failure> {
    let folded = fold(sorted, stacks);
    let name = format!("--flame {}", printable(&file.to_string_lossy()));
    if folded.is_empty() {
        let todo = "take some: tcpclose stuck --stacks --for 60s --pid PID";
        return Err(Failure::new(name, "no listed socket has a stack", todo));
    }
    let text = match file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg")) {
        true => Graph::of(&folded).svg(),
        false => lines(&folded),
    };
    // A fifo would block: nobody may read it.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flags)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|why| Failure::new(name, why, "name a file that can be written"))
}

/// The number of sockets by stack, the outermost frame first: the process, what was done, then functions.
type Folded = BTreeMap<Vec<String>, usize>;

fn fold(sorted: &Sorted, stacks: &[Stack]) -> Folded {
    let mut folded = Folded::new();
    for listed in sorted.listed() {
        let owner = listed.socket.first_owner().map_or("unknown", |owner| owner.comm.as_str());
        for (moment, stack) in of_socket(listed.socket, stacks) {
            let mut names = vec![part(owner), part(words(moment))];
            names.extend(stack.frames.iter().rev().map(|frame| part(&in_a_line(frame))));
            *folded.entry(names).or_default() += 1;
        }
    }
    folded
}

/// A name that separates nothing in a folded line.
fn part(name: &str) -> String {
    printable(name).replace(';', ":")
}

/// A line each: frames with semicolons in between, a blank, the count.
fn lines(folded: &Folded) -> String {
    let mut text = String::new();
    for (names, count) in folded {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {count}", names.join(";"));
    }
    text
}

/// A frame of the flame graph, and what it called.
#[derive(Debug, Default)]
struct Graph {
    count: usize,
    called: BTreeMap<String, Graph>,
}

/// Pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: usize = 18;
const FONT: f64 = 12.0;
/// Of a character, about.
const CHARACTER: f64 = 7.0;

impl Graph {
    fn of(folded: &Folded) -> Self {
        let mut root = Self::default();
        for (names, count) in folded {
            let mut here = &mut root;
            here.count += count;
            for name in names {
                here = here.called.entry(name.clone()).or_default();
                here.count += count;
            }
        }
        root
    }

    fn depth(&self) -> usize {
        self.called.values().map(|graph| graph.depth() + 1).max().unwrap_or(0)
    }

    /// A picture without scripts: a frame's title has its whole name and count.
    fn svg(&self) -> String {
        let height = (self.depth() + 2) * HEIGHT;
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"{FONT}\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"4\" y=\"14\">tcpclose: {} stacks of sockets that are not closed</text>\n",
            self.count
        );
        self.draw(&mut text, 0.0, height.saturating_sub(HEIGHT), self.count.max(1));
        text.push_str("</svg>\n");
        text
    }

    /// Draws what this frame called, from `x` on, with its lower edge at `y`.
    fn draw(&self, text: &mut String, mut x: f64, y: usize, all: usize) {
        for (name, graph) in &self.called {
            let width = WIDTH * graph.count as f64 / all as f64;
            let room = ((width - 6.0) / CHARACTER) as usize;
            let label: String = match name.chars().count() <= room {
                true => name.clone(),
                false if room > 2 => name.chars().take(room - 1).chain(['…']).collect(),
                false => String::new(),
            };
            // The same name has the same colour in each picture.
            let hue =
                name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 50;
            let top = y.saturating_sub(HEIGHT);
            let _ = writeln!(
                text,
                "<g><title>{}: {} of {all}</title><rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{HEIGHT}\" \
                 fill=\"hsl({hue},80%,70%)\" stroke=\"white\"/><text x=\"{:.1}\" y=\"{}\">{}</text></g>",
                escaped(name),
                graph.count,
                x + 3.0,
                top + HEIGHT - 5,
                escaped(&label)
            );
            graph.draw(text, x, top, all);
            x += width;
        }
    }
}

/// Text for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded() -> Folded {
        let names = |words: &[&str]| words.iter().map(|word| part(word)).collect::<Vec<_>>();
        Folded::from([
            (names(&["api", "opened", "main", "leak<a;b>"]), 3),
            (names(&["api", "opened", "main", "other"]), 1),
        ])
    }

    #[test]
    fn lines_are_folded() {
        assert_eq!(lines(&folded()), "api;opened;main;leak<a:b> 3\napi;opened;main;other 1\n");
    }

    #[test]
    fn widths_are_shares_and_names_are_escaped() {
        let svg = Graph::of(&folded()).svg();
        for part in [
            "<title>main: 4 of 4</title><rect x=\"0.0\" y=\"36\" width=\"1200.0\"",
            "<title>leak&lt;a:b&gt;: 3 of 4</title><rect x=\"0.0\" y=\"18\" width=\"900.0\"",
            "<title>other: 1 of 4</title><rect x=\"900.0\" y=\"18\" width=\"300.0\"",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
    }
}
