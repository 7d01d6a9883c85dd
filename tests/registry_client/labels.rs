//! Labels of responses: `Content-Encoding` and `Docker-Content-Digest` headers that do not fit the bytes below them.

use super::matrix::{Asked, Desk, Reply};
use super::messages::{Image, ocifs, run_ocifs};
use super::*;
use crate::encode::gzip;
use crate::process::run;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn blob_with_a_label_of_an_encoding_over_its_own_bytes_is_read_with_one_request_a_range() {
    for label in [
        "gzip",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "utf-8",
        "binary",
        "none",
        "base64",
        "aws-chunked,gzip",
        "application/octet-stream",
    ] {
        let scene = scene(100_000);
        scene.server.set(Bad::ContentEncoding(label));
        scene.expect(1000, 5000).await;
        scene.expect(0, 100_000).await;
        assert_eq!(scene.ranges(), [(1000, 5000), (0, 100_000)], "{label}");
        scene.server.set(Bad::IgnoreRange);
        scene.expect(7, 90_000).await;
    }
}

#[tokio::test]
async fn blob_that_is_encoded_on_the_way_is_refused_and_asked_for_again() {
    for faults in [&[Bad::ContentEncodingGzip][..], &[Bad::ContentEncodingGzip, Bad::Chunked]] {
        let scene = scene(10_000);
        for fault in faults {
            scene.server.set_for(fault.clone(), 1);
        }
        scene.expect(2000, 10_000).await;
        assert_eq!(scene.ranges(), [(2000, 10_000), (2000, 10_000)], "{faults:?}");
    }
}

/// The labels of documents, and whether the bytes below are encoded.
const DOCUMENT_LABELS: [(&str, bool); 7] = [
    ("utf-8", false),
    ("binary", false),
    ("none", false),
    ("gzip", false),
    ("br", false),
    ("gzip", true),
    ("X-GZIP", true),
];

fn labelled(status: u16, body: &[u8], label: &str, is_encoded: bool) -> Reply {
    let packed = gzip(body);
    Reply::new(status, if is_encoded { &packed } else { body }).with("Content-Encoding", label)
}

#[tokio::test]
async fn manifest_and_list_of_referrers_are_read_below_any_label() {
    let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[]}}"#).into_bytes();
    let digest = Digest::sha256(&manifest);
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","artifactType":"a/b","size":2,"digest":"{}"}}]}}"#,
        Digest::sha256(b"{}")
    )
    .into_bytes();
    for (label, is_encoded) in DOCUMENT_LABELS {
        let (manifest, list) = (manifest.clone(), list.clone());
        let promised = digest.to_string();
        let desk = Desk::open(Arc::new(move |asked: &Asked| match asked.path.contains("/referrers/") {
            true => labelled(200, &list, label, is_encoded).with("Content-Type", INDEX),
            false => labelled(200, &manifest, label, is_encoded)
                .with("Content-Type", MANIFEST)
                .with("Docker-Content-Digest", promised.clone()),
        }));
        let (registry, reference) = (client(), format!("{}/a/b:v1", desk.host()).parse().unwrap());
        for selector in [tag("v1"), ManifestSelector::Digest(digest.clone())] {
            let fetched = registry.manifest(&reference, &selector).await.unwrap();
            assert_eq!(fetched.digest, digest, "{label}");
        }
        let listed = registry.referrers(&reference, &digest, None).await.unwrap();
        assert_eq!((listed.len(), desk.asked()), (1, 3), "{label}");
    }
}

