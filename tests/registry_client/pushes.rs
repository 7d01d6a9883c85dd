//! Pushes: bytes, addresses, logins, and interruptions.

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const KIND: &str = "application/vnd.x+json";

fn steps(server: &FaultRegistry) -> Vec<String> {
    server.requests().iter().map(|request| format!("{} {}", request.method, request.status)).collect()
}

/// What the server has, read by a client that knows nothing of the push.
async fn stored(server: &FaultRegistry, digest: &Digest, size: usize) -> Vec<u8> {
    server.clear();
    client().document(&reference(server), &descriptor(digest, size as u64)).await.unwrap().to_vec()
}

async fn push(
    server: &FaultRegistry,
    options: RegistryOptions,
    bytes: &[u8],
) -> Result<PushOutcome, RegistryError> {
    let registry = RegistryClient::new(options).unwrap();
    registry.push_blob(&reference(server), &Digest::sha256(bytes), bytes.to_vec().into()).await
}

#[tokio::test]
async fn push_sends_a_blob_once_to_the_upload_location() {
    for place in [None, Some(Place::Absolute), Some(Place::SecondHost)] {
        let server = FaultRegistry::start();
        if let Some(place) = place {
            server.set(Bad::UploadAt(place));
        }
        let bytes = noise(300_000);
        assert_eq!(push(&server, options(), &bytes).await.unwrap(), PushOutcome::Stored);
        assert_eq!(steps(&server), ["HEAD 404", "POST 202", "PUT 201"], "{place:?}");
        let requests = server.requests();
        assert_eq!(requests[2].cdn, place == Some(Place::SecondHost));
        assert_eq!(requests[0].path, format!("/v2/team/app/blobs/{}", Digest::sha256(&bytes)));
        // The second time nothing is sent.
        assert_eq!(push(&server, options(), &bytes).await.unwrap(), PushOutcome::WasThere);
        assert_eq!(steps(&server)[3..], ["HEAD 200"]);
        assert!(stored(&server, &Digest::sha256(&bytes), bytes.len()).await == bytes);
    }
}

#[tokio::test]
async fn an_empty_blob_can_be_pushed() {
    let server = FaultRegistry::start();
    assert_eq!(push(&server, options(), b"").await.unwrap(), PushOutcome::Stored);
    assert_eq!(push(&server, options(), b"").await.unwrap(), PushOutcome::WasThere);
}

#[tokio::test]
async fn a_credential_goes_to_the_registry_and_not_to_its_storage() {
    let server = FaultRegistry::start();
    server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    server.set(Bad::UploadAt(Place::SecondHost));
    push(&server, with_password(), b"content").await.unwrap();
    assert_eq!(steps(&server), ["HEAD 401", "HEAD 404", "POST 202", "PUT 201"]);
    let seen: Vec<bool> = server.requests().iter().map(|request| request.authorization).collect();
    assert_eq!(seen, [false, true, true, false]);
}

#[tokio::test]
async fn one_token_does_for_looking_and_for_writing() {
    let server = FaultRegistry::start();
    server.set(Bad::RequireBearer { token_lifetime: Duration::from_secs(300) });
    let registry = client();
    let bytes = b"content";
    registry.push_blob(&reference(&server), &Digest::sha256(bytes), bytes[..].into()).await.unwrap();
    assert_eq!(steps(&server), ["HEAD 401", "GET 200", "HEAD 404", "POST 202", "PUT 201"]);
    assert_eq!(server.token_requests().len(), 1);

    // A token that ends is renewed once, wherever that happens.
    server.revoke_tokens();
    server.reset_counts();
    let bytes = b"more";
    registry.push_blob(&reference(&server), &Digest::sha256(bytes), bytes[..].into()).await.unwrap();
    assert_eq!(steps(&server), ["HEAD 401", "GET 200", "HEAD 404", "POST 202", "PUT 201"]);

    // Reading asks for no more than it needs: with a token of its own.
    server.reset_counts();
    let blob = registry.document(&reference(&server), &descriptor(&Digest::sha256(bytes), 4)).await.unwrap();
    assert_eq!((&blob[..], statuses(&server.requests())), (&bytes[..], vec![401, 200, 200]));
}

