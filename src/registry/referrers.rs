//! Referrers: the manifests of a repository that have a given subject.
//!
//! A registry without the referrers API has the same list as an index under a tag, so both ways give one result. The
//! list is a claim of the registry or of the list's author. So the caller reads a listed manifest by digest, and
//! compares its subject.
//! Rules: distribution-spec 1.1, "Listing Referrers".

use std::collections::HashSet;
use std::sync::Arc;

use reqwest::{Response, Url};

use super::RegistryError;
use super::client::RegistryClient;
use super::client_shared::ClientShared;
use super::endpoint::{RegistryEndpoint, RepositoryAction};
use super::failover::MirrorFailover;
use super::redact::{host_of, origin, sanitised};
use super::request::{self, RegistryRequest, RequestMethod};
use super::response::{self, BodyEnding, BodyReader};
use super::retry::{RetryBudget, RetryPolicy};
use crate::oci::{
    Descriptor, Digest, INDEX_TYPE, MAX_DOCUMENT, MAX_LAYERS, ManifestSelector, MediaType, Reference,
    fallback_tag, is_of_kind, listed,
};

/// The most pages of one list. Even at ten entries a page, a registry can list as many as a document may hold.
const MAX_PAGES: usize = 512;

/// A page of a list.
struct ReferrersPage {
    entries: Vec<Descriptor>,
    next: Option<Url>,
}

impl RegistryClient {
    /// The manifests with `subject` in the repository of `reference`, of one kind or all, without duplicates. An
    /// empty list is no error, also from a registry without support for referrers.
    ///
    /// Entries have `artifact_type` and `annotations` as far as the registry lists them. At most 4096 entries, read
    /// from documents of at most [`MAX_DOCUMENT`] bytes.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let what = format!("referrers of {subject} in {}", reference.repository());
        // Referrers of an image change as tags do, so the hosts for tags are asked.
        let endpoints = self.inner.route(reference)?.for_tags();
        let last = endpoints.len().saturating_sub(1);
        let mut told = false;
        for (at, endpoint) in endpoints.into_iter().enumerate() {
            if at < last && self.inner.hosts.of(&endpoint).is_failing() {
                continue;
            }
            let place = ReferrersHost { endpoint, is_last: at == last && !told, what: &what };
            match self.inner.referrers_at(&place, reference, subject, artifact_type).await {
                Ok(mut entries) => {
                    let mut seen = HashSet::new();
                    entries.retain(|entry| {
                        is_of_kind(entry, artifact_type) && seen.insert(entry.digest.clone())
                    });
                    // An empty list from a mirror may only mean that it does not know them.
                    if at == last || !entries.is_empty() {
                        return Ok(entries);
                    }
                    told = true;
                }
                Err(error) if at < last => {
                    tracing::debug!(%error, "asking the next host for referrers");
                }
                Err(error) if told => {
                    tracing::debug!(%error, "only mirrors were asked for referrers");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }
}

/// One host for a list request.
struct ReferrersHost<'a> {
    endpoint: Arc<RegistryEndpoint>,
    /// Whether no other host can be asked.
    is_last: bool,
    /// The name of the list, for errors.
    what: &'a str,
}

impl ClientShared {
    /// A failover over a single host.
    fn walk_to(&self, place: &ReferrersHost<'_>) -> Result<MirrorFailover, RegistryError> {
        let patience = RetryBudget::new(self.read_budget, RetryPolicy::Brief);
        let walk = MirrorFailover::new(&self.hosts, vec![place.endpoint.clone()], patience, place.what)?;
        Ok(if place.is_last { walk } else { walk.once() })
    }

