//! Which entry counts, and where it leads.

use std::path::Path;

use super::*;

/// A home with these files, as the user's and as the system's.
fn home(files: &[(&str, &str)]) -> (tempfile::TempDir, ConfigPaths) {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let dir = |name: &str| Some(home.path().join(name));
    let places = ConfigPaths {
        user: dir("user"),
        system: dir("system"),
        docker: dir("docker"),
        ..ConfigPaths::default()
    };
    (home, places)
}

fn route(places: &ConfigPaths, reference: &str) -> RepositoryRoute {
    let config = RegistryConfig::load(places, ConnectionArgs::default()).unwrap();
    config.route(&reference.parse().unwrap()).unwrap()
}

/// The addresses, those of mirrors with a mark.
fn addresses(places: &ConfigPaths, reference: &str) -> Vec<String> {
    let route = route(places, reference);
    let shown = |endpoint: &Arc<RegistryEndpoint>| match endpoint.role {
        EndpointRole::Primary => endpoint.root.to_string(),
        EndpointRole::Mirror => format!("mirror {}", endpoint.root),
    };
    route.endpoints.iter().map(shown).collect()
}

#[test]
fn the_longest_prefix_of_whole_components_counts_alone() {
    let text = r#"
        [[registry]]
        prefix = "r.example"
        location = "host.example"
        [[registry]]
        prefix = "r.example/team"
        location = "team.example/x"
        [[registry]]
        prefix = "*.example"
        location = "all.example"
        [[registry]]
        prefix = "r.example/team"
        location = "ignored.example"
    "#;
    let (_home, places) = home(&[("system/registries.conf", text)]);
    for (reference, address) in [
        ("r.example/a", "https://host.example/v2/a/"),
        ("r.example/team/app", "https://team.example/v2/x/app/"),
        ("r.example/teams/app", "https://host.example/v2/teams/app/"),
        ("q.example/a/b", "https://all.example/v2/a/b/"),
        ("q.s.example/a", "https://all.example/v2/a/"),
        ("r.example:5000/a", "https://r.example:5000/v2/a/"),
        ("example.org/a", "https://example.org/v2/a/"),
        ("docker.io/library/nginx", "https://registry-1.docker.io/v2/library/nginx/"),
    ] {
        assert_eq!(addresses(&places, reference), [address], "{reference}");
    }
}

#[test]
fn a_blocked_host_is_blocked_in_every_spelling() {
    let text = r#"
        [[registry]]
        prefix = "LocalHost"
        blocked = true
        [[registry]]
        location = "127.1:5000"
        blocked = true
        [[registry]]
        prefix = "evil.example:443/team"
        blocked = true
        [[registry]]
        prefix = "*.Bad.Example"
        blocked = true
        [[registry]]
        prefix = "fine.bad.example:80"
        location = "fine.example"
        [[registry]]
        prefix = "b\u00fccher.example"
        blocked = true
    "#;
    let (_home, places) = home(&[("user/registries.conf", text)]);
    let config = RegistryConfig::load(&places, ConnectionArgs::default()).unwrap();
    let is_blocked = |reference: &str| {
        matches!(config.route(&reference.parse().unwrap()), Err(RegistryError::Blocked { .. }))
    };
    for blocked in [
        "localhost/a",
        "LOCALHOST./a",
        "localhost:80/a",
        "localhost:443/a",
        "127.0.0.1:5000/a",
        "0x7f.1:5000/a",
        "2130706433:05000/a",
        "[::ffff:127.0.0.1]:5000/a",
        "evil.example/team/a",
        "Evil.Example:80/team/a",
        "evil.example.:443/team",
        "very.bad.example/a",
        "very.bad.example:5000/a",
        "xn--bcher-kva.example/a",
    ] {
        assert!(is_blocked(blocked), "{blocked}");
    }
    for free in [
        "localhost:5000/a",
        "127.0.0.1:5001/a",
        "evil.example/teams",
        "evil.example:5000/team/a",
        "fine.bad.example:80/a",
    ] {
        assert!(!is_blocked(free), "{free}");
    }
    let file = |url: &str| config.file(&url.parse().unwrap(), &AddressAuthor::User).map(drop);
    assert!(matches!(file("http://2130706433:5000/a.tar"), Err(RegistryError::Blocked { .. })));
    assert!(file("http://127.0.0.1:5001/a.tar").is_ok());
}