#[tokio::test]
async fn a_token_that_does_not_let_write_is_renewed_once_and_then_denied() {
    let server = FaultRegistry::start();
    server.set_for(Bad::StatusOf { method: "POST", code: 401, times: 5 }, 5);
    server.set(Bad::RequireBearer { token_lifetime: Duration::from_secs(300) });
    let error = push(&server, options(), b"content").await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Denied, "{}", everything(&error));
    assert_eq!(steps(&server), ["HEAD 401", "GET 200", "HEAD 404", "POST 401", "GET 200", "POST 401"]);
}

#[tokio::test]
async fn a_refusal_names_the_upload_and_is_not_repeated() {
    for (method, code) in
        [("HEAD", 403), ("POST", 401), ("POST", 403), ("POST", 405), ("PUT", 403), ("PUT", 405)]
    {
        let server = FaultRegistry::start();
        server.set(Bad::StatusOf { method, code, times: 1 });
        let error = push(&server, options(), b"content").await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Denied, "{method} {code}: {error}");
        let shown = error.to_string();
        assert!(shown.contains("refused upload of sha256:"), "{shown}");
        assert!(shown.contains(&format!("to team/app with status {code}")), "{shown}");
        assert_eq!(
            server.requests().iter().filter(|request| request.method == method).count(),
            1,
            "{method}"
        );
    }
    let server = FaultRegistry::start();
    server.set(Bad::StatusOf { method: "POST", code: 404, times: 1 });
    let error = push(&server, options(), b"content").await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::NotFound);
    assert!(error.to_string().contains("has no repository team/app to push to"), "{error}");
}

#[tokio::test]
async fn an_upload_that_breaks_is_begun_anew_and_one_that_arrived_is_not() {
    let server = FaultRegistry::start();
    server.set(Bad::StatusOf { method: "PUT", code: 502, times: 2 });
    assert_eq!(push(&server, options(), b"content").await.unwrap(), PushOutcome::Stored);
    let once = ["HEAD 404", "POST 202", "PUT 502"];
    assert_eq!(steps(&server), [&once[..], &once[..], &["HEAD 404", "POST 202", "PUT 201"]].concat());

    // The answer got lost, not the blob.
    server.reset_counts();
    server.set_for(Bad::SilentAfterPut, 1);
    let quick = RegistryOptions { connect_timeout: Duration::from_secs(2), ..impatient() };
    assert_eq!(push(&server, quick, b"other content").await.unwrap(), PushOutcome::Stored);
    assert_eq!(server.requests().iter().filter(|request| request.method == "POST").count(), 1);
}

#[tokio::test]
async fn a_beginning_is_repeated_only_when_it_was_certainly_not_heard() {
    for (code, times) in [(503, 2), (429, 2)] {
        let server = FaultRegistry::start();
        server.set(Bad::StatusOf { method: "POST", code, times });
        assert_eq!(push(&server, options(), b"content").await.unwrap(), PushOutcome::Stored, "{code}");
    }
    let server = FaultRegistry::start();
    server.set(Bad::StatusOf { method: "POST", code: 502, times: 1 });
    let error = push(&server, options(), b"content").await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable, "{error}");
    assert_eq!(steps(&server), ["HEAD 404", "POST 502"]);
}

