//! What `tcpclose verify` prints on a terminal.

use super::Verify;
use super::document::Audit;
use crate::failure::printable;
use crate::report::verify::verdict::Agreement;
use crate::report::verify::{AuditRow, counters};
use crate::ui::{labels, table};

impl Verify {
    pub(super) fn text(&self, audit: &Audit, differs: usize, width: Option<u16>) -> String {
        let wrapped = |line: String| table::wrap(&line, width) + "\n";
        let mut text = wrapped(format!(
            "Agent at {} compared with the kernel, over {:.1}s (state hook {}, TIME-WAIT hook {})",
            printable(&self.socket.to_string_lossy()),
            audit.seconds,
            printable(&audit.backends.state),
            printable(&audit.backends.time_wait)
        ));
        let rows: Vec<Vec<String>> = audit
            .rows
            .iter()
            .map(|row| {
                let kernel = row.kernel.map_or_else(|| "-".to_owned(), |span| span.to_string());
                vec![row.what.clone(), row.agent.to_string(), kernel, row.verdict.to_string()]
            })
            .collect();
        let header = ["WHAT", ">AGENT", ">KERNEL", "VERDICT"];
        text.push_str(&format!("\n{}\n\n", table::render(&header, &rows, width)));
        text.push_str(&wrapped(match differs {
            0 => "no metric differs without a known cause".to_owned(),
            1 => format!("1 of {} metrics differs without a known cause", audit.rows.len()),
            n => format!("{n} of {} metrics differ without a known cause", audit.rows.len()),
        }));
        for line in audit.rows.iter().filter_map(breakdown) {
            text.push_str(&wrapped(line));
        }
        if audit.lost > 0 {
            text.push_str(&wrapped(format!(
                "the agent reported {} lost events during the comparison",
                audit.lost
            )));
        }
        if audit.backends.dumps() {
            text.push_str(&wrapped(counters::OWN_OVERFLOWS.to_owned()));
        }
        text.push_str(&wrapped(counters::NOT_COMPARED.to_owned()));
        for remark in &audit.incomplete {
            text.push_str(&wrapped(format!("incomplete: {}", printable(remark))));
        }
        text
    }
}

/// The parts of a row that differs, by namespace; `None` where it has only one.
fn breakdown(row: &AuditRow) -> Option<String> {
    if row.verdict != Agreement::Differs || row.namespaces.len() < 2 {
        return None;
    }
    let parts = row.namespaces.iter().map(|part| {
        let name = labels::netns_named(part.netns, part.netns_name.as_deref());
        match part.dumped {
            Some(dumped) if dumped.beyond(part.kernel) != 0 => {
                format!("{} and {} in {name}", dumped, part.kernel)
            }
            _ => format!("{} in {name}", part.kernel),
        }
    });
    Some(format!("{}: {}", row.what, parts.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::{OWN_ONLY, SCHEMA};
    use super::*;
    use crate::linux::proc_net::SockStat;
    use crate::report::verify::BackendsInUse;
    use crate::report::verify::samples::Samples;
    use crate::report::verify::verdict::Span;

    #[test]
    fn the_whole_text() {
        let row = |what: &str, agent, kernel, verdict| AuditRow {
            what: what.to_owned(),
            agent: Span::exact(agent),
            kernel,
            verdict,
            namespaces: Vec::new(),
        };
        let rows = vec![
            row("close_wait", 12, Some(Span::exact(12)), Agreement::Equal),
            row(
                "time_wait",
                4003,
                Some(Span { min: 3990, max: 3999 }),
                Agreement::Explained("17 events were lost".to_owned()),
            ),
            row("closes", 100, Some(Span::exact(90)), Agreement::Differs),
            row(
                "established or close_wait to closed, EstabResets",
                1_234_567,
                Some(Span { min: 1_234_560, max: 1_234_580 }),
                Agreement::NotTold("a dump does not show what ended a TIME-WAIT".to_owned()),
            ),
        ];
        let audit = Audit {
            schema: SCHEMA,
            host: "h".to_owned(),
            boot_id: "b".to_owned(),
            at: "t".to_owned(),
            seconds: 10.04,
            netns: 1,
            namespaces: Vec::new(),
            backends: BackendsInUse::of(&Samples::parse(
                "tcpclose_hook_info{hook=\"state\",backend=\"btf\"} 1\n\
                 tcpclose_hook_info{hook=\"time_wait\",backend=\"hooks\"} 1\n",
            )),
            lost: 17,
            rows,
            counters: BTreeMap::new(),
            sockstat: SockStat::default(),
            incomplete: vec![OWN_ONLY.to_owned()],
        };
        let verify =
            Verify { period: Duration::ZERO, json: false, socket: "/run/tcpclose/tcpclose.sock".into() };
        let texts = [100, 40].map(|width| verify.text(&audit, 1, Some(width)));
        assert!(!table::overflows(&texts[0], Some(100)) && !table::overflows(&texts[1], Some(40)));
        crate::ui::golden::check("verify.txt", &texts.join("\n-----\n"));
    }
}
