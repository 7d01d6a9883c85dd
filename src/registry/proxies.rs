//! Proxy variables of the environment: HTTPS_PROXY, HTTP_PROXY and ALL_PROXY.
//!
//! The HTTP client reads the same variables, and silently ignores invalid ones. They are checked once here, and named
//! in errors. The choice of a proxy is up to the client.

use std::sync::OnceLock;

use reqwest::Url;

use super::RegistryError;

/// The variables, in both cases that are read.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// A proxy, and the variable that names it.
#[derive(Clone, Debug)]
struct NamedProxy {
    variable: &'static str,
    /// `None` if the text is no URL.
    url: Option<Url>,
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
fn parsed(text: &str) -> Option<Url> {
    let text = text.trim();
    let url = match text.contains("://") {
        true => text.parse::<Url>(),
        false => format!("http://{text}").parse(),
    };
    url.ok().filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
}

/// Whether a host is that of a proxy.
pub(super) fn is_proxy(host: &str) -> bool {
    all().iter().any(|proxy| proxy.url.as_ref().and_then(Url::host_str) == Some(host))
}

/// Refuses a variable without a valid URL: requests would bypass the intended proxy.
pub(super) fn check() -> Result<(), RegistryError> {
    match all().iter().find(|proxy| proxy.url.is_none()) {
        Some(proxy) => Err(RegistryError::Config {
            place: proxy.variable.to_owned(),
            reason: "it is not the URL of a proxy".into(),
        }),
        None => Ok(()),
    }
}

/// The variable and the URL of the proxy for requests to `url`; `None` without a proxy.
pub(super) fn for_url(url: &Url) -> Option<(&'static str, &'static Url)> {
    let scheme = url.scheme();
    let fits = |variable: &str| {
        let lower = variable.to_ascii_lowercase();
        lower == format!("{scheme}_proxy") || lower == "all_proxy"
    };
    let proxy = all().iter().find(|proxy| fits(proxy.variable))?;
    Some((proxy.variable, proxy.url.as_ref()?))
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
        ] {
            let url = parsed(text);
            assert_eq!(url.as_ref().and_then(Url::host_str), host, "{text}");
        }
    }
}