#[test]
fn an_address_that_an_image_names_gets_no_client_certificate_and_lies_in_no_private_network() {
    let (home, places) = home(&[("certs/client.cert", ""), ("certs/client.key", ""), ("certs/ca.crt", "")]);
    let given = ConnectionArgs { cert_dir: Some(home.path().join("certs")), ..ConnectionArgs::default() };
    let config = RegistryConfig::load(&places, given).unwrap();
    let file = |url: &str, author: AddressAuthor| config.file(&url.parse().unwrap(), &author);
    let by_image = |home: &str| AddressAuthor::Image { home: home.parse().ok() };
    let pairs = |author| file("https://f.example/l", author).unwrap().tls.pairs.len();
    assert_eq!(pairs(AddressAuthor::User), 1);
    assert_eq!(pairs(by_image("https://r.example/")), 0);
    assert_eq!(pairs(by_image("")), 0);
    let private = "https://10.0.0.5/l";
    assert!(matches!(file(private, by_image("https://r.example/")), Err(RegistryError::Misled { .. })));
    for author in [AddressAuthor::User, by_image("https://10.0.0.5/"), by_image("")] {
        assert!(file(private, author).is_ok());
    }
}

#[test]
fn a_file_by_plain_http_gets_no_login_unless_an_option_accepts_it() {
    let (_home, places) = home(&[]);
    let logins = |given: ConnectionArgs, url: &str| {
        let config = RegistryConfig::load(&places, given).unwrap();
        config.file(&url.parse().unwrap(), &AddressAuthor::User).unwrap().logins
    };
    let plain = || ConnectionArgs { plain_http: true, ..ConnectionArgs::default() };
    let unverified = || ConnectionArgs { tls_verify: Some(false), ..ConnectionArgs::default() };
    assert_eq!(logins(ConnectionArgs::default(), "http://h.example/i.tar"), LoginUse::Withheld);
    for (given, url) in [
        (ConnectionArgs::default(), "https://h.example/i.tar"),
        (ConnectionArgs::default(), "http://localhost:5000/i.tar"),
        (plain(), "http://h.example/i.tar"),
        (unverified(), "http://h.example/i.tar"),
    ] {
        assert_eq!(logins(given, url), LoginUse::Sent, "{url}");
    }
}

#[test]
fn a_registry_that_need_not_be_secure_is_spoken_to_both_ways_and_this_machine_by_http() {
    let text = r#"
        [[registry]]
        location = "r.example"
        insecure = true
        [[registry.mirror]]
        location = "localhost:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "m.example"
    "#;
    let (_home, places) = home(&[("user/registries.conf", text)]);
    assert_eq!(
        addresses(&places, "r.example/a"),
        [
            "mirror http://localhost:5000/v2/hub/a/",
            "mirror https://m.example/v2/a/",
            "https://r.example/v2/a/",
            "http://r.example/v2/a/"
        ]
    );
    let verify: Vec<_> =
        route(&places, "r.example/a").endpoints.iter().map(|endpoint| endpoint.tls.verify).collect();
    assert_eq!(verify[1..3], [TlsVerify::Certificate, TlsVerify::Nothing]);
}

