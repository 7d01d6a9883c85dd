//! Proxies for plain HTTP, which answer in the place of the registry, and proxies that cannot be used.

use super::matrix::{Asked, Desk, Reply};
use super::messages::{Image, ocifs};
use super::*;
use crate::process::{Finished, run};

/// `ocifs inspect` of a registry that only a proxy knows.
fn inspect(environment: &[(&str, String)], arguments: &[&str]) -> Finished {
    let home = tempfile::tempdir().unwrap();
    let words = [&["inspect", "--timeout=5", "registry.test/a/b:v1"], arguments].concat();
    run(ocifs(home.path(), &words).envs(environment.iter().map(|(name, value)| (name, value))))
}

fn through(desk: &Desk) -> [(&'static str, String); 1] {
    [("HTTP_PROXY", format!("http://{}", desk.host()))]
}

#[test]
fn proxy_passes_requests_of_plain_http_on_and_is_named_where_it_refuses() {
    let desk = Image::new().serve(|_| None);
    inspect(&through(&desk), &["--plain-http"]).ok();
    assert!(desk.asked() > 0 && desk.lines()[0].contains("http://registry.test/"), "{:?}", desk.lines());
    for (status, code, tries) in [(403, 4, 1), (503, 5, 5)] {
        let desk = Image::new().serve(move |_| Some(Reply::new(status, b"")));
        let refused = inspect(&through(&desk), &["--plain-http"]);
        let named = format!("through proxy {} of HTTP_PROXY", desk.host());
        refused.refused(&[code], &[&named, &format!("status {status}"), "NO_PROXY"]);
        assert_eq!(desk.asked(), tries, "{:?}", desk.lines());
    }
}

#[test]
fn web_page_of_a_proxy_is_not_called_the_fault_of_the_registry() {
    fn page() -> Reply {
        Reply::new(200, b"<html>log in").with("Content-Type", "text/html")
    }
    let image = Image::new();
    let layer = Digest::sha256(&image.layer).to_string();
    let at = |part: &'static str| move |asked: &Asked| asked.path.contains(part).then(page);
    let of_token = |asked: &Asked| match asked.path.contains("/token") {
        true => Some(page()),
        false => Some(
            Reply::new(401, b"")
                .with("WWW-Authenticate", "Bearer realm=\"http://registry.test/token\",service=\"s\""),
        ),
    };
    for desk in [Image::new().serve(at("/manifests/")), Image::new().serve(of_token)] {
        let refused = inspect(&through(&desk), &["--plain-http"]);
        let named = format!("through proxy {} of HTTP_PROXY", desk.host());
        refused.refused(&[5], &[&named, "the answer of the proxy", "NO_PROXY"]);
        assert!(!refused.stderr.contains("is this a registry"), "{}", refused.stderr);
    }
    let desk = image.serve(move |asked| asked.path.contains(&layer).then(page));
    let home = tempfile::tempdir().unwrap();
    let words = ["cat", "--timeout=5", "--plain-http", "registry.test/a/b:v1", "merged/f"];
    let refused = run(ocifs(home.path(), &words).envs(through(&desk)));
    refused.refused(&[5], &["a web page", &format!("through proxy {} of HTTP_PROXY", desk.host())]);
}

#[test]
fn token_server_that_refuses_by_way_of_a_proxy_is_marked() {
    let desk = Image::new().serve(|asked| match asked.path.contains("/token") {
        true => Some(Reply::new(403, b"")),
        false => Some(
            Reply::new(401, b"")
                .with("WWW-Authenticate", "Bearer realm=\"http://registry.test/token\",service=\"s\""),
        ),
    });
    let refused = inspect(&through(&desk), &["--plain-http"]);
    refused.refused(&[4], &["token server", &format!("through proxy {} of HTTP_PROXY", desk.host())]);
}

#[test]
fn proxy_that_requires_a_login_is_named_and_asked_once() {
    let desk =
        Image::new().serve(|_| Some(Reply::new(407, b"").with("Proxy-Authenticate", "Basic realm=\"p\"")));
    let refused = inspect(&through(&desk), &["--plain-http"]);
    refused.refused(
        &[5],
        &[&format!("proxy {} of HTTP_PROXY refused", desk.host()), "407", "hint: the proxy refuses"],
    );
    assert!(!refused.stderr.contains("docker login"), "{}", refused.stderr);
    assert_eq!(desk.asked(), 1);
}

#[test]
fn proxy_that_is_not_there_is_named_for_both_schemes() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (variable, arguments) in
        [("HTTP_PROXY", &["--plain-http"][..]), ("HTTPS_PROXY", &[]), ("ALL_PROXY", &[])]
    {
        let refused = inspect(&[(variable, format!("http://{dead}"))], arguments);
        refused.refused(&[5], &[&format!("through proxy {dead} of {variable}"), "hint: check the proxy"]);
        // A host that is reached without it is not reached through it.
        let environment = [(variable, format!("http://{dead}")), ("NO_PROXY", ".test".to_owned())];
        let direct = inspect(&environment, arguments);
        direct.refused(&[5], &["registry.test"]);
        assert!(!direct.stderr.contains("proxy"), "{}", direct.stderr);
    }
}

#[test]
fn silent_proxy_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    for (variable, arguments) in [("HTTP_PROXY", &["--plain-http"][..]), ("HTTPS_PROXY", &[])] {
        let refused = inspect(&[(variable, format!("http://{silent}"))], arguments);
        refused.refused(&[5], &[&format!("through proxy {silent} of {variable}"), "hint: check the proxy"]);
    }
}

#[test]
fn variable_with_a_proxy_of_another_scheme_is_an_error_where_it_would_be_used() {
    for variable in ["HTTPS_PROXY", "ALL_PROXY"] {
        let named = [(variable, "socks5://127.0.0.1:1080".to_owned())];
        inspect(&named, &[]).refused(&[2], &[variable, "only proxies of http and https"]);
    }
    let desk = Image::new().serve(|_| None);
    let [of_http] = through(&desk);
    inspect(&[of_http, ("ALL_PROXY", "socks5://127.0.0.1:1080".to_owned())], &["--plain-http"]).ok();
}
