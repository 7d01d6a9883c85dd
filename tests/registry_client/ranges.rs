//! Ranges of blobs: accepted and refused responses, and concurrent requests.

use super::*;

#[tokio::test]
async fn a_range_costs_one_request_and_its_own_bytes() {
    let scene = scene(100_000);
    scene.expect(1000, 5000).await;
    assert_eq!((scene.ranges(), scene.server.blob_bytes()), (vec![(1000, 5000)], 4000));
    scene.expect(0, 100_000).await;
    scene.expect(99_999, 100_000).await;
    assert_eq!(scene.ranges()[1..], [(0, 100_000), (99_999, 100_000)]);
    assert!(!scene.registry.ignores_ranges(&reference(&scene.server)));
}

#[tokio::test]
async fn the_read_at_suite_holds_for_a_blob() {
    let scene = scene(50_000);
    crate::read_at_suite::check("registry blob", &FetchAll(scene.blob.clone()), &scene.bytes).await;
}

#[tokio::test]
async fn nothing_is_asked_for_a_range_that_is_no_range_of_the_blob() {
    let scene = scene(100);
    for range in [ByteRange::new(50, 50), ByteRange::new(50, 101), ByteRange::new(200, 300)] {
        let error = scene.blob.fetch(range).await.err().unwrap();
        assert_eq!(error.fault(), FaultClass::Usage, "{range}");
    }
    let blake3: Digest = "blake3:abcdef".parse().unwrap();
    let blob = scene.registry.blob(&reference(&scene.server), &descriptor(&blake3, 100));
    assert_eq!(blob.fetch(ByteRange::new(0, 10)).await.err().unwrap().fault(), FaultClass::Unsupported);
    assert_eq!(scene.server.requests().len(), 0);
}

#[tokio::test]
async fn a_registry_without_ranges_delivers_the_whole_blob_from_its_beginning() {
    for chunked in [false, true] {
        let scene = scene(300_000);
        scene.server.set(Bad::IgnoreRange);
        if chunked {
            scene.server.set(Bad::Chunked);
        }
        let delivery = scene.blob.fetch(ByteRange::new(1000, 2000)).await.unwrap();
        assert_eq!(delivery.range, ByteRange::new(0, 300_000));
        assert!(collect(delivery).await.unwrap() == scene.bytes);
        // Without a length the body might be the range after all, so the whole is asked for as such.
        let expected: &[(u64, u64)] = if chunked { &[(1000, 2000), (0, 300_000)] } else { &[(1000, 2000)] };
        assert_eq!(scene.ranges(), expected);
        assert!(scene.registry.ignores_ranges(&reference(&scene.server)));
    }
}

#[tokio::test]
async fn broken_whole_blob_resumes_by_skipping_received_bytes() {
    let scene = scene(300_000);
    scene.server.set(Bad::IgnoreRange);
    scene.server.set(Bad::TruncateAfter { bytes: 120_000, times: 1 });
    let delivery = scene.blob.fetch(ByteRange::new(250_000, 250_001)).await.unwrap();
    assert!(collect(delivery).await.unwrap() == scene.bytes);
    assert_eq!(scene.ranges(), [(250_000, 250_001), (120_000, 300_000)]);
}

