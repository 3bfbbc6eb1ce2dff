//! New files are used without a restart, and wrong ones are not.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::pki::{Pki, user};
use super::*;

/// Has `agent` read its web configuration now.
pub fn takes_effect(agent: &Agent) -> String {
    let before = agent.printed().lines().count();
    agent.signal(Signal::HUP);
    until(|| agent.printed().lines().skip(before).find(|line| line.contains("reloaded:")).map(str::to_owned))
}

#[track_caller]
fn until<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "not within 30 s");
        sleep(Duration::from_millis(50));
    }
}

/// The name in the certificate that the agent shows now.
fn shown(agent: &Agent, pki: &Pki) -> String {
    let answer =
        curl(&format!("https://{}/healthz", agent.address()), &["--cacert", &pki.path("ca.pem")]).is(200);
    let subject = answer.printed.lines().find_map(|line| line.strip_prefix("*  subject: CN=")).unwrap();
    subject.to_owned()
}

#[test]
#[ignore = "needs root"]
fn a_new_certificate_is_used_and_a_wrong_one_is_not() {
    let pki = Pki::new();
    let agent = Agent::start(&["--web-config", &pki.web_config("")]);
    assert_eq!(shown(&agent, &pki), "server");
    let replace = |by: &str| {
        for kind in ["key", "pem"] {
            fs::copy(pki.path(&format!("{by}.{kind}")), pki.path(&format!("server.{kind}"))).unwrap();
        }
    };
    // Nobody tells the agent.
    pki.issue("second", "ca", "IP:127.0.0.1");
    replace("second");
    until(|| (shown(&agent, &pki) == "second").then_some(()));

    pki.write("server.pem", "no certificate\n");
    let complaint = format!("{}: there is no certificate in it", pki.path("server.pem"));
    let complaints = || agent.printed().lines().filter(|line| line.contains(&complaint)).count();
    until(|| {
        assert_eq!(shown(&agent, &pki), "second");
        (complaints() == 1).then_some(())
    });
    sleep(Duration::from_millis(300));
    assert_eq!(shown(&agent, &pki), "second");
    assert_eq!(complaints(), 1);
    let wrong = agent.metrics().sum("tcpclose_web_config_wrong", &[]);
    assert_eq!(wrong, 1.0);
    let printed = takes_effect(&agent);
    assert!(
        printed.contains("nothing has changed; the previous web configuration stays in use: "),
        "{printed}"
    );

    // Half of a pair is no pair, for as long as the other half is missing.
    pki.issue("third", "ca", "IP:127.0.0.1");
    fs::copy(pki.path("third.pem"), pki.path("server.pem")).unwrap();
    assert_eq!(shown(&agent, &pki), "second");
    replace("third");
    until(|| (shown(&agent, &pki) == "third").then_some(()));
    assert_eq!(agent.metrics().sum("tcpclose_web_config_wrong", &[]), 0.0);
    assert_eq!(takes_effect(&agent), "tcpclose: reloaded: nothing has changed");

    // As configuration management does it: a new file takes the old one's place.
    pki.write("new.yml", &fs::read_to_string(pki.path("web.yml")).unwrap().replace("server.", "second."));
    fs::rename(pki.path("new.yml"), pki.path("web.yml")).unwrap();
    assert_eq!(takes_effect(&agent), "tcpclose: reloaded: the content of web-config");
    assert_eq!(shown(&agent, &pki), "second");
}

#[test]
#[ignore = "needs root"]
fn who_is_taken_off_the_list_is_not_let_in_by_an_open_connection_either() {
    let pki = Pki::new();
    let write = |users: &str| pki.write("web.yml", &format!("basic_auth_users:\n{users}"));
    let path = write(&user("alice", "one", 5));
    let agent = Agent::start(&["--web-config", path.to_str().unwrap()]);
    let mut kept = passwords::Scraper::connect(&agent, "alice:one");
    assert_eq!(kept.scrape(), 200);
    write(&user("alice", "two", 5));
    until(|| (kept.scrape() == 401).then_some(()));
    assert_eq!(passwords::Scraper::connect(&agent, "alice:two").scrape(), 200);
    // A file that is gone lets nobody else in.
    fs::remove_file(&path).unwrap();
    until(|| {
        assert_eq!(kept.scrape(), 401);
        agent.printed().contains("there is no such file").then_some(())
    });
    assert_eq!(passwords::Scraper::connect(&agent, "alice:two").scrape(), 200);
}
