//! Signature check: `--require-signature` is enforced before any content is shown.
//!
//! The check reads documents and the small blobs of signatures, and no blob of the image. Any failure to find a good
//! signature prevents opening. A good signature is cached with the document and verified again at every open. A
//! signed index covers its manifests by their digests, so the signature may be that of the index or of the manifest.

use crate::io::{FaultClass, ReadError, lock};
use crate::oci::{
    BUNDLE, Digest, MAX_SIGNATURES, MAX_SIGNED, Manifest, ManifestDocument, PublishedSignature,
    SIGNATURE_ARTIFACT, SIMPLE_SIGNING, signature_tag,
};
use crate::source::{RootDocument, SourceError};

use super::open::ImageOpener;
use super::published_indexes::small_blob;
use super::{ImageError, PlatformScope, ReferrerScope};

/// Limit of the cached signatures of one document.
const MAX_STORED_SIGNATURES: usize = 16;
/// Limit of the reasons in an error.
const MAX_LISTED_REASONS: usize = 4;

/// State of one search for a signature.
struct SignatureSearch<'a> {
    root: &'a RootDocument,
    /// Signatures that may still be examined.
    left: usize,
    /// The reasons why the found signatures do not count.
    reasons: Vec<String>,
}

/// The end of a search.
enum SearchEnd {
    /// A good signature, and the index of its key.
    Signed(PublishedSignature, usize),
    /// The source could not be queried, so there may be a signature.
    Failed(ReadError),
}

impl ImageOpener<'_> {
    /// The fingerprint of the key that signed the opened document.
    pub(super) fn signed_by(&self) -> Option<Digest> {
        self.trust.signed_by.get().cloned()
    }

    /// Checks the signature of the document that the reference names, if one is required. An index from which one
    /// manifest is chosen may be unsigned, if that manifest is signed.
    pub(super) async fn demand(
        &self,
        root: &RootDocument,
        document: &ManifestDocument,
    ) -> Result<(), ImageError> {
        if self.options.signed_by.is_empty() {
            return Ok(());
        }
        if self.options.referrers == ReferrerScope::Shown {
            return Err(ImageError::UnsignedReferrers { place: self.options.location.to_string() });
        }
        let is_chosen_from =
            matches!(document, ManifestDocument::Index(_)) && self.options.platforms != PlatformScope::All;
        match self.prove(root).await {
            Err(error) if is_chosen_from => {
                *lock(&self.trust.index) = Some(error);
                Ok(())
            }
            proven => proven,
        }
    }

    /// Checks the signature of an image's manifest, if one is required and the index above it has none.
    pub(super) async fn demand_image(&self, root: &RootDocument) -> Result<(), ImageError> {
        if self.options.signed_by.is_empty() || self.trust.signed_by.get().is_some() {
            return Ok(());
        }
        let Err(error) = self.prove(root).await else { return Ok(()) };
        let of_index = lock(&self.trust.index).take();
        match (of_index, error) {
            // The index may still be signed, since it could not be checked.
            (Some(failed @ ImageError::Unchecked { .. }), ImageError::Untrusted { .. }) => Err(failed),
            (Some(ImageError::Untrusted { digest: index, .. }), ImageError::Untrusted { digest, reason }) => {
                let reason = format!("{reason}; and the index {index} is not signed with one either");
                Err(ImageError::Untrusted { digest, reason })
            }
            (_, error) => Err(error),
        }
    }

    /// Requires a signature of the document that the reference names, which covers everything below it, but not its
    /// referrers.
    pub(super) async fn demand_whole(&self, root: &RootDocument, referrers: bool) -> Result<(), ImageError> {
        if referrers {
            return Err(ImageError::UnsignedReferrers { place: self.options.location.to_string() });
        }
        self.prove(root).await
    }

    /// Refuses a bare blob if a signature is required: only documents are signed.
    pub(super) fn demand_document(&self, digest: &Digest) -> Result<(), ImageError> {
        match self.options.signed_by.is_empty() {
            true => Ok(()),
            false => {
                let reason = "it is a blob, and only manifests and indexes are signed".to_owned();
                Err(ImageError::Untrusted { digest: digest.clone(), reason })
            }
        }
    }

    /// Requires a signature of `root` with one of the keys.
    pub(super) async fn prove(&self, root: &RootDocument) -> Result<(), ImageError> {
        let kept = self
            .cache
            .signatures(&root.digest)?
            .map(|bytes| PublishedSignature::unpack(&bytes))
            .unwrap_or_default();
        let keys = &self.options.signed_by;
        if let Some(key) = kept.iter().find_map(|one| one.check(&root.digest, &root.bytes, keys).ok()) {
            self.trusted(root, key);
            return Ok(());
        }
        let mut search = SignatureSearch { root, left: MAX_SIGNATURES, reasons: Vec::new() };
        match self.search_signature(&mut search).await {
            Err(SearchEnd::Signed(signature, key)) => {
                self.trusted(root, key);
                self.keep_signature(&root.digest, kept, signature);
                Ok(())
            }
            Err(SearchEnd::Failed(source)) => {
                Err(ImageError::Unchecked { digest: root.digest.clone(), source })
            }
            Ok(()) => {
                Err(ImageError::Untrusted { digest: root.digest.clone(), reason: summary(search.reasons) })
            }
        }
    }

    fn trusted(&self, root: &RootDocument, key: usize) {
        let key = self.options.signed_by[key].fingerprint();
        tracing::info!(digest = %root.digest, %key, "signed");
        // The first document that is proven is the one that the reference names, or the one chosen from it.
        self.trust.signed_by.get_or_init(|| key.clone());
    }

    fn keep_signature(
        &self,
        digest: &Digest,
        mut kept: Vec<PublishedSignature>,
        signature: PublishedSignature,
    ) {
        kept.truncate(MAX_STORED_SIGNATURES - 1);
        kept.insert(0, signature);
        if let Err(error) = self.cache.put_signatures(digest, &PublishedSignature::pack(&kept)) {
            // The next mount searches for it again.
            tracing::warn!(%digest, %error, "cannot cache the signature");
        }
    }

    /// Searches the tag and the referrers of the document. Ends early with a good signature. If one of the two cannot
    /// be queried, the search fails only if the other has no good signature.
    async fn search_signature(&self, search: &mut SignatureSearch<'_>) -> Result<(), SearchEnd> {
        let tagged = self.search_tag(search).await;
        if let Err(SearchEnd::Signed(..)) = tagged {
            return tagged;
        }
        self.search_referrers(search).await?;
        tagged
    }

    async fn search_tag(&self, search: &mut SignatureSearch<'_>) -> Result<(), SearchEnd> {
        let Some(tag) = signature_tag(&search.root.digest) else { return Ok(()) };
        match self.source.tagged(&tag).await {
            Ok(Some(found)) => self.search_manifest(search, &found).await,
            Ok(None) => Ok(()),
            Err(error) => search.missed(failure(error)),
        }
    }

    async fn search_referrers(&self, search: &mut SignatureSearch<'_>) -> Result<(), SearchEnd> {
        for kind in [SIGNATURE_ARTIFACT, BUNDLE] {
            let listed = match self.source.referrers(&search.root.digest, Some(kind)).await {
                Ok(listed) => listed,
                Err(error) => {
                    search.missed(failure(error))?;
                    continue;
                }
            };
            // The last listed one is usually the newest.
            for entry in listed.iter().rev() {
                if !search.takes() {
                    return Ok(());
                }
                match self.source.document(entry).await {
                    Ok(found) => self.search_manifest(search, &found).await?,
                    Err(error) => search.missed(failure(error))?,
                }
            }
        }
        Ok(())
    }

    /// Examines the signatures in one manifest. Its `subject` does not matter: the signed payload names its own
    /// subject.
    async fn search_manifest(
        &self,
        search: &mut SignatureSearch<'_>,
        found: &RootDocument,
    ) -> Result<(), SearchEnd> {
        let manifest: Manifest = match ManifestDocument::parse(&found.bytes, found.content_type.as_deref()) {
            Ok(ManifestDocument::Manifest(manifest)) => manifest,
            Ok(ManifestDocument::Index(_)) => return search.missed(missing("a signature that is an index")),
            Err(error) => return search.missed(missing(&format!("a signature: {error}"))),
        };
        for layer in manifest.layers.iter().rev() {
            let is_bundle = layer.media_type == BUNDLE.into();
            if !is_bundle && layer.media_type != SIMPLE_SIGNING.into() {
                continue;
            }
            if !search.takes() {
                return Ok(());
            }
            let bytes = match small_blob(&self.cache, &*self.source, layer, MAX_SIGNED).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    search.missed(error.within(format!("signature {}", layer.digest)))?;
                    continue;
                }
            };
            let signatures = match is_bundle {
                true => PublishedSignature::of_bundle(&bytes),
                false => PublishedSignature::of_layer(layer, &bytes).map(|one| vec![one]),
            };
            match signatures {
                Ok(signatures) => self.check_signatures(search, signatures)?,
                Err(reason) => search.reasons.push(reason),
            }
        }
        Ok(())
    }

    fn check_signatures(
        &self,
        search: &mut SignatureSearch<'_>,
        signatures: Vec<PublishedSignature>,
    ) -> Result<(), SearchEnd> {
        for signature in signatures {
            match signature.check(&search.root.digest, &search.root.bytes, &self.options.signed_by) {
                Ok(key) => return Err(SearchEnd::Signed(signature, key)),
                Err(reason) => search.reasons.push(reason),
            }
        }
        Ok(())
    }
}