#[tokio::test]
async fn a_place_that_cannot_be_trusted_gets_no_upload() {
    for (location, words) in [
        ("ftp://127.0.0.1/x", "not http"),
        ("http://user:5ecret@127.0.0.1:1/x", "names a user"),
        ("http://169.254.169.254/latest/x?sig=5ecret", "private network"),
        ("http://10.0.0.9:9000/x", "private network"),
    ] {
        let server = FaultRegistry::start();
        server.set(Bad::UploadLocation(location.into()));
        let error = push(&server, options(), b"content").await.unwrap_err();
        let shown = everything(&error);
        assert_eq!(error.fault(), FaultClass::Misbehaved, "{shown}");
        assert!(shown.contains(words) && !shown.contains("5ecret"), "{shown}");
        assert_eq!(steps(&server).len(), 2, "{:?}", steps(&server));
    }
    // What a signed place refuses is told without the place.
    let server = FaultRegistry::start();
    let location = format!("http://{}/uploads/x?_state=a%2Fb%3D%3D&sig=5ecret", server.cdn_host());
    server.set(Bad::UploadLocation(location));
    let error = push(&server, options(), b"content").await.unwrap_err();
    let shown = everything(&error);
    assert!(shown.contains("status 403") && !shown.contains("5ecret"), "{shown}");
}

#[tokio::test]
async fn bytes_are_pushed_under_their_own_digest_only() {
    let server = FaultRegistry::start();
    let registry = client();
    let other = Digest::sha256(b"other");
    let error = registry.push_blob(&reference(&server), &other, b"content"[..].into()).await.unwrap_err();
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Mismatch, 0));
    let by_digest = ManifestSelector::Digest(other);
    let document = br#"{"layers":[]}"#;
    let error = registry
        .push_manifest(&reference(&server), &by_digest, MANIFEST, document[..].into())
        .await
        .unwrap_err();
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Mismatch, 0));
    // And a registry that stores something else is found out.
    server.set(Bad::StoredDigestHeader(Digest::sha256(b"else").to_string()));
    assert_eq!(push(&server, options(), b"content").await.unwrap_err().fault(), FaultClass::Mismatch);
}

#[tokio::test]
async fn a_manifest_goes_by_tag_and_by_digest_unless_it_is_there() {
    let server = FaultRegistry::start();
    let (registry, reference) = (client(), reference(&server));
    let (one, two) = (br#"{"layers":[]}"#, br#"{ "layers":[]}"#);
    for selector in [ManifestSelector::Digest(Digest::sha256(one)), tag("v1")] {
        for expected in [PushOutcome::Stored, PushOutcome::WasThere] {
            let pushed = registry.push_manifest(&reference, &selector, MANIFEST, one[..].into()).await;
            assert_eq!(pushed.unwrap(), expected, "{selector:?}");
        }
    }
    assert_eq!(steps(&server), ["HEAD 404", "PUT 201", "HEAD 200", "HEAD 404", "PUT 201", "HEAD 200"]);
    // A tag that points at something else is moved.
    let moved = registry.push_manifest(&reference, &tag("v1"), MANIFEST, two[..].into()).await;
    assert_eq!(moved.unwrap(), PushOutcome::Stored);
    let read = registry.manifest(&reference, &tag("v1")).await.unwrap();
    assert_eq!((&read.bytes[..], read.content_type.as_deref()), (&two[..], Some(MANIFEST)));
    // A manifest is sent again when the first time failed.
    server.reset_counts();
    server.set(Bad::StatusOf { method: "PUT", code: 500, times: 1 });
    registry.push_manifest(&reference, &tag("v2"), MANIFEST, one[..].into()).await.unwrap();
    assert_eq!(steps(&server), ["HEAD 404", "PUT 500", "PUT 201"]);
    // What is no manifest is not sent.
    server.reset_counts();
    let error = registry.push_manifest(&reference, &tag("v3"), MANIFEST, b"[]"[..].into()).await.unwrap_err();
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Malformed, 0));
}

/// A server with a subject, and the bytes of `count` referrers of it.
fn with_subject(count: usize) -> (FaultRegistry, Descriptor, Vec<Vec<u8>>) {
    let server = FaultRegistry::start();
    server.push_blob(&b"{}"[..]);
    let bytes = br#"{"schemaVersion":2,"layers":[]}"#;
    server.push_manifest("team/app", "v1", MANIFEST, bytes);
    let subject = Descriptor::of(MANIFEST, bytes);
    let referrers =
        (0..count).map(|mark| FaultRegistry::referrer(&subject, KIND, &mark.to_string())).collect();
    (server, subject, referrers)
}