#[test]
fn files_are_laid_over_each_other_in_their_order_and_the_users_own_replaces_the_systems() {
    let entry = |location: &str| format!("[[registry]]\nprefix = \"r.example\"\nlocation = \"{location}\"\n");
    let system = [
        ("system/registries.conf", entry("main.example")),
        ("system/registries.conf.d/10.conf", entry("ten.example")),
        ("system/registries.conf.d/05.conf", entry("five.example")),
        ("system/registries.conf.d/99.conf.disabled", entry("never.example")),
    ];
    let mut files: Vec<(&str, &str)> = system.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let address = |files: &[(&str, &str)]| {
        let (_home, places) = home(files);
        addresses(&places, "r.example/a").concat()
    };
    assert_eq!(address(&files), "https://ten.example/v2/a/");
    let drop_in = entry("user.example");
    files.push(("user/registries.conf.d/01.conf", &drop_in));
    assert_eq!(address(&files), "https://user.example/v2/a/");
    files.pop();
    files.push(("user/registries.conf", ""));
    assert_eq!(
        address(&files),
        "https://r.example/v2/a/",
        "the user's own file, and nothing of the system's"
    );
    let (home, mut places) = home(&files);
    places.registries = Some(home.path().join("nowhere.conf"));
    let error = RegistryConfig::load(&places, ConnectionArgs::default()).unwrap_err();
    assert!(error.to_string().contains("nowhere.conf"), "{error}");
}

#[test]
fn short_names_are_those_of_the_machine() {
    let expand = |text: &str, short: &str| {
        let (_home, places) = home(&[("system/registries.conf", text)]);
        let config = RegistryConfig::load(&places, ConnectionArgs::default()).unwrap();
        config.expand(&short.parse().unwrap()).map(|reference| reference.to_string())
    };
    let aliases = "[aliases]\n\"app\" = \"r.example/team/app\"\n\"bad\" = \"app\"\n";
    assert_eq!(expand(aliases, "app:v1").unwrap(), "r.example/team/app:v1");
    assert_eq!(expand(aliases, "other:v1").unwrap(), "docker.io/library/other:v1");
    let error = expand(aliases, "bad").unwrap_err().to_string();
    assert!(error.contains("registries.conf line 3"), "{error}");
    let one = "unqualified-search-registries = [\"r.example\"]\n";
    assert_eq!(expand(one, "team/app:v1").unwrap(), "r.example/team/app:v1");
    assert_eq!(expand(one, "docker.io/library/app:v1").unwrap(), "docker.io/library/app:v1");
    let two = "unqualified-search-registries = [\"r.example\", \"docker.io\"]\n";
    assert_eq!(expand(two, "app:v1").unwrap(), "docker.io/library/app:v1");
}

#[test]
fn the_first_directory_of_a_host_has_its_certificates() {
    let (home, places) = home(&[
        ("docker/certs.d/r.example/ca.crt", ""),
        ("system/certs.d/r.example:5000/b.crt", ""),
        ("system/certs.d/r.example:5000/a.crt", ""),
        ("system/certs.d/r.example:5000/me.cert", ""),
        ("system/certs.d/r.example:5000/me.key", ""),
        ("docker/certs.d/r.example:5000/never.crt", ""),
        ("docker/certs.d/lonely.example/me.key", ""),
        ("docker/certs.d/localhost:5000/ca.crt", ""),
    ]);
    let at = |name: &str| home.path().join(name);
    let own = route(&places, "r.example:5000/a").endpoints[0].tls.clone();
    let dir = at("system/certs.d/r.example:5000");
    assert_eq!(own.authorities, [dir.join("a.crt"), dir.join("b.crt")]);
    assert_eq!(own.pairs, [(dir.join("me.cert"), Some(dir.join("me.key")))]);
    assert_eq!(
        route(&places, "r.example/a").endpoints[0].tls.authorities,
        [at("docker/certs.d/r.example/ca.crt")]
    );
    assert_eq!(addresses(&places, "localhost:5000/a"), ["https://localhost:5000/v2/a/"]);
    let config = RegistryConfig::load(&places, ConnectionArgs::default()).unwrap();
    let error = config.route(&"lonely.example/a".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("me.key"), "{error}");
}

