//! Logins: the hosts that get one, the number of requests, and the places without a secret.

use super::*;

#[tokio::test]
async fn basic_is_sent_when_it_is_asked_for_and_from_then_on() {
    let scene = scene_of(1000, with_password());
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    scene.expect(0, 500).await;
    scene.expect(500, 1000).await;
    let requests = scene.server.requests();
    assert_eq!(statuses(&requests), [401, 206, 206]);
    assert_eq!(requests.iter().map(|request| request.authorization).collect::<Vec<_>>(), [false, true, true]);
}

#[tokio::test]
async fn a_wrong_password_is_denied_after_one_try_and_shown_nowhere() {
    let scene = scene_of(1000, with_password());
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: "other".into() });
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!((error.fault(), statuses(&scene.server.requests())), (FaultClass::Denied, vec![401, 401]));
    let shown = everything(&error);
    assert!(!shown.contains("5ecret") && !shown.contains("Basic "), "{shown}");
    assert!(!format!("{:?}", with_password()).contains("5ecret"));
}

#[tokio::test]
async fn refusal_without_a_credential_is_reported_as_such() {
    let scene = scene(1000);
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: "x".into() });
    let error = scene.read(0, 1000).await.unwrap_err();
    assert!(error.chain().contains("no credential was found"), "{}", error.chain());
    assert_eq!((error.fault(), scene.server.requests().len()), (FaultClass::Denied, 1));
}

fn bearer(server: &FaultRegistry, token_lifetime: Duration) {
    server.set(Bad::RequireBearer { token_lifetime });
}

#[tokio::test]
async fn concurrent_readers_share_one_token_and_one_refresh() {
    let scene = scene_of(10_000, with_password());
    bearer(&scene.server, Duration::from_secs(300));
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    for round in 1..=2 {
        let reads = (0..8).map(|at| scene.expect(at * 1000, (at + 1) * 1000));
        futures_util::future::join_all(reads).await;
        assert_eq!(scene.server.token_requests().len(), round, "round {round}");
        scene.server.revoke_tokens();
    }
    assert!(scene.server.token_requests().iter().all(|request| request.authorization));
    // The first round is refused without a token, the second with an old one.
    assert!(scene.server.blob_requests().len() <= 2 * 16);
}

#[tokio::test]
async fn a_token_that_ends_in_a_mount_is_renewed_once() {
    let scene = scene(1000);
    let lifetime = Duration::from_secs(3600);
    bearer(&scene.server, lifetime);
    scene.expect(0, 500).await;
    scene.expect(500, 1000).await;
    assert_eq!(statuses(&scene.server.requests()), [401, 200, 206, 206]);
    scene.server.advance(lifetime);
    scene.expect(0, 1000).await;
    assert_eq!(statuses(&scene.server.requests())[4..], [401, 200, 200]);
}

#[tokio::test]
async fn a_token_that_never_works_is_denied_after_two() {
    let scene = scene(1000);
    bearer(&scene.server, Duration::ZERO);
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Denied, "{}", error.chain());
    assert_eq!(statuses(&scene.server.requests()), [401, 200, 401]);
}

#[tokio::test]
async fn message_of_the_token_server_is_reported() {
    let cases = [
        (Bad::TokenServerDown, FaultClass::Unavailable, "status 503: down for the night"),
        (Bad::TokenServerHtml, FaultClass::Misbehaved, "without a token"),
        // Followed, and without the password.
        (Bad::TokenServerRedirects, FaultClass::Denied, "status 403"),
        (
            Bad::RequireBasic { user: "user".into(), pass: "other".into() },
            FaultClass::Denied,
            "status 401: incorrect username or password",
        ),
    ];
    for (fault, expected, words) in cases {
        let scene =
            scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(3), ..with_password() });
        bearer(&scene.server, Duration::from_secs(300));
        scene.server.set(fault.clone());
        let error = scene.registry.manifest(&reference(&scene.server), &tag("v1")).await.unwrap_err();
        let shown = everything(&error);
        assert_eq!(error.fault(), expected, "{fault:?}: {shown}");
        assert!(shown.contains(words) && !shown.contains("5ecret"), "{fault:?}: {shown}");
        assert!(scene.server.requests().iter().all(|request| !request.cdn || !request.authorization));
        assert_eq!(
            scene.server.requests().iter().any(|request| request.cdn),
            fault == Bad::TokenServerRedirects
        );
    }
}

