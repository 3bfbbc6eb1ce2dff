//! Chains through proxies, as text.

use crate::failure::printable;
use crate::report::chain_link::{Chain, ChainEnd, Link};
use crate::ui::table;

/// A line or two a chain, the first `limit` of them.
pub fn text(chains: &[Chain], limit: usize, width: Option<u16>) -> String {
    let shown = chains.get(..limit).unwrap_or(chains);
    let mut text: String = shown.iter().map(|chain| table::wrap(&line(chain), width) + "\n").collect();
    if chains.len() > shown.len() {
        text.push_str(&format!("… {} more\n", chains.len() - shown.len()));
    }
    text
}

/// `12: client[7] → haproxy[812]:9000 → app[901]:8080: app[901] has not closed`.
fn line(chain: &Chain) -> String {
    let name = |link: &Link| format!("{}[{}]", printable(&link.comm), link.pid);
    let client = chain.client.iter().map(name);
    let links = chain.links.iter().map(|link| format!("{}:{}", name(link), link.port));
    let path: Vec<String> = client.chain(links).collect();
    let path = if path.is_empty() { "?".to_owned() } else { path.join(" → ") };
    let last = chain.links.last().map_or_else(|| "its program".to_owned(), name);
    let end = match chain.end {
        ChainEnd::NotClosed => format!("{last} has not closed"),
        ChainEnd::NotProven { candidates: 1 } => {
            format!("link not proven: another end of {last} may have gone on by the same connection")
        }
        ChainEnd::NotProven { candidates } => format!("link not proven ({candidates} candidates)"),
        ChainEnd::Elsewhere { peer } => {
            format!("{last} has passed the end on to {peer}, which is not on this host or not to be seen")
        }
        ChainEnd::UnknownOwner => "the owner is unknown".to_owned(),
    };
    format!("{}: {path}: {end}", chain.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_a_line_with_its_end() {
        let link = |pid, comm: &str, port| Link { pid, comm: comm.to_owned(), port };
        let chain = |end| Chain {
            count: 12,
            client: Some(link(7, "cl\u{1b}", 9000)),
            links: vec![link(812, "haproxy", 9000), link(901, "app", 8080)],
            end,
        };
        let ends = [
            ChainEnd::NotClosed,
            ChainEnd::NotProven { candidates: 1 },
            ChainEnd::NotProven { candidates: 3 },
            ChainEnd::Elsewhere { peer: "10.0.0.2:80".parse().unwrap() },
            ChainEnd::UnknownOwner,
        ];
        let chains: Vec<Chain> = ends.into_iter().map(chain).collect();
        let nobody = Chain { client: None, links: Vec::new(), ..chain(ChainEnd::UnknownOwner) };
        let all = text(&[&chains[..], &[nobody]].concat(), 9, None);
        crate::ui::golden::check("chain.txt", &all);
        assert!(text(&chains, 1, None).ends_with("… 4 more\n") && text(&[], 9, None).is_empty());
    }
}