#[test]
fn client_certificate_stays_with_its_host_and_extra_authorities_apply() {
    let (_home, places) = home(&[
        ("system/registries.conf", "[[registry]]\nlocation = \"r.example:5000\"\ninsecure = true\n"),
        ("system/certs.d/r.example:5000/ca.crt", ""),
        ("system/certs.d/r.example:5000/me.cert", ""),
        ("system/certs.d/r.example:5000/me.key", ""),
    ]);
    let endpoint = route(&places, "r.example:5000/a").endpoints[0].clone();
    let at = |url: &str| endpoint.tls_for(&url.parse().unwrap());
    assert_eq!((at("https://r.example:5000/x").pairs.len(), at("https://r.example/x").pairs.len()), (1, 0));
    let other = at("https://cdn.example/x");
    assert_eq!((other.pairs.len(), other.authorities.len(), other.verify), (0, 1, TlsVerify::Certificate));
}

#[test]
fn hosts_come_in_the_order_of_the_file_with_the_server_last() {
    let text = r#"
        server = "https://r.example"
        [host."http://z.example:5000"]
        capabilities = ["pull"]
        skip_verify = true
        [host."a.example/v2/proxy"]
        override_path = true
        ca = ["ca.pem", "/etc/x.pem"]
        client = [["me.cert", "me.key"], "both.pem"]
        unknown = 1
        [host."a.example/v2/proxy".header]
        Authorization = "Basic 5ecret"
        X-More = ["a", "b"]
    "#;
    let (home, mut places) =
        home(&[("hosts/r.example/hosts.toml", text), ("hosts/s.example_5000_/x.crt", "")]);
    places.hosts = Some(home.path().join("hosts"));
    assert_eq!(
        addresses(&places, "r.example/a"),
        [
            "mirror http://z.example:5000/v2/a/",
            "mirror https://a.example/v2/proxy/a/",
            "https://r.example/v2/a/"
        ]
    );
    let found = route(&places, "r.example/a");
    assert_eq!(found.for_tags().len(), 2);
    let namespaces: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.namespace.as_deref()).collect();
    assert_eq!(namespaces, [Some("r.example"), Some("r.example"), None]);
    let (second, dir) = (&found.endpoints[1], home.path().join("hosts/r.example"));
    assert_eq!(second.tls.authorities, [dir.join("ca.pem"), "/etc/x.pem".into()]);
    assert_eq!(
        second.tls.pairs,
        [(dir.join("me.cert"), Some(dir.join("me.key"))), (dir.join("both.pem"), None)]
    );
    assert_eq!(second.headers.len(), 3);
    assert!(!format!("{second:?}").contains("5ecret"));
    assert_eq!(addresses(&places, "s.example:5000/a"), ["https://s.example:5000/v2/a/"]);
    assert_eq!(addresses(&places, "other.example/a"), ["https://other.example/v2/a/"]);
}

#[test]
fn a_broken_hosts_file_is_named_with_its_line_and_not_quoted() {
    for (text, line) in [
        ("server = 5\n", 1),
        ("\n[host.\"ftp://x\"]\n", 2),
        ("\n[host.\"x.example\"]\ncapabilities = [\"fly\"]\n", 2),
        ("[host.\"x.example\".header]\nAuthorization = 5ecret\n", 2),
        ("[host.\"x.example\"]\nheader = { Authorization = { a = \"5ecret\" } }\n", 1),
        ("[host.\"x.example\"]\nheader = \"5ecret\"\n", 1),
        ("[host.\"https://user:5ecret@x.example\"]\n", 1),
    ] {
        let error = hosts::of_text(Path::new("/h/hosts.toml"), text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&format!("/h/hosts.toml line {line}")), "{text}: {shown}");
        assert!(!shown.contains("5ecret"), "{shown}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_text_makes_a_parser_panic(text in "([\\[\\]\"={}.,a-c \n#']|host|registry|\\[\\[registry\\]\\]\n|prefix|location|mirror|header|client|ca|server|aliases|true|é){0,40}") {
        hosts::of_text(Path::new("hosts.toml"), &text).ok();
        RegistriesConf::default().add(Path::new("registries.conf"), &text).ok();
    }
}
