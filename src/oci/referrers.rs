//! Referrer lists: the manifests whose subject is another one.
//!
//! A list is untrusted, since any account with push access can write it. The reader of a listed manifest compares its
//! `subject`. Rules: distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema".

use super::ecosystem::index_json;
use super::go_json::list_mut;
use super::{
    Descriptor, Digest, INDEX_TYPE, MAX_DOCUMENT, MAX_LAYERS, ManifestDocument, MediaType, OciError,
};

/// Limits of the algorithm and of the encoded part in a fallback tag, in characters.
const TAG_PARTS: (usize, usize) = (32, 64);

/// The tag under which a registry without the referrers API stores the list for `subject`: the algorithm and the
/// encoded part, both truncated, with characters that a tag cannot have replaced by `-`.
pub fn fallback_tag(subject: &Digest) -> String {
    let cut = |part: &str, most: usize| -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        part.chars().take(most).map(|c| if allowed(c) { c } else { '-' }).collect()
    };
    format!("{}-{}", cut(subject.algorithm_name(), TAG_PARTS.0), cut(subject.encoded(), TAG_PARTS.1))
}

/// The entries of a referrer list, which is an index.
pub fn listed(bytes: &[u8], content_type: Option<&str>) -> Result<Vec<Descriptor>, OciError> {
    match ManifestDocument::parse(bytes, content_type)? {
        ManifestDocument::Index(index) => Ok(index.manifests),
        ManifestDocument::Manifest(_) => Err(OciError::Malformed {
            what: "list of referrers",
            reason: "it is a manifest, not an index".into(),
        }),
    }
}

/// The list entry for the document in `bytes`, as the specification requires: with the artifact type and the
/// annotations of the document.
pub fn referrer_of(document: &ManifestDocument, media_type: &str, bytes: &[u8]) -> Descriptor {
    let (kind, annotations) = match document {
        ManifestDocument::Manifest(manifest) => (manifest.kind(), &manifest.annotations),
        ManifestDocument::Index(index) => (index.artifact_type.as_ref(), &index.annotations),
    };
    Descriptor {
        artifact_type: kind.filter(|kind| !kind.is_empty()).cloned(),
        annotations: annotations.clone(),
        ..Descriptor::of(media_type, bytes)
    }
}

/// The present list with `entry` added; `None` if it is listed already. The rest of the list is preserved, unknown
/// properties included.
pub fn with_referrer(
    present: Option<(&[u8], Option<&str>)>,
    entry: &Descriptor,
) -> Result<Option<Vec<u8>>, OciError> {
    let malformed = |reason: String| OciError::Malformed { what: "list of referrers", reason };
    let failed = |error: serde_json::Error| malformed(error.to_string());
    let mut list = match present {
        Some((bytes, content_type)) => {
            if listed(bytes, content_type)?.iter().any(|other| other.digest == entry.digest) {
                return Ok(None);
            }
            serde_json::from_slice(bytes).map_err(failed)?
        }
        None => index_json(&[], Some(INDEX_TYPE)).map_err(failed)?,
    };
    let entries = list_mut(&mut list, "manifests");
    let entries = entries.ok_or_else(|| malformed("it has no manifests".into()))?;
    if entries.len() >= MAX_LAYERS {
        return Err(malformed(format!("it has {} entries, the limit is {MAX_LAYERS}", entries.len())));
    }
    entries.push(serde_json::to_value(entry).map_err(failed)?);
    let bytes = serde_json::to_vec(&list).map_err(failed)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(malformed(format!("{} bytes are more than the limit of {MAX_DOCUMENT}", bytes.len())));
    }
    Ok(Some(bytes))
}

/// Whether `entry` has the wanted artifact type. A registry may ignore the filter; an entry without a type matches
/// none.
pub(crate) fn is_of_kind(entry: &Descriptor, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| entry.artifact_type.as_ref() == Some(&MediaType::from(wanted)))
}

