//! HTTP clients: one for each kind of connection, the time limits of a request, and token requests.
//!
//! A client does not follow redirects, so that each hop can be checked, and sends no referrer. A token request follows
//! its own redirects here, because a login answers no challenge. HTTP/1.1 is remembered for the hosts that require it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, WARNING};
use reqwest::{Client, RequestBuilder, Response, Url};

use super::dns::DnsResolver;
use super::endpoint::{EndpointRole, RegistryEndpoint, TlsConfig, TlsVerify};
use super::options::RegistryOptions;
use super::reach::is_loopback;
use super::redact::{RedactedSecret, host_of, origin, sanitised};
use super::response::BodyReader;
use super::tls::{HttpVersions, client_config};
use super::trouble::{self, broken};
use super::{RegistryError, proxies};
use crate::io::lock;
use crate::metrics;

/// The most redirects of one request.
pub(super) const MAX_REDIRECTS: u32 = 5;
/// The least time for the first byte, in stall timeouts: a registry that is a cache fetches first.
const FIRST_BYTE: u32 = 3;
/// The longest connect timeout of a mirror: the registry itself is waiting behind it.
const MIRROR_CONNECT: Duration = Duration::from_secs(3);
/// The most distinct registry warnings that are logged.
const MAX_WARNINGS: usize = 64;

/// HTTP clients by their settings. Each has its own connections.
pub(super) struct HttpClients {
    user_agent: String,
    connect_timeout: Duration,
    stall: Duration,
    /// Time limit for the head of a response.
    pub(super) first_byte: Duration,
    /// Created on first use.
    made: Mutex<HashMap<ClientKind, Client>>,
    /// Origins (scheme, host and port) that require HTTP/1.1.
    old: Mutex<HashSet<String>>,
    /// Warnings already logged.
    warned: Mutex<HashSet<String>>,
}

/// The settings of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClientKind {
    /// The TLS settings; `None` for plain HTTP, which works on a machine without certificates.
    tls: Option<TlsConfig>,
    /// For loopback addresses, which need no proxy.
    local: bool,
    connect_timeout: Duration,
    /// The host of the registry that chose the address, which is checked when the name is resolved; `None` for the
    /// registry's own host and for hosts named in the configuration.
    guide: Option<String>,
    versions: HttpVersions,
}

/// The form of parameters for a token server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenForm {
    /// In the query.
    Get,
    /// In the body, out of the logs of servers on the way.
    Post,
}

