//! A blob, or a file of the web, by range: one closed range a request, checked before it is believed, and resumed where it broke.
//!
//! Nothing is kept but the place a redirect led to, and which hosts lack the blob. The idea: an answer becomes a [`Part`], which says which bytes of the
//! blob its body must hold; a stream joins parts until its range is complete, and a byte that fails a check is asked for
//! again, never delivered.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use reqwest::{Response, Url};

use super::RegistryError;
use super::answer::{self, Body, refusal};
use super::auth::Access;
use super::client::Inner;
use super::endpoint::Endpoint;
use super::redact::{host_of, sanitised};
use super::retry::{Patience, Persistence};
use super::send::{self, Act, Question, Reply};
use super::walk::{Host, LEFT_ALONE, Walk, lock};
use crate::io::{BoxFuture, ByteRange, Delivery, Fetch, ReadError};
use crate::oci::{Descriptor, Digest, OciError, Reference};

/// How long a redirect's target is used. Signed URLs live for 300 s at ghcr and longer elsewhere.
const TARGET_LIFETIME: Duration = Duration::from_secs(240);

/// A blob of a registry, of which nothing has been asked yet.
pub(super) struct LazyBlob(pub(super) Arc<Blob>);

impl Fetch for LazyBlob {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>> {
        let blob = self.0.clone();
        Box::pin(async move {
            let subject = blob.subject.clone();
            let reading = blob.read(range).await.map_err(|error| error.of_read(subject))?;
            Ok(Delivery { range: reading.range, body: reading.stream() })
        })
    }
}

/// What the bytes are, and where they are asked for.
enum Home {
    /// A blob of a repository.
    Repository { reference: Reference, digest: Digest },
    /// A file at an address of its own, as it was when it was first looked at.
    File { endpoint: Arc<Endpoint>, seen: Seen },
}

/// What a server says of the version of a file: a file that changes says something else (RFC 9110 section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    tag: Option<String>,
    modified: Option<String>,
}

impl Seen {
    /// What an answer says of it.
    pub(super) fn of(response: &Response) -> Self {
        let text = |name| answer::header(response, name).map(str::to_owned);
        Self { tag: text("etag"), modified: text("last-modified") }
    }

    /// Whether `later` is said of another version. A server may leave out what it said before.
    fn differs(&self, later: &Self) -> bool {
        let other = |one: &Option<String>, two: &Option<String>| matches!((one, two), (Some(one), Some(two)) if one != two);
        match (&self.tag, &later.tag) {
            (Some(_), Some(_)) => other(&self.tag, &later.tag),
            _ => other(&self.modified, &later.modified),
        }
    }
}

/// What is known about a blob.
pub(super) struct Blob {
    inner: Arc<Inner>,
    home: Home,
    /// What it is called: its digest, or its address.
    name: String,
    /// The same with what it is, for the errors of reads.
    subject: String,
    size: u64,
    /// Whether the descriptor calls it a web page, which is otherwise no blob but a login page in between.
    is_html: bool,
    /// Where the last redirect led.
    target: Mutex<Option<Target>>,
    /// By scheme, host and port: who does not have it, or not the right one, and until when that is remembered.
    lacking: Mutex<HashMap<String, Instant>>,
    /// Who gave the last answer.
    served_by: Mutex<Option<String>>,
}

/// Where a redirect led. The URL may be signed.
struct Target {
    url: Url,
    /// The scheme, host and port that sent us there.
    from: String,
    until: Instant,
    /// Of the client's memory.
    generation: u64,
}

impl Blob {
    pub(super) fn new(inner: Arc<Inner>, reference: &Reference, descriptor: &Descriptor) -> Self {
        let digest = descriptor.digest.clone();
        let subject = format!("blob {digest} of {}/{}", reference.registry(), reference.repository());
        let name = digest.to_string();
        let is_html = descriptor.media_type.essence() == "text/html";
        let home = Home::Repository { reference: reference.clone(), digest };
        Self { is_html, ..Self::bare(inner, home, name, subject, descriptor.size) }
    }

    /// A file of `size` bytes where `endpoint` is.
    pub(super) fn of_file(
        inner: Arc<Inner>,
        endpoint: Arc<Endpoint>,
        seen: Seen,
        name: String,
        size: u64,
    ) -> Self {
        let subject = format!("file {name}");
        // Whatever it calls itself: that the answers are of one version says more.
        Self { is_html: true, ..Self::bare(inner, Home::File { endpoint, seen }, name, subject, size) }
    }