#[test]
fn image_is_read_by_way_of_a_proxy_that_marks_folds_and_compresses_its_answers() {
    for (status, is_encoded) in [(203, false), (200, true), (203, true)] {
        let image = Image::new();
        let config = Digest::sha256(b"{}").to_string();
        let desk = image.serve(move |asked| {
            let reply = match asked.path.ends_with(&config) {
                true => labelled(status, b"{}", "gzip", is_encoded),
                false if asked.path.ends_with("/manifests/v1") => {
                    labelled(status, &Image::new().manifest, "gzip", is_encoded)
                        .with("Content-Type", MANIFEST)
                }
                false => return None,
            };
            Some(reply.with("X-Cache", "MISS from a,\r\n MISS from b").with("Via ", "1.1 p"))
        });
        let reference = format!("{}/a/b:v1", desk.host());
        let home = tempfile::tempdir().unwrap();
        assert_eq!(run(&mut ocifs(home.path(), &["cat", &reference, "config.json"])).ok().text(), "{}");
        assert_eq!(run(&mut ocifs(home.path(), &["cat", &reference, "merged/f"])).ok().text(), "hello");
        assert_eq!(desk.lines().iter().filter(|line| line.contains("/manifests/")).count(), 2);
    }
}

#[test]
fn compressed_config_of_other_bytes_is_refused() {
    let config = Digest::sha256(b"{}").to_string();
    for other in [&b"[]"[..], b"{ }"] {
        let config = config.clone();
        let desk = Image::new()
            .serve(move |asked| asked.path.ends_with(&config).then(|| labelled(200, other, "gzip", true)));
        let refused = run_ocifs(&["cat", &format!("{}/a/b:v1", desk.host()), "config.json"]);
        assert!(refused.code != Some(0) && refused.text().is_empty(), "{}", refused.text());
    }
}

