//! Registry client: manifests, small documents, and lazy blobs.
//!
//! Documents are small, fetched as a whole, and hashed before they are returned. `blob` reads bytes by range,
//! `client_shared` holds the state of all requests.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Url;

use super::RegistryError;
use super::blob::{LazyBlob, RemoteBlob};
use super::client_shared::ClientShared;
use super::endpoint::TokenScope;
use super::failover::MirrorFailover;
use super::options::RegistryOptions;
use super::part::is_refused_range;
use super::redact::{host_of, sanitised};
use super::request::{self, RegistryRequest, RequestMethod};
use super::response::{self, BodyEnding, BodyReader, refusal};
use super::retry::{RetryBudget, RetryPolicy};
use crate::io::{ByteRange, RangeFetch};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, ManifestSelector, OciError, Reference};

/// The most fetches of a document whose bytes do not hash to its digest: a bit may have flipped in transit.
const MISMATCH_TRIES: u32 = 3;
/// The media types of all documents that a reference can name.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// A document as received, hashed.
#[derive(Clone, Debug)]
pub struct FetchedDocument {
    /// The bytes as received.
    pub bytes: Bytes,
    /// The digest of the bytes: the requested one, or sha256.
    pub digest: Digest,
    /// The `Content-Type` header; `None` if absent.
    pub content_type: Option<String>,
}

/// The answer to a HEAD request for a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadedDocument {
    /// The digest: the requested one, or the one that the registry declares.
    pub digest: Digest,
    /// The size in bytes; `None` if the registry does not declare it.
    pub size: Option<u64>,
    /// The `Content-Type` header; `None` if absent.
    pub media_type: Option<String>,
}

/// Client for all registries: one for a process. Clones share all state.
#[derive(Clone)]
pub struct RegistryClient {
    pub(super) inner: Arc<ClientShared>,
}

