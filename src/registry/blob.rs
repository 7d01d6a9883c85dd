//! Random access to a blob or web file by HTTP range requests, checked and resumed.
//!
//! Each request asks for one closed range. Its response becomes an [`AnswerPart`], which states the bytes of the blob that
//! the body must hold. A stream joins parts until its range is complete; bytes that fail a check are requested again,
//! not delivered. Only the last redirect target and the hosts without the blob are remembered.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use reqwest::{Response, Url};

use super::RegistryError;
use super::client_shared::ClientShared;
use super::endpoint::{RegistryEndpoint, RepositoryAction};
use super::failover::{HOST_BACKOFF, HostState, MirrorFailover};
use super::part::{AnswerCoverage, AnswerPart, cover, is_refused_range};
use super::redact::host_of;
use super::request::{self, RegistryRequest, RequestMethod};
use super::response::{self, BodyReader, RegistryResponse, refusal};
use super::retry::{RetryBudget, RetryPolicy};
use crate::io::{BoxFuture, ByteRange, LinkEstimate, RangeDelivery, RangeFetch, ReadError, lock};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, OciError, Reference};

/// The time a redirect target is reused. Signed URLs live for 300 s at ghcr and longer elsewhere.
const TARGET_LIFETIME: Duration = Duration::from_secs(240);

/// Responses to a longer range that hold less than this, in bytes, count as short.
const MIN_STEP: u64 = 64 * 1024;
/// The most short responses in one read.
const MAX_SHORT_STEPS: u32 = 16;
/// The piece size of caches that share pieces (Dragonfly), in bytes: a range across two pieces costs both.
const SHARED_PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// A blob of a registry, without any request yet.
pub(super) struct LazyBlob(pub(super) Arc<RemoteBlob>);

impl RangeFetch for LazyBlob {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn link(&self) -> Option<Arc<LinkEstimate>> {
        // Without a route there is no fetch to measure.
        let endpoints = self.0.endpoints().ok()?;
        Some(self.0.inner.hosts.of(endpoints.first()?).link())
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let blob = self.0.clone();
        Box::pin(async move {
            let subject = blob.subject.clone();
            let reading = blob.read(range).await.map_err(|error| error.of_read(subject))?;
            Ok(RangeDelivery { range: reading.range, body: reading.stream() })
        })
    }
}

/// The identity and the origin of the bytes.
enum BlobOrigin {
    /// A blob of a repository.
    Repository { reference: Reference, digest: Digest },
    /// A file at an address of its own, with its validators at the first request.
    File { endpoint: Arc<RegistryEndpoint>, seen: HttpValidators },
}

/// HTTP validators: `ETag` and `Last-Modified`, which change with the file (RFC 9110 section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HttpValidators {
    tag: Option<String>,
    modified: Option<String>,
}

impl HttpValidators {
    /// The validators of a response.
    pub(super) fn of(response: &Response) -> Self {
        let text = |name| response::header(response, name).map(str::to_owned);
        Self { tag: text("etag"), modified: text("last-modified") }
    }

    /// Whether `later` belongs to another version. A server may omit a validator it sent before.
    fn differs(&self, later: &Self) -> bool {
        let other = |one: &Option<String>, two: &Option<String>| matches!((one, two), (Some(one), Some(two)) if one != two);
        match (&self.tag, &later.tag) {
            (Some(_), Some(_)) => other(&self.tag, &later.tag),
            _ => other(&self.modified, &later.modified),
        }
    }
}

/// A blob and its known state.
pub(super) struct RemoteBlob {
    inner: Arc<ClientShared>,
    home: BlobOrigin,
    /// The digest or the address, for messages.
    name: String,
    /// Kind and name, for the errors of reads.
    subject: String,
    size: u64,
    /// Whether `text/html` is an expected media type; otherwise HTML is a login page of a proxy.
    is_html: bool,
    /// The target of the last redirect.
    target: Mutex<Option<RedirectTarget>>,
    /// Scheme, host and port of hosts without the right blob, and when to forget that.
    lacking: Mutex<HashMap<String, Instant>>,
    /// The origin of the last response.
    served_by: Mutex<Option<String>>,
}

