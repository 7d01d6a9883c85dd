//! The registry client: options, manifests, whole documents, and the way to a lazy blob.
//!
//! It keeps what all requests of a process share: logins, connections, and for each host its places, its pause and its
//! habits. The idea: everything here asks for whole small documents, which are hashed before anybody sees them; bytes by
//! range are `blob`'s.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Url;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{self, Body};
use super::auth::{Access, Auth, Scope};
use super::blob::{Blob, LazyBlob};
use super::challenge::is_loopback;
use super::credentials::{Credential, Credentials};
use super::redact::{host_of, sanitised};
use super::retry::{Patience, Persistence};
use super::send::{self, Act, Clients, Question};
use super::{RegistryError, answer::refusal};
use crate::io::Fetch;
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, OciError, Reference, Selector};

/// How many requests to one host are under way at once.
const PER_HOST: usize = 8;
/// How long a host is remembered to ignore ranges. Caches that fetch on demand do so only the first time
/// (distribution issue 4667).
const IGNORES_RANGES: Duration = Duration::from_secs(600);
/// How often a document is fetched whose bytes do not hash to its digest: the wire may have flipped a bit.
const MISMATCH_TRIES: u32 = 3;
/// Every kind of document that may stand behind a reference.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// How to talk to registries.
#[derive(Clone, Debug)]
pub struct Options {
    /// Use http for every host, not only for this machine.
    pub plain_http: bool,
    /// The only file to look for credentials in.
    pub authfile: Option<PathBuf>,
    /// The credential to use; no file is read.
    pub creds: Option<Credential>,
    /// Use no credential at all.
    pub anonymous: bool,
    /// How long one request may take with all its tries. For a stream it starts anew whenever bytes arrive.
    pub read_budget: Duration,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long nothing may arrive on a connection.
    pub stall_timeout: Duration,
    /// The `User-Agent` header.
    pub user_agent: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            authfile: None,
            creds: None,
            anonymous: false,
            read_budget: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            user_agent: concat!("ocifs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A document as the registry sent it, hashed.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The very bytes.
    pub bytes: Bytes,
    /// The digest of those bytes: the one that was asked for, or sha256.
    pub digest: Digest,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
}

/// The way to every registry: one for a process. Clones share everything.
#[derive(Clone)]
pub struct Registry {
    pub(super) inner: Arc<Inner>,
}

/// What all requests share.
pub(super) struct Inner {
    pub(super) clients: Arc<Clients>,
    pub(super) auth: Auth,
    pub(super) read_budget: Duration,
    plain_http: bool,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

impl Registry {
    /// Reads the environment for the places of credentials, and sends nothing.
    pub fn new(options: Options) -> Result<Self, RegistryError> {
        let credentials = Credentials {
            anonymous: options.anonymous,
            given: options.creds.clone(),
            ..Credentials::of_environment(options.authfile.clone())
        };
        let clients = Arc::new(Clients::new(&options));
        Ok(Self {
            inner: Arc::new(Inner {
                auth: Auth::new(credentials, clients.clone()),
                clients,
                read_budget: options.read_budget,
                plain_http: options.plain_http,
                hosts: Mutex::default(),
            }),
        })
    }

    /// The manifest or index that `selector` names in the repository of `reference`, at most [`MAX_DOCUMENT`] bytes.
    ///
    /// The bytes hash to the returned digest, which is the one asked for when it was asked by digest.
    pub async fn manifest(
        &self,
        reference: &Reference,
        selector: &Selector,
    ) -> Result<Fetched, RegistryError> {
        let name = match selector {
            Selector::Tag(tag) => tag.as_str(),
            Selector::Digest(digest) => digest.as_str(),
        };
        let what = format!("manifest {name} of {}", reference.repository());
        let (scope, url) = self.inner.address(reference, &format!("manifests/{name}"), &what)?;
        let host = self.inner.host(reference);
        let mut patience = Patience::new(self.inner.read_budget, Persistence::Brief);
        let permit = host.enter(&what, &patience).await?;
        let question = Question { scope: &scope, act: Act::Get, accept: MANIFESTS, range: None, what: &what };
        loop {
            let attempt = self.inner.try_manifest(&question, &url, selector);
            let outcome = host.bounded(&what, &patience, attempt).await;
            match outcome {
                Ok(fetched) => {
                    drop(permit);
                    return Ok(fetched);
                }
                Err(error) => host.pause(&mut patience, error).await?,
            }
        }
    }

