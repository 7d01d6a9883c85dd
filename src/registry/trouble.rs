//! Diagnosis of failed connections: proxy, protocol or certificate.
//!
//! The HTTP client only reports what its libraries do. The details that a user needs (which proxy, which protocol,
//! which certificate) are found out once, after a failure. No request is retried here.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::RegistryError;
use super::error::THROUGH_PROXY;
use super::proxies;
use super::reach::PrivateAddress;
use super::redact::{host_of, sanitised};
use super::tls_trouble::{TlsTrouble, cause};

/// Time limit for a proxy to repeat its refusal.
const PROXY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest status line that is read, in bytes.
const MAX_STATUS_LINE: u64 = 1024;

/// The error of a connection, without its URL, because the query may be signed.
pub(super) fn broken(host: &str, what: &str, error: reqwest::Error) -> RegistryError {
    let connecting = error.is_connect();
    let source = Arc::new(error.without_url());
    let host = host.to_owned();
    if let Some(led) = cause::<PrivateAddress>(&source) {
        return RegistryError::Misled { host, what: what.to_owned(), reason: led.to_string() };
    }
    let is_tls = cause::<rustls::Error>(&source).is_some();
    let is_final = !matches!(TlsTrouble::of(&source), TlsTrouble::Other | TlsTrouble::NoTls);
    if is_tls && (connecting || is_final) {
        return RegistryError::Insecure { host, source };
    }
    RegistryError::Unreachable { host, what: what.to_owned(), connecting, source }
}

/// Whether a failure means that the host supports no HTTP/2.
pub(super) fn wants_http_1(error: &RegistryError) -> bool {
    says(error, "HTTP_1_1_REQUIRED") || says(error, "requires HTTP/1.1")
}

fn says(error: &RegistryError, words: &str) -> bool {
    let RegistryError::Unreachable { source, .. } = error else { return false };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
    while let Some(error) = next {
        if error.to_string().contains(words) || format!("{error:?}").contains(words) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The error for a 407, which only a proxy sends (RFC 9110 section 15.5.8).
pub(super) fn proxy_login(url: &Url) -> RegistryError {
    RegistryError::Proxy {
        host: host_of(url),
        proxy: proxies::shown_for(url).unwrap_or_else(|| "of the network".to_owned()),
        status: Some(407),
        reason: "status 407: it requires a login".to_owned(),
    }
}

/// Adds the name of the proxy to a failed request to `url`, and the answer of a proxy that refused to connect.
pub(super) async fn at_proxy(url: &Url, error: RegistryError) -> RegistryError {
    let is_refused =
        says(&error, "tunnel error: unsuccessful") || says(&error, "proxy authorization required");
    let Some((variable, proxy)) = proxies::for_url(url) else { return error };
    if !is_refused {
        return named(error, proxies::shown_for(url).unwrap_or_default());
    }
    let answer = tokio::time::timeout(PROXY_TIMEOUT, refusal_of(proxy, url)).await.ok().flatten();
    let status = answer.as_deref().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    RegistryError::Proxy {
        host: host_of(url),
        proxy: format!("{} of {variable}", host_of(proxy)),
        status,
        reason: answer.map_or_else(|| "no tunnel".to_owned(), |line| sanitised(&line)),
    }
}

/// Adds the name of the proxy to a request to the host of `root` that got no byte in time.
pub(super) fn silent_proxy(root: &Url, error: RegistryError) -> RegistryError {
    match (&error, proxies::shown_for(root)) {
        (RegistryError::Stalled { host, .. }, Some(proxy)) if *host == host_of(root) => named(error, proxy),
        _ => error,
    }
}

/// A failed request with the name of the proxy on its way.
fn named(error: RegistryError, proxy: String) -> RegistryError {
    let through = |host: String| format!("{host} {THROUGH_PROXY} {proxy}");
    match error {
        RegistryError::Unreachable { host, what, connecting, source } => {
            RegistryError::Unreachable { host: through(host), what, connecting, source }
        }
        RegistryError::Stalled { host, what, waited } => {
            RegistryError::Stalled { host: through(host), what, waited }
        }
        RegistryError::Insecure { host, source } => RegistryError::Insecure { host: through(host), source },
        other => other,
    }
}

/// The status line of a proxy that refuses a tunnel; the HTTP client does not report it.
///
/// A proxy that is reached by TLS is not asked again: its login does not leave this machine in clear text.
async fn refusal_of(proxy: &Url, url: &Url) -> Option<String> {
    if proxy.scheme() != "http" {
        return None;
    }
    let address = (proxy.host_str()?, proxy.port_or_known_default()?);
    let target = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(password) = proxy.password() {
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = format!("{}:{}", plain(proxy.username()), plain(password));
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let mut limited = stream.take(MAX_STATUS_LINE);
    while !answer.contains(&b'\n') {
        if limited.read_buf(&mut answer).await.ok()? == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&answer).lines().next().map(str::to_owned)
}

/// Whether a host that was addressed by HTTP answers a TLS handshake.
pub(super) async fn speaks_tls(url: &Url, client: &reqwest::Client) -> bool {
    let mut secure = url.clone();
    if secure.set_scheme("https").is_err() || secure.set_port(url.port_or_known_default()).is_err() {
        return false;
    }
    secure.set_path("/v2/");
    secure.set_query(None);
    match tokio::time::timeout(PROXY_TIMEOUT, client.head(secure).send()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(cause::<rustls::Error>(&error), Some(rustls::Error::AlertReceived(_))),
        Err(_) => false,
    }
}
