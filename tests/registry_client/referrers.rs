//! Lists of referrers: pages, filters, fallbacks, and lists that lie.

use super::matrix::{Asked, Desk, Reply};
use super::*;

const KIND: &str = "application/vnd.x+json";
const OTHER: &str = "application/vnd.y";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A server with a subject and five referrers, three of them of `KIND`.
struct Listed {
    server: FaultRegistry,
    subject: Descriptor,
    of_kind: Vec<Digest>,
    all: Vec<Digest>,
}

fn listed() -> Listed {
    let server = FaultRegistry::start();
    let bytes = br#"{"schemaVersion":2,"layers":[]}"#;
    server.push_manifest("team/app", "v1", MANIFEST, bytes);
    let subject = Descriptor::of(MANIFEST, bytes);
    let put = |kind: &str, mark: usize| {
        let bytes = FaultRegistry::referrer(&subject, kind, &mark.to_string());
        server.push_manifest("team/app", &format!("r{mark}"), MANIFEST, &bytes)
    };
    let mut of_kind: Vec<Digest> = (0..3).map(|mark| put(KIND, mark)).collect();
    let mut all: Vec<Digest> = (3..5).map(|mark| put(OTHER, mark)).chain(of_kind.clone()).collect();
    of_kind.sort();
    all.sort();
    Listed { server, subject, of_kind, all }
}

impl Listed {
    async fn ask(&self, kind: Option<&str>) -> Result<Vec<Descriptor>, RegistryError> {
        client().referrers(&reference(&self.server), &self.subject.digest, kind).await
    }

    async fn digests(&self, kind: Option<&str>) -> Vec<Digest> {
        let entries = self.ask(kind).await.unwrap_or_else(|error| panic!("{}", everything(&error)));
        let mut digests: Vec<Digest> = entries.into_iter().map(|entry| entry.digest).collect();
        digests.sort();
        digests
    }

    /// Puts a list under the fallback tag.
    fn tag_list(&self, media_type: &str, list: &[u8]) {
        let tag = ocifs::oci::fallback_tag(&self.subject.digest);
        self.server.push_manifest_as("team/app", &tag, media_type, list);
    }
}

#[tokio::test]
async fn list_of_referrers_is_paged_and_has_kinds_and_annotations() {
    let scene = listed();
    scene.server.set(Bad::ReferrersApi { page: 2 });
    assert_eq!(scene.digests(None).await, scene.all);
    assert_eq!(statuses(&scene.server.requests()), [200, 200, 200]);
    let entries = scene.ask(Some(OTHER)).await.unwrap();
    assert!(entries.iter().all(|entry| entry.artifact_type == Some(OTHER.into())));
    let mut marks: Vec<_> = entries.iter().map(|entry| entry.annotations["mark"].as_str()).collect();
    marks.sort_unstable();
    assert_eq!(marks, ["3", "4"]);
}

#[tokio::test]
async fn an_answer_of_another_type_is_no_list_and_the_tag_is_asked() {
    let scene = listed();
    let entry = |content: &[u8]| {
        format!(r#"{{"mediaType":"{MANIFEST}","size":2,"digest":"{}"}}"#, Digest::sha256(content))
    };
    let list = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entry(b"{}"));
    let tag = ocifs::oci::fallback_tag(&scene.subject.digest);
    for (kind, body, expected) in [
        ("text/html", "<html>", Some(3)),
        ("text/plain", "hello", Some(3)),
        ("application/json", r#"{"errors":[]}"#, Some(3)),
        // The right type, or none, over something else is a fault of the list; another type over a list is none.
        (INDEX, r#"{"errors":[]}"#, None),
        ("application/json", &list, Some(1)),
    ] {
        let entries: Vec<String> = (1..=3).map(|mark| entry(&[mark])).collect();
        let three = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let (body, tag) = (body.to_owned(), tag.clone());
        let desk = Desk::open(Arc::new(move |asked: &Asked| {
            match (asked.path.contains("/referrers/"), asked.path.ends_with(&tag)) {
                (true, _) => Reply::new(200, body.as_bytes()).with("Content-Type", kind),
                (false, true) => Reply::new(200, three.as_bytes()).with("Content-Type", INDEX),
                (false, false) => Reply::new(404, b""),
            }
        }));
        let reference: Reference = format!("{}/team/app:v1", desk.host()).parse().unwrap();
        let found = client().referrers(&reference, &scene.subject.digest, None).await;
        assert_eq!(found.as_ref().ok().map(Vec::len), expected, "{kind}: {found:?}");
    }
}

#[tokio::test]
async fn a_filter_holds_whether_the_registry_applies_it_or_not() {
    let scene = listed();
    scene.server.set(Bad::ReferrersApi { page: 2 });
    // The plus sign of a media type is not a space.
    assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind);
    assert_eq!(scene.server.requests().len(), 2, "three entries on two pages");
    scene.server.reset_counts();
    scene.server.set(Bad::ReferrersUnfiltered);
    assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind);
    assert_eq!(scene.server.requests().len(), 3, "five entries on three pages");
    assert_eq!(scene.digests(Some("application/vnd.none")).await, []);
}

#[tokio::test]
async fn no_referrers_are_no_error() {
    let scene = listed();
    let unknown = Digest::sha256(b"nobody's subject");
    for api in [true, false] {
        if api {
            scene.server.set(Bad::ReferrersApi { page: 10 });
        } else {
            scene.server.clear();
        }
        let found = client().referrers(&reference(&scene.server), &unknown, None).await.unwrap();
        assert_eq!(found, [], "api: {api}");
    }
    // The API answers an empty list; without it the tag is asked for too.
    assert_eq!(statuses(&scene.server.requests()), [200, 404, 404]);
}

