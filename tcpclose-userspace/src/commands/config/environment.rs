//! The variables whose names begin with `TCPCLOSE_`.

use std::ffi::{OsStr, OsString};

use clap::Command;

use crate::commands::config::settings::{PREFIX, settings_of, variable_of};
use crate::failure::nearest;

/// Variables of tests, benchmarks and builds, which are no settings.
const OTHERS: [&str; 13] = [
    "TCPCLOSE_BACKENDS",
    "TCPCLOSE_BENCH_HOLD",
    "TCPCLOSE_EBPF_OBJECT",
    "TCPCLOSE_EMULATED",
    "TCPCLOSE_FUZZ_TARGET",
    "TCPCLOSE_GRAFANA_SCHEMAS",
    "TCPCLOSE_KUBERNETES_SCHEMAS",
    "TCPCLOSE_LACKING",
    "TCPCLOSE_NO_SKIP",
    "TCPCLOSE_PODMONITOR_CRD",
    "TCPCLOSE_TEST",
    "TCPCLOSE_TOOL_ROOT",
    "TCPCLOSE_WRITE_DOCS",
];

/// Names and values.
#[derive(Debug, Default)]
pub struct Variables(pub Vec<(String, OsString)>);

impl Variables {
    /// Those of this process.
    pub fn of_process() -> Self {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self(named.filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }

    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }

    /// One warning about all that are no settings of `command`.
    pub fn warning(&self, command: &Command) -> Option<String> {
        let settings: Vec<String> = settings_of(command).map(|(_, long)| variable_of(long)).collect();
        let unknown = self.0.iter().filter(|(name, value)| {
            !settings.contains(name) && !OTHERS.contains(&name.as_str()) && !is_foreign(name, value)
        });
        let mut remarks: Vec<String> = unknown
            .map(|(name, _)| {
                // Which all of them have.
                let own = |name| str::strip_prefix(name, PREFIX).unwrap_or_default();
                match nearest(own(name), settings.iter().map(|setting| own(setting))) {
                    Some(meant) => format!("{name} (did you mean {PREFIX}{meant}?)"),
                    None => name.clone(),
                }
            })
            .collect();
        remarks.sort();
        let is = if remarks.len() == 1 { "no such setting" } else { "no such settings" };
        (!remarks.is_empty()).then(|| format!("warning: {}: {is}, ignored", remarks.join(", ")))
    }
}

/// Whether it is a test's variable, or one that Kubernetes sets for a service with this name.
fn is_foreign(name: &str, value: &OsStr) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    rest.starts_with("TEST_")
        || rest.starts_with("SERVICE_")
        || rest.starts_with("PORT")
        || rest.contains("_SERVICE_")
        || rest.contains("_PORT_")
        || value.to_str().is_some_and(|value| value.starts_with("tcp://") || value.starts_with("udp://"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn unknown_variables_are_one_warning_with_the_nearest_setting() {
        let warning = |names: &[&str]| {
            let variables = names.iter().map(|name| (format!("TCPCLOSE_{name}"), "x".into())).collect();
            Variables(variables).warning(&Cli::command())
        };
        assert_eq!(
            warning(&["SOKET", "BANANAS_AND_APPLES", "SOCKET", "STUCK_AFTER"]).as_deref(),
            Some(
                "warning: TCPCLOSE_BANANAS_AND_APPLES, TCPCLOSE_SOKET (did you mean TCPCLOSE_SOCKET?): \
                 no such settings, ignored"
            )
        );
        assert_eq!(
            warning(&["MAX_PORT"]).as_deref(),
            Some("warning: TCPCLOSE_MAX_PORT (did you mean TCPCLOSE_MAX_PORTS?): no such setting, ignored")
        );
        let of_others =
            ["SERVICE_HOST", "PORT_9923_TCP", "PORT", "AGENT_SERVICE_HOST", "TEST_LONG", "NO_SKIP"];
        assert_eq!(warning(&of_others), None);
        let link = Variables(vec![("TCPCLOSE_AGENT_PORT".to_owned(), "tcp://10.0.0.1:9923".into())]);
        assert_eq!(link.warning(&Cli::command()), None);
    }
}
