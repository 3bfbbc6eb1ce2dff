//! Who is let in at the metrics port, as the web configuration says, and what of it has changed meanwhile.
//!
//! The files are looked at when somebody connects or asks, so that a new certificate is used from the next handshake on, and an
//! agent that nobody asks does nothing. What is wrong in a new file is said once, and the old one stays in use.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use bytes::Bytes;

use crate::agent::server::plain;
use crate::agent::server::web::loaded::{ConfigFiles, LoadedConfig, load};
use crate::agent::server::web::passwords::{Credentials, Passwords};
use crate::agent::server::web::rate_limit::Bucket;
use crate::agent::server::web::source::ClientNetwork;
use crate::failure::Failure;

/// Between two looks, however many connect.
const LOOK: Duration = Duration::from_millis(100);

/// A look takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct ScrapeAccess {
    path: Option<PathBuf>,
    now: RefCell<Rc<LoadedConfig>>,
    files: RefCell<ConfigFiles>,
    looked: Cell<Option<Instant>>,
    /// What was wrong when it was read last.
    wrong: RefCell<Option<Failure>>,
    /// Whether anything was.
    is_wrong: Rc<Cell<bool>>,
    bucket: RefCell<Option<Bucket>>,
    passwords: Passwords,
}

/// What reading it again came to.
#[derive(Debug, PartialEq, Eq)]
pub enum WebReload {
    /// There is none, or nothing has changed.
    Same,
    New,
    Wrong(Failure),
}

impl ScrapeAccess {
    /// Reads the web configuration at `path`; without one everybody is let in.
    ///
    /// # Errors
    /// When it cannot be read, or something in it is wrong.
    pub fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let passwords = Passwords::new().ok_or_else(|| {
            Failure::new("cannot start", "the kernel gives no random numbers", "report this")
        })?;
        let (loaded, files) = match path {
            Some(path) => load(path),
            None => (Ok(LoadedConfig::default()), ConfigFiles::default()),
        };
        let access = Self {
            path: path.map(Path::to_owned),
            now: RefCell::default(),
            files: RefCell::new(files),
            looked: Cell::new(None),
            wrong: RefCell::default(),
            is_wrong: Rc::default(),
            bucket: RefCell::default(),
            passwords,
        };
        access.take(loaded?);
        Ok(access)
    }

    /// What holds now. A connection keeps what its handshake was made by; who may ask is looked up for each request.
    pub fn now(&self) -> Rc<LoadedConfig> {
        Rc::clone(&self.now.borrow())
    }

    pub fn speaks_tls(&self) -> bool {
        self.now.borrow().tls.is_some()
    }

    /// The command that gets through.
    pub fn curl(&self) -> String {
        let now = self.now.borrow();
        let tls = if now.tls.is_some() { " --cacert CA.pem" } else { "" };
        let user = now.users.0.keys().next().map(|name| format!(" -u {name:?}")).unwrap_or_default();
        format!("curl -s{tls}{user}")
    }

    fn take(&self, loaded: LoadedConfig) {
        let mut bucket = self.bucket.borrow_mut();
        if bucket.as_ref().map(Bucket::rate) != loaded.rate {
            *bucket = loaded.rate.map(|rate| Bucket::full(rate, Instant::now()));
        }
        *self.now.borrow_mut() = Rc::new(loaded);
    }

    /// Takes the files anew if they have changed. Returns at once where somebody else is looking, or has just done so.
    pub async fn look(&self) {
        let now = Instant::now();
        if self.path.is_none() || self.looked.get().is_some_and(|then| now - then < LOOK) {
            return;
        }
        self.looked.set(Some(now));
        let files = self.files.borrow().clone();
        // Nobody is kept waiting by a file system that hangs, or by walks that others have asked for.
        let looking = timeout(PATIENCE, spawn_blocking(move || files.have_changed())).await;
        let changed = looking.is_ok_and(|looked| looked.unwrap_or(false));
        if changed && let WebReload::Wrong(failure) = self.reread().await {
            log::error!("{failure}; what it said before stays in use");
        }
    }

    /// Reads them anew, changed or not. What is wrong is told once, until it is another thing that is.
    pub async fn reread(&self) -> WebReload {
        let Some(path) = self.path.clone() else { return WebReload::Same };
        let Ok((loaded, files)) = spawn_blocking(move || load(&path)).await else { return WebReload::Same };
        let same = self.files.borrow().are_as(&files);
        *self.files.borrow_mut() = files;
        self.is_wrong.set(loaded.is_err());
        match loaded {
            Ok(loaded) => {
                self.take(loaded);
                let was_wrong = self.wrong.borrow_mut().take().is_some();
                if same && !was_wrong { WebReload::Same } else { WebReload::New }
            }
            Err(failure) => {
                let before = self.wrong.borrow_mut().replace(failure.clone());
                if before.as_ref() == Some(&failure) { WebReload::Same } else { WebReload::Wrong(failure) }
            }
        }
    }

    /// For the metric.
    pub fn is_wrong(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_wrong)
    }

    /// What is wrong with the files as they are; what they said before is in use then.
    pub fn wrong(&self) -> Option<Failure> {
        self.wrong.borrow().clone()
    }

    /// Refuses a request, whatever it is for: by the rate limit first and then for want of a password, as the toolkit does.
    pub async fn refuses(&self, headers: &HeaderMap, source: ClientNetwork) -> Option<Response<Full<Bytes>>> {
        self.look().await;
        if let Some(bucket) = self.bucket.borrow_mut().as_mut()
            && !bucket.take(Instant::now())
        {
            let mut answer = plain(StatusCode::TOO_MANY_REQUESTS, "too many requests\n");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return Some(answer);
        }
        let now = self.now();
        if now.users.0.is_empty() {
            return None;
        }
        let given = headers.get(AUTHORIZATION).and_then(|header| Credentials::of(header.as_bytes()));
        if let Some(given) = given
            && self.passwords.are_right(given, &now.users, source).await
        {
            return None;
        }
        let mut answer = plain(StatusCode::UNAUTHORIZED, "a name and its password are needed\n");
        answer
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="tcpclose", charset="UTF-8""#));
        Some(answer)
    }

    /// Adds the configuration's headers to an answer, but for those that it has already: the page's own policy is narrower.
    pub fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.now.borrow().headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}