    /// The list of one host, by the API or the fallback tag.
    async fn referrers_at(
        &self,
        place: &ReferrersHost<'_>,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        match self.asked_referrers(place, subject, artifact_type).await {
            Ok(Some(entries)) => Ok(entries),
            Ok(None) => self.tagged_referrers(place, reference, subject).await,
            // Old Harbor refuses the path to every login and has the tag. A missing tag does not undo a refusal.
            Err(error @ (RegistryError::Denied { .. } | RegistryError::TokenDenied { .. })) => {
                match self.tagged_referrers(place, reference, subject).await {
                    Ok(entries) if !entries.is_empty() => Ok(entries),
                    Ok(_) | Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// All pages of the API's list; `None` if the registry has no such API.
    async fn asked_referrers(
        &self,
        place: &ReferrersHost<'_>,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let what = place.what;
        let scope = place.endpoint.scope(RepositoryAction::Pull);
        let mut url = place.endpoint.url(&format!("referrers/{subject}"), what)?;
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let question =
            RegistryRequest { scope: &scope, act: RequestMethod::Get, accept: INDEX_TYPE, range: None, what };
        let mut walk = self.walk_to(place)?;
        let (mut entries, mut asked) = (Vec::new(), HashSet::new());
        loop {
            if !asked.insert(url.to_string()) || asked.len() > MAX_PAGES {
                let reason = format!("a list that does not end after {} pages", asked.len().min(MAX_PAGES));
                return Err(RegistryError::Protocol { host: host_of(&url), what: what.to_owned(), reason });
            }
            let page = loop {
                walk.next(what).await?;
                match walk.bounded(what, self.try_page(&question, &url)).await {
                    Ok(page) => break page,
                    // Only the first page may be missing: a later one would be a list with a hole.
                    Err(error) if asked.len() == 1 && lacks_referrers(&error) => {
                        tracing::debug!(host = place.endpoint.registry, %subject, %error, "no list of referrers");
                        return Ok(None);
                    }
                    Err(error) => walk.failed(error).await?,
                }
            };
            entries.extend(page.entries);
            if entries.len() > MAX_LAYERS {
                return Err(RegistryError::TooLarge {
                    host: host_of(&url),
                    what: format!("list of {what}, in entries,"),
                    size: entries.len().to_string(),
                    limit: MAX_LAYERS as u64,
                });
            }
            match page.next {
                Some(next) => url = next,
                None => return Ok(Some(entries)),
            }
        }
    }

    /// The entries under the fallback tag; an empty list without such a tag.
    async fn tagged_referrers(
        &self,
        place: &ReferrersHost<'_>,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = fallback_tag(subject);
        let what = format!("list of referrers {tag} of {}", reference.repository());
        match self.manifest(self.walk_to(place)?, &ManifestSelector::Tag(tag), &what).await {
            Ok(fetched) => listed(&fetched.bytes, fetched.content_type.as_deref()).map_err(|source| {
                RegistryError::Document { host: reference.registry().to_owned(), what, source }
            }),
            Err(error) if matches!(error.last(), RegistryError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Whether an error means that the registry has no such API. The specification demands 404; older registries answer
/// as to an unknown path or method, or with an HTML page.
fn lacks_referrers(error: &RegistryError) -> bool {
    match error {
        RegistryError::NotFound { .. } => true,
        RegistryError::NotRegistry { .. } => !error.is_through_proxy(),
        RegistryError::Status { status, .. } => matches!(status, 400 | 405 | 406 | 501),
        _ => false,
    }
}

impl ClientShared {
    async fn try_page(
        &self,
        question: &RegistryRequest<'_>,
        url: &Url,
    ) -> Result<ReferrersPage, RegistryError> {
        let what = question.what;
        let stall = self.clients.stall();
        let reply = request::ask(&self.clients, &self.auth, question, url).await?;
        let reply = response::document_reply(reply, what, stall).await?;
        let host = host_of(&reply.url);
        let next = next_page(&reply.response, &reply.url).map_err(|reason| RegistryError::Misled {
            host: host.clone(),
            what: what.to_owned(),
            reason,
        })?;
        let filters = url.query_pairs().any(|(name, _)| name == "artifactType");
        if filters && response::header(&reply.response, "oci-filters-applied").is_none() {
            tracing::debug!(host, what, "registry does not filter referrers");
        }
        let content_type = response::header(&reply.response, "content-type").map(str::to_owned);
        let passed_on = response::passed_on(&reply.url);
        let bytes = BodyReader { host: &host, what, stall }
            .document(reply.response, MAX_DOCUMENT, BodyEnding::Announced)
            .await?;
        let is_index = content_type.as_deref().is_none_or(|kind| MediaType::from(kind).is_index());
        let entries = listed(&bytes, content_type.as_deref()).map_err(|source| match is_index {
            true => RegistryError::Document { host: host.clone(), what: what.to_owned(), source },
            // Servers without the API answer other documents with status 200.
            false => RegistryError::NotRegistry {
                host: host.clone(),
                what: what.to_owned(),
                reason: format!("{}{passed_on}", sanitised(content_type.as_deref().unwrap_or_default())),
            },
        })?;
        Ok(ReferrersPage { entries, next })
    }
}

/// The URL of the next page. It must be at the same origin: a list that continues on another host is not that
/// registry's list.
fn next_page(response: &Response, here: &Url) -> Result<Option<Url>, String> {
    for header in response.headers().get_all("link") {
        let Ok(text) = header.to_str() else { continue };
        let Some(target) = next_of(text) else { continue };
        let mut next = here.join(target).map_err(|_| "a next page that is not a URL".to_owned())?;
        if next.scheme() == "http" && here.scheme() == "https" && next.host() == here.host() {
            // A proxy in front of the registry ends TLS, and the registry only knows HTTP: the same host is meant.
            let (path, query) = (next.path().to_owned(), next.query().map(str::to_owned));
            next = here.clone();
            next.set_path(&path);
            next.set_query(query.as_deref());
        }
        if origin(&next) != origin(here) || !next.username().is_empty() || next.password().is_some() {
            return Err(format!("a next page at {}", host_of(&next)));
        }
        return Ok(Some(next));
    }
    Ok(None)
}

/// The target with `rel="next"` of a `Link` header (RFC 8288 section 3).
fn next_of(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some((_, link)) = rest.split_once('<') {
        let (target, parameters) = link.split_once('>')?;
        // A target has no `<`, and a quoted parameter with one belongs to no link that we follow.
        let end = parameters.find('<').unwrap_or(parameters.len());
        let is_next = parameters[..end].split([';', ',']).any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else { return false };
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && relations.any(|it| it.eq_ignore_ascii_case("next"))
        });
        if is_next {
            return Some(target);
        }
        rest = parameters;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        for (header, expected) in [
            ("</v2/a/referrers/x?n=2>; rel=\"next\"", Some("/v2/a/referrers/x?n=2")),
            ("<a>;rel=next", Some("a")),
            ("<a>; rel=\"prev\", <b,c;d>; title=\"x\"; REL=\"last Next\"", Some("b,c;d")),
            ("<a>; rel=\"prev\"", None),
            ("<a>", None),
            ("<a", None),
            ("", None),
            ("a; rel=next", None),
        ] {
            assert_eq!(next_of(header), expected, "{header}");
        }
    }
}
