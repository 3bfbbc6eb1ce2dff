//! Who is let in over TLS, and what the others are told.

use serde_json::Value;

use super::common::prometheus::Prometheus;
use super::pki::{Pki, user};
use super::*;

#[test]
#[ignore = "needs root"]
fn a_real_prometheus_scrapes_with_a_certificate_and_a_password() {
    let pki = Pki::new();
    let more = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n\
                \x20 client_allowed_sans: [prometheus.test]\nbasic_auth_users:\n";
    let agent = Agent::start(&[
        "--web.config.file",
        &pki.web_config(&(more.to_owned() + &user("prom", "secret", 10))),
    ]);
    let address = agent.address();
    assert!(
        agent.printed().contains(&format!("  metrics     https://{address}/metrics")),
        "{}",
        agent.printed()
    );
    let job = |name: &str, client: &str, password: &str| {
        format!(
            "  - job_name: {name}\n    scheme: https\n    basic_auth: {{username: prom, password: {password}}}\n    \
             tls_config: {{ca_file: {}, cert_file: {}, key_file: {}}}\n    static_configs: [{{targets: ['{}']}}]\n",
            pki.path("ca.pem"),
            pki.path(&format!("{client}.pem")),
            pki.path(&format!("{client}.key")),
            address
        )
    };
    let jobs = [
        job("right", "client", "secret"),
        job("password", "client", "guess"),
        job("stranger", "stranger", "secret"),
    ];
    let prometheus = Prometheus::start_by(&format!("scrape_configs:\n{}", jobs.concat()));
    prometheus.query_when(&["right"], "up{job='right'}", |up| up == 1.0);
    prometheus.query_when(&["right"], "tcpclose_build_info", |n| n == 1.0);
    prometheus.query_when(&["password", "stranger"], "up{job!='right'}", |up| up == 0.0);
    let targets = prometheus.data("/api/v1/targets");
    let error = |job: &str| {
        let Value::Array(all) = &targets["activeTargets"] else { panic!("{targets}") };
        let target = all.iter().find(|target| target["labels"]["job"] == job).unwrap();
        target["lastError"].as_str().unwrap().to_owned()
    };
    assert_eq!(error("right"), "");
    assert!(error("password").contains("401"), "{}", error("password"));
    assert!(error("stranger").contains("tls"), "{}", error("stranger"));

    // The command line's socket is another matter.
    assert_eq!(agent.get("/readyz").0, 200);
    assert!(agent.stuck(&["--json"]).status.success());
}

fn joined<'a>(some: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [some, more].concat()
}

