//! Broken bodies, and hosts that are silent, busy or gone: resumption, number of tries, and deadlines.

use super::*;

#[tokio::test]
async fn a_truncated_body_is_resumed_from_the_last_good_byte() {
    let scene = scene(400_000);
    scene.server.set(Bad::TruncateAfter { bytes: 100_000, times: 3 });
    scene.expect(0, 400_000).await;
    assert_eq!(scene.ranges(), [(0, 400_000), (100_000, 400_000), (200_000, 400_000), (300_000, 400_000)]);
    assert_eq!(scene.server.blob_bytes(), 400_000);
}

#[tokio::test]
async fn a_body_that_always_breaks_at_once_is_given_up() {
    let scene = scene(10_000);
    scene.server.set(Bad::TruncateAfter { bytes: 0, times: u32::MAX });
    let error = scene.read(0, 10_000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable, "{}", error.chain());
    assert!(scene.server.blob_requests().len() <= 6, "{}", scene.server.blob_requests().len());
}

#[tokio::test]
async fn a_body_that_goes_silent_is_resumed_on_a_new_connection() {
    let scene = scene_of(10_000, impatient());
    scene.server.set_for(Bad::StallAfter(4000), 1);
    let started = Instant::now();
    scene.expect(0, 10_000).await;
    assert_eq!(scene.ranges()[..2], [(0, 10_000), (4000, 10_000)]);
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_silent_registry_costs_the_budget_and_no_more() {
    for fault in [Bad::Silent, Bad::StallAfter(0)] {
        let scene =
            scene_of(1000, RegistryOptions { read_budget: Duration::from_millis(1500), ..impatient() });
        scene.server.set(fault.clone());
        let error = scene.read(0, 1000).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Unavailable, "{fault:?}: {}", error.chain());
        // Each try is silent for 800 ms of the 1500.
        let tries = scene.server.unanswered() + scene.server.blob_requests().len();
        assert!((1..=3).contains(&tries), "{fault:?}: {tries} tries");
    }
}

#[tokio::test]
async fn a_slow_body_may_take_longer_than_the_budget() {
    let scene = scene_of(20_000, RegistryOptions { read_budget: Duration::from_millis(400), ..options() });
    scene.server.set(Bad::SlowBytesPerSecond(20_000));
    let started = Instant::now();
    scene.expect(0, 20_000).await;
    assert!(started.elapsed() > Duration::from_millis(800));
    assert_eq!(scene.server.blob_requests().len(), 1);
}

#[tokio::test]
async fn a_passing_status_is_asked_again_and_a_final_one_is_not() {
    for (code, requests) in
        [(408, 3), (429, 3), (500, 3), (502, 3), (503, 3), (504, 3), (522, 3), (400, 1), (405, 1), (501, 1)]
    {
        let scene = scene(1000);
        scene.server.push_manifest("team/app", "v1", MANIFEST, b"{}");
        scene.server.set(Bad::Status { code, times: 2, retry_after: None });
        assert_eq!(scene.read(0, 1000).await.is_ok(), requests == 3, "{code}");
        assert_eq!(scene.server.requests().len(), requests, "{code}");
        scene.server.clear();
        scene.server.reset_counts();
        scene.server.set(Bad::Status { code, times: 2, retry_after: None });
        let manifest = scene.registry.manifest(&reference(&scene.server), &tag("v1")).await;
        assert_eq!((manifest.is_ok(), scene.server.requests().len()), (requests == 3, requests), "{code}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_in_seconds_and_as_a_date() {
    for seconds in [true, false] {
        let scene = scene(1000);
        let value =
            if seconds { "1".to_owned() } else { http_date(SystemTime::now() + Duration::from_secs(2)) };
        scene.server.set(Bad::Status { code: 429, times: 1, retry_after: Some(value) });
        let started = Instant::now();
        scene.expect(0, 1000).await;
        let waited = started.elapsed();
        // A date has whole seconds, so two of them are between one and two.
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
        assert_eq!(statuses(&scene.server.requests()), [429, 200]);
    }
}

#[tokio::test]
async fn a_wait_past_the_budget_is_not_begun() {
    let scene = scene(1000);
    scene.server.set(Bad::Status { code: 503, times: 9, retry_after: Some("3600".into()) });
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!((error.fault(), scene.server.requests().len()), (FaultClass::Unavailable, 1));
}

#[tokio::test]
async fn a_named_wait_holds_for_every_request_to_the_host() {
    let scene = scene(1000);
    scene.server.set(Bad::Status { code: 429, times: 1, retry_after: Some("1".into()) });
    let started = Instant::now();
    let second = async {
        while scene.server.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The answer is on its way to the client.
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.expect(0, 10).await;
        started.elapsed()
    };
    let ((), waited) = tokio::join!(scene.expect(0, 1000), second);
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert_eq!(scene.server.requests().len(), 3);
}

#[tokio::test]
async fn dead_registry_is_unavailable() {
    let scene = scene_of(1000, RegistryOptions { read_budget: Duration::from_secs(2), ..options() });
    scene.server.go_down();
    let (reference, tag) = (reference(&scene.server), tag("v1"));
    let manifest = tokio::time::timeout(HUNG, scene.registry.manifest(&reference, &tag)).await.unwrap();
    let error = manifest.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable);
    let error = scene.read(0, 1000).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable, "{}", error.chain());
}

#[tokio::test]
async fn a_registry_that_comes_back_is_read_before_the_budget_ends() {
    let scene = scene(1000);
    scene.expect(0, 10).await;
    scene.server.go_down();
    let back = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        scene.server.come_up();
    };
    tokio::join!(back, scene.expect(0, 1000));
    assert_eq!(scene.ranges().last(), Some(&(0, 1000)));
}

#[tokio::test]
async fn a_registry_that_dies_in_a_body_is_resumed_when_it_is_back() {
    let scene = scene(100_000);
    scene.server.set_for(Bad::SlowBytesPerSecond(100_000), 1);
    let mut delivery = scene.blob.fetch(ByteRange::new(0, 100_000)).await.unwrap();
    let mut bytes = delivery.body.next().await.unwrap().unwrap().to_vec();
    scene.server.go_down();
    scene.server.come_up();
    while let Some(chunk) = delivery.body.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    assert!(bytes == scene.bytes);
    assert_eq!(scene.ranges().len(), 2);
    assert!(scene.ranges()[1].0 > 0, "the second request starts over");
}

/// The date of RFC 9110 section 5.6.7, by the naive way of counting days.
fn http_date(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= if is_leap(year) { 366 } else { 365 } {
        days -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    let months = [
        ("Jan", 31),
        ("Feb", if is_leap(year) { 29 } else { 28 }),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let mut month = "";
    for (name, length) in months {
        month = name;
        if days < length {
            break;
        }
        days -= length;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("Mon, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", days + 1)
}
