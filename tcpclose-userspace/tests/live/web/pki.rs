//! Certificates, made by openssl.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A folder with certificates and keys of one curve: `ca`, by it `server` for 127.0.0.1 and `client`; and `strange`,
/// another CA, with its `stranger`.
pub struct Pki {
    folder: TempDir,
}

/// The subject alternative names of `client`.
pub const CLIENT_SANS: &str = "DNS:prometheus.test,IP:10.9.8.7,URI:spiffe://test/prometheus";

impl Pki {
    pub fn new() -> Self {
        let pki = Self { folder: tempfile::tempdir().unwrap() };
        // Without the system's defaults, which would make every certificate a CA's.
        pki.write("openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n");
        for ca in ["ca", "strange"] {
            pki.openssl(
                ca,
                &["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"],
            );
        }
        pki.issue("server", "ca", "IP:127.0.0.1,DNS:localhost");
        pki.issue("client", "ca", CLIENT_SANS);
        pki.issue("stranger", "strange", CLIENT_SANS);
        pki
    }

    /// A certificate `NAME.pem` for CN=NAME, with its key `NAME.key`, signed by `ca`.
    pub fn issue(&self, name: &str, ca: &str, sans: &str) {
        let (sans, ca, key) = (
            format!("subjectAltName={sans}"),
            self.path(&format!("{ca}.pem")),
            self.path(&format!("{ca}.key")),
        );
        let ends = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &sans];
        self.openssl(name, &[&ends[..], &["-CA", &ca, "-CAkey", &key]].concat());
    }

    fn openssl(&self, name: &str, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-config", &self.path("openssl.cnf"), "-subj", &format!("/CN={name}")])
            .args(["-keyout", &self.path(&format!("{name}.key")), "-out", &self.path(&format!("{name}.pem"))])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A web configuration with the server's certificate and `more` in its TLS section; what follows a line that is not
    /// indented is a section of its own.
    pub fn web_config(&self, more: &str) -> String {
        let text = format!("tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n{more}");
        self.write("web.yml", &text).to_str().unwrap().to_owned()
    }
}

/// A line of basic_auth_users, with a hash of this cost.
pub fn user(name: &str, password: &str, cost: u32) -> String {
    format!("  {name}: {}\n", bcrypt::hash(password, cost).unwrap())
}