#[test]
#[ignore = "needs root"]
fn every_refusal_is_explained_to_curl() {
    let pki = Pki::new();
    let more = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n\
                http_server_config:\n  headers:\n    X-Frame-Options: deny\n    Strict-Transport-Security: max-age=60\n\
                basic_auth_users:\n";
    let agent =
        Agent::start(&["--web-config", &pki.web_config(&(more.to_owned() + &user("alice", "a:b", 5)))]);
    let address = agent.address();
    let url = |path: &str| format!("https://{address}{path}");
    let (ca, pem, key) = (pki.path("ca.pem"), pki.path("client.pem"), pki.path("client.key"));
    let certificate = ["--cacert", &ca, "--cert", &pem, "--key", &key];
    let password = ["-u", "alice:a:b"];

    let scraped = curl(&url("/metrics"), &joined(&certificate, &password)).is(200);
    assert!(scraped.body.contains("tcpclose_build_info{"));
    assert!(
        scraped.printed.contains("ALPN: server accepted http/1.1") || scraped.printed.contains("http/1.1"),
        "{}",
        scraped.printed
    );
    for header in ["< x-frame-options: deny", "< strict-transport-security: max-age=60"] {
        assert!(scraped.printed.contains(header), "{}", scraped.printed);
    }
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:a:b", "--tls-max", "1.2"])).is(200);
    // All paths, as the toolkit does it, and all answers have the headers.
    for path in ["/metrics", "/healthz", "/readyz", "/", "/page.js", "/ports", "/nowhere"] {
        let refused = curl(&url(path), &certificate).is(401);
        assert!(
            refused.printed.contains("< www-authenticate: Basic realm=\"tcpclose\""),
            "{}",
            refused.printed
        );
        assert!(refused.printed.contains("< x-frame-options: deny"), "{}", refused.printed);
    }
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:b"])).is(401);
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:"])).is(401);
    curl(&url("/metrics"), &joined(&certificate, &["-u", "bob:a:b"])).is(401);
    curl(&url("/metrics"), &joined(&certificate, &["-H", "Authorization: Basic !"])).is(401);
    curl(&url("/v1/sockets"), &joined(&certificate, &password)).is(404);
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:a:b", "-d", "x"])).is(405);
    let head = format!("x-long: {}", "x".repeat(17_000));
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:a:b", "-H", &head])).is(431);

    let plain = curl(&format!("http://{address}/metrics"), &password).is(400);
    assert!(plain.body.contains("this port speaks TLS; try https://"), "{}", plain.body);
    curl(&url("/metrics"), &joined(&certificate, &["-u", "alice:a:b", "--cacert", &pki.path("strange.pem")]))
        .fails(&[60], "certificate");
    // TLS 1.3's client has begun to talk when it is told.
    curl(&url("/metrics"), &["--cacert", &ca, "-u", "alice:a:b"]).fails(&[35, 56], "certificate required");
    let stranger = (pki.path("stranger.pem"), pki.path("stranger.key"));
    curl(
        &url("/metrics"),
        &["--cacert", &ca, "--cert", &stranger.0, "--key", &stranger.1, "-u", "alice:a:b"],
    )
    .fails(&[35, 56], "alert");
    let old = ["--tlsv1.1", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"];
    curl(&url("/metrics"), &joined(&certificate, &old)).fails(&[35], "alert");
    // None of which it has to say anything about.
    assert!(!agent.printed().contains("WARN") && !agent.printed().contains("ERROR"), "{}", agent.printed());
}

#[test]
#[ignore = "needs root"]
fn each_policy_takes_the_certificates_that_it_names() {
    let pki = Pki::new();
    pki.web_config("");
    let agent = Agent::start(&["--web-config", &pki.path("web.yml")]);
    let url = format!("https://{}/healthz", agent.address());
    let ca = pki.path("ca.pem");
    let scrape = |client: Option<&str>, more: &[&str]| {
        let pair = client.map(|name| (pki.path(&format!("{name}.pem")), pki.path(&format!("{name}.key"))));
        let pair: Vec<&str> = pair.iter().flat_map(|(pem, key)| ["--cert", pem, "--key", key]).collect();
        curl(&url, &[&["--cacert", &ca], &pair[..], more].concat())
    };
    let takes = |settings: &str, none: bool, client: bool, stranger: bool| {
        pki.web_config(settings);
        reload::takes_effect(&agent);
        for (who, taken) in [(None, none), (Some("client"), client), (Some("stranger"), stranger)] {
            // On either version: they tell it at different moments.
            for version in ["1.2", "1.3"] {
                let answer = scrape(who, &["--tls-max", version]);
                assert_eq!(answer.exit == 0, taken, "{settings}: {who:?}: {}", answer.printed);
            }
        }
    };
    let with_ca = |name: &str| format!("  client_auth_type: {name}\n  client_ca_file: ca.pem\n");
    takes("", true, true, true);
    takes("  client_auth_type: RequestClientCert\n", true, true, true);
    takes("  client_auth_type: RequireAnyClientCert\n", false, true, true);
    takes(&with_ca("VerifyClientCertIfGiven"), true, true, false);
    takes(&with_ca("RequireAndVerifyClientCert"), false, true, false);
    let sans = |sans: &str| with_ca("RequireAndVerifyClientCert") + "  client_allowed_sans: " + sans + "\n";
    for one in ["[prometheus.test]", "[other, 10.9.8.7]", "['spiffe://test/prometheus']"] {
        takes(&sans(one), false, true, false);
    }
    for none in ["[prometheus]", "[10.9.8.8]", "['spiffe://test']"] {
        takes(&sans(none), false, false, false);
    }

    let speaks = |settings: &str, arguments: &[&str]| {
        pki.web_config(settings);
        reload::takes_effect(&agent);
        scrape(None, arguments)
    };
    speaks("  min_version: TLS13\n", &["--tls-max", "1.2"]).fails(&[35], "alert protocol version");
    speaks("  max_version: TLS12\n", &["--tlsv1.3"]).fails(&[35], "alert protocol version");
    let suite = "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256]\n";
    let answer = speaks(suite, &[]).is(200);
    assert!(answer.printed.contains("ECDHE-ECDSA-CHACHA20-POLY1305"), "{}", answer.printed);
    speaks(suite, &["--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"]).fails(&[35], "alert handshake failure");
    speaks("  curve_preferences: [CurveP384]\n", &["--curves", "X25519"])
        .fails(&[35], "alert handshake failure");
    speaks("  curve_preferences: [CurveP384]\n", &["--curves", "P-384"]).is(200);
}

#[test]
fn a_wrong_web_configuration_is_one_line_before_anything_is_attached() {
    let pki = Pki::new();
    let good = pki.web_config("");
    let output = check_config(&["--web-config", &good]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("web-config = {good:?}  # argument")));
    let (server, strange) = (pki.path("server.pem"), pki.path("strange.key"));
    let pairs: [(&str, &str); 7] = [
        ("tls_server_confg: {}", "line 1: tls_server_confg: unknown key; did you mean tls_server_config?"),
        ("tls_server_config: {cert_file: none.pem, key_file: server.key}", "none.pem: there is no such file"),
        (
            "tls_server_config: {cert_file: server.key, key_file: server.key}",
            "server.key: there is no certificate in it; ",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: ca.pem}",
            "ca.pem: there is no private key in it; ",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: strange.key}",
            &format!("{server} and {strange}: "),
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.key}",
            "ca.key: there is no certificate in it; ",
        ),
        (
            "basic_auth_users: {a: b}",
            "line 1: basic_auth_users.a: not a bcrypt hash; make one: htpasswd -nBC 10 NAME",
        ),
    ];
    for (text, expected) in pairs {
        let path = pki.write("bad.yml", text);
        for check in [true, false] {
            let mut command = Command::new(BINARY);
            command
                .args(["agent", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--web-config"])
                .arg(&path);
            command.arg("--socket").arg(pki.path("s.sock")).arg("--state-dir").arg(pki.path("state"));
            command.args(check.then_some("--check-config"));
            let output = command.output().unwrap();
            let printed = String::from_utf8_lossy(&output.stderr);
            print!("{printed}");
            assert_eq!(output.status.code(), Some(2));
            assert!(printed.contains(expected) && printed.lines().count() == 1, "{text}: {printed}");
        }
    }
}

#[test]
fn prometheus_own_tool_takes_what_is_taken_here() {
    let pki = Pki::new();
    // Debian's is older than the rate limit and names of clients.
    let text = format!(
        "tls_server_config:
  cert_file: server.pem
  key_file: {}
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: true
  curve_preferences:
  - CurveP256
  - X25519
http_server_config:
  http2: false
  headers:
    Content-Security-Policy: default-src 'self'
    X-Content-Type-Options: nosniff
    X-Frame-Options: sameorigin
basic_auth_users:
{}",
        pki.path("server.key"),
        user("alice", "secret", 10)
    );
    let both = |text: &str| {
        let path = pki.write("web.yml", text);
        let theirs = Command::new("promtool").args(["check", "web-config"]).arg(&path).output().unwrap();
        let ours = check_config(&["--web-config", path.to_str().unwrap()]);
        println!("{}{}", String::from_utf8_lossy(&theirs.stderr), String::from_utf8_lossy(&ours.stderr));
        (theirs.status.success(), ours.status.success())
    };
    assert_eq!(both(&text), (true, true));
    for (from, to) in [
        ("cert_file:", "cert-file:"),
        ("server.pem", "none.pem"),
        ("RequireAndVerifyClientCert", "RequireVerifiedClientCert"),
        ("TLS12", "TLS9"),
        ("CurveP256", "P256"),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "AES"),
        ("sameorigin", "other"),
        ("X-Frame-Options", "X-Other"),
        ("$2b$", "$"),
        ("true", "perhaps"),
        ("    X-", "\tX-"),
    ] {
        assert_eq!(both(&text.replace(from, to)), (false, false), "{to}");
    }
}
