//! Access to the metrics port by the web configuration, which is read again when its files change.
//!
//! The files are checked when a client connects or sends a request: a new certificate is used from the next
//! handshake on, and an idle agent does nothing. An error in a new file is logged once, and the former
//! configuration stays in use.

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

use crate::agent::server::response::plain;
use crate::agent::server::web::loaded::{ConfigFiles, LoadedConfig, load};
use crate::agent::server::web::passwords::{Credentials, Passwords};
use crate::agent::server::web::rate_limit::Bucket;
use crate::agent::server::web::source::ClientNetwork;
use crate::failure::Failure;

/// Between two checks, however many clients connect.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The longest wait for a check, which takes microseconds.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

pub struct ScrapeAccess {
    path: Option<PathBuf>,
    now: RefCell<Rc<LoadedConfig>>,
    files: RefCell<ConfigFiles>,
    checked: Cell<Option<Instant>>,
    /// The error of the last read.
    wrong: RefCell<Option<Failure>>,
    /// Whether there was one.
    is_wrong: Rc<Cell<bool>>,
    bucket: RefCell<Option<Bucket>>,
    passwords: Passwords,
}

/// The result of a reload.
#[derive(Debug, PartialEq, Eq)]
pub enum WebReload {
    /// There is no web configuration, or it has not changed.
    Same,
    New,
    Wrong(Failure),
}

impl ScrapeAccess {
    /// Reads the web configuration at `path`. Without one, everybody may scrape.
    ///
    /// # Errors
    /// When it cannot be read, or has an error.
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
            checked: Cell::new(None),
            wrong: RefCell::default(),
            is_wrong: Rc::default(),
            bucket: RefCell::default(),
            passwords,
        };
        access.apply(loaded?);
        Ok(access)
    }

    /// The configuration in use. A connection keeps the TLS settings of its handshake; users are checked for
    /// each request.
    pub fn now(&self) -> Rc<LoadedConfig> {
        Rc::clone(&self.now.borrow())
    }

    pub fn speaks_tls(&self) -> bool {
        self.now.borrow().tls.is_some()
    }

    /// The command that can scrape.
    pub fn curl(&self) -> String {
        let now = self.now.borrow();
        let tls = if now.tls.is_some() { " --cacert CA.pem" } else { "" };
        let user = now.users.0.keys().next().map(|name| format!(" -u {name:?}")).unwrap_or_default();
        format!("curl -s{tls}{user}")
    }

    fn apply(&self, loaded: LoadedConfig) {
        let mut bucket = self.bucket.borrow_mut();
        if bucket.as_ref().map(Bucket::rate) != loaded.rate {
            *bucket = loaded.rate.map(|rate| Bucket::full(rate, Instant::now()));
        }
        *self.now.borrow_mut() = Rc::new(loaded);
    }

    /// Reads the files again if they have changed. Returns at once if another task is checking, or has just
    /// done so.
    pub async fn refresh(&self) {
        let now = Instant::now();
        if self.path.is_none() || self.checked.get().is_some_and(|then| now - then < CHECK_INTERVAL) {
            return;
        }
        self.checked.set(Some(now));
        let files = self.files.borrow().clone();
        // No client waits for a file system that hangs, or for walks over /proc.
        let checking = timeout(CHECK_TIMEOUT, spawn_blocking(move || files.have_changed())).await;
        let changed = checking.is_ok_and(|checked| checked.unwrap_or(false));
        if changed && let WebReload::Wrong(failure) = self.reread().await {
            let Failure { what, why, todo } = &failure;
            log::error!("cannot use {what}: {why} ({todo}; the previous web configuration stays in use)");
        }
    }

    /// Reads the files again, changed or not. The same error is returned once.
    pub async fn reread(&self) -> WebReload {
        let Some(path) = self.path.clone() else { return WebReload::Same };
        let Ok((loaded, files)) = spawn_blocking(move || load(&path)).await else { return WebReload::Same };
        let same = self.files.borrow().are_as(&files);
        *self.files.borrow_mut() = files;
        self.is_wrong.set(loaded.is_err());
        match loaded {
            Ok(loaded) => {
                self.apply(loaded);
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

    /// The error in the files, while their former content is in use.
    pub fn wrong(&self) -> Option<Failure> {
        self.wrong.borrow().clone()
    }

    /// The refusal of a request, whatever its path: by the rate limit first, then by the password, as in the
    /// toolkit.
    pub async fn refuses(&self, headers: &HeaderMap, source: ClientNetwork) -> Option<Response<Full<Bytes>>> {
        self.refresh().await;
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
        let mut answer = plain(StatusCode::UNAUTHORIZED, "user name and password required\n");
        answer
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="tcpclose", charset="UTF-8""#));
        Some(answer)
    }

    /// Adds the configuration's headers to an answer, unless it has them: the page's own policy is stricter.
    pub fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.now.borrow().headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}