async fn push_referrer(server: &FaultRegistry, bytes: &[u8]) -> Result<PushOutcome, RegistryError> {
    let selector = ManifestSelector::Digest(Digest::sha256(bytes));
    client().push_manifest(&reference(server), &selector, MANIFEST, bytes.to_vec().into()).await
}

#[tokio::test]
async fn a_registry_that_lists_referrers_itself_gets_no_list() {
    let (server, subject, referrers) = with_subject(1);
    server.set(Bad::ReferrersApi { page: 10 });
    push_referrer(&server, &referrers[0]).await.unwrap();
    assert_eq!(steps(&server), ["PUT 201"]);
    let found = client().referrers(&reference(&server), &subject.digest, Some(KIND)).await.unwrap();
    assert_eq!(found.iter().map(|entry| &entry.digest).collect::<Vec<_>>(), [&Digest::sha256(&referrers[0])]);
}

#[tokio::test]
async fn where_a_registry_lists_none_the_list_under_the_tag_grows() {
    let (server, subject, referrers) = with_subject(2);
    for (at, bytes) in referrers.iter().enumerate() {
        assert_eq!(push_referrer(&server, bytes).await.unwrap(), PushOutcome::Stored);
        let found = client().referrers(&reference(&server), &subject.digest, Some(KIND)).await.unwrap();
        assert_eq!(found.len(), at + 1);
        let entry = &found[at];
        assert_eq!((&entry.digest, entry.size), (&Digest::sha256(bytes), bytes.len() as u64));
        assert_eq!(entry.annotations["mark"], at.to_string());
    }
    // Once more: the list has it, and is not written.
    server.reset_counts();
    push_referrer(&server, &referrers[1]).await.unwrap();
    assert_eq!(steps(&server), ["PUT 201", "GET 200"]);
    let tag = ManifestSelector::Tag(ocifs::oci::fallback_tag(&subject.digest));
    let list = client().manifest(&reference(&server), &tag).await.unwrap();
    assert_eq!(list.content_type.as_deref(), Some(INDEX));
}

#[tokio::test]
async fn fallback_tag_that_is_no_list_is_not_overwritten() {
    let (server, subject, referrers) = with_subject(1);
    let tag = ocifs::oci::fallback_tag(&subject.digest);
    server.push_manifest_as("team/app", &tag, MANIFEST, br#"{"layers":[]}"#);
    let error = push_referrer(&server, &referrers[0]).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Malformed, "{}", everything(&error));
    assert_eq!(steps(&server), ["PUT 201", "GET 200"]);
}

#[tokio::test]
async fn a_list_that_others_undo_is_written_again_and_not_for_ever() {
    let (server, subject, referrers) = with_subject(2);
    server.set_for(Bad::TagsSnapBack, 2);
    push_referrer(&server, &referrers[0]).await.unwrap();
    assert_eq!(server.requests().iter().filter(|request| request.method == "PUT").count(), 4);
    let found = client().referrers(&reference(&server), &subject.digest, None).await.unwrap();
    assert_eq!(found.len(), 1);

    server.set(Bad::TagsSnapBack);
    let error = push_referrer(&server, &referrers[1]).await.unwrap_err();
    assert!(error.to_string().contains("though it was written 4 times"), "{error}");
    assert_eq!(error.fault(), FaultClass::Misbehaved);
    let found = client().referrers(&reference(&server), &subject.digest, None).await.unwrap();
    assert_eq!(found.len(), 1, "what was there stays");
}

#[tokio::test]
async fn refused_list_of_referrers_is_an_error() {
    let (server, _, referrers) = with_subject(1);
    server.set_for(Bad::StatusOf { method: "GET", code: 403, times: 1 }, 1);
    assert_eq!(push_referrer(&server, &referrers[0]).await.unwrap_err().fault(), FaultClass::Denied);
}
