//! Pushing blobs and manifests, and the fallback list of referrers.
//!
//! Content that the registry has is not sent again. All content is named by its digest, so a repeated request stores
//! nothing twice. Only the list of referrers is changed in place, so it is read again after the write.
//! Rules: distribution-spec 1.1, "Push" and "Pushing Manifests with Subject".

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Url;

use super::RegistryError;
use super::client::{MANIFESTS, RegistryClient, head_of_manifest};
use super::client_shared::ClientShared;
use super::endpoint::{RegistryEndpoint, RepositoryAction, TokenScope};
use super::failover::{HostState, MirrorFailover};
use super::redact::{host_of, sanitised};
use super::request::{self, RegistryRequest, RequestMethod};
use super::response::{self, BodyReader, RegistryResponse, refusal};
use super::retry::{RetryBudget, RetryPolicy};
use crate::oci::{Descriptor, Digest, INDEX_TYPE, ManifestDocument, ManifestSelector, OciError, Reference};
use crate::oci::{fallback_tag, referrer_of, with_referrer};

/// The media type of an uploaded blob (distribution-spec, "POST then PUT").
const OCTETS: &str = "application/octet-stream";
/// The most writes of a list of referrers; after that, another writer keeps undoing them.
const LIST_TRIES: u32 = 4;

/// The result of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// The content was uploaded.
    Stored,
    /// The registry had the content, and nothing was sent.
    WasThere,
}

/// The state of one push: host, scope and retry budget.
struct PushSession<'a> {
    inner: &'a ClientShared,
    host: &'a HostState,
    scope: &'a TokenScope,
    what: &'a str,
    patience: RetryBudget,
}