    /// A blob by range. No request is made here.
    pub fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> Arc<dyn Fetch> {
        Arc::new(LazyBlob(self.open(reference, descriptor)))
    }

    /// How many bytes the blob `digest` of the repository of `reference` has, for a blob that no document describes.
    pub async fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64, RegistryError> {
        let what = format!("size of blob {digest} of {}", reference.repository());
        let (scope, url) = self.inner.address(reference, &format!("blobs/{digest}"), &what)?;
        let host = self.inner.host(reference);
        let mut patience = Patience::new(self.inner.read_budget, Persistence::Brief);
        let _permit = host.enter(&what, &patience).await?;
        let question = Question { scope: &scope, act: Act::Head, accept: "*/*", range: None, what: &what };
        loop {
            match host.bounded(&what, &patience, self.inner.try_size(&question, &url)).await {
                Ok(size) => return Ok(size),
                Err(error) => host.pause(&mut patience, error).await?,
            }
        }
    }

    /// A small blob as a whole (a config), at most [`MAX_DOCUMENT`] bytes, with the size and the digest of its descriptor.
    pub async fn document(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        if let Some(data) = &descriptor.data {
            // Checked against digest and size when the descriptor was parsed.
            return Ok(data.clone().into());
        }
        let blob = self.open(reference, descriptor);
        if descriptor.size > MAX_DOCUMENT {
            return Err(RegistryError::TooLarge {
                host: reference.registry().to_owned(),
                what: format!("document {}", descriptor.digest),
                size: descriptor.size.to_string(),
                limit: MAX_DOCUMENT,
            });
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let bytes = blob.clone().whole().await?;
            match descriptor.check("document", &bytes) {
                Ok(()) => return Ok(bytes),
                Err(OciError::Mismatch { expected, actual, what }) => {
                    tracing::warn!(%expected, %actual, tries, "document does not match its digest");
                    if tries == MISMATCH_TRIES {
                        let host = reference.registry().to_owned();
                        return Err(RegistryError::Mismatch { host, what, expected, actual });
                    }
                }
                Err(source) => {
                    let what = format!("document {}", descriptor.digest);
                    return Err(RegistryError::Document {
                        host: reference.registry().to_owned(),
                        what,
                        source,
                    });
                }
            }
        }
    }

    /// Whether the registry of `reference` lately sent a whole blob when it was asked for a range.
    pub fn ignores_ranges(&self, reference: &Reference) -> bool {
        self.inner.host(reference).ignores_ranges()
    }

    fn open(&self, reference: &Reference, descriptor: &Descriptor) -> Arc<Blob> {
        let place = format!("blobs/{}", descriptor.digest);
        let address = self.inner.address(reference, &place, descriptor.digest.as_str());
        Arc::new(Blob::new(self.inner.clone(), reference, descriptor, address))
    }
}

impl Inner {
    /// The URL of something in a repository.
    pub(super) fn address(
        &self,
        reference: &Reference,
        place: &str,
        what: &str,
    ) -> Result<(Scope, Url), RegistryError> {
        let bad = |reason: String| RegistryError::Address {
            host: sanitised(reference.registry()),
            what: what.to_owned(),
            reason,
        };
        let parse = |scheme: &str| {
            let text = format!("{scheme}://{}/v2/{}/{place}", reference.host(), reference.repository());
            text.parse::<Url>().map_err(|error| bad(error.to_string()))
        };
        let plain = parse("http")?;
        let url = if self.plain_http || is_loopback(&plain) { plain } else { parse("https")? };
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(bad("it has a user or a query".into()));
        }
        let scope = Scope {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            home: url.clone(),
            access: Access::Pull,
        };
        Ok((scope, url))
    }

