//! Whole documents: manifests and configs, their digests and their limits.

use super::*;

#[tokio::test]
async fn a_manifest_comes_by_tag_and_by_digest_in_one_request_each() {
    let server = FaultRegistry::start();
    let digest = server.push_manifest("team/app", "v1", MANIFEST, b"{\"schemaVersion\":2}");
    let registry = client();
    for selector in [tag("v1"), ManifestSelector::Digest(digest.clone())] {
        let fetched = registry.manifest(&reference(&server), &selector).await.unwrap();
        assert_eq!(&fetched.bytes[..], b"{\"schemaVersion\":2}");
        assert_eq!((fetched.digest, fetched.content_type.as_deref()), (digest.clone(), Some(MANIFEST)));
    }
    assert_eq!(statuses(&server.requests()), [200, 200]);
}

#[tokio::test]
async fn a_manifest_that_does_not_hash_to_its_name_is_a_mismatch() {
    let server = FaultRegistry::start();
    let asked = Digest::sha256(b"something else");
    server.push_manifest_as("team/app", asked.as_str(), MANIFEST, b"{}");
    let error = client().manifest(&reference(&server), &ManifestSelector::Digest(asked)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error:?}");
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Mismatch, 1));
}

#[tokio::test]
async fn a_digest_header_must_agree_with_the_bytes() {
    let server = FaultRegistry::start();
    server.push_manifest("team/app", "v1", MANIFEST, b"{}");
    let of_sha512 = "27c74670adb75075fad058d5ceaf7b20c4e7786c83bae8a32f626f9782af34c9a33c2046ef60fd2a7878d378e29fec851806bbd9a67878f3a9f1cda4830763fd";
    let cases = [
        (Digest::sha256(b"{}").to_string(), None),
        (format!("sha512:{of_sha512}"), None),
        ("blake3:abcdef".to_owned(), None),
        (Digest::sha256(b"{ }").to_string(), Some(FaultClass::Mismatch)),
        (format!("sha512:{}", of_sha512.replace('2', "3")), Some(FaultClass::Mismatch)),
        // A header that is no digest proves nothing.
        ("nonsense".to_owned(), None),
    ];
    for (header, expected) in cases {
        server.clear();
        server.set(Bad::ManifestDigestHeader(header.clone()));
        let fault = client().manifest(&reference(&server), &tag("v1")).await.err().map(|error| error.fault());
        assert_eq!(fault, expected, "{header}");
    }
}

#[tokio::test]
async fn a_manifest_at_the_limit_is_read_and_one_past_it_is_not() {
    let server = FaultRegistry::start();
    for chunked in [false, true] {
        server.clear();
        server.set(Bad::BigManifest(MAX_DOCUMENT));
        if chunked {
            server.set(Bad::Chunked);
        }
        let fetched = client().manifest(&reference(&server), &tag("v1")).await.unwrap();
        assert_eq!(fetched.bytes.len() as u64, MAX_DOCUMENT);
        server.clear();
        server.set(Bad::BigManifest(MAX_DOCUMENT + 1));
        if chunked {
            server.set(Bad::Chunked);
        }
        let error = client().manifest(&reference(&server), &tag("v1")).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { limit: MAX_DOCUMENT, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_huge_manifest_is_not_read_to_its_end() {
    let server = FaultRegistry::start();
    let huge = 96 * 1024 * 1024;
    for chunked in [false, true] {
        server.clear();
        server.reset_counts();
        server.set(Bad::BigManifest(huge));
        if chunked {
            server.set(Bad::Chunked);
        }
        let error = client().manifest(&reference(&server), &tag("v1")).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Unsupported);
        // The limit and what fits into the buffers of two sockets.
        let sent = server.requests()[0].bytes_sent;
        assert!(sent < 32 * 1024 * 1024, "{sent} bytes were sent");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn an_unknown_manifest_is_not_found_in_the_registrys_own_words() {
    let server = FaultRegistry::start();
    let error = client().manifest(&reference(&server), &tag("v1")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {} has no manifest v1 of team/app: MANIFEST_UNKNOWN manifest unknown to this registry",
            server.host()
        )
    );
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::NotFound, 1));
}

#[tokio::test]
async fn server_that_is_no_registry_is_reported() {
    let server = FaultRegistry::start();
    server.push_manifest("team/app", "text", &format!("{MANIFEST}; charset=utf-8"), b"hello");
    let error = client().manifest(&reference(&server), &tag("text")).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotRegistry { .. }), "{error:?}");
    server.set(Bad::Html);
    let error = client().manifest(&reference(&server), &tag("v1")).await.unwrap_err();
    assert!(error.to_string().contains("does not seem to be an OCI registry"), "{error}");
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Misbehaved, 2));
}

#[tokio::test]
async fn a_document_is_checked_against_its_descriptor() {
    let server = FaultRegistry::start();
    let registry = client();
    let digest = server.push_blob(&b"{\"os\":\"linux\"}"[..]);
    let bytes = registry.document(&reference(&server), &descriptor(&digest, 14)).await.unwrap();
    assert_eq!((&bytes[..], server.requests().len()), (&b"{\"os\":\"linux\"}"[..], 1));

    // A bit that flipped on the way is fetched again.
    server.reset_counts();
    server.set_for(Bad::FlipBit, 2);
    let bytes = registry.document(&reference(&server), &descriptor(&digest, 14)).await.unwrap();
    assert_eq!((&bytes[..], server.requests().len()), (&b"{\"os\":\"linux\"}"[..], 3));

    // A lie is not.
    server.reset_counts();
    server.push_blob_as(&digest, &b"{\"os\":\"other\"}"[..]);
    let error = registry.document(&reference(&server), &descriptor(&digest, 14)).await.unwrap_err();
    assert_eq!((error.fault(), server.requests().len()), (FaultClass::Mismatch, 3));
}

#[tokio::test]
async fn a_document_that_needs_no_request_makes_none() {
    let server = FaultRegistry::start();
    let (registry, reference) = (client(), reference(&server));
    let digest = Digest::sha256(b"{}");
    let embedded = Descriptor { data: Some(b"{}".to_vec()), ..descriptor(&digest, 2) };
    assert_eq!(&registry.document(&reference, &embedded).await.unwrap()[..], b"{}");
    let empty = descriptor(&Digest::sha256(b""), 0);
    assert_eq!(registry.document(&reference, &empty).await.unwrap().len(), 0);
    let huge = descriptor(&digest, MAX_DOCUMENT + 1);
    assert_eq!(registry.document(&reference, &huge).await.unwrap_err().fault(), FaultClass::Unsupported);
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_document_at_the_limit_is_read() {
    let server = FaultRegistry::start();
    let bytes = noise(MAX_DOCUMENT as usize);
    let digest = server.push_blob(bytes.clone());
    let read = client().document(&reference(&server), &descriptor(&digest, MAX_DOCUMENT)).await.unwrap();
    assert!(read == bytes);
}