impl RegistryClient {
    /// Creates a client. Reads the environment for the paths of credentials, and sends nothing.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        Ok(Self { inner: Arc::new(ClientShared::new(options)) })
    }

    /// A client for addresses that an image author names: it sends no login and no client certificate. The image comes
    /// from the registry at `home`, which decides about addresses of private networks; `None` for a local image.
    #[must_use]
    pub fn for_addresses_of_images(&self, home: Option<&Reference>) -> Self {
        Self { inner: Arc::new(self.inner.for_addresses_of_images(home)) }
    }

    /// The manifest or index that `selector` names in the repository of `reference`, at most [`MAX_DOCUMENT`] bytes.
    ///
    /// The bytes hash to the returned digest, which equals the requested digest if there is one.
    pub async fn manifest(
        &self,
        reference: &Reference,
        selector: &ManifestSelector,
    ) -> Result<FetchedDocument, RegistryError> {
        let what = format!("manifest {} of {}", name_of(selector), reference.repository());
        let walk = self.inner.walk_for(reference, selector, &what)?;
        self.inner.manifest(walk, selector, &what).await
    }

    /// The client for the repository `other`, which the user names beside the image; `own` is the host of the image,
    /// `None` for an image on this machine. The login of the command line is for the host of the image alone.
    #[must_use]
    pub fn beside(&self, own: Option<&str>, other: &Reference) -> Self {
        match own {
            Some(own) if own != other.registry() && self.inner.has_given_login() => {
                Self { inner: Arc::new(self.inner.without_given_login()) }
            }
            _ => self.clone(),
        }
    }

    /// The document under `tag`, for content that a reader can do without: each host gets one request, and none is
    /// waited for. `None` when there is no such tag.
    pub async fn optional_manifest(
        &self,
        reference: &Reference,
        tag: &str,
    ) -> Result<Option<FetchedDocument>, RegistryError> {
        let selector = ManifestSelector::Tag(tag.to_owned());
        let what = format!("manifest {tag} of {}", reference.repository());
        let walk = self.inner.walk_for(reference, &selector, &what)?.once();
        match self.inner.manifest(walk, &selector, &what).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.last(), RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Digest, size and type of the document that `selector` names in the repository of `reference`, by one HEAD,
    /// which Docker Hub does not count as a pull. If the answer is unusable, the document itself is fetched.
    pub async fn head(
        &self,
        reference: &Reference,
        selector: &ManifestSelector,
    ) -> Result<HeadedDocument, RegistryError> {
        let what = format!("manifest {} of {}", name_of(selector), reference.repository());
        let mut walk = self.inner.walk_for(reference, selector, &what)?;
        let path = format!("manifests/{}", name_of(selector));
        let (inner, subject) = (&self.inner, &what);
        let headed = walk.first(&path, &what, |scope, url| async move {
            match inner.try_head(&head_of_manifest(&scope, subject), &url, selector).await {
                // An answer that is no use: the next host would not give a better one.
                Err(error) if !error.is_unanswered() => Ok(None),
                headed => headed,
            }
        });
        if let Some(headed) = headed.await? {
            return Ok(headed);
        }
        // Releases the host's permit, which the GET needs first.
        drop(walk);
        let fetched = self.manifest(reference, selector).await?;
        Ok(HeadedDocument {
            digest: fetched.digest,
            size: Some(fetched.bytes.len() as u64),
            media_type: fetched.content_type,
        })
    }

    /// The full name of a reference without a host, by this machine's configuration: an alias, or a name in the only
    /// registry that is searched for short names. Any other reference is returned unchanged.
    pub fn expand(&self, reference: &Reference) -> Result<Reference, RegistryError> {
        match reference.short_name() {
            Some(_) => self.inner.config()?.expand(reference),
            None => Ok(reference.clone()),
        }
    }

    /// A blob by range. Sends no request.
    pub fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        Arc::new(LazyBlob(self.open(reference, descriptor)))
    }

    /// The size in bytes of the blob `digest` in the repository of `reference`, for a blob without descriptor.
    pub async fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64, RegistryError> {
        let what = format!("size of blob {digest} of {}", reference.repository());
        let selector = ManifestSelector::Digest(digest.clone());
        let mut walk = self.inner.walk_for(reference, &selector, &what)?;
        let path = format!("blobs/{digest}");
        let (inner, what) = (&self.inner, &what);
        walk.first(&path, what, |scope, url| async move { inner.try_size(&scope, &url, what).await }).await
    }

    /// A small blob, such as a config, at most [`MAX_DOCUMENT`] bytes. Its size and digest match the descriptor.
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
                    blob.disbelieve();
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

    /// Whether a host for blobs of `reference` recently answered a range request with the whole blob. Failing hosts
    /// ahead of the first healthy one do not count.
    pub fn ignores_ranges(&self, reference: &Reference) -> bool {
        let Ok(route) = self.inner.route(reference) else { return false };
        let hosts = route.for_digests().into_iter().map(|endpoint| self.inner.hosts.of(&endpoint));
        hosts.skip_while(|host| host.is_failing()).any(|host| host.ignores_ranges())
    }

    /// Drops remembered state: logins, redirect targets, failures and limits of hosts, certificates, and the
    /// configuration, which is reloaded at once. Called on SIGHUP, after a change of any of these; running requests
    /// continue unchanged. If the configuration cannot be read any more, the earlier one stays in effect.
    pub fn forget_logins(&self) -> Result<(), RegistryError> {
        self.inner.forget_logins()
    }

    fn open(&self, reference: &Reference, descriptor: &Descriptor) -> Arc<RemoteBlob> {
        Arc::new(RemoteBlob::new(self.inner.clone(), reference, descriptor))
    }
}

/// The HEAD request for a manifest.
pub(super) fn head_of_manifest<'a>(scope: &'a TokenScope, what: &'a str) -> RegistryRequest<'a> {
    RegistryRequest { scope, act: RequestMethod::Head, accept: MANIFESTS, range: None, what }
}

/// A selector as a path component.
fn name_of(selector: &ManifestSelector) -> &str {
    match selector {
        ManifestSelector::Tag(tag) => tag,
        ManifestSelector::Digest(digest) => digest.as_str(),
    }
}