/// The target of a redirect. The URL may be signed.
struct RedirectTarget {
    url: Url,
    /// The scheme, host and port that sent the redirect.
    from: String,
    until: Instant,
    /// The generation of the client's remembered state.
    generation: u64,
}

impl RemoteBlob {
    pub(super) fn new(inner: Arc<ClientShared>, reference: &Reference, descriptor: &Descriptor) -> Self {
        let digest = descriptor.digest.clone();
        let subject = format!("blob {digest} of {}/{}", reference.registry(), reference.repository());
        let name = digest.to_string();
        let is_html = descriptor.media_type.essence() == "text/html";
        let home = BlobOrigin::Repository { reference: reference.clone(), digest };
        Self { is_html, ..Self::bare(inner, home, name, subject, descriptor.size) }
    }

    /// A file of `size` bytes at the address of `endpoint`.
    pub(super) fn of_file(
        inner: Arc<ClientShared>,
        endpoint: Arc<RegistryEndpoint>,
        seen: HttpValidators,
        name: String,
        size: u64,
    ) -> Self {
        let subject = format!("file {name}");
        // HTML is accepted: the validators show that all responses are of one version.
        Self { is_html: true, ..Self::bare(inner, BlobOrigin::File { endpoint, seen }, name, subject, size) }
    }

