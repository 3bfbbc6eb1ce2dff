//! The web configuration, in YAML.

use std::path::Path;

use tcpclose::agent::server::web::config;

/// Reads it; what is wrong with it is one line that names the file.
pub fn read(bytes: &[u8]) {
    if let Err(why) = config::parse(bytes, Path::new("/etc/x/web.yml")) {
        let line = why.to_string();
        assert!(line.starts_with("tcpclose: /etc/x/web.yml") && line.lines().count() == 1, "{line}");
    }
}
