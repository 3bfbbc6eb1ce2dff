//! What `deploy/` holds for Prometheus and Grafana: rules with their own tests, a dashboard by its schema, and every
//! query of both asked of a real Prometheus that scrapes a live agent.

use crate::common;
mod configuration;
mod document;
mod metrics;
mod scene;
pub mod schema;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::Metrics;
use common::prometheus::{PATIENCE, Prometheus, encoded};
use scene::Scene;
use serde_json::Value;

/// A folder with Grafana's own schemas, `jsonschema/` of github.com/grafana/grafana-foundation-sdk: the dashboard is
/// then held against them too.
const GRAFANA_SCHEMAS: &str = "TCPCLOSE_GRAFANA_SCHEMAS";

/// The job that scrapes agents, as rules.yml and README.md call it.
const JOB: &str = "tcpclose";

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).canonicalize().unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn dashboard() -> Value {
    json(&workspace("deploy/grafana/tcpclose.json"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// Every panel but the rows.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    array(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row")
}

#[test]
fn promtool_finds_the_rules_right_and_their_tests_pass() {
    let folder = workspace("deploy/prometheus");
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]] {
        let Ok(output) = Command::new("promtool").current_dir(&folder).args(arguments).output() else {
            assert!(std::env::var_os("CI").is_none(), "there is no promtool");
            eprintln!("SKIPPED: there is no promtool to check the rules with; install prometheus");
            return;
        };
        let printed = [output.stdout, output.stderr].concat();
        println!("{}", String::from_utf8_lossy(&printed));
        assert!(output.status.success(), "promtool {arguments:?}");
    }
}

#[test]
fn the_dashboard_fits_its_schema() {
    let dashboard = dashboard();
    let ours = json(&workspace("tcpclose-userspace/tests/live/deploy/dashboard.schema.json"));
    assert_eq!(schema::errors(&dashboard, &ours, &ours), [""; 0]);

    let ids: Vec<&Value> = array(&dashboard["panels"]).iter().map(|panel| &panel["id"]).collect();
    assert_eq!(
        ids.iter().map(|id| id.to_string()).collect::<BTreeSet<_>>().len(),
        ids.len(),
        "ids are not unique"
    );
    for panel in panels(&dashboard) {
        let place = &panel["gridPos"];
        assert!(
            place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24,
            "too wide: {}",
            panel["title"]
        );
    }
    nothing_overlaps(&dashboard);

    let Some(folder) = std::env::var_os(GRAFANA_SCHEMAS).map(PathBuf::from) else {
        println!("not held against Grafana's own schemas: {GRAFANA_SCHEMAS} names no folder of them");
        return;
    };
    let theirs = |name: &str| json(&folder.join(format!("{name}.jsonschema.json")));
    let fits = |what: &str, value: &Value, document: &Value, definition: &str| {
        let found = schema::errors(value, &document["definitions"][definition], document);
        assert_eq!(found, [""; 0], "{what}");
    };
    fits("the dashboard", &dashboard, &theirs("dashboard"), "Dashboard");
    for panel in panels(&dashboard) {
        let document = theirs(text(&panel["type"]));
        fits(text(&panel["title"]), &panel["options"], &document, "Options");
        for target in array(&panel["targets"]) {
            fits(text(&panel["title"]), target, &theirs("prometheus"), "Dataquery");
        }
    }
    println!("Grafana's own schemas agree");
}

fn nothing_overlaps(dashboard: &Value) {
    let mut taken = BTreeSet::new();
    for panel in array(&dashboard["panels"]) {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().unwrap());
        for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
            assert!(taken.insert(cell), "{} lies over another panel at {cell:?}", panel["title"]);
        }
    }
}

/// Every expression of the dashboard: where it stands, and what it is.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let targets = panels(dashboard).flat_map(|panel| {
        let name = move |target: &Value| format!("{} {}", text(&panel["title"]), text(&target["refId"]));
        array(&panel["targets"]).iter().map(move |target| (name(target), text(&target["expr"]).to_owned()))
    });
    let annotations = array(&dashboard["annotations"]["list"]).iter().filter_map(|annotation| {
        Some((text(&annotation["name"]).to_owned(), annotation["expr"].as_str()?.to_owned()))
    });
    targets.chain(annotations).collect()
}

/// `expression` with the variables of a dashboard for what Grafana puts in their place.
fn substituted(expression: &str, variables: &[(&str, &str)]) -> String {
    // The longer names first, of which others are a beginning.
    let grafanas = [("$__rate_interval", "30s"), ("$__range", "5m"), ("$__interval", "15s")];
    let replaced = grafanas
        .iter()
        .chain(variables)
        .fold(expression.to_owned(), |expression, (name, value)| expression.replace(name, value));
    assert!(!replaced.contains('$'), "a variable that is not known: {replaced}");
    replaced
}