    fn bare(inner: Arc<Inner>, home: Home, name: String, subject: String, size: u64) -> Self {
        Self {
            inner,
            home,
            name,
            subject,
            size,
            is_html: false,
            target: Mutex::default(),
            lacking: Mutex::default(),
            served_by: Mutex::default(),
        }
    }

    /// Every byte, in memory: for documents that are known to be small.
    pub(super) async fn whole(self: Arc<Self>) -> Result<Bytes, RegistryError> {
        if self.size == 0 {
            return Ok(Bytes::new());
        }
        let mut reading = self.clone().read(ByteRange::new(0, self.size)).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = reading.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// Takes note that what came was not what the digest names: where somebody else can be asked, it is not asked there again.
    pub(super) fn disbelieve(&self) {
        if let Some(origin) = lock(&self.served_by).take() {
            self.note_lacking(origin);
        }
    }

    fn note_lacking(&self, origin: String) {
        lock(&self.lacking).insert(origin, Instant::now() + LEFT_ALONE);
    }

    fn range_name(&self, range: ByteRange) -> String {
        format!("range {range} of {}", self.name)
    }

    /// Who may be asked.
    fn endpoints(&self) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        match &self.home {
            Home::File { endpoint, .. } => Ok(vec![endpoint.clone()]),
            Home::Repository { reference, digest } if digest.algorithm().is_none() => {
                Err(RegistryError::Document {
                    host: format!("{}/{}", reference.registry(), reference.repository()),
                    what: format!("blob {digest}"),
                    source: OciError::Unsupported {
                        what: "digest algorithm",
                        reason: digest.algorithm_name().to_owned(),
                    },
                })
            }
            Home::Repository { reference, .. } => Ok(self.inner.route(reference)?.for_digests()),
        }
    }

    /// Its address at `endpoint`.
    fn address(&self, endpoint: &Endpoint, what: &str) -> Result<Url, RegistryError> {
        match &self.home {
            Home::File { .. } => Ok(endpoint.root.clone()),
            Home::Repository { digest, .. } => endpoint.url(&format!("blobs/{digest}"), what),
        }
    }

    /// Asks for `range` and waits until an answer that can be believed begins.
    async fn read(self: Arc<Self>, range: ByteRange) -> Result<Reading, RegistryError> {
        let whole = ByteRange::new(0, self.size);
        if range.is_empty() || !whole.contains(range) {
            return Err(RegistryError::Range {
                range: range.to_string(),
                what: self.name.clone(),
                size: self.size,
            });
        }
        let endpoints = self.endpoints()?;
        let patience = Patience::new(self.inner.read_budget, Persistence::Stubborn);
        let lacking = |endpoint: &Endpoint| {
            lock(&self.lacking).get(&endpoint.origin()).is_some_and(|until| *until > Instant::now())
        };
        let mut walk =
            Walk::new(&self.inner.hosts, endpoints, patience, &self.range_name(range))?.without(lacking);
        let part = self.open(range, &mut walk).await?;
        let range = if part.is_whole { whole } else { range };
        Ok(Reading { blob: self, range, at: range.start, part: Some(part), walk })
    }

    /// An answer for `range`, with as many tries as there is patience.
    async fn open(&self, range: ByteRange, walk: &mut Walk) -> Result<Part, RegistryError> {
        let what = self.range_name(range);
        loop {
            let endpoint = walk.next(&what).await?;
            let stall = self.inner.clients.stall();
            let opened =
                async { self.try_open(&endpoint, walk.host(), range, &what).await?.settled(stall).await };
            match walk.bounded(&what, opened).await {
                Ok(part) => {
                    *lock(&self.served_by) = Some(endpoint.origin());
                    return Ok(part);
                }
                Err(error) => {
                    self.forget_target();
                    // Another range would be missing there, too. It is asked again where nobody else can be.
                    if !error.is_about_the_host() {
                        self.note_lacking(endpoint.origin());
                    }
                    walk.failed(error).await?;
                }
            }
        }
    }

