//! Deviations of registries and proxies from the specifications that are accepted.

use super::*;

#[tokio::test]
async fn a_host_that_refuses_ranges_is_asked_once_without_and_then_for_the_whole() {
    for code in [400, 405, 412, 416, 417, 422, 501] {
        let scene = scene(50_000);
        scene.server.set(Bad::RefuseRange(code));
        scene.expect(1000, 2000).await;
        scene.expect(3000, 4000).await;
        let asked: Vec<_> = scene.server.blob_requests().iter().map(|request| request.is_ranged).collect();
        assert_eq!(asked, [true, false, false], "{code}");
        assert!(scene.registry.ignores_ranges(&reference(&scene.server)));
    }
}

#[tokio::test]
async fn a_partial_answer_is_joined_with_the_rest_and_one_byte_at_a_time_is_not_asked_for_for_ever() {
    let scene = scene(700_000);
    scene.server.set(Bad::AtMost(100_000));
    scene.expect(50_000, 700_000).await;
    let starts: Vec<u64> = scene.ranges().iter().map(|range| range.0).collect();
    assert_eq!(starts, [50_000, 150_000, 250_000, 350_000, 450_000, 550_000, 650_000]);
    scene.server.clear();
    scene.server.reset_counts();
    scene.server.set(Bad::AtMost(1));
    let error = scene.read(10, 500_000).await.unwrap_err();
    assert!(error.chain().contains("answers of less than 65536 bytes"), "{}", error.chain());
    assert!(scene.server.blob_requests().len() <= 20, "{}", scene.server.blob_requests().len());
}

#[tokio::test]
async fn status_200_with_a_slice_needs_a_content_range() {
    let scene = scene(100_000);
    scene.server.set(Bad::OkWithRange);
    scene.expect(1000, 5000).await;
    assert_eq!((scene.ranges(), scene.server.blob_bytes()), (vec![(1000, 5000)], 4000));
    for chunked in [false, true] {
        let other = scene_of(100_000, options());
        other.server.set_for(Bad::OkSlice, 1);
        if chunked {
            other.server.set_for(Bad::Chunked, 1);
        }
        other.expect(1000, 5000).await;
        assert_eq!(other.ranges(), [(1000, 5000), (0, 100_000)]);
    }
}

#[tokio::test]
async fn a_total_that_is_not_known_and_the_label_of_an_upload_are_no_fault() {
    for fault in [
        Bad::UnknownTotal,
        Bad::ContentEncoding("aws-chunked"),
        Bad::ContentEncoding("AWS-chunked, identity"),
    ] {
        let scene = scene(100_000);
        scene.server.set(fault.clone());
        scene.expect(1000, 5000).await;
        scene.expect(0, 100_000).await;
        assert_eq!(scene.ranges(), [(1000, 5000), (0, 100_000)], "{fault:?}");
    }
}

#[tokio::test]
async fn the_size_of_a_blob_is_found_where_head_does_not_work() {
    let refused =
        [401, 403, 404, 405, 500].map(|code| Bad::StatusOf { method: "HEAD", code, times: u32::MAX });
    for fault in [&refused[..], &[Bad::EmptyHead]].concat() {
        let scene = scene(12_345);
        scene.server.set(fault.clone());
        let digest = Digest::sha256(&scene.bytes);
        let size = scene.registry.blob_size(&reference(&scene.server), &digest).await;
        assert_eq!(size.unwrap(), 12_345, "{fault:?}");
        let methods: Vec<_> = scene.server.requests().iter().map(|request| request.method.clone()).collect();
        assert_eq!(methods, ["HEAD", "GET"], "{fault:?}");
        assert!(scene.server.blob_bytes() <= 1);
    }
    let server = FaultRegistry::start();
    let error = client().blob_size(&reference(&server), &Digest::sha256(b"nowhere")).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::NotFound, "{error}");
}

#[tokio::test]
async fn a_digest_costs_one_head_and_no_get() {
    let server = FaultRegistry::start();
    let body = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[]}}"#);
    let digest = server.push_manifest("team/app", "v1", MANIFEST, body.as_bytes());
    let found = client().head(&reference(&server), &tag("v1")).await.unwrap();
    assert_eq!((&found.digest, found.size), (&digest, Some(body.len() as u64)));
    let methods = || server.requests().iter().map(|request| request.method.clone()).collect::<Vec<_>>();
    assert_eq!(methods(), ["HEAD"]);
    // A registry that has no answer to it is asked for the document.
    server.reset_counts();
    server.set(Bad::StatusOf { method: "HEAD", code: 405, times: u32::MAX });
    assert_eq!(client().head(&reference(&server), &tag("v1")).await.unwrap().digest, digest);
    assert_eq!(methods(), ["HEAD", "GET"]);
    let error = client().head(&reference(&server), &tag("nothing")).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::NotFound, "{error}");
}

#[tokio::test]
async fn a_manifest_that_was_accepted_with_202_is_stored() {
    let server = FaultRegistry::start();
    server.set(Bad::StatusOf { method: "PUT", code: 202, times: 1 });
    let body = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[]}}"#);
    let pushed = client().push_manifest(&reference(&server), &tag("v1"), MANIFEST, body.into()).await;
    assert_eq!(pushed.unwrap(), PushOutcome::Stored);
}

#[tokio::test]
async fn every_transient_status_of_a_proxy_is_retried() {
    for code in [425, 500, 507, 509, 520, 521, 522, 523, 524, 527, 529, 530] {
        let scene = scene(1000);
        scene.server.set_for(Bad::Status { code, times: 1, retry_after: None }, 1);
        scene.expect(0, 1000).await;
        assert_eq!(scene.server.blob_requests().len(), 2, "{code}");
    }
}