impl HttpClients {
    pub(super) fn new(options: &RegistryOptions) -> Self {
        // reqwest is built without a provider of its own; ring needs no C toolchain. A second installation is refused
        // and changes nothing.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::trace!("the process has a crypto provider");
        }
        Self {
            user_agent: options.user_agent.clone(),
            connect_timeout: options.connect_timeout,
            stall: options.stall_timeout,
            // Half of the budget leaves time for another attempt.
            first_byte: options
                .connect_timeout
                .max(options.stall_timeout * FIRST_BYTE)
                .max(options.read_budget / 2),
            made: Mutex::default(),
            old: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    /// Drops all clients: certificates are read again, and new connections are opened.
    pub(super) fn forget(&self) {
        lock(&self.made).clear();
    }

    /// The stall timeout: the longest time without a byte.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// The client for a request to `url`: the endpoint's own address, or one it sent us to. Certificate files are
    /// read on first use; they are few and small.
    pub(super) fn of(&self, endpoint: &RegistryEndpoint, url: &Url) -> Result<Client, RegistryError> {
        let connect_timeout = match endpoint.role {
            EndpointRole::Primary => self.connect_timeout,
            EndpointRole::Mirror => self.connect_timeout.min(MIRROR_CONNECT),
        };
        let tls = (url.scheme() == "https").then(|| endpoint.tls_for(url));
        let home = endpoint.guide().home;
        let is_led =
            url.host() != home.host() && url.host_str().is_some_and(|host| !endpoint.named.contains(host));
        let guide = is_led.then(|| home.host_str().unwrap_or_default().to_owned());
        let is_old = lock(&self.old).contains(&origin(url));
        let versions = if is_old { HttpVersions::One } else { HttpVersions::All };
        let kind = ClientKind { tls, local: is_loopback(url), connect_timeout, guide, versions };
        proxies::check(url)?;
        let mut made = lock(&self.made);
        if let Some(client) = made.get(&kind) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .user_agent(&self.user_agent)
            .dns_resolver(Arc::new(DnsResolver { guide: kind.guide.clone() }))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Lines that continue a header, and blanks before its colon (RFC 9112 sections 5.1 and 5.2).
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .connect_timeout(connect_timeout)
            // A connection whose peer vanished silently must not be reused for the next attempt.
            .http2_keep_alive_interval(self.stall)
            .http2_keep_alive_timeout(self.stall);
        if kind.local {
            builder = builder.no_proxy();
        }
        builder = match &kind.tls {
            Some(tls) => builder.tls_backend_preconfigured(client_config(tls, kind.versions)?),
            None => builder.tls_certs_only([]),
        };
        if kind.versions == HttpVersions::One {
            builder = builder.http1_only();
        }
        let client = builder.build().map_err(|error| RegistryError::Setup { source: Arc::new(error) })?;
        made.insert(kind, client.clone());
        Ok(client)
    }

    /// Sends one request and waits for the head of its response, at most `waited`.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        what: &str,
        waited: Duration,
    ) -> Result<Response, RegistryError> {
        let answered = tokio::time::timeout(waited, request.send()).await;
        let status = answered.as_ref().ok().and_then(|sent| sent.as_ref().ok()).map(Response::status);
        metrics::REQUESTS.note(status.map(|status| status.as_u16()));
        let host = host_of(url);
        let error = match answered {
            Ok(Ok(response)) => {
                self.note_warnings(&host, response.headers());
                return match response.status().as_u16() {
                    407 => Err(trouble::proxy_login(url)),
                    _ => Ok(response),
                };
            }
            Ok(Err(error)) => broken(&host, what, error),
            Err(_) => RegistryError::Stalled { host: host.clone(), what: what.to_owned(), waited },
        };
        if trouble::wants_http_1(&error) {
            // The next attempt uses HTTP/1.1.
            lock(&self.old).insert(origin(url));
        }
        let is_unanswered = matches!(error, RegistryError::Unreachable { connecting: false, .. });
        if is_unanswered && url.scheme() == "http" && is_loopback(url) && self.speaks_tls(url).await {
            return Err(RegistryError::SpeaksTls { host });
        }
        Err(trouble::at_proxy(url, error).await)
    }

    /// Whether a loopback address expects HTTPS, although plain HTTP was configured.
    async fn speaks_tls(&self, url: &Url) -> bool {
        let careless = TlsConfig { verify: TlsVerify::Nothing, ..TlsConfig::default() };
        let Ok(config) = client_config(&careless, HttpVersions::One) else { return false };
        let client = Client::builder().no_proxy().tls_backend_preconfigured(config).build();
        match client {
            Ok(client) => trouble::speaks_tls(url, &client).await,
            Err(_) => false,
        }
    }

    /// Logs the warnings of a registry (distribution-spec, "Warnings"): `299 - "text"`, each once.
    fn note_warnings(&self, host: &str, headers: &HeaderMap) {
        for warning in self.new_warnings(host, headers) {
            tracing::warn!(registry = host, warning, "warning from the registry");
        }
    }

    /// The warnings that were not logged before.
    fn new_warnings(&self, host: &str, headers: &HeaderMap) -> Vec<String> {
        let mut fresh = Vec::new();
        for value in headers.get_all(WARNING) {
            let text = String::from_utf8_lossy(value.as_bytes());
            let Some(text) = text.trim().strip_prefix("299 ").and_then(|rest| rest.split_once('"')) else {
                continue;
            };
            let quoted = text.1.trim_end().strip_suffix('"').unwrap_or(text.1);
            let warning = sanitised(&quoted.replace('\\', ""));
            if self.is_new_warning(host, &warning) {
                fresh.push(warning);
            }
        }
        fresh
    }

    /// Whether a warning about `host` was not logged before; notes it.
    pub(super) fn is_new_warning(&self, host: &str, warning: &str) -> bool {
        let mut warned = lock(&self.warned);
        warned.len() < MAX_WARNINGS && warned.insert(format!("{host} {warning}"))
    }

