//! By which names a browser may come: DNS rebinding.

use std::fs;

use serde_json::json;

use super::*;
use crate::page::browser::Browser;

const EVIL: &str = "Host: evil.example";
const BROWSER: &str = "Accept-Language: de";

#[test]
#[ignore = "needs root"]
fn a_strangers_name_reads_nothing_and_scrapes_come_by_any() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tcpclose.toml");
    fs::write(&file, "").unwrap();
    let agent = Agent::start(&["--config", file.to_str().unwrap()]);
    let url = |path: &str| format!("http://{}{path}", agent.address());
    for path in ["/", "/page.js", "/ports"] {
        let refused = curl(&url(path), &["-H", EVIL]).is(421);
        assert!(refused.body.contains("--allowed-host NAME\n"), "{}", refused.body);
        assert!(!refused.body.contains("boot_id"));
        curl(&url(path), &[]).is(200);
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        curl(&url(path), &["-H", EVIL]).is(200);
        curl(&url(path), &["-H", EVIL, "-H", BROWSER]).is(421);
        curl(&url(path), &["-H", BROWSER]).is(200);
    }
    // The Unix socket has no such names.
    assert_eq!(agent.get("/ports").0, 200);

    let printed = agent.reloaded(|| fs::write(&file, "allowed-host = [\"Evil.example.\"]\n").unwrap());
    assert_eq!(printed, "tcpclose: reloaded: allowed-host");
    curl(&url("/ports"), &["-H", EVIL, "-H", BROWSER]).is(200);
}

/// What a page can do whose name has come to resolve to the agent's address.
#[test]
#[ignore = "needs root"]
fn a_script_of_a_rebound_name_reads_nothing() {
    let Some(mut browser) = Browser::start() else { return };
    let agent = Agent::start(&[]);
    let address = agent.address();
    let port = address.rsplit(':').next().unwrap();
    let read = |browser: &mut Browser, path: &str, init: &str| {
        browser.evaluate(&format!("fetch('{path}', {init}).then(answer => answer.status)"))
    };
    browser.open(&format!("http://localhost:{port}/healthz"));
    assert_eq!(read(&mut browser, "/metrics", "{}"), json!(200));
    browser.open(&format!("http://evil.example:{port}/healthz"));
    assert_eq!(browser.evaluate("location.hostname"), json!("evil.example"));
    for path in ["/metrics", "/ports", "/", "/readyz"] {
        for init in
            ["{}", "{ headers: { 'Accept-Language': '' } }", "{ headers: { 'User-Agent': 'Prometheus' } }"]
        {
            assert_eq!(read(&mut browser, path, init), json!(421), "{path} {init}");
        }
    }
}
