//! A web configuration with the contents of the files that it names, and the check whether these have
//! changed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{HeaderName, HeaderValue};

use crate::agent::server::web::config;
use crate::agent::server::web::config::Users;
use crate::agent::server::web::rate_limit::Rate;
use crate::agent::server::web::{tls, yaml};
use crate::failure::Failure;

/// The configuration that connections are served by.
#[derive(Debug, Default)]
pub struct LoadedConfig {
    pub tls: Option<tls::Acceptor>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub users: Users,
    pub rate: Option<Rate>,
}

/// The files of a configuration, valid or not, as they were when read.
#[derive(Clone, Debug, Default)]
pub struct ConfigFiles {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// A file changed so shortly before it was read that a further change might leave its times the same.
    unsettled: bool,
}

/// Identifies a file and its content: device, inode, size, times of content and inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The kernel's clock tick, the resolution of file times, is 10 ms at most; that of a network file system may
/// be a second.
const TICK: Duration = Duration::from_secs(2);

impl ConfigFiles {
    /// Whether one has changed since.
    pub fn have_changed(&self) -> bool {
        self.unsettled || self.stamps.iter().any(|(path, stamp)| stamp_of(path) != *stamp)
    }

    /// Whether `other` are the same files with the same content.
    pub fn are_as(&self, other: &Self) -> bool {
        self.stamps == other.stamps
    }

    /// Reads `path`, which `named` names, and remembers its times before that.
    fn read(&mut self, path: &Path, named: &str) -> Result<Vec<u8>, Failure> {
        let stamp = stamp_of(path);
        if let Some((.., (seconds, nanoseconds))) = stamp {
            let since =
                Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.unsettled |= now.saturating_sub(since) < TICK;
        }
        self.stamps.push((path.to_owned(), stamp));
        content(path).map_err(|why| {
            let (why, todo) = match why.kind() {
                io::ErrorKind::NotFound => ("there is no such file".to_owned(), "create it"),
                io::ErrorKind::IsADirectory => ("it is a directory".to_owned(), "write a file"),
                _ => (why.to_string(), "make it readable for the agent"),
            };
            Failure::new(path.display().to_string(), why, format!("{todo}, or name another file {named}"))
        })
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let (changed, written) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
    Some((meta.dev(), meta.ino(), meta.size(), written, changed))
}

/// A file's content. Does not wait for a writer if it is a pipe.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(yaml::LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > yaml::LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Reads the web configuration at `path` and the files that it names. The files are returned with an error
/// too, so that a wrong configuration is read again when one of them has changed, and not earlier.
pub fn load(path: &Path) -> (Result<LoadedConfig, Failure>, ConfigFiles) {
    let mut files = ConfigFiles::default();
    let loaded = read(path, &mut files);
    (loaded, files)
}

fn read(path: &Path, files: &mut ConfigFiles) -> Result<LoadedConfig, Failure> {
    let bytes = files
        .read(path, "with --web-config")
        .map_err(|failure| Failure { what: format!("web configuration {}", failure.what), ..failure })?;
    let config = config::parse(&bytes, path)?;
    let mut read = |path: &Path| files.read(path, "in the web configuration");
    let tls = config.tls.as_ref().map(|tls| tls::server(tls, &mut read)).transpose()?;
    Ok(LoadedConfig { tls, headers: config.headers, users: config.users, rate: config.rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "tls")]
    fn a_file_is_read_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let (none, files) = load(&path);
        assert_eq!(
            none.unwrap_err().to_string(),
            format!(
                "tcpclose: web configuration {}: there is no such file; create it, or name another file with --web-config",
                path.display()
            )
        );
        assert!(!files.have_changed());
        fs::write(&path, "tls_server_config:\n  cert_file: c\n  key_file: k\n").unwrap();
        assert!(files.have_changed());
        let (wrong, files) = load(&path);
        let message = wrong.unwrap_err().to_string();
        let missing =
            |name| message.contains(&format!("/{name}: there is no such file; create it, or name another"));
        assert!(missing("c") || missing("k"), "{message}");
        assert!(files.have_changed(), "just written, it may change within the same tick");

        let old = File::options().write(true).open(&path).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        let (_, mut files) = load(&path);
        files.unsettled = false;
        assert!(!files.have_changed());
        fs::write(folder.path().join("k"), "x").unwrap();
        fs::write(folder.path().join("c"), "x").unwrap();
        assert!(files.have_changed(), "what it names is there now");
    }

    #[test]
    fn reading_what_is_not_a_file_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).0.unwrap_err().to_string().contains(": it is a directory; "));
        let loaded = load(Path::new("/dev/null")).0.unwrap();
        assert!(loaded.tls.is_none() && loaded.users.0.is_empty());
        assert!(load(Path::new("/dev/zero")).0.unwrap_err().to_string().contains("larger than"));
    }
}

#[cfg(test)]
#[cfg(not(feature = "tls"))]
mod tests_without_tls {
    use super::*;

    #[test]
    fn a_configuration_that_asks_for_tls_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        fs::write(&path, "tls_server_config:\n  cert_file: c\n").unwrap();
        let refused = load(&path).0.unwrap_err().to_string();
        assert!(refused.contains("tls_server_config: this build has no TLS"), "{refused}");
        for nothing in ["", "tls_server_config: {}\n"] {
            fs::write(&path, nothing).unwrap();
            assert!(load(&path).0.unwrap().tls.is_none());
        }
    }
}