impl ClientShared {
    /// A failover over the hosts that may have `selector`.
    pub(super) fn walk_for(
        &self,
        reference: &Reference,
        selector: &ManifestSelector,
        what: &str,
    ) -> Result<MirrorFailover, RegistryError> {
        let route = self.route(reference)?;
        let endpoints = match selector {
            ManifestSelector::Tag(_) => route.for_tags(),
            ManifestSelector::Digest(_) => route.for_digests(),
        };
        MirrorFailover::new(
            &self.hosts,
            endpoints,
            RetryBudget::new(self.read_budget, RetryPolicy::Brief),
            what,
        )
    }

    /// The manifest from the first host that has it.
    pub(super) async fn manifest(
        &self,
        mut walk: MirrorFailover,
        selector: &ManifestSelector,
        what: &str,
    ) -> Result<FetchedDocument, RegistryError> {
        let path = format!("manifests/{}", name_of(selector));
        walk.first(&path, what, |scope, url| async move {
            let act = RequestMethod::Get;
            let question = RegistryRequest { scope: &scope, act, accept: MANIFESTS, range: None, what };
            self.try_manifest(&question, &url, selector).await
        })
        .await
    }

    /// `None` for an answer that cannot stand for that of a GET: another status than 200, an HTML page, or no usable
    /// digest.
    async fn try_head(
        &self,
        question: &RegistryRequest<'_>,
        url: &Url,
        selector: &ManifestSelector,
    ) -> Result<Option<HeadedDocument>, RegistryError> {
        let reply = request::ask(&self.clients, &self.auth, question, url).await?;
        let header = |name| response::header(&reply.response, name).map(str::trim);
        let named = header("docker-content-digest").and_then(|named| named.parse::<Digest>().ok());
        let is_document = response::media_type(&reply.response).is_none_or(|kind| kind != "text/html");
        if response::status(&reply.response) != 200 || !is_document {
            return Ok(None);
        }
        let digest = match (selector, named) {
            (ManifestSelector::Digest(asked), Some(named)) if named != *asked => return Ok(None),
            (ManifestSelector::Digest(asked), _) => asked.clone(),
            (ManifestSelector::Tag(_), Some(named)) if named.algorithm().is_some() => named,
            (ManifestSelector::Tag(_), _) => return Ok(None),
        };
        let size = header("content-length").and_then(|length| length.parse().ok());
        Ok(Some(HeadedDocument { digest, size, media_type: header("content-type").map(str::to_owned) }))
    }

    /// By HEAD. Storage that signs URLs for GET alone refuses HEAD. Then by the total of a one-byte range, or by the
    /// length of a response whose body is not read.
    async fn try_size(&self, scope: &TokenScope, url: &Url, what: &str) -> Result<u64, RegistryError> {
        let first = Some(ByteRange::new(0, 1));
        let mut refused = None;
        for (act, range) in
            [(RequestMethod::Head, None), (RequestMethod::Get, first), (RequestMethod::Get, None)]
        {
            let question = RegistryRequest { scope, act, accept: "*/*", range, what };
            let reply = request::ask(&self.clients, &self.auth, &question, url).await?;
            let header = |name| response::header(&reply.response, name).map(str::trim);
            let status = response::status(&reply.response);
            let size = match (status, header("content-range")) {
                (200 | 206, Some(range)) => response::content_range(range).and_then(|(_, total)| total),
                (200, None) => header("content-length").and_then(|length| length.parse().ok()),
                _ => None,
            };
            // Some servers answer HEAD as if the blob were empty.
            let size = size.filter(|&size| size > 0 || !matches!(act, RequestMethod::Head));
            if let Some(size) = size {
                return Ok(size);
            }
            let is_final = range.is_some() && !matches!(status, 200 | 206) && !is_refused_range(status);
            refused = Some(match status {
                200 | 206 => RegistryError::Protocol {
                    host: host_of(&reply.url),
                    what: what.to_owned(),
                    reason: "no length".into(),
                },
                _ => refusal(reply, what, self.clients.stall()).await,
            });
            if is_final {
                break;
            }
        }
        Err(refused.unwrap_or_else(|| RegistryError::NotFound {
            host: host_of(url),
            what: what.to_owned(),
            message: String::new(),
        }))
    }