    /// Sends a token request. A redirect of a GET is followed to an acceptable realm, with the login only while
    /// scheme, host and port stay the same. A form is not sent to another origin.
    pub(super) async fn token(
        &self,
        endpoint: &RegistryEndpoint,
        realm: &Url,
        form: TokenForm,
        pairs: &[(&str, &str)],
        authorization: Option<&RedactedSecret>,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let mut url = realm.clone();
        let mut body = None;
        match form {
            TokenForm::Get => drop(url.query_pairs_mut().extend_pairs(pairs)),
            TokenForm::Post => {
                // The query of a scratch URL is the form encoding.
                let mut scratch = realm.clone();
                scratch.set_query(None);
                scratch.query_pairs_mut().extend_pairs(pairs);
                body = Some(scratch.query().unwrap_or_default().to_owned());
            }
        }
        let home = origin(&url);
        let mut visited = vec![url.clone()];
        for _ in 0..=MAX_REDIRECTS {
            let client = self.of(endpoint, &url)?;
            let is_home = origin(&url) == home;
            let mut request = match &body {
                None => client.get(url.clone()),
                Some(body) => client
                    .post(url.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body.clone()),
            };
            if let Some(secret) = authorization.filter(|_| is_home) {
                request = request.header(AUTHORIZATION, sensitive(secret, &url, what)?);
            }
            let request = request.header(ACCEPT, "application/json");
            let response = self.send(request, &url, what, self.first_byte).await?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let host = host_of(&url);
            let misled =
                |reason: String| RegistryError::Misled { host: host.clone(), what: what.to_owned(), reason };
            let next = response.headers().get(LOCATION).ok_or("a redirect to nowhere".to_owned());
            let next = next.and_then(|location| endpoint.follow(&url, location.as_bytes()));
            let next = next.and_then(|next| new_address(&visited, next)).map_err(misled)?;
            endpoint.guide().check_realm(&next).map_err(misled)?;
            if body.is_some() && (origin(&next) != home || !matches!(status, 307 | 308)) {
                return Err(misled(format!("status {status}, which does not take a form along")));
            }
            BodyReader { host: &host, what, stall: self.stall }.discard(response).await;
            visited.push(next.clone());
            url = next;
        }
        Err(RegistryError::Redirects { host: host_of(&url), what: what.to_owned(), most: MAX_REDIRECTS })
    }
}

/// The target of a redirect, which may not be one of the addresses that led to it: the same request gets the same
/// answer there.
pub(super) fn new_address(visited: &[Url], next: Url) -> Result<Url, String> {
    match visited.contains(&next) {
        true => Err("a redirect to itself".to_owned()),
        false => Ok(next),
    }
}

/// A header that the logs of the HTTP crates do not show.
pub(super) fn sensitive(
    secret: &RedactedSecret,
    url: &Url,
    what: &str,
) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| RegistryError::Credentials {
        place: format!("the login for {}", host_of(url)),
        reason: format!("it makes no header for {what}"),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_shown_once_for_each_registry() {
        let clients = HttpClients::new(&RegistryOptions::default());
        let of = |host: &str, values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WARNING, HeaderValue::from_str(value).unwrap());
            }
            clients.new_warnings(host, &headers)
        };
        let both =
            ["299 - \"moves to r.example in May\"", "299 - \"read \\\"this\\\"\"", "110 r \"stale\"", "299"];
        assert_eq!(of("r.example", &both), ["moves to r.example in May", "read \"this\""]);
        assert!(of("r.example", &both).is_empty());
        assert_eq!(of("s.example", &both).len(), 2);
        for number in 0..2 * MAX_WARNINGS {
            of("evil.example", &[&format!("299 - \"{number}\"")]);
        }
        assert!(lock(&clients.warned).len() <= MAX_WARNINGS);
    }

    #[test]
    fn a_redirect_to_any_address_of_its_chain_is_refused() {
        let url = |path: &str| Url::parse(&format!("http://r.example/{path}")).unwrap();
        let visited = [url("a"), url("b")];
        assert!(new_address(&visited, url("a")).is_err() && new_address(&visited, url("b")).is_err());
        assert_eq!(new_address(&visited, url("c")), Ok(url("c")));
    }

    #[test]
    fn a_longer_patience_waits_longer_for_a_first_byte() {
        let first_byte = |seconds| {
            let read_budget = Duration::from_secs(seconds);
            HttpClients::new(&RegistryOptions { read_budget, ..RegistryOptions::default() })
                .first_byte
                .as_secs()
        };
        assert_eq!([first_byte(60), first_byte(90), first_byte(300)], [30, 45, 150]);
    }
}
