//! Web files: an archive at a URL, by range if the server supports ranges.
//!
//! A request for the first byte shows whether the server supports ranges, the size, and the version of the file. With
//! ranges, the file is read like a blob, and every response has to be of that version. Without them, the file arrives
//! as one stream, for the caller to store.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::{Response, Url};

use super::blob::{HttpValidators, LazyBlob, RemoteBlob};
use super::endpoint::{RegistryEndpoint, RepositoryAction};
use super::failover::MirrorFailover;
use super::part::is_refused_range;
use super::redact::{REDACTED, ShownUrl, host_of, sanitised};
use super::request::{self, RegistryRequest, RequestMethod};
use super::response::{self, BodyReader, RegistryResponse, refusal};
use super::retry::{RetryBudget, RetryPolicy};
use super::{RegistryClient, RegistryError};
use crate::io::{BoxStream, ByteRange, RangeFetch, ReadError};
use crate::oci::OciError;

/// The HTTP or HTTPS address of a file. `Display` and `Debug` omit the query, which may be signed.
#[derive(Clone, PartialEq, Eq)]
pub struct WebAddress(Url);

impl FromStr for WebAddress {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad =
            |shown: String, reason: &str| OciError::Reference { reference: shown, reason: reason.to_owned() };
        let Ok(url) = text.parse::<Url>() else {
            // The position of a password in malformed text is unknown.
            let scheme = text.split("://").next().unwrap_or_default();
            return Err(bad(format!("{scheme}://..."), "it is not a URL"));
        };
        let shown = || ShownUrl(&url).to_string();
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad(shown(), "it is not a URL with http or https and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(shown(), "it names a user; logins come from --creds or --authfile"));
        }
        if url.query() == Some(REDACTED) {
            return Err(bad(shown(), "its query was left out where it was shown; write the whole address"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ShownUrl(&self.0).fmt(f)
    }
}

impl fmt::Debug for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ShownUrl(&self.0).fmt(f)
    }
}

/// A file, by the abilities of its server.
pub enum WebFile {
    /// By range. A change of the file is a read error.
    Ranges(Arc<dyn RangeFetch>),
    /// As a whole, once: the server has no ranges.
    Whole(BoxStream<'static, Result<Bytes, ReadError>>),
}

impl RegistryClient {
    /// The file at an address. A server that asks for a login gets the credential of its host, as a registry does.
    pub async fn file(&self, address: &WebAddress) -> Result<WebFile, RegistryError> {
        let endpoint = Arc::new(self.inner.config()?.file(&address.0, &self.inner.addresses)?);
        let name = address.to_string();
        let what = format!("file {name}");
        let patience = RetryBudget::new(self.inner.read_budget, RetryPolicy::Brief);
        let mut walk = MirrorFailover::new(&self.inner.hosts, vec![endpoint.clone()], patience, &what)?;
        loop {
            walk.next(&what).await?;
            let looked = walk.bounded(&what, self.look(&endpoint, &what)).await;
            match looked {
                Ok(FirstAnswer::Ranged { size, seen }) => {
                    let blob = RemoteBlob::of_file(self.inner.clone(), endpoint, seen, name, size);
                    return Ok(WebFile::Ranges(Arc::new(LazyBlob(Arc::new(blob)))));
                }
                Ok(FirstAnswer::Whole(response)) => {
                    tracing::warn!(file = name, "the server has no ranges, the file is fetched whole");
                    let stall = self.inner.clients.stall();
                    let promised = response.content_length();
                    let arriving = WholeDownload { response, what, stall, walk, came: 0, promised };
                    return Ok(WebFile::Whole(whole(arriving)));
                }
                Err(error) => walk.failed(error).await?,
            }
        }
    }

    /// Requests the first byte; if the server has no use for ranges, the whole.
    async fn look(&self, endpoint: &Arc<RegistryEndpoint>, what: &str) -> Result<FirstAnswer, RegistryError> {
        match self.look_at(endpoint, Some(ByteRange::new(0, 1)), what).await? {
            Some(look) => Ok(look),
            None => {
                let host = host_of(&endpoint.root);
                let reason = "an answer that is neither a part of it nor the whole".to_owned();
                let wrong = RegistryError::Protocol { host, what: what.to_owned(), reason };
                self.look_at(endpoint, None, what).await?.ok_or(wrong)
            }
        }
    }