    async fn try_open(
        &self,
        endpoint: &Arc<Endpoint>,
        host: &Host,
        range: ByteRange,
        what: &str,
    ) -> Result<Part, RegistryError> {
        let scope = endpoint.scope(Access::Pull);
        let home = self.address(endpoint, what)?;
        let question = Question { scope: &scope, act: Act::Get, accept: "*/*", range: Some(range), what };
        let (clients, auth) = (&self.inner.clients, &self.inner.auth);
        let generation = self.inner.generation.load(Ordering::Relaxed);
        if let Some(target) = self.target(endpoint, generation) {
            let reply = send::ask(clients, auth, &question, &target).await?;
            // How storage says that a signed URL is no longer valid depends on the storage.
            if !matches!(reply.response.status().as_u16(), 400 | 401 | 403 | 404 | 410) {
                return self.judge(host, reply, range, what).await;
            }
            self.forget_target();
            let host = host_of(&reply.url);
            Body { host: &host, what, stall: clients.stall() }.discard(reply.response).await;
        }
        let reply = send::ask(clients, auth, &question, &home).await?;
        let target = reply.redirected.then(|| reply.url.clone());
        let part = self.judge(host, reply, range, what).await?;
        if let Some(url) = target {
            let (from, until) = (endpoint.origin(), Instant::now() + TARGET_LIFETIME);
            *lock(&self.target) = Some(Target { url, from, until, generation });
        }
        Ok(part)
    }

    /// Whether an answer may be believed, by its head.
    async fn judge(
        &self,
        asked: &Host,
        reply: Reply,
        range: ByteRange,
        what: &str,
    ) -> Result<Part, RegistryError> {
        let host = host_of(&reply.url);
        let status = reply.response.status().as_u16();
        if self.has_changed(&reply.response) {
            return Err(RegistryError::Changed { host, what: self.name.clone() });
        }
        let (covers, is_whole) = match status {
            206 => (range, false),
            200 => (ByteRange::new(0, self.size), true),
            416 => {
                let total =
                    answer::header(&reply.response, "content-range").and_then(answer::unsatisfied_total);
                return Err(RegistryError::SizeConflict {
                    host,
                    what: what.to_owned(),
                    expected: self.size,
                    actual: total.map_or_else(|| "an unknown number of".into(), |total| total.to_string()),
                });
            }
            _ => return Err(refusal(reply, what, self.inner.clients.stall()).await),
        };
        self.check_head(&reply.response, covers, is_whole).map_err(|reason| RegistryError::Protocol {
            host: host.clone(),
            what: what.to_owned(),
            reason: format!("status {status} and {reason}"),
        })?;
        if is_whole && covers != range {
            asked.note_ignored_range();
        }
        let is_measured = answer::header(&reply.response, "content-length").is_some();
        Ok(Part {
            response: reply.response,
            host,
            what: what.to_owned(),
            at: covers.start,
            end: covers.end,
            is_whole,
            is_unmeasured: is_whole && covers != range && !is_measured,
            early: Bytes::new(),
        })
    }

    /// Whether an answer shows that a file is not the one any more that was first looked at: nothing of it can be used.
    fn has_changed(&self, response: &Response) -> bool {
        let Home::File { seen, .. } = &self.home else { return false };
        let header = |name| answer::header(response, name);
        let size = match response.status().as_u16() {
            200 => header("content-length").and_then(|length| length.trim().parse().ok()),
            206 => header("content-range").and_then(answer::content_range).map(|(_, size)| size),
            416 => header("content-range").and_then(answer::unsatisfied_total),
            _ => return false,
        };
        size.is_some_and(|size: u64| size != self.size) || seen.differs(&Seen::of(response))
    }

    fn check_head(&self, response: &Response, covers: ByteRange, is_whole: bool) -> Result<(), String> {
        if let Some(encoding) = answer::encoding(response) {
            return Err(format!("content encoding {encoding}"));
        }
        if is_whole && !self.is_html && answer::media_type(response).is_some_and(|kind| kind == "text/html") {
            return Err("a web page".into());
        }
        if !is_whole {
            let written = answer::header(response, "content-range").ok_or("no content range")?;
            let expected = Some((covers, self.size));
            if answer::content_range(written) != expected {
                return Err(format!("content range {:?} of {} bytes", sanitised(written), self.size));
            }
        }
        if let Some(length) = answer::header(response, "content-length")
            && length.trim().parse() != Ok(covers.len())
        {
            return Err(format!("content length {} for {} bytes", sanitised(length), covers.len()));
        }
        Ok(())
    }

    /// Where `endpoint` sent us lately.
    fn target(&self, endpoint: &Endpoint, generation: u64) -> Option<Url> {
        let target = lock(&self.target);
        let target = target.as_ref()?;
        let counts = target.until > Instant::now()
            && target.generation == generation
            && target.from == endpoint.origin();
        counts.then(|| target.url.clone())
    }

    fn forget_target(&self) {
        *lock(&self.target) = None;
    }
}

