//! A web configuration with everything read that it names, and how to see that a file has changed since.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{HeaderName, HeaderValue};
use rustls::ServerConfig;

use crate::agent::server::web::config;
use crate::agent::server::web::config::Users;
use crate::agent::server::web::rate_limit::Rate;
use crate::agent::server::web::{tls, yaml};
use crate::failure::Failure;

/// What connections are served by.
#[derive(Debug, Default)]
pub struct LoadedConfig {
    pub tls: Option<Arc<ServerConfig>>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub users: Users,
    pub rate: Option<Rate>,
}

/// Files as they were when they were read, found wrong or not.
#[derive(Clone, Debug, Default)]
pub struct ConfigFiles {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// One changed so shortly before it was read that a further change might not show.
    unsettled: bool,
}

/// What tells that a file is another, or has another content: device, inode, size, times of content and inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// A clock tick of the kernel's, by which it stamps files, is 10 ms at most; a network file system's may be a second.
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

    /// Reads `path`; remembers what it was before that.
    fn read(&mut self, path: &Path, todo: &str) -> Result<Vec<u8>, Failure> {
        let stamp = stamp_of(path);
        if let Some((.., (seconds, nanoseconds))) = stamp {
            let since =
                Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.unsettled |= now.saturating_sub(since) < TICK;
        }
        self.stamps.push((path.to_owned(), stamp));
        content(path).map_err(|why| Failure::new(path.display().to_string(), why, todo))
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let (changed, written) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
    Some((meta.dev(), meta.ino(), meta.size(), written, changed))
}

/// A file's content, without waiting for somebody to write to what is none.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(yaml::LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > yaml::LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Reads the web configuration at `path` and what it names. The files are told of one that is wrong as well, so that it
/// is read again when somebody has mended it, and not before.
pub fn load(path: &Path) -> (Result<LoadedConfig, Failure>, ConfigFiles) {
    let mut files = ConfigFiles::default();
    let loaded = read(path, &mut files);
    (loaded, files)
}

fn read(path: &Path, files: &mut ConfigFiles) -> Result<LoadedConfig, Failure> {
    let bytes = files.read(path, "let the agent read it, or name another by --web-config")?;
    let config = config::parse(&bytes, path)?;
    let mut read =
        |path: &Path| files.read(path, "let the agent read it, or name another in the web configuration");
    let tls = config.tls.as_ref().map(|tls| tls::server(tls, &mut read)).transpose()?;
    Ok(LoadedConfig { tls, headers: config.headers, users: config.users, rate: config.rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let (none, files) = load(&path);
        assert!(none.unwrap_err().to_string().contains("web.yml: No such file"));
        assert!(!files.have_changed());
        fs::write(&path, "tls_server_config:\n  cert_file: c\n  key_file: k\n").unwrap();
        assert!(files.have_changed());
        let (wrong, files) = load(&path);
        let said = wrong.unwrap_err().to_string();
        assert!(said.contains("/c: No such file") || said.contains("/k: No such file"), "{said}");
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
    fn what_is_no_file_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).0.is_err());
        let loaded = load(Path::new("/dev/null")).0.unwrap();
        assert!(loaded.tls.is_none() && loaded.users.0.is_empty());
        assert!(load(Path::new("/dev/zero")).0.unwrap_err().to_string().contains("larger than"));
    }
}