    async fn look_at(
        &self,
        endpoint: &Arc<RegistryEndpoint>,
        range: Option<ByteRange>,
        what: &str,
    ) -> Result<Option<FirstAnswer>, RegistryError> {
        let scope = endpoint.scope(RepositoryAction::Pull);
        let question = RegistryRequest { scope: &scope, act: RequestMethod::Get, accept: "*/*", range, what };
        let reply = request::ask(&self.inner.clients, &self.inner.auth, &question, &endpoint.root).await?;
        let stall = self.inner.clients.stall();
        let host = host_of(&reply.url);
        let wrong =
            |reason: String| RegistryError::Protocol { host: host.clone(), what: what.to_owned(), reason };
        let RegistryResponse { response, .. } = &reply;
        match response::status(response) {
            status @ (200 | 206) => {
                // A label of an encoding is ignored: the first bytes of the file show how it is compressed.
                // A slice of the file that a proxy returns as a 200 is not the file.
                if status == 200 && response.headers().contains_key("content-range") {
                    return Ok(None);
                }
                if status == 200 {
                    return Ok(Some(FirstAnswer::Whole(reply.response)));
                }
            }
            status if range.is_some() && is_refused_range(status) => {
                BodyReader { host: &host, what, stall }.discard(reply.response).await;
                return Ok(None);
            }
            _ => return Err(refusal(reply, what, stall).await),
        }
        let written = response::header(response, "content-range").unwrap_or_default();
        let size = match response::content_range(written) {
            Some((ByteRange { start: 0, .. }, Some(size))) => size,
            // Only the whole shows the size of the file.
            Some((ByteRange { start: 0, .. }, None)) => return Ok(None),
            _ => return Err(wrong(format!("status 206 and content range {:?}", sanitised(written)))),
        };
        let seen = HttpValidators::of(response);
        BodyReader { host: &host, what, stall }.discard(reply.response).await;
        Ok(Some(FirstAnswer::Ranged { size, seen }))
    }
}

/// The result of the first request.
enum FirstAnswer {
    /// The first byte: the server supports ranges; size and version.
    Ranged { size: u64, seen: HttpValidators },
    /// The whole file.
    Whole(Response),
}

/// A whole file, in transfer.
struct WholeDownload {
    response: Response,
    what: String,
    stall: std::time::Duration,
    /// Holds a permit of the host.
    walk: MirrorFailover,
    came: u64,
    promised: Option<u64>,
}

fn whole(arriving: WholeDownload) -> BoxStream<'static, Result<Bytes, ReadError>> {
    futures_util::stream::try_unfold(arriving, async |mut arriving: WholeDownload| {
        arriving.walk.refresh();
        let host = host_of(arriving.response.url());
        let body = BodyReader { host: &host, what: &arriving.what, stall: arriving.stall };
        let chunk = body.chunk(&mut arriving.response).await;
        let subject = arriving.what.clone();
        match chunk.map_err(|error| error.of_read(subject.clone()))? {
            Some(chunk) => {
                arriving.came += chunk.len() as u64;
                Ok(Some((chunk, arriving)))
            }
            None if arriving.promised.is_some_and(|promised| promised != arriving.came) => {
                let reason = format!("a body of {} bytes, where more were promised", arriving.came);
                Err(RegistryError::Protocol { host, what: subject.clone(), reason }.of_read(subject))
            }
            None => Ok(None),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_neither_its_query_nor_a_password() {
        let address: WebAddress = "https://h.example:8443/a.tar?sig=secret".parse().unwrap();
        for shown in [format!("{address}"), format!("{address:?}")] {
            assert_eq!(shown, "https://h.example:8443/a.tar?[redacted]");
        }
        for bad in ["https://u:secret@h.example/a.tar", "http://?secret", "https://[secret"] {
            let error = bad.parse::<WebAddress>().unwrap_err().to_string();
            assert!(!error.contains("u:secret"), "{error}");
        }
        let again = address.to_string().parse::<WebAddress>().unwrap_err().to_string();
        assert!(again.contains("the whole address"), "{again}");
        assert!("file:///etc/passwd".parse::<WebAddress>().is_err());
    }
}