    fn bare(inner: Arc<ClientShared>, home: BlobOrigin, name: String, subject: String, size: u64) -> Self {
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

    /// The complete blob in memory, for documents known to be small.
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

    /// Records that the last content did not match the digest. Its host is avoided if another host can be asked.
    pub(super) fn disbelieve(&self) {
        if let Some(origin) = lock(&self.served_by).take() {
            self.note_lacking(origin);
        }
    }

    fn note_lacking(&self, origin: String) {
        lock(&self.lacking).insert(origin, Instant::now() + HOST_BACKOFF);
    }

    fn range_name(&self, range: ByteRange) -> String {
        format!("range {range} of {}", self.name)
    }

    /// The endpoints that may have the bytes.
    fn endpoints(&self) -> Result<Vec<Arc<RegistryEndpoint>>, RegistryError> {
        match &self.home {
            BlobOrigin::File { endpoint, .. } => Ok(vec![endpoint.clone()]),
            BlobOrigin::Repository { reference, digest } if digest.algorithm().is_none() => {
                Err(RegistryError::Document {
                    host: format!("{}/{}", reference.registry(), reference.repository()),
                    what: format!("blob {digest}"),
                    source: OciError::Unsupported {
                        what: "digest algorithm",
                        reason: digest.algorithm_name().to_owned(),
                    },
                })
            }
            BlobOrigin::Repository { reference, .. } => Ok(self.inner.route(reference)?.for_digests()),
        }
    }

    /// The URL of the bytes at `endpoint`.
    fn address(&self, endpoint: &RegistryEndpoint, what: &str) -> Result<Url, RegistryError> {
        match &self.home {
            BlobOrigin::File { .. } => Ok(endpoint.root.clone()),
            BlobOrigin::Repository { digest, .. } => endpoint.url(&format!("blobs/{digest}"), what),
        }
    }

    /// Requests `range` and waits for the head of an acceptable response.
    async fn read(self: Arc<Self>, range: ByteRange) -> Result<RangeStream, RegistryError> {
        let whole = ByteRange::new(0, self.size);
        if range.is_empty() || !whole.contains(range) {
            return Err(RegistryError::Range {
                range: range.to_string(),
                what: self.name.clone(),
                size: self.size,
            });
        }
        let endpoints = self.endpoints()?;
        let patience = RetryBudget::new(self.inner.read_budget, RetryPolicy::Stubborn);
        let lacking = |endpoint: &RegistryEndpoint| {
            lock(&self.lacking).get(&endpoint.origin()).is_some_and(|until| *until > Instant::now())
        };
        let mut walk = MirrorFailover::new(&self.inner.hosts, endpoints, patience, &self.range_name(range))?
            .without(lacking);
        let range = if walk.host().has_pieces() { aligned(range, self.size) } else { range };
        let part = self.open(range, &mut walk).await?;
        let range = if part.is_whole { whole } else { range };
        Ok(RangeStream { blob: self, range, at: range.start, part: Some(part), short: 0, walk })
    }

    /// Requests `range`, with retries and failover within the retry budget.
    async fn open(&self, range: ByteRange, walk: &mut MirrorFailover) -> Result<AnswerPart, RegistryError> {
        let what = self.range_name(range);
        loop {
            let endpoint = walk.next(&what).await?;
            match walk.bounded(&what, self.try_open(&endpoint, walk.host(), range, &what)).await {
                Ok(part) => {
                    *lock(&self.served_by) = Some(endpoint.origin());
                    return Ok(part);
                }
                Err(error) => {
                    self.forget_target();
                    // Another range would be missing on this host, too. The host is asked again only without an
                    // alternative.
                    if !error.is_about_the_host() {
                        self.note_lacking(endpoint.origin());
                    }
                    walk.failed(error).await?;
                }
            }
        }
    }

    /// One attempt at a host. If the range is refused, or the response proves nothing, one request for the whole
    /// follows.
    async fn try_open(
        &self,
        endpoint: &Arc<RegistryEndpoint>,
        host: &HostState,
        range: ByteRange,
        what: &str,
    ) -> Result<AnswerPart, RegistryError> {
        let is_whole = range == ByteRange::new(0, self.size) || host.refuses_ranges();
        let asked = (!is_whole).then_some(range);
        let part = self.ask(endpoint, host, asked, what).await?;
        if let Some(part) = part {
            return Ok(part);
        }
        tracing::debug!(host = host_of(&endpoint.root), what, "no use of a range, asking for the whole");
        self.forget_target();
        match self.ask(endpoint, host, None, what).await? {
            Some(part) => {
                host.note_refused_range();
                Ok(part)
            }
            None => Err(RegistryError::Protocol {
                host: host_of(&endpoint.root),
                what: what.to_owned(),
                reason: "neither the range nor the whole".into(),
            }),
        }
    }

    /// Requests a range, or the whole; `None` if the whole has to be requested instead.
    async fn ask(
        &self,
        endpoint: &Arc<RegistryEndpoint>,
        host: &HostState,
        range: Option<ByteRange>,
        what: &str,
    ) -> Result<Option<AnswerPart>, RegistryError> {
        let scope = endpoint.scope(RepositoryAction::Pull);
        let home = self.address(endpoint, what)?;
        let question = RegistryRequest { scope: &scope, act: RequestMethod::Get, accept: "*/*", range, what };
        let (clients, auth) = (&self.inner.clients, &self.inner.auth);
        let generation = self.inner.generation.load(Ordering::Relaxed);
        if let Some(target) = self.target(endpoint, generation) {
            let reply = request::ask(clients, auth, &question, &target).await?;
            // The status for an expired signed URL depends on the storage.
            if !matches!(reply.response.status().as_u16(), 400 | 401 | 403 | 404 | 410) {
                return self.judge(host, reply, range, what).await;
            }
            self.forget_target();
            let host = host_of(&reply.url);
            BodyReader { host: &host, what, stall: clients.stall() }.discard(reply.response).await;
        }
        let reply = request::ask(clients, auth, &question, &home).await?;
        let target = reply.redirected.then(|| reply.url.clone());
        let part = self.judge(host, reply, range, what).await?;
        if let (Some(url), Some(_)) = (target, &part) {
            let (from, until) = (endpoint.origin(), Instant::now() + TARGET_LIFETIME);
            *lock(&self.target) = Some(RedirectTarget { url, from, until, generation });
        }
        Ok(part)
    }

    /// Judges a response by its head; `None` if the whole has to be requested instead.
    async fn judge(
        &self,
        asked: &HostState,
        mut reply: RegistryResponse,
        range: Option<ByteRange>,
        what: &str,
    ) -> Result<Option<AnswerPart>, RegistryError> {
        let host = host_of(&reply.url);
        let stall = self.inner.clients.stall();
        let status = response::status(&reply.response);
        if self.has_changed(&reply.response) {
            return Err(RegistryError::Changed { host, what: self.name.clone() });
        }
        if response::has_pieces(&reply.response) {
            asked.note_pieces();
        }
        let total =
            || response::header(&reply.response, "content-range").and_then(response::unsatisfied_total);
        match status {
            200 | 206 => {}
            416 if total().is_some_and(|total| total != self.size) || range.is_none() => {
                let actual = total().map_or_else(|| "an unknown number of".into(), |total| total.to_string());
                let (what, expected) = (what.to_owned(), self.size);
                return Err(RegistryError::SizeConflict { host, what, expected, actual });
            }
            _ if range.is_some() && is_refused_range(status) => {
                BodyReader { host: &host, what, stall }.discard(reply.response).await;
                return Ok(None);
            }
            _ => return Err(refusal(reply, what, stall).await),
        }
        if status == 200
            && let Some(encoding) = self.document_encoding(&reply.response)
        {
            let body = BodyReader { host: &host, what, stall };
            reply.response = body.decoded_whole(reply.response, &encoding, self.size).await?;
        }
        let page = self.check_page(&reply.response).map_err(|page| page + &response::passed_on(&reply.url));
        let covers = page.and_then(|()| cover(&reply.response, range, self.size));
        let covers = covers.and_then(|covers| self.check_encoding(&reply.response).map(|()| covers));
        let whole = ByteRange::new(0, self.size);
        let (covers, is_whole) = match covers {
            Ok(AnswerCoverage::Range(covers)) => (covers, false),
            Ok(AnswerCoverage::Whole) => (whole, true),
            Ok(AnswerCoverage::Unprovable) => return Ok(None),
            Err(reason) => {
                let reason = format!("status {status} and {reason}");
                return Err(RegistryError::Protocol { host, what: what.to_owned(), reason });
            }
        };
        if is_whole && range.is_some() {
            asked.note_ignored_range();
        }
        let (what, at, end) = (what.to_owned(), covers.start, covers.end);
        Ok(Some(AnswerPart { response: reply.response, host, what, at, end, length: covers.len(), is_whole }))
    }

    /// Whether a response shows that a file has changed since the first request, so that none of it can be used.
    fn has_changed(&self, response: &Response) -> bool {
        let BlobOrigin::File { seen, .. } = &self.home else { return false };
        let header = |name| response::header(response, name);
        let size = match response::status(response) {
            200 if header("content-range").is_none() => {
                header("content-length").and_then(|length| length.trim().parse().ok())
            }
            206 => header("content-range").and_then(response::content_range).and_then(|(_, size)| size),
            416 => header("content-range").and_then(response::unsatisfied_total),
            _ => return false,
        };
        size.is_some_and(|size: u64| size != self.size) || seen.differs(&HttpValidators::of(response))
    }

    /// Refuses a body that was encoded on the way. A label alone is no fault: a body of the length of the stored bytes,
    /// which `cover` has compared, is not encoded. A file of the web is what its server sends.
    fn check_encoding(&self, response: &Response) -> Result<(), String> {
        let is_stored = response::header(response, "content-length").is_some()
            || matches!(self.home, BlobOrigin::File { .. });
        match response::encoding(response).filter(|_| !is_stored) {
            Some(encoding) => Err(format!("content encoding {encoding}")),
            None => Ok(()),
        }
    }

    /// The encoding of the whole of a small blob, such as a config, that a proxy compresses as it does any JSON; `None`
    /// for other bodies.
    fn document_encoding(&self, response: &Response) -> Option<String> {
        let length =
            response::header(response, "content-length").and_then(|length| length.trim().parse().ok());
        let is_small = self.size <= MAX_DOCUMENT && !matches!(self.home, BlobOrigin::File { .. });
        let is_part = response::header(response, "content-range").is_some();
        response::encoding(response).filter(|_| is_small && !is_part && length != Some(self.size))
    }

    /// Refuses a web page in the place of the blob.
    fn check_page(&self, response: &Response) -> Result<(), String> {
        let is_page = response::media_type(response).is_some_and(|kind| kind == "text/html");
        if is_page && response::status(response) == 200 && !self.is_html {
            return Err("a web page".into());
        }
        Ok(())
    }

    /// The remembered redirect target of `endpoint`.
    fn target(&self, endpoint: &RegistryEndpoint, generation: u64) -> Option<Url> {
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

/// Extends a range to whole pieces.
fn aligned(range: ByteRange, size: u64) -> ByteRange {
    let end = range.end.checked_next_multiple_of(SHARED_PIECE_BYTES).unwrap_or(size);
    ByteRange::new(range.start - range.start % SHARED_PIECE_BYTES, end.min(size))
}

/// A read of a range, in progress.
struct RangeStream {
    blob: Arc<RemoteBlob>,
    range: ByteRange,
    /// The next byte to deliver. Invariant: inside `range` or at its end.
    at: u64,
    /// The current response; `None` before the next request.
    part: Option<AnswerPart>,
    /// The number of short responses.
    short: u32,
    /// The failover state, with a permit of the current host.
    walk: MirrorFailover,
}

impl RangeStream {
    /// The next bytes of the range; `None` at its end. The retry budget restarts with every call that delivered
    /// bytes.
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
            if part.at == part.end {
                // The response held only the first part of the request, as its head announced.
                self.part = None;
                continue;
            }
            match part.next(stall).await {
                Ok((start, mut chunk)) => {
                    // A registry without ranges starts from the beginning even when the rest was requested.
                    let end = (start + chunk.len() as u64).min(self.range.end);
                    if end <= self.at {
                        continue;
                    }
                    chunk.truncate((end - start) as usize);
                    let fresh = chunk.split_off(self.at.saturating_sub(start) as usize);
                    self.at = end;
                    self.check_steps()?;
                    return Ok(Some(fresh));
                }
                Err(error) => {
                    self.part = None;
                    self.blob.forget_target();
                    self.walk.failed(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// Counts a response that ends with this byte, far before the end of the request. Otherwise a host that sends a
    /// byte at a time would be asked for ever.
    fn check_steps(&mut self) -> Result<(), RegistryError> {
        let Some(part) = self.part.as_ref().filter(|part| part.at == part.end && part.end < self.range.end)
        else {
            return Ok(());
        };
        if part.length < MIN_STEP {
            self.short += 1;
        }
        if self.short <= MAX_SHORT_STEPS {
            return Ok(());
        }
        Err(RegistryError::Protocol {
            host: part.host.clone(),
            what: part.what.clone(),
            reason: format!("{} answers of less than {MIN_STEP} bytes each", self.short),
        })
    }

    /// A stream that ends after its first error.
    fn stream(self) -> crate::io::BoxStream<'static, Result<Bytes, ReadError>> {
        futures_util::stream::try_unfold(self, async |mut reading: RangeStream| match reading.next().await {
            Ok(Some(chunk)) => Ok(Some((chunk, reading))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.of_read(reading.blob.subject.clone())),
        })
        .boxed()
    }
}
