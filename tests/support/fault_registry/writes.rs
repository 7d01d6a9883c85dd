//! Uploads and referrer lists of the fault registry.
//!
//! As strict as the strictest real one: an upload goes where it was told to and once, bytes hash to their digest, and a
//! manifest names only blobs that are there.

use std::net::SocketAddr;

use ocifs::oci::{Descriptor, Digest, ManifestDocument};
use serde_json::{Value, json};

use super::http::{Answer, Head, unescape};
use super::{Fault, FaultRegistry, Place, State};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a strict server may insist on, by method.
pub(super) fn check(head: &Head) -> Result<(), String> {
    let (blob, manifest) = (head.path.contains("/blobs/"), head.path.contains("/manifests/"));
    let upload = head.path.contains("uploads/");
    let length = head.header("content-length");
    match head.method.as_str() {
        "GET" => Ok(()),
        "HEAD" if (blob || manifest) && !upload && head.body.is_empty() => Ok(()),
        "POST" if head.path.ends_with("/blobs/uploads/") => {
            if length == Some("0") {
                Ok(())
            } else {
                Err(format!("an upload begins with length {length:?}"))
            }
        }
        "PUT" if upload => {
            if length != Some(head.body.len().to_string().as_str()) {
                return Err(format!("an upload of length {length:?}"));
            }
            match head.header("content-type") {
                Some("application/octet-stream") => Ok(()),
                other => Err(format!("an upload of type {other:?}")),
            }
        }
        "PUT" if manifest => Ok(()),
        other => Err(format!("{other} of this is not served")),
    }
}

impl State {
    pub(super) fn head_manifest(&mut self, repo: &str, name: &str) -> Answer {
        let Some((media_type, bytes)) = self.manifests.get(&(repo.to_owned(), name.to_owned())).cloned()
        else {
            return Answer::new(404, "");
        };
        Answer::new(200, bytes.to_vec())
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", Digest::sha256(&bytes).to_string())
    }

    pub(super) fn head_blob(&mut self, name: &str) -> Answer {
        let is_empty = self.has(|fault| matches!(fault, Fault::EmptyHead)).is_some();
        match self.blobs.get(name) {
            Some(_) if is_empty => Answer::new(200, ""),
            Some(bytes) => Answer::new(200, bytes.to_vec()).with("Content-Type", "application/octet-stream"),
            None => Answer::new(404, ""),
        }
    }

    pub(super) fn begin_upload(&mut self, repo: &str, [here, cdn]: [SocketAddr; 2]) -> Answer {
        self.uploads_made += 1;
        let name = format!("session-{}", self.uploads_made);
        self.uploads.push(name.clone());
        // The state is signed over its spelling.
        let path = format!("/v2/{repo}/blobs/uploads/{name}?_state=a%2Fb%3D%3D");
        let location = match self.has(|fault| matches!(fault, Fault::UploadAt(_) | Fault::UploadLocation(_)))
        {
            Some(Fault::UploadAt(Place::Absolute)) => format!("http://{here}{path}"),
            Some(Fault::UploadAt(Place::SecondHost)) => {
                format!("http://{cdn}/uploads/{name}?_state=a%2Fb%3D%3D&sig={}", self.signature)
            }
            Some(Fault::UploadLocation(text)) => text,
            _ => path,
        };
        Answer::new(202, "").with("Location", location)
    }

    pub(super) fn cdn_upload(&mut self, head: &Head) -> Answer {
        if !head.query.contains(&format!("sig={}", self.signature)) {
            return Answer::new(403, "<Error><StringToSign>5ecret</StringToSign></Error>");
        }
        match head.path.strip_prefix("/uploads/") {
            Some(name) => self.finish_upload(head, name),
            None => Answer::new(404, ""),
        }
    }

    pub(super) fn finish_upload(&mut self, head: &Head, name: &str) -> Answer {
        let Some(at) = self.uploads.iter().position(|upload| upload == name) else {
            return Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        };
        if !head.query.starts_with("_state=a%2Fb%3D%3D&") {
            self.violations.push(format!("the state came back in {:?}", head.query));
        }
        let digest = head.query.split('&').find_map(|pair| pair.strip_prefix("digest=")).map(unescape);
        let actual = Digest::sha256(&head.body).to_string();
        if digest.as_deref() != Some(&actual) {
            return Answer::error(400, "DIGEST_INVALID", "other bytes than promised");
        }
        self.uploads.remove(at);
        self.blobs.insert(actual.clone(), head.body.clone().into());
        self.stored(actual)
    }