#[tokio::test]
async fn a_token_server_that_recovers_is_asked_again() {
    let scene = scene(1000);
    bearer(&scene.server, Duration::from_secs(300));
    scene.server.set_for(Bad::TokenServerDown, 2);
    scene.expect(0, 1000).await;
    assert_eq!(statuses(&scene.server.token_requests()), [503, 503, 200]);
}

#[tokio::test]
async fn a_realm_in_a_private_network_gets_no_password() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(2), ..with_password() });
    bearer(&scene.server, Duration::from_secs(300));
    scene.server.set(Bad::Realm("http://169.254.169.254/token".into()));
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Misbehaved);
    assert!(error.chain().contains("private network"), "{}", error.chain());
}

#[tokio::test]
async fn an_identity_token_is_exchanged_in_a_body() {
    let creds = UserCredential { user: "<token>".into(), secret: RedactedSecret::new("5ecret/+ &=refresh") };
    let scene = scene_of(1000, RegistryOptions { anonymous: false, creds: Some(creds), ..options() });
    bearer(&scene.server, Duration::from_secs(300));
    scene.server.set(Bad::RequireBasic { user: "any".into(), pass: "5ecret/+ &=refresh".into() });
    scene.expect(0, 1000).await;
    let tokens = scene.server.token_requests();
    assert_eq!(tokens.iter().map(|request| request.method.as_str()).collect::<Vec<_>>(), ["POST"]);
    assert!(!tokens[0].authorization);
}

#[tokio::test]
async fn a_file_given_by_name_holds_the_credential() {
    let folder = tempfile::tempdir().unwrap();
    let authfile = folder.path().join("auth.json");
    let scene =
        scene_of(1000, RegistryOptions { anonymous: false, authfile: Some(authfile.clone()), ..options() });
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: "one".into() });
    let write = |auth: &str| {
        let host = scene.server.host();
        std::fs::write(&authfile, format!(r#"{{"auths":{{"{host}/team":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    };
    // "user:one" and "user:two".
    write("dXNlcjpvbmU=");
    scene.expect(0, 500).await;
    // The password changes under the mount: the file is read again.
    scene.server.clear();
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: "two".into() });
    write("dXNlcjp0d28=");
    scene.expect(500, 1000).await;
    assert_eq!(statuses(&scene.server.requests()), [401, 206, 401, 206]);
}

#[tokio::test]
async fn logs_hold_no_secret_at_any_level() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    // For the whole process: a subscriber of one thread misses what others register at the same moment. What the other
    // tests log is held to the same.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let scene = scene_of(1000, with_password());
    bearer(&scene.server, Duration::from_secs(300));
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    scene.server.set(Bad::RedirectTo307SecondHost);
    scene.expect(0, 1000).await;
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("/v2/team/app/blobs/") && text.contains("[redacted]"), "{text}");
    for secret in ["5ecret", "token-1", "sig=", "Basic ", "Bearer "] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_this_machine_is_asked_by_tls_only() {
    let server = FaultRegistry::start();
    let port = server.host().rsplit_once(':').unwrap().1.to_owned();
    // 0.0.0.0 connects to this machine but is no loopback address.
    let reference: Reference = format!("0.0.0.0:{port}/team/app:v1").parse().unwrap();
    let error = client().manifest(&reference, &tag("v1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Insecure { .. }), "{}", everything(&error));
    assert_eq!(server.requests().len(), 0);
}