#[tokio::test]
async fn an_answer_that_is_not_exactly_the_range_is_never_delivered_and_asked_again() {
    let faults: [&[Bad]; 8] = [
        &[Bad::WrongContentRange],
        &[Bad::ShortBody { by: 1 }],
        &[Bad::ShortBody { by: 1 }, Bad::Chunked],
        &[Bad::LongBody],
        &[Bad::LongBody, Bad::Chunked],
        &[Bad::ContentEncodingGzip],
        &[Bad::IgnoreRange, Bad::ShortBody { by: 1 }, Bad::Chunked],
        &[Bad::Html],
    ];
    for faults in faults {
        let scene = scene(10_000);
        for fault in faults {
            scene.server.set_for(fault.clone(), 1);
        }
        // What arrived before a fault could be seen may be kept, so the second request may be for less.
        scene.expect(2000, 10_000).await;
        let ranges = scene.ranges();
        assert!(ranges.len() == 2 && ranges[0] == (2000, 10_000), "{faults:?}: {ranges:?}");

        // A host that was found to have no use for ranges is not asked for them again: another one.
        let scene = scene_of(10_000, options());
        for fault in faults.iter().filter(|fault| !matches!(fault, Bad::IgnoreRange)) {
            scene.server.set(fault.clone());
        }
        let error = scene.read(2000, 7000).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Misbehaved, "{faults:?}: {}", error.chain());
        assert!(error.chain().contains(&scene.server.host()), "{}", error.chain());
        assert!(error.chain().contains("range "), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_wrong_range_is_given_up_after_five_tries() {
    let scene = scene(10_000);
    scene.server.set(Bad::WrongContentRange);
    let error = scene.read(2000, 7000).await.unwrap_err();
    assert_eq!(scene.server.blob_requests().len(), 5);
    assert!(
        error.chain().contains("status 206 and content range \"bytes 2001-7000/10000\""),
        "{}",
        error.chain()
    );
}

#[tokio::test]
async fn a_blob_shorter_than_its_descriptor_is_an_error_with_both_sizes() {
    let server = FaultRegistry::start();
    let digest = server.push_blob(noise(1000));
    let blob = client().blob(&reference(&server), &descriptor(&digest, 5000));
    let error = blob.fetch(ByteRange::new(3000, 4000)).await.err().unwrap();
    assert!(error.chain().contains("has 1000 bytes, the descriptor states 5000"), "{}", error.chain());
    assert_eq!((error.fault(), statuses(&server.requests())), (FaultClass::Misbehaved, vec![416]));
    // A range that begins inside is answered, and refused for its total.
    assert_eq!(blob.fetch(ByteRange::new(500, 600)).await.err().unwrap().fault(), FaultClass::Misbehaved);
}

#[tokio::test]
async fn an_unknown_blob_is_not_found_at_once() {
    let server = FaultRegistry::start();
    let blob = client().blob(&reference(&server), &descriptor(&Digest::sha256(b"nowhere"), 10));
    let error = blob.fetch(ByteRange::new(0, 10)).await.err().unwrap();
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::NotFound, 1));
}

#[tokio::test]
async fn eight_requests_to_a_host_are_under_way_at_most() {
    let scene = scene(40_000);
    scene.server.set(Bad::SlowBytesPerSecond(4000));
    let reads = (0..20).map(|at| scene.expect(at * 2000, (at + 1) * 2000));
    futures_util::future::join_all(reads).await;
    assert_eq!(scene.server.most_streaming(), 8);
    assert_eq!((scene.server.blob_requests().len(), scene.server.blob_bytes()), (20, 40_000));
}

#[tokio::test]
async fn a_dropped_delivery_gives_its_place_back() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(2), ..options() });
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(scene.blob.fetch(ByteRange::new(0, 1000)).await.unwrap());
    }
    let error = scene.blob.fetch(ByteRange::new(0, 1)).await.err().unwrap();
    assert_eq!(error.fault(), FaultClass::Unavailable);
    assert!(error.chain().contains("no free connection"), "{}", error.chain());
    // A read that was given up does not keep a place either.
    let given_up = tokio::time::timeout(Duration::from_millis(50), scene.read(0, 1)).await;
    assert!(given_up.is_err());
    held.pop();
    scene.expect(0, 1000).await;
    assert_eq!(scene.server.blob_requests().len(), 9);
}

#[tokio::test]
async fn the_whole_of_a_blob_is_one_request_without_a_range() {
    let scene = scene(100_000);
    assert!(read_all(&FetchAll(scene.blob.clone())).await.unwrap() == scene.bytes);
    let asked: Vec<_> =
        scene.server.blob_requests().iter().map(|request| (request.range, request.is_ranged)).collect();
    assert_eq!(asked, [(Some((0, 100_000)), false)]);
}
