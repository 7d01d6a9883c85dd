//! One request and its redirects: clients, methods, headers, and who may see the authorization.
//!
//! Nothing is tried twice here except for a login. The idea: redirects are followed by hand, because only then can each hop
//! be told apart: a credential goes to the registry's own scheme, host and port, https never turns into http, and nothing
//! tells the next host where we came from.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Certificate, Client, ClientBuilder, Identity, RequestBuilder, Response, Url};

use super::answer::{self, Body};
use super::auth::{Auth, Scope, origin};
use super::challenge::is_loopback;
use super::endpoint::{Endpoint, Role, Tls, Verify};
use super::names::Names;
use super::redact::{Secret, ShownUrl, host_of};
use super::walk::lock;
use super::{Options, RegistryError};
use crate::io::ByteRange;
use crate::meter;

/// How many redirects one request follows.
const MAX_REDIRECTS: u32 = 5;
/// The first byte of an answer may take this many stall times: a registry that is a cache fetches first.
const FIRST_BYTE: u32 = 3;
/// The slowest upload that is waited for, in bytes a second: half a megabit.
const SLOWEST_UPLOAD: u64 = 64 * 1024;

/// How long a connection to a mirror may take at most: the registry itself is waiting behind it.
const MIRROR_CONNECT: Duration = Duration::from_secs(3);
/// The largest file with certificates that is read, in bytes.
const MAX_CERTIFICATES: u64 = 4 * 1024 * 1024;

/// HTTP clients by what they need. They share nothing but options; each keeps its own connections.
pub(super) struct Clients {
    user_agent: String,
    connect_timeout: Duration,
    stall: Duration,
    /// Made when they are first needed.
    made: Mutex<HashMap<Kind, Client>>,
}

/// What a client has to be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// The certificates; none for plain http, so that it works on a machine that has none.
    tls: Option<Tls>,
    /// For this machine, where no proxy is between.
    local: bool,
    connect_timeout: Duration,
}

/// How parameters go to a token server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In the query.
    Get,
    /// In the body, where no log of a server on the way has them.
    Post,
}

impl Clients {
    pub(super) fn new(options: &Options) -> Self {
        // reqwest is built without a provider of its own; ring needs no C toolchain. A second installation is refused and
        // changes nothing.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("the process has a crypto provider");
        }
        Self {
            user_agent: options.user_agent.clone(),
            connect_timeout: options.connect_timeout,
            stall: options.stall_timeout,
            made: Mutex::default(),
        }
    }

    /// Reads certificates anew, and opens new connections.
    pub(super) fn forget(&self) {
        lock(&self.made).clear();
    }

    /// How long nothing may arrive.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// The client for a request to `url`, where `endpoint` is or where it sent us. Files with certificates are read here, when
    /// they are first needed: they are few and small.
    fn of(&self, endpoint: &Endpoint, url: &Url) -> Result<Client, RegistryError> {
        let connect_timeout = match endpoint.role {
            Role::Primary => self.connect_timeout,
            Role::Mirror => self.connect_timeout.min(MIRROR_CONNECT),
        };
        let tls = (url.scheme() == "https").then(|| endpoint.tls_for(url));
        let kind = Kind { tls, local: is_loopback(url), connect_timeout };
        let mut made = lock(&self.made);
        if let Some(client) = made.get(&kind) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .user_agent(&self.user_agent)
            .dns_resolver(Arc::new(Names))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(connect_timeout)
            // A connection whose peer went away in silence must not be used for the next try.
            .http2_keep_alive_interval(self.stall)
            .http2_keep_alive_timeout(self.stall);
        if kind.local {
            builder = builder.no_proxy();
        }
        builder = match &kind.tls {
            Some(tls) => with_certificates(builder, tls)?,
            None => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|error| RegistryError::Setup { source: Arc::new(error) })?;
        made.insert(kind, client.clone());
        Ok(client)
    }

    /// Sends one request and waits for the head of its answer.
    async fn send(&self, request: RequestBuilder, host: &str, what: &str) -> Result<Response, RegistryError> {
        self.send_within(request, host, what, self.patience()).await
    }

    /// How long the head of an answer may take when nothing is uploaded.
    fn patience(&self) -> Duration {
        self.connect_timeout.max(self.stall * FIRST_BYTE)
    }

    async fn send_within(
        &self,
        request: RequestBuilder,
        host: &str,
        what: &str,
        waited: Duration,
    ) -> Result<Response, RegistryError> {
        let answered = tokio::time::timeout(waited, request.send()).await;
        let status = answered.as_ref().ok().and_then(|sent| sent.as_ref().ok()).map(Response::status);
        meter::REQUESTS.note(status.map(|status| status.as_u16()));
        match answered {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(broken(host, what, error)),
            Err(_) => Err(RegistryError::Stalled { host: host.to_owned(), what: what.to_owned(), waited }),
        }
    }

    /// A token request. Redirects are not followed: the answer to one is an answer with a wrong status.
    pub(super) async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &Url,
        form: Form,
        pairs: &[(&str, &str)],
        authorization: Option<&Secret>,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let client = self.of(endpoint, realm)?;
        let mut url = realm.clone();
        let mut request = match form {
            Form::Get => {
                url.query_pairs_mut().extend_pairs(pairs);
                client.get(url)
            }
            Form::Post => {
                // The query of a scratch URL is the form encoding.
                let mut scratch = realm.clone();
                scratch.set_query(None);
                scratch.query_pairs_mut().extend_pairs(pairs);
                let body = scratch.query().unwrap_or_default().to_owned();
                client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
            }
        };
        if let Some(secret) = authorization {
            request = request.header(AUTHORIZATION, sensitive(secret, realm, what)?);
        }
        self.send(request.header(ACCEPT, "application/json"), &host_of(realm), what).await
    }
}

