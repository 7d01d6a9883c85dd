//! Requests to a registry: methods, headers, redirects, and the scope of credentials.
//!
//! Redirects are followed by hand, so that each hop can be checked. A credential goes to the registry's own scheme,
//! host and port only. HTTPS is not downgraded to HTTP, except where certificates are not verified. A chain that
//! comes back to one of its own addresses ends there. Only a login is retried here.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, LOCATION, RANGE,
};
use reqwest::{Client, RequestBuilder, Url};

use super::RegistryError;
use super::auth::LoginCache;
use super::endpoint::TokenScope;
use super::http_client::{HttpClients, MAX_REDIRECTS, new_address, sensitive};
use super::redact::{ShownUrl, host_of, origin};
use super::response::{BodyReader, RegistryResponse};
use crate::io::ByteRange;

/// The slowest upload that is tolerated, in bytes per second: half a megabit.
const SLOWEST_UPLOAD: u64 = 64 * 1024;

/// The method of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum RequestMethod<'a> {
    /// Read.
    Get,
    /// Check for existence.
    Head,
    /// Begin an upload: a POST without a body.
    Begin,
    /// Store bytes.
    Put {
        /// The media type.
        media_type: &'a str,
        /// The complete content.
        bytes: &'a Bytes,
    },
}

impl RequestMethod<'_> {
    /// The time limit for the upload, in addition to that of a read.
    fn upload(self) -> Duration {
        match self {
            RequestMethod::Get | RequestMethod::Head | RequestMethod::Begin => Duration::ZERO,
            RequestMethod::Put { bytes, .. } => upload_time(bytes.len()),
        }
    }

    /// Whether a redirect to a GET preserves the meaning of the request (RFC 9110 section 15.4).
    fn is_safe(self) -> bool {
        match self {
            RequestMethod::Get | RequestMethod::Head => true,
            RequestMethod::Begin | RequestMethod::Put { .. } => false,
        }
    }

    /// The method's name, for logs.
    fn name(self) -> &'static str {
        match self {
            RequestMethod::Get => "GET",
            RequestMethod::Head => "HEAD",
            RequestMethod::Begin => "POST",
            RequestMethod::Put { .. } => "PUT",
        }
    }

    fn request(self, client: &Client, url: Url) -> RequestBuilder {
        match self {
            RequestMethod::Get => client.get(url),
            RequestMethod::Head => client.head(url),
            // The distribution-spec requires a Content-Length of 0 ("POST then PUT"), which hyper omits by default.
            RequestMethod::Begin => client.post(url).header(CONTENT_LENGTH, 0),
            RequestMethod::Put { media_type, bytes } => {
                let request = client.put(url).header(CONTENT_TYPE, media_type);
                request.header(CONTENT_LENGTH, bytes.len()).body(bytes.clone())
            }
        }
    }
}

/// Time limit for an upload of this many bytes.
pub(super) fn upload_time(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST_UPLOAD)
}

/// A request to a registry.
pub(super) struct RegistryRequest<'a> {
    /// Endpoint and access.
    pub(super) scope: &'a TokenScope,
    /// The method.
    pub(super) act: RequestMethod<'a>,
    /// The accepted media types.
    pub(super) accept: &'a str,
    /// The requested bytes; `None`: all.
    pub(super) range: Option<ByteRange>,
    /// The subject, for errors.
    pub(super) what: &'a str,
}

/// Sends `question` to `start`, follows redirects, and logs in once for each host that sends a challenge.
pub(super) async fn ask(
    clients: &HttpClients,
    auth: &LoginCache,
    question: &RegistryRequest<'_>,
    start: &Url,
) -> Result<RegistryResponse, RegistryError> {
    let RegistryRequest { scope, what, .. } = *question;
    let home = scope.endpoint.origin();
    let mut url = start.clone();
    let mut visited = vec![start.clone()];
    let mut authorization = auth.known(scope, &url).await?;
    let mut renewed = false;
    loop {
        let host = host_of(&url);
        let mut request = question
            .act
            .request(&clients.of(&scope.endpoint, &url)?, url.clone())
            .header(ACCEPT, question.accept)
            .header(ACCEPT_ENCODING, "identity");
        if origin(&url) == home {
            request = request.headers(configured(&scope.endpoint.headers, authorization.is_some()));
        }
        if let Some(range) = question.range {
            request = request.header(RANGE, format!("bytes={range}"));
        }
        if let Some(known) = &authorization {
            request = request.header(AUTHORIZATION, sensitive(&known.header, &url, what)?);
        }
        let waited = clients.first_byte + question.act.upload();
        let response = clients.send(request, &url, what, waited).await?;
        let status = response.status().as_u16();
        tracing::debug!(url = %ShownUrl(&url), act = question.act.name(), range = question.range.map(tracing::field::debug), status, "request");
        let body = BodyReader { host: &host, what, stall: clients.stall() };
        let at_home = origin(&url) == home;
        let misled =
            |reason: String| RegistryError::Misled { host: host.clone(), what: what.to_owned(), reason };
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            if matches!(status, 301..=303) && !question.act.is_safe() {
                return Err(misled(format!("status {status}, which does not take an upload along")));
            }
            let next = response.headers().get(LOCATION).ok_or("a redirect to nowhere".to_owned());
            let next = next.and_then(|location| scope.endpoint.follow(&url, location.as_bytes()));
            let next = next.and_then(|next| new_address(&visited, next)).map_err(misled)?;
            if visited.len() > MAX_REDIRECTS as usize {
                return Err(RegistryError::Redirects { host, what: what.to_owned(), most: MAX_REDIRECTS });
            }
            visited.push(next.clone());
            body.discard(response).await;
            if origin(&next) != origin(&url) {
                authorization = auth.known(scope, &next).await?;
                renewed = false;
            }
            url = next;
            continue;
        }
        let outdated = status == 403 && authorization.as_ref().is_some_and(|known| known.may_be_outdated());
        if (status == 401 || outdated) && !renewed {
            match auth.answer(scope, &url, response.headers(), authorization.as_ref()).await {
                Ok(Some(next)) => {
                    body.discard(response).await;
                    authorization = Some(next);
                    renewed = true;
                    continue;
                }
                Err(error) if at_home => return Err(error),
                // Other hosts get no credential; the caller may have an alternative.
                Ok(None) | Err(_) => {}
            }
        }
        let login = authorization.and_then(|known| known.login);
        return Ok(RegistryResponse { response, url, at_home, redirected: visited.len() > 1, login });
    }
}

/// The configured headers for a host, without those that ocifs sets itself. A login by challenge replaces a
/// configured `Authorization`.
fn configured(headers: &HeaderMap, logged_in: bool) -> HeaderMap {
    let mut headers = headers.clone();
    for ours in [ACCEPT, ACCEPT_ENCODING, RANGE, HOST, CONTENT_LENGTH, CONTENT_TYPE] {
        headers.remove(ours);
    }
    if logged_in {
        headers.remove(AUTHORIZATION);
    }
    headers
}