    pub(super) fn put_manifest(&mut self, head: &Head, repo: &str, name: &str) -> Answer {
        let media_type = head.header("content-type").unwrap_or_default().to_owned();
        let document = match ManifestDocument::parse(&head.body, Some(&media_type)) {
            Ok(document) => document,
            Err(error) => return Answer::error(400, "MANIFEST_INVALID", &error.to_string()),
        };
        let digest = Digest::sha256(&head.body).to_string();
        if name.contains(':') && name != digest {
            return Answer::error(400, "DIGEST_INVALID", "other bytes than promised");
        }
        if let ManifestDocument::Manifest(manifest) = &document
            && let Some(missing) =
                manifest.blobs().find(|blob| !self.blobs.contains_key(blob.digest.as_str()))
        {
            return Answer::error(400, "MANIFEST_BLOB_UNKNOWN", missing.digest.as_str());
        }
        let before = self.manifests.get(&(repo.to_owned(), name.to_owned())).cloned();
        for name in [name, digest.as_str()] {
            let stored = (media_type.clone(), head.body.clone().into());
            self.manifests.insert((repo.to_owned(), name.to_owned()), stored);
        }
        if !name.contains(':') && self.has(|fault| matches!(fault, Fault::TagsSnapBack)).is_some() {
            let key = (repo.to_owned(), name.to_owned());
            match before {
                Some(before) => drop(self.manifests.insert(key, before)),
                None => drop(self.manifests.remove(&key)),
            }
        }
        let answer = self.stored(digest);
        match document.subject() {
            Some(subject) if self.peek(|fault| matches!(fault, Fault::ReferrersApi { .. })).is_some() => {
                answer.with("OCI-Subject", subject.digest.to_string())
            }
            _ => answer,
        }
    }

    fn stored(&mut self, digest: String) -> Answer {
        if self.has(|fault| matches!(fault, Fault::SilentAfterPut)).is_some() {
            return Answer::new(0, "");
        }
        let header = match self.has(|fault| matches!(fault, Fault::StoredDigestHeader(_))) {
            Some(Fault::StoredDigestHeader(text)) => text,
            _ => digest,
        };
        Answer::new(201, "").with("Docker-Content-Digest", header)
    }

    /// The list is made from the manifests themselves: in the order of digests, so that pages are stable.
    pub(super) fn referrers(&mut self, head: &Head, repo: &str, subject: &str, cdn: &str) -> Answer {
        let Some(Fault::ReferrersApi { page }) =
            self.peek(|fault| matches!(fault, Fault::ReferrersApi { .. })).cloned()
        else {
            return Answer::new(404, "404 page not found\n").with("Content-Type", "text/plain");
        };
        if head.header("accept") != Some(INDEX) {
            self.violations.push(format!("referrers as {:?}", head.header("accept")));
        }
        let parameters = head.parameters();
        let wanted = parameters.get("artifactType").map(String::as_str);
        let filters = self.peek(|fault| matches!(fault, Fault::ReferrersUnfiltered)).is_none();
        let mut all: Vec<(String, Value)> = Vec::new();
        for ((of, name), (media_type, bytes)) in &self.manifests {
            let Ok(document) = ManifestDocument::parse(bytes, Some(media_type)) else { continue };
            let ManifestDocument::Manifest(manifest) = &document else { continue };
            let about = manifest.subject.as_ref().is_some_and(|it| it.digest.as_str() == subject);
            let kind = manifest.kind().map(|kind| kind.as_written().to_owned());
            if of != repo
                || !name.contains(':')
                || !about
                || (filters && wanted.is_some() && kind.as_deref() != wanted)
            {
                continue;
            }
            let entry = json!({"mediaType": media_type, "digest": name, "size": bytes.len(), "artifactType": kind, "annotations": manifest.annotations});
            all.push((name.clone(), entry));
        }
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let start: usize = parameters.get("last").map_or(0, |last| last.parse().unwrap());
        if start > 0 && self.peek(|fault| matches!(fault, Fault::ReferrersHole)).is_some() {
            return Answer::error(404, "NOT_FOUND", "no such page");
        }
        let shown: Vec<Value> = all.iter().skip(start).take(page).map(|(_, entry)| entry.clone()).collect();
        let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": shown}).to_string();
        let mut answer = Answer::new(200, body).with("Content-Type", INDEX);
        if filters && wanted.is_some() {
            answer = answer.with("OCI-Filters-Applied", "artifactType");
        }
        let filter =
            wanted.map_or(String::new(), |kind| format!("&artifactType={}", kind.replace('+', "%2B")));
        let next = match self.has(|fault| {
            matches!(fault, Fault::ReferrersLoop | Fault::ReferrersEndless | Fault::ReferrersElsewhere)
        }) {
            Some(Fault::ReferrersLoop) => Some(format!("{}?{}", head.path, head.query)),
            Some(Fault::ReferrersEndless) => Some(format!("{}?last={}", head.path, start + 1)),
            Some(Fault::ReferrersElsewhere) => Some(format!("http://{cdn}{}", head.path)),
            _ if start + page < all.len() => Some(format!("{}?last={}{filter}", head.path, start + page)),
            _ => None,
        };
        match next {
            Some(next) => answer.with("Link", format!("<{next}>; rel=\"next\"")),
            None => answer,
        }
    }
}

impl FaultRegistry {
    /// A manifest of this kind about `subject`, with an annotation that makes it one of its own. It is not stored.
    pub fn referrer(subject: &Descriptor, kind: &str, mark: &str) -> Vec<u8> {
        let artifact = ocifs::oci::ArtifactManifest {
            artifact_type: kind.into(),
            layers: Vec::new(),
            subject: Some(subject.clone()),
            annotations: [("mark".to_owned(), mark.to_owned())].into(),
        };
        artifact.write().unwrap().bytes
    }
}