/// What is done at an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act<'a> {
    /// Read it.
    Get,
    /// Ask whether it is there.
    Head,
    /// Begin an upload: a POST without a body.
    Begin,
    /// Keep these bytes there.
    Put {
        /// What they are called.
        media_type: &'a str,
        /// All of them.
        bytes: &'a Bytes,
    },
}

impl Act<'_> {
    /// How much longer than a question it may take.
    fn upload(self) -> Duration {
        match self {
            Act::Get | Act::Head | Act::Begin => Duration::ZERO,
            Act::Put { bytes, .. } => upload_time(bytes.len()),
        }
    }

    /// Whether a redirect that turns the request into a GET would still be the same request (RFC 9110 section 15.4).
    fn is_safe(self) -> bool {
        match self {
            Act::Get | Act::Head => true,
            Act::Begin | Act::Put { .. } => false,
        }
    }

    /// The method, for logs.
    fn name(self) -> &'static str {
        match self {
            Act::Get => "GET",
            Act::Head => "HEAD",
            Act::Begin => "POST",
            Act::Put { .. } => "PUT",
        }
    }

    fn request(self, client: &Client, url: Url) -> RequestBuilder {
        match self {
            Act::Get => client.get(url),
            Act::Head => client.head(url),
            // The distribution-spec wants a Content-Length of 0 ("POST then PUT"), which hyper does not say by itself.
            Act::Begin => client.post(url).header(CONTENT_LENGTH, 0),
            Act::Put { media_type, bytes } => {
                let request = client.put(url).header(CONTENT_TYPE, media_type);
                request.header(CONTENT_LENGTH, bytes.len()).body(bytes.clone())
            }
        }
    }
}

/// How long an upload of this many bytes is waited for.
pub(super) fn upload_time(bytes: usize) -> Duration {
    Duration::from_secs(bytes as u64 / SLOWEST_UPLOAD)
}

/// A request to a registry.
pub(super) struct Question<'a> {
    /// Whom it is for.
    pub(super) scope: &'a Scope,
    /// What is to be done there.
    pub(super) act: Act<'a>,
    /// The media types that may come.
    pub(super) accept: &'a str,
    /// The bytes, when not all.
    pub(super) range: Option<ByteRange>,
    /// Its name in errors.
    pub(super) what: &'a str,
}

/// An answer that is neither a redirect nor a challenge we could meet.
pub(super) struct Reply {
    /// The answer, its body unread.
    pub(super) response: Response,
    /// Who gave it.
    pub(super) url: Url,
    /// Whether that is the registry itself.
    pub(super) at_home: bool,
    /// Whether a redirect led there.
    pub(super) redirected: bool,
    /// Whether it was asked in somebody's name.
    pub(super) authenticated: bool,
}

/// Asks `question` at `start`, follows redirects, and logs in once for each host that asks for it.
pub(super) async fn ask(
    clients: &Clients,
    auth: &Auth,
    question: &Question<'_>,
    start: &Url,
) -> Result<Reply, RegistryError> {
    let Question { scope, what, .. } = *question;
    let home = scope.endpoint.origin();
    let (mut url, mut redirects) = (start.clone(), 0);
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
        let waited = clients.patience() + question.act.upload();
        let response = clients.send_within(request, &host, what, waited).await?;
        let status = response.status().as_u16();
        tracing::debug!(url = %ShownUrl(&url), act = question.act.name(), range = question.range.map(tracing::field::debug), status, "request");
        let body = Body { host: &host, what, stall: clients.stall() };
        let at_home = origin(&url) == home;
        let protocol =
            |reason: String| RegistryError::Protocol { host: host.clone(), what: what.to_owned(), reason };
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            if matches!(status, 301..=303) && !question.act.is_safe() {
                return Err(protocol(format!("status {status}, which does not take an upload along")));
            }
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(RegistryError::Redirects { host, what: what.to_owned(), most: MAX_REDIRECTS });
            }
            let next = answer::header(&response, "location").ok_or("a redirect to nowhere".to_owned());
            let next = next.and_then(|location| follow(&url, location)).map_err(protocol)?;
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
                // Elsewhere we have no name to give; the caller may know another way.
                Ok(None) | Err(_) => {}
            }
        }
        let authenticated = authorization.is_some_and(|known| known.authenticated);
        return Ok(Reply { response, url, at_home, redirected: redirects > 0, authenticated });
    }
}