#[tokio::test]
async fn a_list_that_leads_in_circles_ends() {
    let scene = listed();
    scene.server.set(Bad::ReferrersApi { page: 10 });
    scene.server.set(Bad::ReferrersLoop);
    let error = scene.ask(None).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Misbehaved, "{error}");
    assert!(error.to_string().contains("a list that does not end after"), "{error}");
    assert!(scene.server.requests().len() <= 3);

    scene.server.clear();
    scene.server.reset_counts();
    scene.server.set(Bad::ReferrersApi { page: 10 });
    scene.server.set(Bad::ReferrersEndless);
    let error = scene.ask(None).await.unwrap_err();
    assert!(error.to_string().contains("does not end after 512 pages"), "{error}");
    assert_eq!((error.fault(), scene.server.requests().len()), (FaultClass::Misbehaved, 512));
}

#[tokio::test]
async fn a_page_at_another_host_is_not_asked_for() {
    let scene = listed();
    scene.server.set(Bad::ReferrersApi { page: 10 });
    scene.server.set(Bad::ReferrersElsewhere);
    let quick =
        RegistryClient::new(RegistryOptions { read_budget: Duration::from_secs(5), ..options() }).unwrap();
    let error = quick.referrers(&reference(&scene.server), &scene.subject.digest, None).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Misbehaved);
    let shown = everything(&error);
    assert!(shown.contains(&format!("a next page at {}", scene.server.cdn_host())), "{shown}");
    assert!(scene.server.requests().iter().all(|request| !request.cdn));
}

#[tokio::test]
async fn an_old_registry_lists_under_a_tag() {
    let scene = listed();
    let entry = |digest: &Digest, kind: &str| {
        format!(r#"{{"mediaType":"{MANIFEST}","digest":"{digest}","size":9,"artifactType":"{kind}"}}"#)
    };
    let mut entries: Vec<String> = scene.of_kind.iter().map(|digest| entry(digest, KIND)).collect();
    entries.push(entry(&scene.subject.digest, OTHER));
    entries.push(entries[0].clone());
    scene.tag_list(INDEX, format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")).as_bytes());
    assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind, "an entry that occurs twice is listed once");
    assert_eq!(statuses(&scene.server.requests()), [404, 200]);
    // What registries say that have never heard of it.
    for code in [400, 405, 501] {
        scene.server.set_for(Bad::Status { code, times: 1, retry_after: None }, 1);
        assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind, "{code}");
    }
    scene.server.set_for(Bad::Html, 1);
    assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind);
    // A gateway that recovers, and then a registry without the API.
    scene.server.set_for(Bad::Status { code: 503, times: 1, retry_after: None }, 1);
    assert_eq!(scene.digests(Some(KIND)).await, scene.of_kind);
}

#[tokio::test]
async fn a_refusal_is_not_an_empty_list() {
    for (code, fault) in [(401, FaultClass::Denied), (403, FaultClass::Denied), (410, FaultClass::Misbehaved)]
    {
        let scene = listed();
        scene.tag_list(INDEX, br#"{"schemaVersion":2,"manifests":[]}"#);
        scene.server.set(Bad::Status { code, times: 1, retry_after: None });
        let error = scene.ask(None).await.unwrap_err();
        assert_eq!(error.fault(), fault, "{code}: {error}");
        assert!(error.to_string().contains("referrers of sha256:"), "{error}");
        // One that is refused the list may be shown what lies under the tag; nothing there is no answer.
        let asked = if code == 410 { 1 } else { 2 };
        assert_eq!(scene.server.requests().len(), asked, "{code}");
    }
    for code in [401, 403] {
        let scene = listed();
        let entry = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#;
        let list = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        scene.tag_list(INDEX, list.as_bytes());
        scene.server.set(Bad::Status { code, times: 1, retry_after: None });
        assert_eq!(scene.ask(None).await.unwrap().len(), 1, "{code}");
    }
}

#[tokio::test]
async fn a_list_with_a_hole_is_an_error_and_not_another_list() {
    let scene = listed();
    scene.tag_list(INDEX, br#"{"schemaVersion":2,"manifests":[]}"#);
    scene.server.set(Bad::ReferrersApi { page: 2 });
    scene.server.set(Bad::ReferrersHole);
    let error = scene.ask(None).await.unwrap_err();
    assert_eq!((error.fault(), statuses(&scene.server.requests())), (FaultClass::NotFound, vec![200, 404]));
}

#[tokio::test]
async fn a_list_that_is_none_is_an_error() {
    let scene = listed();
    scene.tag_list(MANIFEST, br#"{"schemaVersion":2,"layers":[]}"#);
    let error = scene.ask(None).await.unwrap_err();
    assert!(everything(&error).contains("it is a manifest, not an index"), "{}", everything(&error));
    assert_eq!(error.fault(), FaultClass::Malformed);
}

#[tokio::test]
async fn a_list_at_the_limit_is_read_and_one_past_it_is_not() {
    let scene = listed();
    let list = |len: usize| {
        let mut list = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
        list.resize(len, b' ');
        list
    };
    scene.tag_list(INDEX, &list(MAX_DOCUMENT as usize));
    assert_eq!(scene.digests(None).await, []);
    scene.tag_list(INDEX, &list(MAX_DOCUMENT as usize + 1));
    assert_eq!(scene.ask(None).await.unwrap_err().fault(), FaultClass::Unsupported);
}