    /// What is kept about the host of `reference`.
    pub(super) fn host(&self, reference: &Reference) -> Arc<Host> {
        let name = reference.host();
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.get(name) {
            return host.clone();
        }
        let host = Arc::new(Host::new(name));
        hosts.insert(name.to_owned(), host.clone());
        host
    }

    async fn try_size(&self, question: &Question<'_>, url: &Url) -> Result<u64, RegistryError> {
        let reply = send::ask(&self.clients, &self.auth, question, url).await?;
        if reply.response.status().as_u16() != 200 {
            return Err(refusal(reply, question.what, self.clients.stall()).await);
        }
        let length = answer::header(&reply.response, "content-length");
        let size = length.and_then(|length| length.trim().parse().ok());
        size.ok_or_else(|| RegistryError::Protocol {
            host: host_of(&reply.url),
            what: question.what.to_owned(),
            reason: "no length".into(),
        })
    }

    async fn try_manifest(
        &self,
        question: &Question<'_>,
        url: &Url,
        selector: &Selector,
    ) -> Result<Fetched, RegistryError> {
        let what = question.what;
        let stall = self.clients.stall();
        let reply = send::ask(&self.clients, &self.auth, question, url).await?;
        if reply.response.status().as_u16() != 200 {
            return Err(refusal(reply, what, stall).await);
        }
        let host = host_of(&reply.url);
        let not_registry = |reason: &str| RegistryError::NotRegistry {
            host: host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        if answer::media_type(&reply.response).is_some_and(|kind| kind == "text/html") {
            return Err(not_registry("a web page"));
        }
        if let Some(encoding) = answer::encoding(&reply.response) {
            let reason = format!("content encoding {encoding}");
            return Err(RegistryError::Protocol { host, what: what.to_owned(), reason });
        }
        let content_type = answer::header(&reply.response, "content-type").map(str::to_owned);
        let promised = answer::header(&reply.response, "docker-content-digest").map(str::to_owned);
        let body = Body { host: &host, what, stall };
        let bytes = body.limited(reply.response, MAX_DOCUMENT).await?;
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(not_registry("something that is no JSON document"));
        }
        let digest = named(selector, &bytes, &host, what)?;
        if let Some(promised) = promised.filter(|promised| !promised.is_empty()) {
            let promised: Digest = promised.parse().map_err(|source: OciError| RegistryError::Protocol {
                host: host.clone(),
                what: what.to_owned(),
                reason: sanitised(&format!("a Docker-Content-Digest header that is none: {source}")),
            })?;
            // The header may be of an algorithm that we do not have; then the selector's digest has to do.
            if let Some(actual) = promised.same_algorithm(&bytes).filter(|actual| *actual != promised) {
                let what = format!("{what} by its Docker-Content-Digest header");
                return Err(RegistryError::Mismatch { host, what, expected: promised, actual });
            }
        }
        Ok(Fetched { bytes, digest, content_type })
    }
}

/// The digest of a manifest's bytes, which must be the one it was asked by.
fn named(selector: &Selector, bytes: &[u8], host: &str, what: &str) -> Result<Digest, RegistryError> {
    let Selector::Digest(expected) = selector else { return Ok(Digest::sha256(bytes)) };
    let (host, what) = (host.to_owned(), what.to_owned());
    match expected.same_algorithm(bytes) {
        Some(actual) if actual == *expected => Ok(actual),
        Some(actual) => Err(RegistryError::Mismatch { host, what, expected: expected.clone(), actual }),
        None => Err(RegistryError::Document {
            host,
            what,
            source: OciError::Unsupported {
                what: "digest algorithm",
                reason: expected.algorithm_name().to_owned(),
            },
        }),
    }
}

/// What is kept about one host.
pub(super) struct Host {
    name: String,
    /// Places for requests; one is held while a body streams.
    places: Arc<Semaphore>,
    /// Until when the host asked not to be asked.
    paused: Mutex<Option<Instant>>,
    /// Until when the host is remembered to ignore ranges.
    no_ranges: Mutex<Option<Instant>>,
}

impl Host {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            places: Arc::new(Semaphore::new(PER_HOST)),
            paused: Mutex::default(),
            no_ranges: Mutex::default(),
        }
    }

    /// A place among the requests to this host, in the order of asking.
    pub(super) async fn enter(
        &self,
        what: &str,
        patience: &Patience,
    ) -> Result<OwnedSemaphorePermit, RegistryError> {
        let waited = patience.left();
        match tokio::time::timeout(waited, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed, so the first case is the second one.
            Ok(Err(_)) | Err(_) => {
                Err(RegistryError::Busy { host: self.name.clone(), what: what.to_owned(), waited })
            }
        }
    }

    /// One attempt, after the host's pause and within the patience that is left.
    pub(super) async fn bounded<T>(
        &self,
        what: &str,
        patience: &Patience,
        attempt: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let waited = patience.left();
        let both = async {
            let paused = *lock(&self.paused);
            if let Some(until) = paused {
                tokio::time::sleep_until(until.into()).await;
            }
            attempt.await
        };
        match tokio::time::timeout(waited, both).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RegistryError::Stalled { host: self.name.clone(), what: what.to_owned(), waited }),
        }
    }

    /// Waits before the next try, or gives up. A wait that the host named holds for all requests to it.
    pub(super) async fn pause(
        &self,
        patience: &mut Patience,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let named = error.retry_after();
        let shown = error.to_string();
        let wait = patience.after(error)?;
        tracing::debug!(host = self.name, error = shown, wait_ms = wait.as_millis(), "trying again");
        if let Some(named) = named {
            let until = Instant::now() + named;
            let mut paused = lock(&self.paused);
            *paused = Some(paused.map_or(until, |other| other.max(until)));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Remembers that a range was asked for and a whole blob came.
    pub(super) fn note_ignored_range(&self) {
        if !self.ignores_ranges() {
            tracing::warn!(host = self.name, "registry ignores ranges, blobs are fetched whole");
        }
        *lock(&self.no_ranges) = Some(Instant::now() + IGNORES_RANGES);
    }

    fn ignores_ranges(&self) -> bool {
        lock(&self.no_ranges).is_some_and(|until| until > Instant::now())
    }
}

/// The values stay valid when a thread panics between two operations on them.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(reference: &str, plain_http: bool) -> String {
        let registry = Registry::new(Options { plain_http, ..Options::default() }).unwrap();
        let (_, url) = registry.inner.address(&reference.parse().unwrap(), "manifests/x", "x").unwrap();
        url.to_string()
    }

    #[test]
    fn plain_http_is_for_this_machine_unless_told_otherwise() {
        assert_eq!(url("localhost:5000/a", false), "http://localhost:5000/v2/a/manifests/x");
        assert_eq!(url("127.1.2.3:5000/a", false), "http://127.1.2.3:5000/v2/a/manifests/x");
        assert_eq!(url("ghcr.io/a/b", false), "https://ghcr.io/v2/a/b/manifests/x");
        assert_eq!(url("localhost.example:5000/a", false), "https://localhost.example:5000/v2/a/manifests/x");
        assert_eq!(url("10.0.0.1:5000/a", false), "https://10.0.0.1:5000/v2/a/manifests/x");
        assert_eq!(url("10.0.0.1:5000/a", true), "http://10.0.0.1:5000/v2/a/manifests/x");
        assert_eq!(url("nginx", false), "https://registry-1.docker.io/v2/library/nginx/manifests/x");
    }
}