#[cfg(test)]
mod tests {
    use super::super::{ArtifactManifest, MANIFEST_TYPE};
    use super::*;

    #[test]
    fn a_fallback_tag_is_cut_and_has_only_characters_of_tags() {
        let tag = |digest: &str| fallback_tag(&digest.parse().unwrap());
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(tag(&format!("sha256:{hex}")), format!("sha256-{hex}"));
        assert_eq!(tag(&format!("sha512:{hex}{hex}")), format!("sha512-{hex}"));
        assert_eq!(tag("multihash+base58:Qm=_-x"), "multihash-base58-Qm-_-x");
        let long = "a".repeat(40);
        assert_eq!(tag(&format!("{long}:{hex}{hex}")), format!("{}-{hex}", "a".repeat(32)));
    }

    fn entry() -> Descriptor {
        let artifact = ArtifactManifest {
            artifact_type: "application/x.kind".into(),
            layers: Vec::new(),
            subject: None,
            annotations: [("a".to_owned(), "b".to_owned())].into(),
        };
        let written = artifact.write().unwrap();
        let document = ManifestDocument::parse(&written.bytes, None).unwrap();
        referrer_of(&document, MANIFEST_TYPE, &written.bytes)
    }

    #[test]
    fn referrer_entry_has_kind_and_annotations() {
        let entry = entry();
        assert_eq!(entry.artifact_type, Some("application/x.kind".into()));
        assert_eq!(entry.annotations["a"], "b");
        // Historic artifacts say their kind by the type of the config.
        let json = br#"{"config":{"mediaType":"application/x.old","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
        let old = referrer_of(&ManifestDocument::parse(json, None).unwrap(), MANIFEST_TYPE, json);
        assert_eq!(old.artifact_type, Some("application/x.old".into()));
    }

    #[test]
    fn a_list_grows_by_one_entry_once_and_loses_nothing() {
        let entry = entry();
        let first = with_referrer(None, &entry).unwrap().unwrap();
        assert_eq!(listed(&first, None).unwrap(), std::slice::from_ref(&entry));
        assert_eq!(with_referrer(Some((&first, Some(INDEX_TYPE))), &entry).unwrap(), None);

        let other = br#"{"schemaVersion":2,"x-unknown":[1],"manifests":[{"mediaType":"a/b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"urls":["u"]}]}"#;
        let both = with_referrer(Some((other, Some(INDEX_TYPE))), &entry).unwrap().unwrap();
        let text = String::from_utf8(both.clone()).unwrap();
        assert!(text.contains("x-unknown") && text.contains(r#""urls":["u"]"#), "{text}");
        assert_eq!(listed(&both, None).unwrap().len(), 2);
        assert_eq!(listed(&both, None).unwrap()[1], entry);
    }

    #[test]
    fn fallback_tag_without_a_list_is_not_overwritten() {
        let manifest = br#"{"layers":[]}"#;
        assert!(with_referrer(Some((manifest, None)), &entry()).is_err());
        assert!(listed(b"[]", None).is_err());
        let one = format!(r#"{{"digest":"sha256:{}","size":1}}"#, "0".repeat(64));
        let full = |count: usize| format!(r#"{{"manifests":[{}]}}"#, vec![one.clone(); count].join(","));
        let at = full(MAX_LAYERS - 1);
        assert!(with_referrer(Some((at.as_bytes(), None)), &entry()).unwrap().is_some());
        let past = full(MAX_LAYERS);
        let error = with_referrer(Some((past.as_bytes(), None)), &entry()).unwrap_err();
        assert!(error.to_string().contains("4096 entries"), "{error}");
    }

    #[test]
    fn kinds_are_compared_as_media_types() {
        let entry = entry();
        assert!(is_of_kind(&entry, None));
        assert!(is_of_kind(&entry, Some("Application/X.Kind")));
        assert!(!is_of_kind(&entry, Some("application/x.other")));
        assert!(!is_of_kind(&entry.bare(), Some("application/x.kind")));
    }
}