impl RegistryClient {
    /// Stores a blob in the repository of `reference`, unless it is present.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<PushOutcome, RegistryError> {
        let what = format!("upload of {digest} to {}", reference.repository());
        check_own(reference, &what, digest, &bytes)?;
        let endpoint = self.inner.primary(reference, &what).await?;
        let scope = endpoint.scope(RepositoryAction::Push);
        let blob = endpoint.url(&format!("blobs/{digest}"), &what)?;
        let uploads = endpoint.url("blobs/uploads/", &what)?;
        let host = self.inner.hosts.of(&endpoint);
        let patience =
            RetryBudget::new(self.inner.read_budget + request::upload_time(bytes.len()), RetryPolicy::Brief);
        let _permit = host.enter(&what, patience.left()).await?;
        let mut push = PushSession { inner: &self.inner, host: &host, scope: &scope, what: &what, patience };
        let mut tried = false;
        loop {
            // Checked again after a failed upload, which may have arrived.
            if push.has_blob(&blob, bytes.len() as u64).await? {
                return Ok(if tried { PushOutcome::Stored } else { PushOutcome::WasThere });
            }
            let place = push.begin(&uploads, reference).await?;
            tried = true;
            match push.finish(place, digest, &bytes).await {
                Ok(()) => return Ok(PushOutcome::Stored),
                Err(error) => host.pause(&mut push.patience, error).await?,
            }
        }
    }

    /// Stores a manifest or index under a tag, or under its own digest, unless it is present. Its blobs must be
    /// present.
    ///
    /// A manifest with a subject is always sent, because only the response shows whether the registry lists
    /// referrers. If not, the list under the fallback tag is updated.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        selector: &ManifestSelector,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<PushOutcome, RegistryError> {
        let name = match selector {
            ManifestSelector::Tag(tag) => tag.as_str(),
            ManifestSelector::Digest(digest) => digest.as_str(),
        };
        let what = format!("upload of manifest {name} to {}", reference.repository());
        let refused = |source: OciError| RegistryError::Document {
            host: reference.registry().to_owned(),
            what: what.clone(),
            source,
        };
        let document = ManifestDocument::parse(&bytes, Some(media_type)).map_err(refused)?;
        let digest = match selector {
            ManifestSelector::Tag(_) => Digest::sha256(&bytes),
            ManifestSelector::Digest(digest) => {
                check_own(reference, &what, digest, &bytes)?;
                digest.clone()
            }
        };
        let endpoint = self.inner.primary(reference, &what).await?;
        let scope = endpoint.scope(RepositoryAction::Push);
        let url = endpoint.url(&format!("manifests/{name}"), &what)?;
        let host = self.inner.hosts.of(&endpoint);
        let patience =
            RetryBudget::new(self.inner.read_budget + request::upload_time(bytes.len()), RetryPolicy::Brief);
        let permit = host.enter(&what, patience.left()).await?;
        let mut push = PushSession { inner: &self.inner, host: &host, scope: &scope, what: &what, patience };
        if document.subject().is_none() && push.has_manifest(&url, selector, &digest).await? {
            return Ok(PushOutcome::WasThere);
        }
        let listed = push.put_manifest(&url, media_type, &bytes, &digest).await?;
        drop(permit);
        let Some(subject) = document.subject() else { return Ok(PushOutcome::Stored) };
        if listed.is_none_or(|listed| listed != subject.digest.as_str()) {
            let entry = referrer_of(&document, media_type, &bytes);
            self.list_by_tag(reference, &subject.digest, &entry).await?;
        }
        Ok(PushOutcome::Stored)
    }

    /// Adds `entry` to the list under the fallback tag of `subject`. A registry offers no atomic update, so the list
    /// is read again: a concurrent writer may have overwritten the entry. Our write may lose another writer's entry
    /// in the same way, which other clients of the tag accept too.
    async fn list_by_tag(
        &self,
        reference: &Reference,
        subject: &Digest,
        entry: &Descriptor,
    ) -> Result<(), RegistryError> {
        let tag = fallback_tag(subject);
        let selector = ManifestSelector::Tag(tag.clone());
        let what = format!("list of referrers {tag} of {}", reference.repository());
        let mut writes = 0;
        loop {
            // From the registry itself: a mirror may not have the latest list.
            let endpoint = self.inner.primary(reference, &what).await?;
            let patience = RetryBudget::new(self.inner.read_budget, RetryPolicy::Brief);
            let walk = MirrorFailover::new(&self.inner.hosts, vec![endpoint], patience, &what)?;
            let present = match self.inner.manifest(walk, &selector, &what).await {
                Ok(fetched) => Some(fetched),
                Err(error) if matches!(error.last(), RegistryError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            let present = present.as_ref().map(|list| (&list.bytes[..], list.content_type.as_deref()));
            let changed = with_referrer(present, entry).map_err(|source| RegistryError::Document {
                host: reference.registry().to_owned(),
                what: what.clone(),
                source,
            })?;
            let Some(list) = changed else { return Ok(()) };
            if writes == LIST_TRIES {
                return Err(RegistryError::Protocol {
                    host: reference.registry().to_owned(),
                    what,
                    reason: format!("a list without {} though it was written {writes} times", entry.digest),
                });
            }
            writes += 1;
            // The list has no subject, so the recursion ends here.
            Box::pin(self.push_manifest(reference, &selector, INDEX_TYPE, list.into())).await?;
        }
    }
}

impl ClientShared {
    /// The endpoint for writes: the registry itself. If HTTPS and HTTP are both possible, a HEAD request decides.
    async fn primary(
        &self,
        reference: &Reference,
        what: &str,
    ) -> Result<Arc<RegistryEndpoint>, RegistryError> {
        let mut ways = self.route(reference)?.primaries();
        if let (1, Some(only)) = (ways.len(), ways.pop()) {
            return Ok(only);
        }
        let patience = RetryBudget::new(self.read_budget, RetryPolicy::Brief);
        let mut walk = MirrorFailover::new(&self.hosts, self.route(reference)?.primaries(), patience, what)?;
        walk.first("manifests/latest", what, |scope, url| async move {
            match request::ask(&self.clients, &self.auth, &head_of_manifest(&scope, what), &url).await {
                // Any response will do.
                Ok(_) | Err(RegistryError::Denied { .. } | RegistryError::TokenDenied { .. }) => {
                    Ok(scope.endpoint)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }
}

impl PushSession<'_> {
    /// One request with retries within the budget, for requests that are safe to repeat.
    async fn insist<T>(
        &mut self,
        mut attempt: impl AsyncFnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        loop {
            match self.host.bounded(self.what, self.patience.left(), attempt()).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => self.host.pause(&mut self.patience, error).await?,
            }
        }
    }

    /// The response to a HEAD; `None` if the content is absent or the response proves nothing.
    async fn head(&mut self, url: &Url, accept: &str) -> Result<Option<RegistryResponse>, RegistryError> {
        let (inner, scope, what) = (self.inner, self.scope, self.what);
        self.insist(async || {
            let question = RegistryRequest { scope, act: RequestMethod::Head, accept, range: None, what };
            let reply = request::ask(&inner.clients, &inner.auth, &question, url).await?;
            match response::status(&reply.response) {
                200 => Ok(Some(reply)),
                // Storage that signs URLs for one method refuses HEAD; sending present content does no harm.
                401 | 403 if !reply.at_home => Ok(None),
                404 | 405 => Ok(None),
                _ => Err(of_push(refusal(reply, what, inner.clients.stall()).await)),
            }
        })
        .await
    }

    async fn has_blob(&mut self, url: &Url, size: u64) -> Result<bool, RegistryError> {
        let Some(reply) = self.head(url, "*/*").await? else { return Ok(false) };
        let length = response::header(&reply.response, "content-length");
        Ok(length.is_none_or(|length| length.trim() == size.to_string()))
    }

    /// A tag counts as present only if the registry reports the digest of this very document.
    async fn has_manifest(
        &mut self,
        url: &Url,
        selector: &ManifestSelector,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let Some(reply) = self.head(url, MANIFESTS).await? else { return Ok(false) };
        let named = response::header(&reply.response, "docker-content-digest");
        Ok(match selector {
            ManifestSelector::Digest(_) => named.is_none_or(|named| named == digest.as_str()),
            ManifestSelector::Tag(_) => named == Some(digest.as_str()),
        })
    }

    /// The upload location. Retried only if the registry reports that it did nothing, or was not reached, because
    /// every lost response leaves an upload behind.
    async fn begin(&mut self, uploads: &Url, reference: &Reference) -> Result<Url, RegistryError> {
        loop {
            let attempt = self.try_begin(uploads, reference);
            match self.host.bounded(self.what, self.patience.left(), attempt).await {
                Ok(place) => return Ok(place),
                Err(error) if is_unheard(&error) => self.host.pause(&mut self.patience, error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_begin(&self, uploads: &Url, reference: &Reference) -> Result<Url, RegistryError> {
        let (inner, scope, what) = (self.inner, self.scope, self.what);
        let question = RegistryRequest { scope, act: RequestMethod::Begin, accept: "*/*", range: None, what };
        let reply = request::ask(&inner.clients, &inner.auth, &question, uploads).await?;
        let stall = inner.clients.stall();
        match reply.response.status().as_u16() {
            202 => {}
            404 => {
                let what = format!("repository {} to push to", reference.repository());
                return Err(refusal(reply, &what, stall).await);
            }
            _ => return Err(of_push(refusal(reply, what, stall).await)),
        }
        let host = host_of(&reply.url);
        let location = reply.response.headers().get("location").ok_or("no upload location".to_owned());
        let place = location.and_then(|location| scope.endpoint.follow(&reply.url, location.as_bytes()));
        let place = place.map_err(|reason| RegistryError::Misled {
            host: host.clone(),
            what: what.to_owned(),
            reason: format!("status 202 and {reason}"),
        })?;
        BodyReader { host: &host, what, stall }.discard(reply.response).await;
        Ok(place)
    }

    /// One attempt to store the blob at its upload location.
    async fn finish(&self, mut place: Url, digest: &Digest, bytes: &Bytes) -> Result<(), RegistryError> {
        // The location may have a query of its own, which must be returned unchanged.
        place.query_pairs_mut().append_pair("digest", digest.as_str());
        let act = RequestMethod::Put { media_type: OCTETS, bytes };
        self.host.bounded(self.what, self.patience.left(), self.put(&place, act, digest)).await.map(drop)
    }

    async fn put_manifest(
        &mut self,
        url: &Url,
        media_type: &str,
        bytes: &Bytes,
        digest: &Digest,
    ) -> Result<Option<String>, RegistryError> {
        loop {
            let act = RequestMethod::Put { media_type, bytes };
            match self.host.bounded(self.what, self.patience.left(), self.put(url, act, digest)).await {
                Ok(subject) => return Ok(subject),
                Err(error) => self.host.pause(&mut self.patience, error).await?,
            }
        }
    }

    /// Stores content. Returns the subject that the registry has recorded.
    async fn put(
        &self,
        url: &Url,
        act: RequestMethod<'_>,
        digest: &Digest,
    ) -> Result<Option<String>, RegistryError> {
        let (inner, scope, what) = (self.inner, self.scope, self.what);
        let question = RegistryRequest { scope, act, accept: "*/*", range: None, what };
        let reply = request::ask(&inner.clients, &inner.auth, &question, url).await?;
        let stall = inner.clients.stall();
        // 201 by the specification; some registries answer 200, 204, or 202 (Quay) for stored content.
        if !matches!(reply.response.status().as_u16(), 200 | 201 | 202 | 204) {
            return Err(of_push(refusal(reply, what, stall).await));
        }
        let host = host_of(&reply.url);
        let named = response::header(&reply.response, "docker-content-digest");
        if let Some(actual) = named.and_then(|named| named.parse::<Digest>().ok())
            && actual.algorithm_name() == digest.algorithm_name()
            && actual != *digest
        {
            return Err(RegistryError::Mismatch {
                host,
                what: what.to_owned(),
                expected: digest.clone(),
                actual,
            });
        }
        let subject = response::header(&reply.response, "oci-subject").map(sanitised);
        BodyReader { host: &host, what, stall }.discard(reply.response).await;
        Ok(subject)
    }
}

/// Checks that the bytes have the digest they are pushed under.
fn check_own(reference: &Reference, what: &str, digest: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
    let (host, what) = (reference.registry().to_owned(), what.to_owned());
    match digest.same_algorithm(bytes) {
        Some(actual) if actual == *digest => Ok(()),
        Some(actual) => Err(RegistryError::Mismatch { host, what, expected: digest.clone(), actual }),
        None => Err(RegistryError::Document {
            host,
            what,
            source: OciError::Unsupported {
                what: "digest algorithm",
                reason: digest.algorithm_name().to_owned(),
            },
        }),
    }
}

/// A registry without pushes (a mirror) answers 405: a refusal, not a protocol error.
fn of_push(error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Status { host, what, status: 405, message, .. } => {
            RegistryError::Denied { host, what, status: 405, message }
        }
        other => other,
    }
}

/// Whether a request certainly had no effect: no connection, or a server that was too busy.
fn is_unheard(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { status, .. } => matches!(status, 429 | 503),
        other => other.is_connecting(),
    }
}