/// The body of one answer.
struct Part {
    response: Response,
    host: String,
    what: String,
    /// The offset in the blob of the next byte of the body. Invariant: `at <= end`.
    at: u64,
    /// Where in the blob the body must end.
    end: u64,
    /// Whether this is the whole blob, and not what was asked for.
    is_whole: bool,
    /// Whether a range was asked for, and nothing but the end of the body tells whether it is the whole blob instead: a proxy that
    /// makes a 206 a 200 sends such a body with the range in it.
    is_unmeasured: bool,
    /// What of the body was read before it was believed.
    early: Bytes,
}

/// A whole body without a length is read to its end before it is believed, up to this size: 8 MiB, as a small blob of the cache.
const MAX_EARLY_BYTES: u64 = 8 * 1024 * 1024;

impl Part {
    /// Reads the body to its end, where it is small and only that tells whether it is the whole blob.
    async fn settled(mut self, stall: Duration) -> Result<Self, RegistryError> {
        if !self.is_unmeasured || self.end > MAX_EARLY_BYTES {
            return Ok(self);
        }
        let mut early = BytesMut::new();
        while self.at < self.end {
            early.extend_from_slice(&self.next(stall).await?.1);
        }
        self.early = early.freeze();
        self.at = 0;
        Ok(self)
    }

    /// The next piece and its offset in the blob. The last piece is given only when the body ends with it: a body that is
    /// too long is as wrong as one that is too short.
    async fn next(&mut self, stall: Duration) -> Result<(u64, Bytes), RegistryError> {
        let body = Body { host: &self.host, what: &self.what, stall };
        let wrong = |reason: String| RegistryError::Protocol {
            host: self.host.clone(),
            what: self.what.clone(),
            reason,
        };
        if !self.early.is_empty() {
            let chunk = std::mem::take(&mut self.early);
            let start = self.at;
            self.at += chunk.len() as u64;
            return Ok((start, chunk));
        }
        let chunk = loop {
            match body.chunk(&mut self.response).await? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => break chunk,
                None if self.is_unmeasured && self.end > MAX_EARLY_BYTES && self.at > 0 => {
                    return Err(RegistryError::NotWhole {
                        host: self.host.clone(),
                        what: self.what.clone(),
                        given: self.at,
                        size: self.end,
                    });
                }
                None => return Err(wrong(format!("a body that lacks {} bytes", self.end - self.at))),
            }
        };
        let (start, end) = (self.at, self.at + chunk.len() as u64);
        let mut more = end > self.end;
        while end == self.end && !more {
            match body.chunk(&mut self.response).await? {
                Some(extra) => more = !extra.is_empty(),
                None => break,
            }
        }
        if more {
            return Err(wrong(format!("a body that goes on after {} bytes", self.end - start)));
        }
        self.at = end;
        Ok((start, chunk))
    }
}

/// A range on its way.
struct Reading {
    blob: Arc<Blob>,
    range: ByteRange,
    /// The next byte to give out. Invariant: inside `range` or at its end.
    at: u64,
    /// Where it comes from; none after a failure.
    part: Option<Part>,
    /// Who is asked, with a place there.
    walk: Walk,
}

impl Reading {
    /// The next bytes of the range, or `None` at its end. The budget starts anew with every call that gave bytes.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let stall = self.blob.inner.clients.stall();
        self.walk.refresh();
        while self.at < self.range.end {
            let part = match &mut self.part {
                Some(part) => part,
                none => {
                    let rest = ByteRange::new(self.at, self.range.end);
                    none.insert(self.blob.open(rest, &mut self.walk).await?)
                }
            };
            match part.next(stall).await {
                Ok((start, mut chunk)) => {
                    // A registry without ranges starts from the beginning even when the rest was asked for.
                    let end = (start + chunk.len() as u64).min(self.range.end);
                    if end <= self.at {
                        continue;
                    }
                    chunk.truncate((end - start) as usize);
                    let fresh = chunk.split_off(self.at.saturating_sub(start) as usize);
                    self.at = end;
                    return Ok(Some(fresh));
                }
                // Bytes of it are given out, and are not those of their place.
                Err(error @ RegistryError::NotWhole { .. }) => return Err(error),
                Err(error) => {
                    self.part = None;
                    self.blob.forget_target();
                    self.walk.failed(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// As a stream that ends after its first error.
    fn stream(self) -> crate::io::BoxStream<'static, Result<Bytes, ReadError>> {
        futures_util::stream::try_unfold(self, async |mut reading: Reading| match reading.next().await {
            Ok(Some(chunk)) => Ok(Some((chunk, reading))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.of_read(reading.blob.subject.clone())),
        })
        .boxed()
    }
}