/// A metric's name without what a histogram adds to it.
fn bare(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Metrics of ours that `expression` speaks of.
fn metrics_in(expression: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let ours = |word: &&str| word.starts_with("tcpclose_");
    expression.split(word).filter(ours).map(bare).collect()
}

#[test]
#[ignore = "needs root"]
fn every_query_of_dashboard_and_rules_has_data_from_a_live_agent() {
    let scene = Scene::start();
    let targets = [(JOB, scene.agent.address())];
    let rules = workspace("deploy/prometheus/rules.yml");
    let prometheus = Prometheus::start_with(&targets, Some(&rules));
    let metrics = scene.agent.metrics();
    metrics::are_described(&metrics);

    let dashboard = dashboard();
    let instance = scene.agent.address();
    let ports = scene.ports.map(|port| port.to_string()).join("|");
    // `All`, and what is chosen in the lists.
    let every = [("$instance", ".*"), ("$side", ".*"), ("$port", ".*")];
    let some = [("$instance", instance.as_str()), ("$side", "client|server"), ("$port", ports.as_str())];
    let mut asked = 0;
    for (place, expression) in expressions(&dashboard) {
        are_known(&metrics, &place, &expression);
        for variables in [every, some] {
            let query = substituted(&expression, &variables);
            let series = answered(&prometheus, &place, &query);
            if variables == every {
                println!("{place}: {series} series");
            }
            asked += 1;
        }
    }
    println!("{asked} queries of the dashboard have data");
    variables_have_values(&prometheus, &dashboard, &every, &instance, &scene);
    rules_are_right(&prometheus, &metrics);
}

/// The agent must have the metrics of `expression`: one with a wrong name would wait for data in vain.
fn are_known(metrics: &Metrics, place: &str, expression: &str) {
    for name in metrics_in(expression) {
        assert!(metrics.text.contains(&format!("# TYPE {name} ")), "{place}: the agent has no {name}");
    }
}

/// Asks until there is a number; how many series have one.
fn answered(prometheus: &Prometheus, place: &str, query: &str) -> usize {
    let until = Instant::now() + PATIENCE;
    loop {
        let numbers = prometheus.series(query).iter().filter(|(_, value)| value.is_finite()).count();
        if numbers > 0 {
            return numbers;
        }
        assert!(Instant::now() < until, "{place} has no data: {query}");
        sleep(Duration::from_millis(200));
    }
}

/// The lists from which instance, side and port are chosen.
fn variables_have_values(
    prometheus: &Prometheus,
    dashboard: &Value,
    every: &[(&str, &str)],
    instance: &str,
    scene: &Scene,
) {
    let expected = [
        ("instance", instance.to_owned()),
        ("side", "server".to_owned()),
        ("port", scene.ports[0].to_string()),
    ];
    for (name, value) in expected {
        let list = array(&dashboard["templating"]["list"]);
        let variable = list.iter().find(|variable| variable["name"] == name).unwrap();
        let query = text(&variable["query"]);
        assert_eq!(query, text(&variable["definition"]));
        // label_values(SERIES, LABEL)
        let (series, label) = query
            .strip_prefix("label_values(")
            .unwrap()
            .strip_suffix(')')
            .unwrap()
            .rsplit_once(", ")
            .unwrap();
        let series = encoded(&substituted(series, every));
        let values = prometheus.data(&format!("/api/v1/label/{label}/values?match[]={series}"));
        println!("${name}: {values}");
        assert!(array(&values).contains(&Value::from(value)), "{name}: {values}");
    }
}

/// Prometheus evaluates each rule; a recording rule has data; an alert says what the runbook has more of.
fn rules_are_right(prometheus: &Prometheus, metrics: &Metrics) {
    let runbook = std::fs::read_to_string(workspace("docs/src/runbook.md")).unwrap();
    let until = Instant::now() + PATIENCE;
    let groups = loop {
        let mut data = prometheus.data("/api/v1/rules");
        let evaluated = |group: &Value| array(&group["rules"]).iter().all(|rule| rule["health"] != "unknown");
        if array(&data["groups"]).iter().all(evaluated) {
            break data["groups"].take();
        }
        assert!(Instant::now() < until, "not evaluated: {data}");
        sleep(Duration::from_millis(200));
    };
    let (mut recordings, mut alerts) = (0, 0);
    for rule in array(&groups).iter().flat_map(|group| array(&group["rules"])) {
        let (name, query) = (text(&rule["name"]), text(&rule["query"]));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        are_known(metrics, name, query);
        if rule["type"] == "recording" {
            answered(prometheus, name, name);
            recordings += 1;
            continue;
        }
        alerts += 1;
        assert!(["info", "warning", "critical"].contains(&text(&rule["labels"]["severity"])), "{name}");
        assert!(
            rule["duration"].as_f64() > Some(0.0) && rule["keepFiringFor"].as_f64() > Some(0.0),
            "{name}"
        );
        for annotation in ["summary", "description"] {
            assert!(!text(&rule["annotations"][annotation]).is_empty(), "{name}");
        }
        let runbook_url = text(&rule["annotations"]["runbook_url"]);
        let anchor = runbook_url.strip_prefix("/usr/share/doc/tcpclose/docs/src/runbook.md#").unwrap();
        // As GitHub makes anchors of headings.
        let mut anchors = runbook.lines().filter_map(|line| line.strip_prefix("## "));
        assert!(
            anchors.any(|heading| heading.to_lowercase().replace(' ', "-") == anchor),
            "{name}: docs/src/runbook.md has no heading for {anchor}"
        );
    }
    println!("{recordings} recording rules have data, {alerts} alerts are evaluated");
    assert!(recordings > 0 && alerts > 0);
}
