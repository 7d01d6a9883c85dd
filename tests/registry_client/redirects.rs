//! Redirects and signed URLs: followed, remembered, renewed, and never shown.

use super::*;

#[tokio::test]
async fn a_redirect_is_followed_without_credentials_and_remembered() {
    let scene = scene_of(10_000, with_password());
    scene.server.set(Bad::RequireBasic { user: "user".into(), pass: PASSWORD.into() });
    scene.server.set(Bad::RedirectTo307SecondHost);
    scene.expect(0, 5000).await;
    scene.expect(5000, 10_000).await;
    let requests = scene.server.blob_requests();
    assert_eq!(statuses(&requests), [401, 307, 206, 206]);
    assert!(requests.iter().filter(|request| request.cdn).all(|request| !request.authorization));
    assert_eq!(scene.server.blob_bytes(), 10_000 + requests[0].bytes_sent);
}

#[tokio::test]
async fn an_expired_signed_url_is_resolved_once_more() {
    let scene = scene(10_000);
    scene.server.set(Bad::RedirectTo307SecondHost);
    scene.expect(0, 5000).await;
    scene.server.expire_signed_urls();
    scene.expect(5000, 10_000).await;
    assert_eq!(statuses(&scene.server.blob_requests()), [307, 206, 403, 307, 206]);
}

#[tokio::test]
async fn a_body_broken_after_its_url_expired_is_resumed_at_the_registry() {
    let scene = scene(100_000);
    scene.server.set(Bad::RedirectTo307SecondHost);
    scene.server.set(Bad::TruncateAfter { bytes: 30_000, times: 1 });
    let delivery = scene.blob.fetch(ByteRange::new(0, 100_000)).await.unwrap();
    scene.server.expire_signed_urls();
    assert!(collect(delivery).await.unwrap() == scene.bytes);
    assert_eq!(statuses(&scene.server.blob_requests()), [307, 200, 307, 206]);
    assert_eq!(scene.server.blob_bytes(), 100_000);
}

#[tokio::test]
async fn redirects_end_after_five() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(3), ..options() });
    scene.server.set(Bad::RedirectOn);
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Misbehaved);
    assert!(error.chain().contains("more than 5 redirects"), "{}", error.chain());
    // Walking the same chain again would not make it shorter.
    assert_eq!(scene.server.blob_requests().len(), 6);
}

#[tokio::test]
async fn a_redirect_to_an_address_of_its_own_chain_is_not_followed() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(3), ..options() });
    scene.server.set(Bad::RedirectLoop);
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Misbehaved);
    assert!(error.chain().contains("a redirect to itself"), "{}", error.chain());
    assert_eq!(scene.server.blob_requests().len(), 1);
}

#[tokio::test]
async fn a_signed_url_is_in_no_error() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(1), ..options() });
    scene
        .server
        .set(Bad::RedirectTo(format!("http://{}/cdn/blobs/x?sig=5ecret-signature", scene.server.cdn_host())));
    let error = scene.read(0, 1000).await.unwrap_err();
    assert!(error.chain().contains("status 403"), "{}", error.chain());
    assert!(!everything(&error).contains("5ecret"), "{}", everything(&error));
    // Nobody listens at port 1.
    scene.server.clear();
    scene.server.set(Bad::RedirectTo("http://127.0.0.1:1/x?sig=5ecret-signature".into()));
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable, "{}", error.chain());
    assert!(!everything(&error).contains("5ecret"), "{}", everything(&error));
}