#[tokio::test]
async fn token_is_read_below_any_label() {
    for (label, is_encoded) in DOCUMENT_LABELS {
        let image = Image::new();
        let desk = image.serve(move |asked| match &asked.credential[..] {
            _ if asked.path.starts_with("/token") => {
                Some(labelled(200, br#"{"token":"t"}"#, label, is_encoded))
            }
            "Bearer t" => None,
            _ => Some(
                Reply::new(401, b"")
                    .with("WWW-Authenticate", format!("Bearer realm=\"http://{}/token\"", asked.host)),
            ),
        });
        let reference: Reference = format!("{}/a/b:v1", desk.host()).parse().unwrap();
        let fetched = client().manifest(&reference, &tag("v1")).await;
        assert!(fetched.is_ok(), "{label}: {:?}", fetched.err());
    }
}

#[tokio::test]
async fn document_that_is_encoded_is_decoded_within_the_limit_of_documents_and_otherwise_refused() {
    let bomb = [&b"{"[..], &vec![b' '; MAX_DOCUMENT as usize], b"}"].concat();
    let packed = gzip(&bomb);
    let body = packed.clone();
    let desk = Desk::open(Arc::new(move |_: &Asked| {
        Reply::new(200, &body).with("Content-Type", MANIFEST).with("Content-Encoding", "gzip")
    }));
    let reference = |desk: &Desk| format!("{}/a/b:v1", desk.host()).parse().unwrap();
    let error = client().manifest(&reference(&desk), &tag("v1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: MAX_DOCUMENT, .. }), "{error:?}");
    for (label, body) in
        [("gzip", &packed[..1000]), ("br", b"\x0b\x02\x80{}"), ("gzip, gzip", &gzip(b"{}")[..])]
    {
        let body = body.to_vec();
        let desk = Desk::open(Arc::new(move |_: &Asked| {
            Reply::new(200, &body).with("Content-Type", MANIFEST).with("Content-Encoding", label)
        }));
        let error = client().manifest(&reference(&desk), &tag("v1")).await.unwrap_err();
        assert!(
            error.to_string().contains("content encoding") || everything(&error).contains("content encoding"),
            "{error:?}"
        );
        assert_eq!(error.fault(), FaultClass::Misbehaved);
    }
}

/// An OCI layout of the image, as an archive.
fn archive() -> Vec<u8> {
    let Image { manifest, layer } = Image::new();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":{}}}]}}"#,
        Digest::sha256(&manifest),
        manifest.len()
    );
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", index.as_bytes());
    for blob in [&manifest[..], &layer, b"{}"] {
        add(&format!("blobs/sha256/{}", Digest::sha256(blob).encoded()), blob);
    }
    archive.into_inner().unwrap()
}

#[test]
fn archive_by_url_is_its_stored_bytes_below_any_label() {
    for (name, label, is_packed, has_ranges) in [
        ("x.tar.gz", "x-gzip", true, true),
        ("x.tar.gz", "gzip", true, false),
        ("x.tar", "gzip", true, false),
        ("x.tar", "utf-8", false, true),
    ] {
        let body = if is_packed { gzip(&archive()) } else { archive() };
        let desk = Desk::open(Arc::new(move |asked: &Asked| {
            let reply = match asked.range.filter(|_| has_ranges) {
                Some((start, end)) => Reply::new(206, &body[start..end.min(body.len())]).with(
                    "Content-Range",
                    format!("bytes {start}-{}/{}", end.min(body.len()) - 1, body.len()),
                ),
                None => Reply::new(200, &body),
            };
            reply.with("Content-Encoding", label)
        }));
        let read = run_ocifs(&["cat", &format!("http://{}/{name}", desk.host()), "merged/f"]).ok();
        assert_eq!(read.text(), "hello", "{name} {label}");
    }
}

#[test]
fn unreadable_digest_header_of_a_tag_is_one_warning_and_no_second_request() {
    for header in ["nonsense", "SHA256:00", "\"sha256:00\""] {
        let desk = Image::new().serve(move |asked| {
            let is_document = asked.path.ends_with("/manifests/v1");
            is_document.then(|| {
                Reply::new(200, &Image::new().manifest)
                    .with("Content-Type", MANIFEST)
                    .with("Docker-Content-Digest", header)
            })
        });
        let read = run_ocifs(&["cat", &format!("{}/a/b:v1", desk.host()), "merged/f"]).ok();
        assert_eq!(read.text(), "hello", "{header}");
        assert_eq!(read.stderr.matches("Docker-Content-Digest").count(), 1, "{}", read.stderr);
        let documents = desk.lines().iter().filter(|line| line.contains("/manifests/")).count();
        assert_eq!(documents, 1, "{:?}", desk.lines());
    }
}

#[test]
fn digest_header_of_other_bytes_blames_the_registry_and_not_the_cache() {
    let desk = Image::new().serve(|asked| {
        let is_document = asked.path.contains("/manifests/");
        is_document.then(|| {
            Reply::new(200, &Image::new().manifest)
                .with("Content-Type", MANIFEST)
                .with("Docker-Content-Digest", Digest::sha256(b"other").to_string())
        })
    });
    let refused = run_ocifs(&["inspect", &format!("{}/a/b:v1", desk.host())]);
    refused.refused(&[7], &["Docker-Content-Digest", "hint: the registry", "@sha256:"]);
    assert!(!refused.stderr.contains("cache"), "{}", refused.stderr);
    // The bytes of a digest are proven, whatever the header says.
    let digest = Digest::sha256(&Image::new().manifest);
    run_ocifs(&["inspect", &format!("{}/a/b@{digest}", desk.host())]).ok();
}

#[test]
fn list_of_referrers_that_is_refused_is_no_result_of_verify_and_a_warning_before_a_missing_name() {
    for (status, code) in [(403, 4), (503, 5)] {
        let desk = Image::new()
            .serve(move |asked| asked.path.contains("/referrers/").then(|| Reply::new(status, b"")));
        let reference = format!("{}/a/b:v1", desk.host());
        let verified = run_ocifs(&["verify", "--referrers", &reference]);
        verified.refused(&[code], &["1 of "]);
        let line =
            verified.text().lines().find(|line| line.contains("referrers")).unwrap_or_default().to_owned();
        assert!(line.starts_with("UNREADABLE") && line.contains(&format!("status {status}")), "{line}");
        for words in [
            &["ls", "--referrers", &reference, "referrers"],
            &["cat", "--referrers", &reference, "referrers/x"],
        ] {
            let refused = run_ocifs(words);
            refused.refused(&[3], &[&format!("status {status}")]);
            assert_eq!(refused.stderr.matches("cannot be listed").count(), 1, "{}", refused.stderr);
        }
    }
}
