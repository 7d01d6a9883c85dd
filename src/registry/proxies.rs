//! Proxy variables of the environment: HTTPS_PROXY, HTTP_PROXY and ALL_PROXY.
//!
//! The HTTP client reads the same variables, and silently ignores invalid ones. The one for a request is checked here, and
//! named in errors. The choice of a proxy is up to the client.

use std::sync::OnceLock;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::RegistryError;
use super::reach::is_loopback;
use super::redact::host_of;

/// The variables, in both cases that are read.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// A proxy, and the variable that names it.
#[derive(Clone, Debug)]
struct NamedProxy {
    variable: &'static str,
    /// The URL, or the reason why it cannot be used.
    url: Result<Url, &'static str>,
}

/// The proxies of the environment, read at the first call.
fn all() -> &'static [NamedProxy] {
    static ALL: OnceLock<Vec<NamedProxy>> = OnceLock::new();
    ALL.get_or_init(|| {
        let named = |variable: &'static str| {
            let text = std::env::var(variable).ok().filter(|text| !text.trim().is_empty())?;
            Some(NamedProxy { variable, url: parsed(&text) })
        };
        VARIABLES.into_iter().filter_map(named).collect()
    })
}

/// Parses a proxy: a URL, or a host with a port.
fn parsed(text: &str) -> Result<Url, &'static str> {
    let text = text.trim();
    let url = match text.contains("://") {
        true => text.parse::<Url>(),
        false => format!("http://{text}").parse(),
    };
    let url = url.ok().filter(|url| url.host_str().is_some_and(|host| !host.is_empty()));
    let url = url.ok_or("it is not the URL of a proxy")?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("only proxies of http and https are supported"),
    }
}

/// Whether a host is that of a proxy.
pub(super) fn is_proxy(host: &str) -> bool {
    all().iter().any(|proxy| proxy.url.as_ref().ok().and_then(Url::host_str) == Some(host))
}

/// Refuses a variable without a valid URL for requests to `url`: they would bypass the intended proxy.
pub(super) fn check(url: &Url) -> Result<(), RegistryError> {
    match chosen(url).map(|proxy| (proxy.variable, &proxy.url)) {
        Some((variable, Err(reason))) => {
            Err(RegistryError::Config { place: variable.to_owned(), reason: (*reason).to_owned() })
        }
        _ => Ok(()),
    }
}

/// The variable and the URL of the proxy for requests to `url`; `None` without a proxy.
pub(super) fn for_url(url: &Url) -> Option<(&'static str, &'static Url)> {
    let proxy = chosen(url)?;
    Some((proxy.variable, proxy.url.as_ref().ok()?))
}

/// The proxy for requests to `url`, for messages; `None` without a proxy.
pub(super) fn shown_for(url: &Url) -> Option<String> {
    for_url(url).map(|(variable, proxy)| format!("{} of {variable}", host_of(proxy)))
}

/// The proxy for requests to `url`, valid or not.
fn chosen(url: &Url) -> Option<&'static NamedProxy> {
    let scheme = url.scheme();
    let fits = |variable: &str| {
        let lower = variable.to_ascii_lowercase();
        lower == format!("{scheme}_proxy") || lower == "all_proxy"
    };
    let proxy = all().iter().find(|proxy| fits(proxy.variable))?;
    (!is_loopback(url) && !is_excepted(url)).then_some(proxy)
}

/// Whether NO_PROXY excepts the host.
fn is_excepted(url: &Url) -> bool {
    static EXCEPT: OnceLock<Matcher> = OnceLock::new();
    let except = EXCEPT.get_or_init(|| {
        let hosts = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
        // Any proxy: the list of hosts alone decides.
        Matcher::builder().all("http://proxy.invalid").no(hosts.unwrap_or_default()).build()
    });
    url.as_str().parse().is_ok_and(|uri| except.intercept(&uri).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_or_a_host_with_a_port() {
        for (text, host) in [
            ("http://proxy.example:3128", Some("proxy.example")),
            ("proxy.example:3128", Some("proxy.example")),
            (" https://u:p@10.0.0.1 ", Some("10.0.0.1")),
            ("http://", None),
            ("not a proxy", None),
            ("http://[x", None),
            (":3128", None),
            ("socks5://127.0.0.1:1080", None),
            ("ftp://proxy.example", None),
        ] {
            let url = parsed(text);
            assert_eq!(url.as_ref().ok().and_then(Url::host_str), host, "{text}");
        }
    }
}