impl SignatureSearch<'_> {
    /// Whether one more signature may be examined.
    fn takes(&mut self) -> bool {
        if self.left == 0 {
            // First in the list, because the error shows only some reasons.
            self.reasons.insert(
                0,
                format!("more than {MAX_SIGNATURES} signatures, and none of the last ones is valid"),
            );
            return false;
        }
        self.left -= 1;
        true
    }

    /// Records a signature that could not be read. A temporary failure of the source ends the search, because a
    /// stalled registry would delay every further request too.
    fn missed(&mut self, error: ReadError) -> Result<(), SearchEnd> {
        match error.fault() {
            FaultClass::Unavailable | FaultClass::Misbehaved | FaultClass::Denied | FaultClass::Io => {
                Err(SearchEnd::Failed(error))
            }
            _ => {
                self.reasons.push(error.chain());
                Ok(())
            }
        }
    }
}

fn failure(error: SourceError) -> ReadError {
    ReadError::caused(error.fault(), "looking for signatures", error)
}

fn missing(reason: &str) -> ReadError {
    ReadError::new(FaultClass::Malformed, reason)
}

/// The reasons for an error, each once.
fn summary(mut reasons: Vec<String>) -> String {
    if reasons.is_empty() {
        return "no signature found".to_owned();
    }
    let count = reasons.len();
    let mut seen = std::collections::HashSet::new();
    reasons.retain(|reason| seen.insert(reason.clone()));
    let more = if reasons.len() > MAX_LISTED_REASONS { ", and more" } else { "" };
    reasons.truncate(MAX_LISTED_REASONS);
    let found = if count == 1 { String::new() } else { format!("of {count} found, none is valid: ") };
    format!("{found}{}{more}", reasons.join("; "))
}