/// A client that trusts and shows what `tls` says, beside what the system trusts.
fn with_certificates(builder: ClientBuilder, tls: &Tls) -> Result<ClientBuilder, RegistryError> {
    let mut authorities = Vec::new();
    for file in &tls.authorities {
        let found = Certificate::from_pem_bundle(&certificates(file)?);
        let found = found.ok().filter(|found| !found.is_empty());
        authorities.extend(found.ok_or_else(|| unusable(file, "it holds no certificate in PEM"))?);
    }
    let mut builder = if authorities.is_empty() { builder } else { builder.tls_certs_merge(authorities) };
    // The protocol lets a client show one: the first, as the others would never be asked for.
    if let Some((certificate, key)) = tls.pairs.first() {
        let mut pem = key.as_deref().map(certificates).transpose()?.unwrap_or_default();
        pem.push(b'\n');
        pem.extend(certificates(certificate)?);
        let identity = Identity::from_pem(&pem);
        builder = builder.identity(
            identity.map_err(|_| unusable(certificate, "it makes no certificate with a key, in PEM"))?,
        );
    }
    Ok(match tls.verify {
        Verify::Certificate => builder,
        Verify::Nothing => builder.tls_danger_accept_invalid_certs(true),
    })
}

fn certificates(file: &Path) -> Result<Vec<u8>, RegistryError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| unusable(file, error))?;
    opened.take(MAX_CERTIFICATES + 1).read_to_end(&mut bytes).map_err(|error| unusable(file, error))?;
    if bytes.len() as u64 > MAX_CERTIFICATES {
        return Err(unusable(file, format!("it has more than {MAX_CERTIFICATES} bytes")));
    }
    Ok(bytes)
}

fn unusable(file: &Path, reason: impl std::fmt::Display) -> RegistryError {
    RegistryError::Config { place: file.display().to_string(), reason: reason.to_string() }
}

/// The headers that the configuration wants at a host. Those that decide what is asked for are ours, and a login that the host
/// asked for is better than one that was written down.
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

/// Where a redirect (or the place of an upload) leads, when it may be followed.
pub(super) fn follow(from: &Url, location: &str) -> Result<Url, String> {
    let mut next = from.join(location).map_err(|_| "a redirect to something that is not a URL".to_owned())?;
    match (from.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(format!("a redirect from https to http at {}", host_of(&next))),
        _ => return Err("a redirect to something that is not http".into()),
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(format!("a redirect that names a user at {}", host_of(&next)));
    }
    next.set_fragment(None);
    Ok(next)
}

/// A header that no log of the HTTP crates shows.
fn sensitive(secret: &Secret, url: &Url, what: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| RegistryError::Credentials {
        place: format!("the login for {}", host_of(url)),
        reason: format!("it makes no header for {what}"),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The error of a connection. Its URL is cut out, because the query may be signed.
pub(super) fn broken(host: &str, what: &str, error: reqwest::Error) -> RegistryError {
    let connecting = error.is_connect();
    let source = Arc::new(error.without_url());
    let host = host.to_owned();
    if connecting && is_tls(&source) {
        return RegistryError::Insecure { host, source };
    }
    RegistryError::Unreachable { host, what: what.to_owned(), connecting, source }
}

/// Whether TLS is what failed. An `io::Error` hides the error it holds from `source()`, and one may hold another.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || held.is_some_and(|held| is_tls(held)) || error.source().is_some_and(is_tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_https() {
        let from = |from: &str, to: &str| follow(&from.parse().unwrap(), to).map(|url| url.to_string());
        assert_eq!(from("https://r.example/v2/a", "/other?x=1").unwrap(), "https://r.example/other?x=1");
        assert_eq!(from("http://r.example/", "https://cdn.example/").unwrap(), "https://cdn.example/");
        assert_eq!(from("http://127.0.0.1:1/", "http://127.0.0.1:2/").unwrap(), "http://127.0.0.1:2/");
        for bad in ["http://r.example/", "file:///etc/passwd", "ftp://x/", "https://user:pw@cdn.example/"] {
            let reason = from("https://r.example/", bad).unwrap_err();
            assert!(!reason.contains("pw"), "{reason}");
        }
    }
}