    async fn try_manifest(
        &self,
        question: &RegistryRequest<'_>,
        url: &Url,
        selector: &ManifestSelector,
    ) -> Result<FetchedDocument, RegistryError> {
        let what = question.what;
        let stall = self.clients.stall();
        let reply = request::ask(&self.clients, &self.auth, question, url).await?;
        let reply = response::document_reply(reply, what, stall).await?;
        let host = host_of(&reply.url);
        let content_type = response::header(&reply.response, "content-type").map(str::to_owned);
        let promised = response::header(&reply.response, "docker-content-digest").map(str::to_owned);
        let passed_on = response::passed_on(&reply.url);
        let body = BodyReader { host: &host, what, stall };
        // With a digest to compare, the end of the connection does not matter.
        let ending = match (selector, &promised) {
            (ManifestSelector::Tag(_), None) => BodyEnding::Announced,
            _ => BodyEnding::Any,
        };
        let bytes = body.document(reply.response, MAX_DOCUMENT, ending).await?;
        if !response::is_json_object(&bytes) {
            let (what, reason) = (what.to_owned(), format!("a body that is no JSON document{passed_on}"));
            return Err(RegistryError::NotRegistry { host, what, reason });
        }
        let digest = named(selector, &bytes, &host, what)?;
        if let (ManifestSelector::Tag(_), Some(promised)) = (selector, promised) {
            self.check_promise(&promised, &bytes, &host, what)?;
        }
        Ok(FetchedDocument { bytes, digest, content_type })
    }

    /// Compares the bytes of a tag with their `Docker-Content-Digest` header. A header that is no digest proves nothing,
    /// and one of an unknown algorithm cannot be compared.
    fn check_promise(
        &self,
        promised: &str,
        bytes: &[u8],
        host: &str,
        what: &str,
    ) -> Result<(), RegistryError> {
        let stated: Digest = match promised.trim().parse() {
            Ok(stated) => stated,
            Err(_) if promised.trim().is_empty() => return Ok(()),
            Err(error) => {
                let header = sanitised(promised);
                if self.clients.is_new_warning(host, &header) {
                    tracing::warn!(registry = host, header, %error, "ignoring a Docker-Content-Digest header that is no digest");
                }
                return Ok(());
            }
        };
        match stated.same_algorithm(bytes).filter(|actual| *actual != stated) {
            Some(actual) => {
                let (host, what) = (host.to_owned(), what.to_owned());
                Err(RegistryError::HeaderConflict { host, what, stated, actual })
            }
            None => Ok(()),
        }
    }
}

/// The digest of a manifest's bytes, checked against the requested one.
fn named(selector: &ManifestSelector, bytes: &[u8], host: &str, what: &str) -> Result<Digest, RegistryError> {
    let ManifestSelector::Digest(expected) = selector else { return Ok(Digest::sha256(bytes)) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ConfigPaths;

    fn url(reference: &str, plain_http: bool) -> String {
        let options =
            RegistryOptions { plain_http, places: ConfigPaths::default(), ..RegistryOptions::default() };
        let route = RegistryClient::new(options).unwrap().inner.route(&reference.parse().unwrap()).unwrap();
        assert_eq!(route.endpoints.len(), 1);
        route.endpoints[0].url("manifests/x", "x").unwrap().to_string()
    }

    #[test]
    fn plain_http_is_for_loopback_unless_configured() {
        assert_eq!(url("localhost:5000/a", false), "http://localhost:5000/v2/a/manifests/x");
        assert_eq!(url("127.1.2.3:5000/a", false), "http://127.1.2.3:5000/v2/a/manifests/x");
        assert_eq!(url("ghcr.io/a/b", false), "https://ghcr.io/v2/a/b/manifests/x");
        assert_eq!(url("localhost.example:5000/a", false), "https://localhost.example:5000/v2/a/manifests/x");
        assert_eq!(url("10.0.0.1:5000/a", false), "https://10.0.0.1:5000/v2/a/manifests/x");
        assert_eq!(url("10.0.0.1:5000/a", true), "http://10.0.0.1:5000/v2/a/manifests/x");
        assert_eq!(url("nginx", false), "https://registry-1.docker.io/v2/library/nginx/manifests/x");
    }
}
