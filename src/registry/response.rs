//! HTTP responses: bodies with a size limit and a stall timeout, `Content-Range`, and the text of refusals.
//!
//! A response is untrusted until it has been checked, so every body has a limit in bytes and in time. Text of a
//! response is made printable before it goes into an error.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use oci_client::errors::OciEnvelope;
use reqwest::{Response, Url};
use serde::Deserialize;

use super::RegistryError;
use super::error::THROUGH_PROXY;
use super::proxies;
use super::redact::{host_of, sanitised};
use super::retry::retry_after;
use super::trouble::broken;
use crate::io::ByteRange;
use crate::metrics;
use crate::oci::go_json::answer;

/// The words of nginx and of Go's servers for HTTP on an HTTPS port.
const WANTS_HTTPS: [&str; 2] = ["sent to HTTPS port", "HTTP request to an HTTPS server"];
/// Encodings that servers apply to a body (RFC 9110 section 8.4.1, and RFC 7932 and 8878).
const CODINGS: [&str; 7] = ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"];
/// The first bytes of a gzip member (RFC 1952 section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Limit of the bytes by which gzip makes a document longer.
const MAX_GZIP_OVERHEAD: u64 = 64 * 1024;
/// The most of an error's body that is read, in bytes.
const MAX_ERROR: u64 = 64 * 1024;

/// A header's text; `None` if it is absent or not ASCII text.
pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The status of a response. 203 is 200 by way of a proxy that may have changed the body (RFC 9110 section 15.3.4);
/// digest and size decide about the bytes.
pub(super) fn status(response: &Response) -> u16 {
    match response.status().as_u16() {
        203 => 200,
        status => status,
    }
}

/// The media type of a response, without parameters, in lower case.
pub(super) fn media_type(response: &Response) -> Option<String> {
    let written = header(response, "content-type")?;
    Some(written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The content encodings that the label of a response names; `None` for other labels, which encode nothing. `aws-chunked`
/// is the framing of an upload, and `utf-8` an option of one, which object storage keeps as a label.
pub(super) fn encoding(response: &Response) -> Option<String> {
    let written: Vec<String> = response
        .headers()
        .get_all("content-encoding")
        .iter()
        .map(|value| sanitised(&String::from_utf8_lossy(value.as_bytes())))
        .collect();
    encoding_of(&written.join(","))
}

fn encoding_of(written: &str) -> Option<String> {
    let is_coding = |coding: &&str| CODINGS.iter().any(|known| coding.eq_ignore_ascii_case(known));
    let codings: Vec<&str> = written.split(',').map(str::trim).filter(is_coding).collect();
    (!codings.is_empty()).then(|| codings.join(", "))
}

/// Whether a response comes from a cache that fetches and shares pieces of a blob, by the headers of Dragonfly's
/// client.
pub(super) fn has_pieces(response: &Response) -> bool {
    response.headers().keys().any(|name| name.as_str().starts_with("x-dragonfly-"))
}

/// Parses `Content-Range: bytes a-b/total` (RFC 9110 section 14.4). The total is `None` if the server does not know
/// it. Any other form is refused.
pub(super) fn content_range(value: &str) -> Option<(ByteRange, Option<u64>)> {
    let (range, total) = of_bytes(value)?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let is_range = first <= last && last < total.unwrap_or(u64::MAX);
    is_range.then(|| (ByteRange::new(first, last + 1), total))
}

/// Whether a response to a request without range is complete: 200, or a 206 whose `Content-Range` covers the total.
pub(super) fn is_whole(response: &Response) -> bool {
    let range = || header(response, "content-range").and_then(content_range);
    match status(response) {
        200 => true,
        206 => range().is_some_and(|(range, total)| range.start == 0 && Some(range.end) == total),
        _ => false,
    }
}

/// The total in the `Content-Range: bytes */total` of a 416.
pub(super) fn unsatisfied_total(value: &str) -> Option<u64> {
    number(of_bytes(value)?.strip_prefix("*/")?)
}

/// The text after the unit, whose case is ignored (RFC 9110 section 14.1).
fn of_bytes(value: &str) -> Option<&str> {
    let (unit, rest) = value.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then(|| rest.trim_start())
}

/// Parses digits only: `parse` alone would accept a plus sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The requirement on the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnding {
    /// The body ends where its length or framing announces it.
    Announced,
    /// The body may end anywhere, because its digest is compared.
    Any,
}

/// Reads the body of a response.
#[derive(Clone, Copy)]
pub(super) struct BodyReader<'a> {
    /// The host, for errors.
    pub(super) host: &'a str,
    /// The subject of the request, for errors.
    pub(super) what: &'a str,
    /// The stall timeout: the longest time without a byte.
    pub(super) stall: Duration,
}

