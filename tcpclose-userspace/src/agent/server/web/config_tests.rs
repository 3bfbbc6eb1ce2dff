use crate::agent::server::web::config::{WebConfig, parse};
use crate::agent::server::web::rate_limit::Rate;
use crate::agent::server::web::tls::{ClientAuth, Pem, TlsVersion};
use std::path::Path;
use std::time::Duration;

/// The hash of `fakepassword`; only its form matters here.
const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

fn good(text: &str) -> WebConfig {
    parse(text.as_bytes(), Path::new("/etc/x/web.yml")).unwrap()
}

fn bad(text: &str) -> String {
    let message = parse(text.as_bytes(), Path::new("web.yml")).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.contains("; "), "{message}");
    message.strip_prefix("tcpclose: web.yml").unwrap().to_owned()
}

/// The TLS settings of a file with a certificate and a key, and `more`.
fn tls(more: &str) -> String {
    format!("tls_server_config:\n  cert_file: c.pem\n  key_file: k.pem\n{more}")
}

#[test]
fn a_file_of_every_key_is_understood() {
    let config = good(&format!(
        "tls_server_config:
  cert_file: server.crt
  key_file: /k/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca: |
    -----BEGIN CERTIFICATE-----
  client_allowed_sans: [prometheus.example.org, 10.0.0.1, 'spiffe://a@b/c']
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_AES_128_GCM_SHA256
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP256, X25519]
http_server_config:
  http2: false
  headers:
    X-Frame-Options: deny
    Strict-Transport-Security: max-age=1
    X-XSS-Protection: ''
basic_auth_users:
  alice: {HASH}
  bob: \"{HASH}\"
rate_limit:
  interval: 1s
  burst: 20
"
    ));
    let tls = config.tls.unwrap();
    assert_eq!(tls.cert, Pem::File("/etc/x/server.crt".into()));
    assert_eq!(tls.key, Pem::File("/k/server.key".into()));
    assert_eq!(tls.client_ca, Some(Pem::Inline("-----BEGIN CERTIFICATE-----\n".to_owned())));
    assert_eq!(tls.client_auth, ClientAuth::RequireAndVerify);
    assert_eq!(tls.allowed_sans.len(), 3);
    assert_eq!((tls.min_version, tls.max_version), (TlsVersion::Tls12, TlsVersion::Tls13));
    assert_eq!(tls.suites.unwrap(), [rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
    assert_eq!(tls.curves, [rustls::NamedGroup::secp256r1, rustls::NamedGroup::X25519]);
    assert!(!tls.prefer_server);
    let headers: Vec<&str> = config.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(headers, ["x-frame-options", "strict-transport-security"]);
    assert_eq!(format!("{:?}", config.users), r#"["alice", "bob"]"#);
    assert_eq!(config.rate, Some(Rate { interval: Duration::from_secs(1), burst: 20 }));
}

#[test]
fn every_section_is_optional() {
    for nothing in ["", "# nothing\n", "tls_server_config: {}\n", "basic_auth_users:\nhttp_server_config:\n"]
    {
        let config = good(nothing);
        assert!(config.tls.is_none() && config.users.0.is_empty() && config.rate.is_none(), "{nothing}");
    }
    let config = good(&tls(""));
    let tls = config.tls.unwrap();
    assert_eq!((tls.client_auth, tls.min_version), (ClientAuth::None, TlsVersion::Tls12));
    assert!(tls.suites.is_none() && tls.curves.is_empty() && tls.prefer_server);
    assert_eq!(good("rate_limit:\n  interval: 0\n  burst: 5\n").rate, None);
}

#[test]
fn errors_name_their_line() {
    assert_eq!(
        bad("tls_server_confg: {}\n"),
        ", line 1: tls_server_confg: unknown key; did you mean tls_server_config?"
    );
    assert_eq!(
        bad(&tls("  cert_fil: x\n")),
        ", line 4: tls_server_config.cert_fil: unknown key; did you mean cert_file?"
    );
    assert_eq!(
        bad(&tls("  min_version: TLS11\n")),
        ", line 4: tls_server_config.min_version: TLS below 1.2 is not supported; write TLS12 or TLS13"
    );
    assert_eq!(
        bad(&tls("  client_auth_type: RequireVerifyClientCert\n")),
        ", line 4: tls_server_config.client_auth_type: \"RequireVerifyClientCert\" is not known or not supported; \
         did you mean RequireAndVerifyClientCert?"
    );
    assert_eq!(
        bad("tls_server_config:\n  cert_file: c\n"),
        ", line 1: tls_server_config: key is missing; set key_file"
    );
    assert!(bad("tls_server_config:\n  min_version: TLS13\n").contains(": cert is missing;"));
    assert!(bad(&tls("  cert: x\n")).contains("cert_file is set too"));
    assert!(
        bad(&tls("  client_auth_type: RequireAndVerifyClientCert\n"))
            .contains("verifying client certificates needs a CA")
    );
    assert!(bad(&tls("  client_ca_file: ca\n")).contains("this client_auth_type verifies no certificates"));
    assert!(bad(&tls("  client_allowed_sans: [a]\n")).contains("clients need no certificate"));
    let sans = |sans: &str| {
        tls(&format!("  client_auth_type: RequireAnyClientCert\n  client_allowed_sans: {sans}\n"))
    };
    assert!(bad(&sans("[a@example.org]")).contains("e-mail"));
    assert!(bad(&sans("[]")).contains("refuses every client"));
    assert!(bad(&tls("  min_version: TLS13\n  max_version: TLS12\n")).contains("above max_version"));
    assert!(
        bad(&tls("  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n"))
            .contains("is not known or not supported")
    );
    assert!(
        bad(&tls("  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n"))
            .contains("all suites are of TLS 1.3")
    );
    assert!(
        bad(&tls("  curve_preferences:\n  - CurveP521\n"))
            .starts_with(", line 5: tls_server_config.curve_pref")
    );
    assert!(bad(&tls("  prefer_server_cipher_suites: maybe\n")).contains("neither true nor false"));
    assert!(bad("http_server_config:\n  http2: true\n").contains("HTTP/2 is not supported"));
    assert!(
        bad("http_server_config:\n  headers:\n    X-Frame-Option: deny\n").contains("mean X-Frame-Options?")
    );
    assert!(
        bad("http_server_config:\n  headers:\n    X-Frame-Options: maybe\n").contains("deny or sameorigin")
    );
    assert!(bad("http_server_config:\n  headers:\n    X-XSS-Protection: \"a\\nb\"\n").contains("one line"));
    assert!(bad("basic_auth_users:\n  alice: secret\n").contains(".alice: not a bcrypt hash; make one"));
    assert!(bad("basic_auth_users:\n  alice:\n").contains("there is no password hash"));
    assert!(bad("basic_auth_users: [alice]\n").contains("not a table"));
    assert!(bad(&format!("basic_auth_users:\n  'a:b': {HASH}\n")).contains("without a colon"));
    let of_cost = |cost: &str| bad(&format!("basic_auth_users:\n  a: {}\n", HASH.replace("$10$", cost)));
    let too_expensive = of_cost("$15$");
    assert!(
        too_expensive.contains(
            "line 2: basic_auth_users.a: a password check at bcrypt cost 15 takes 2 s of CPU or more"
        )
    );
    assert!(too_expensive.contains("(the limit is cost 14); make one: htpasswd"), "{too_expensive}");
    assert!(of_cost("$31$").contains("cost 31 takes 131072 s"));
    assert!(of_cost("$03$").contains("a cost of 3 is below 4"));
    assert!(
        parse(
            format!("basic_auth_users:\n  a: {}\n", HASH.replace("$10$", "$14$")).as_bytes(),
            Path::new("web.yml")
        )
        .is_ok()
    );
    assert!(bad("rate_limit:\n  interval: 5\n").contains("not a duration"));
    assert!(bad("rate_limit:\n  interval: 1s\n").contains("every request would be refused"));
    assert!(bad("rate_limit:\n  burst: 1\n").contains("burst needs an interval"));
    assert!(bad("rate_limit:\n  interval: 9days\n  burst: 1\n").contains("longer than a day"));
    assert!(bad("rate_limit:\n  interval: 1s\n  burst: -1\n").contains("not a number"));
    assert!(bad("a: [").starts_with(", line "));
    assert!(bad("- a\n").contains("not a table"));
    let large = parse(&vec![b'#'; 2 << 20], Path::new("web.yml")).unwrap_err();
    assert!(large.to_string().contains("larger than 1 MiB"));
    assert!(parse(b"a: \xff", Path::new("web.yml")).unwrap_err().to_string().contains("UTF-8"));
}

/// A hash's line is never quoted: it would reach the log.
#[test]
fn secrets_are_not_repeated() {
    assert!(!bad("basic_auth_users:\n  alice: hunter2\n").contains("hunter2"));
    let both = tls("  key: hunter2\n");
    assert!(!bad(&both).contains("hunter2"));
    let config = good("tls_server_config:\n  cert: c\n  key: hunter2\n");
    assert!(!format!("{config:?}").contains("hunter2"));
}

/// Any bytes are a configuration or a one-line error: a good file with bytes changed, removed and inserted.
#[test]
fn no_bytes_end_the_agent() {
    let whole = format!(
        "{}basic_auth_users:\n  alice: {HASH}\nrate_limit: {{interval: 1s, burst: 2}}\n# ~ | > & * ! % @\n",
        tls("  client_allowed_sans: [a, 'b', \"\\u0041\"]\n  key: |\n    x\n")
    );
    // xorshift64, with a fixed seed: the same each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    const MARKS: &[u8] = b"\n\t :-[]{},'\"|>&*!%@#?~\\\0\xff";
    // `cargo xtask test --all` asks for more.
    let rounds = if std::env::var_os("TCPCLOSE_TEST_LONG").is_some() { 1_000_000 } else { 20_000 };
    for _ in 0..rounds {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=random(6) {
            let at = random(bytes.len().max(1));
            if bytes.is_empty() {
                break;
            }
            match random(4) {
                0 => bytes[at] = MARKS[random(MARKS.len())],
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, MARKS[random(MARKS.len())]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if let Err(failure) = parse(&bytes, Path::new("web.yml")) {
            assert!(!failure.to_string().contains('\n'));
        }
    }
}

/// The largest files of several shapes take time in proportion to their size.
#[test]
fn large_files_of_any_shape_are_parsed_in_time() {
    let numbered: String = (0..60_000).map(|n| format!("k{n}: v\n")).collect();
    let users: String = (0..8_000).map(|n| format!("  u{n}: {HASH}\n")).collect();
    let large = |unit: &str| unit.repeat(1_000_000 / unit.len());
    let shapes = [
        large("- a\n"),
        large("a: "),
        large("? "),
        large("# a\n"),
        large("\n"),
        large(" "),
        large("\t"),
        large("&a "),
        large("!a "),
        large("%TAG ! a\n"),
        large("---\n"),
        large("[]"),
        large("{a: b}, "),
        format!("[{}]", large("a, ")),
        format!("{{{}}}", large("a, ")),
        format!("'{}", large("''")),
        format!("\"{}", large("\\u0041")),
        format!("a: |\n{}", large(" b\n")),
        format!("a: >\n{}", large(" b\n\n")),
        format!("? '{}'\n: b\n", large("a")),
        format!("http_server_config: {{http2: '{}'}}", large("é")),
        tls(&format!("  client_auth_type: {}\n", large("a"))),
        format!("tls_server_config:\n{}", large("  cert: a\n")),
        numbered,
        format!("basic_auth_users:\n{users}"),
    ];
    for shape in shapes {
        let start = std::time::Instant::now();
        let parsed = parse(shape.as_bytes(), Path::new("web.yml"));
        let beginning: String = shape.chars().take(24).collect();
        let printed = parsed.map_or_else(|failure| failure.to_string(), |_| "understood".to_owned());
        println!("{:?} {beginning:?}: {printed}", start.elapsed());
        assert!(printed.chars().count() < 400, "{printed}");
    }
}