impl BodyReader<'_> {
    /// The next chunk; `None` at the end.
    pub(super) async fn chunk(self, response: &mut Response) -> Result<Option<Bytes>, RegistryError> {
        match tokio::time::timeout(self.stall, response.chunk()).await {
            Ok(Ok(chunk)) => {
                metrics::BYTES_FETCHED.add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                Ok(chunk)
            }
            Ok(Err(error)) => Err(broken(self.host, self.what, error)),
            Err(_) => Err(RegistryError::Stalled {
                host: self.host.to_owned(),
                what: self.what.to_owned(),
                waited: self.stall,
            }),
        }
    }

    /// The complete body. Refused as soon as it is known to exceed `limit` bytes.
    pub(super) async fn limited(
        self,
        mut response: Response,
        limit: u64,
        ending: BodyEnding,
    ) -> Result<Bytes, RegistryError> {
        let too_large = |size: String| RegistryError::TooLarge {
            host: self.host.to_owned(),
            what: self.what.to_owned(),
            size,
            limit,
        };
        if let Some(length) = response.content_length().filter(|length| *length > limit) {
            return Err(too_large(length.to_string()));
        }
        let mut bytes = BytesMut::new();
        loop {
            let chunk = match self.chunk(&mut response).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) if ending == BodyEnding::Any && error.is_unannounced_end() => break,
                Err(error) => return Err(error),
            };
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large("more".into()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// A complete JSON document of at most `limit` bytes, also after decoding. The first byte decides whether a label is
    /// true: object storage and proxies label bytes that are not encoded.
    pub(super) async fn document(
        self,
        response: Response,
        limit: u64,
        ending: BodyEnding,
    ) -> Result<Bytes, RegistryError> {
        let encoding = encoding(&response);
        let bytes = self.limited(response, limit, ending).await?;
        let Some(encoding) = encoding.filter(|_| !is_json_object(&bytes)) else { return Ok(bytes) };
        self.decoded(&encoding, &bytes, limit)
    }

    /// A whole response of `size` bytes that a proxy has compressed, decoded.
    pub(super) async fn decoded_whole(
        self,
        response: Response,
        encoding: &str,
        size: u64,
    ) -> Result<Response, RegistryError> {
        // Compressed bytes are a little longer at most.
        let bytes = self.limited(response, size + MAX_GZIP_OVERHEAD, BodyEnding::Announced).await?;
        let decoded = if bytes.len() as u64 == size { bytes } else { self.decoded(encoding, &bytes, size)? };
        Ok(Response::from(http::Response::new(decoded)))
    }

    /// `bytes` without their content encoding, at most `limit`.
    fn decoded(self, encoding: &str, bytes: &Bytes, limit: u64) -> Result<Bytes, RegistryError> {
        let wrong = |reason: String| RegistryError::Protocol {
            host: self.host.to_owned(),
            what: self.what.to_owned(),
            reason,
        };
        let is_gzip = ["gzip", "x-gzip"].iter().any(|name| encoding.eq_ignore_ascii_case(name));
        if !is_gzip || !bytes.starts_with(&GZIP_MAGIC) {
            return Err(wrong(format!("content encoding {encoding}")));
        }
        let mut decoded = Vec::new();
        MultiGzDecoder::new(&bytes[..])
            .take(limit + 1)
            .read_to_end(&mut decoded)
            .map_err(|error| wrong(format!("content encoding {encoding} that does not decode ({error})")))?;
        if decoded.len() as u64 > limit {
            return Err(RegistryError::TooLarge {
                host: self.host.to_owned(),
                what: self.what.to_owned(),
                size: "more".into(),
                limit,
            });
        }
        Ok(decoded.into())
    }

    /// The text of a refusal with `: ` in front, or an empty string. Read errors are ignored: the refusal itself is
    /// the error to report.
    pub(super) async fn message(self, response: Response) -> String {
        let html = media_type(&response).is_some_and(|kind| kind == "text/html");
        let status = response.status().as_u16();
        let body = self.beginning(response).await;
        let page = String::from_utf8_lossy(&body);
        if let Some(words) = WANTS_HTTPS.iter().find(|words| page.contains(**words)) {
            return format!(": {words}");
        }
        // A proxy in front of a registry shows an HTML page while the registry is down.
        if html && status >= 500 {
            return ": a web page".into();
        }
        if html {
            return ": a web page, is this an OCI registry?".into();
        }
        let text = refusal_text(&body);
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// Reads a short body to its end and drops it, so that the connection can be reused.
    pub(super) async fn discard(self, response: Response) {
        drop(self.beginning(response).await);
    }

    /// The body as far as it arrives, up to `MAX_ERROR` bytes.
    async fn beginning(self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk(&mut response).await {
            let room = (MAX_ERROR as usize).saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        body
    }
}

/// Whether bytes begin as a JSON object does.
pub(super) fn is_json_object(bytes: &[u8]) -> bool {
    bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// The answer to a request for a document: whole, and no web page.
pub(super) async fn document_reply(
    reply: RegistryResponse,
    what: &str,
    stall: Duration,
) -> Result<RegistryResponse, RegistryError> {
    if !is_whole(&reply.response) {
        return Err(refusal(reply, what, stall).await);
    }
    if media_type(&reply.response).is_some_and(|kind| kind == "text/html") {
        let (host, what) = (host_of(&reply.url), what.to_owned());
        let reason = format!("a web page{}", passed_on(&reply.url));
        return Err(RegistryError::NotRegistry { host, what, reason });
    }
    Ok(reply)
}

/// The text of the error document of the distribution-spec ("Error Codes"); `None` for another document.
fn envelope_text(body: &[u8]) -> Option<String> {
    let envelope: OciEnvelope = answer(body).ok()?;
    let parts = envelope.errors.into_iter().flat_map(|reason| {
        // A code is serialized as the registry wrote it.
        let code = serde_json::to_value(&reason.code).ok();
        let code = code.and_then(|code| code.as_str().map(str::to_owned));
        [code.unwrap_or_default(), reason.message]
    });
    Some(joined(parts))
}

/// The fields that token servers and other servers send instead of the document of the specification.
#[derive(Deserialize)]
struct ForeignRefusal {
    #[serde(default)]
    errors: Vec<ErrorDetail>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// An entry without a code, or with one that is no text of the specification.
#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl ForeignRefusal {
    fn text(self) -> String {
        let errors = self.errors.into_iter().flat_map(|reason| [reason.code, reason.message]);
        joined(
            errors.chain(
                [self.error, self.error_description, self.details, self.message].into_iter().flatten(),
            ),
        )
    }
}

/// The parts that are not empty, made printable.
fn joined(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    sanitised(&parts.join(" "))
}

/// The text of the body of a refusal.
fn refusal_text(body: &[u8]) -> String {
    let foreign = || answer::<ForeignRefusal>(body).ok().map(ForeignRefusal::text);
    envelope_text(body)
        .filter(|text| !text.is_empty())
        .or_else(foreign)
        .unwrap_or_else(|| sanitised(&String::from_utf8_lossy(body)))
}

/// A response that is neither a redirect nor a challenge that could be answered.
pub(super) struct RegistryResponse {
    /// The response, its body unread.
    pub(super) response: Response,
    /// The final URL.
    pub(super) url: Url,
    /// Whether that is the registry itself.
    pub(super) at_home: bool,
    /// Whether a redirect led there.
    pub(super) redirected: bool,
    /// The place of the credential in use; `None` for an anonymous request.
    pub(super) login: Option<Arc<str>>,
}

/// Appended to a refusal if no credential was found.
pub(super) const NO_CREDENTIAL: &str = " (no credential was found for it)";

/// Appended to the refusal of a login.
pub(super) fn with_login(place: &str) -> String {
    format!(" (with the credential of {place})")
}

/// The name of the proxy that passed a request to `url` on without a tunnel, as a remark for messages: it may answer in
/// the place of the host. Empty without such a proxy.
pub(super) fn passed_on(url: &Url) -> String {
    let proxy = proxies::shown_for(url).filter(|_| url.scheme() == "http");
    proxy.map(|proxy| format!(" ({THROUGH_PROXY} {proxy})")).unwrap_or_default()
}

/// The error for a response with an unsuccessful status.
pub(super) async fn refusal(reply: RegistryResponse, what: &str, stall: Duration) -> RegistryError {
    let host = host_of(&reply.url);
    let status = reply.response.status().as_u16();
    let wait = header(&reply.response, "retry-after").and_then(|value| retry_after(value, SystemTime::now()));
    let body = BodyReader { host: &host, what, stall };
    let (reply_scheme, login) = (reply.url.scheme().to_owned(), reply.login.clone());
    // The storage behind a registry quotes signed requests in its errors.
    let mut message = if reply.at_home {
        body.message(reply.response).await
    } else {
        body.discard(reply.response).await;
        String::new()
    };
    let what = what.to_owned();
    let is_secure = WANTS_HTTPS.iter().any(|words| message.contains(words));
    if status == 400 && reply_scheme == "http" && is_secure {
        return RegistryError::SpeaksTls { host };
    }
    message.push_str(&passed_on(&reply.url));
    if let Some(wait) = wait {
        message.push_str(&format!(" (retry after {} s)", wait.as_secs()));
    }
    match status {
        404 => RegistryError::NotFound { host, what, message },
        401 | 403 => {
            if reply.at_home {
                message.push_str(&login.map_or_else(|| NO_CREDENTIAL.to_owned(), |login| with_login(&login)));
            }
            RegistryError::Denied { host, what, status, message }
        }
        _ => RegistryError::Status { host, what, status, message, retry_after: wait },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exact_content_range_is_read() {
        assert_eq!(content_range("bytes 0-9/100"), Some((ByteRange::new(0, 10), Some(100))));
        assert_eq!(content_range("Bytes 99-99/100"), Some((ByteRange::new(99, 100), Some(100))));
        assert_eq!(content_range("bytes 0-9/*"), Some((ByteRange::new(0, 10), None)));
        assert_eq!(content_range("bytes 0-18446744073709551615/*"), None);
        for bad in [
            "",
            "bytes 0-9",
            "bytes 0-9/**",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes +0-9/100",
            "bytes */100",
            "items 0-9/100",
            "bytes 0-9/100, 20-29/100",
            "bytes -9/100",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(unsatisfied_total("bytes */47"), Some(47));
        assert_eq!(unsatisfied_total("bytes */*"), None);
    }

    #[test]
    fn the_label_of_an_upload_is_no_encoding() {
        for none in ["", "identity", "AWS-CHUNKED", "aws-chunked,identity", " , ", "utf-8", "binary", "none"]
        {
            assert_eq!(encoding_of(none), None, "{none}");
        }
        for (some, expected) in [("gzip", "gzip"), ("aws-chunked, gzip", "gzip"), ("br,gzip", "br, gzip")] {
            assert_eq!(encoding_of(some).as_deref(), Some(expected), "{some}");
        }
    }

    #[test]
    fn a_refusal_speaks_in_the_words_of_its_sender() {
        let text = |json: &str| refusal_text(json.as_bytes());
        assert_eq!(
            text(r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no\u001b such", "detail": {}}]}"#),
            "MANIFEST_UNKNOWN no such"
        );
        assert_eq!(
            text(r#"{"details": "incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(
            text(r#"{"errors": [{"code": "TOOMANYREQUESTS"}, {"code": "OWN_CODE", "message": "m"}]}"#),
            "TOOMANYREQUESTS OWN_CODE m"
        );
        assert_eq!(text(r#"{"errors": [{"message": "no code"}]}"#), "no code");
        assert_eq!(text(r#"{"errors": [], "error": "e", "error_description": "d"}"#), "e d");
        assert_eq!(text(r#"{"message": "403 Forbidden"}"#), "403 Forbidden");
        assert_eq!(text("{}"), "");
        assert_eq!(text("plain words"), "plain words");
    }
}
