//! Foreign indexes of a layer: selection and audit.
//!
//! A claim never blocks a layer: an unusable claim gives a warning, and the layer is read without it. The order is:
//! the index that the layer carries, if its descriptor announces one; index repositories; indexes pushed beside the
//! image; a look at the end of the layer.

use std::sync::{Arc, Mutex};

use crate::cache::BlockCache;
use crate::cache::{LayerMetadata, VerifyMode};
use crate::io::{FaultClass, MEMORY, ReadAt as _, ReadError, SharedReader, compute};

use super::audit;
use super::chunk_verification;
use super::foreign::{self, FindError, ForeignIndex, ForeignLimits, IndexKind};
use super::index::LayerIndex;
use super::layer_options::{IndexOffer, IndexPolicy, IndexProvider, LayerOptions};
use super::layer_shared::LayerShared;
use super::layer_state::LayerState;
use super::seek_table_walk;
use super::seekable::decoded;
use super::sequential::SequentialReader;
use super::sniff::StreamEncoding;
use super::toc::{SharedContent, TableOfContents};

/// The best usable claim about the layer.
pub(super) async fn find(
    core: &LayerShared,
    hints: &LayerOptions,
) -> Result<Option<ForeignIndex>, ReadError> {
    match hints.verify {
        VerifyMode::Lazy => {}
        // Every byte is verified before the first is served, so the layer's own index is used.
        VerifyMode::Strict => return Ok(None),
        VerifyMode::Toc => return rooted(core, hints).await,
    }
    let repositories = hints.repositories.as_deref();
    if core.form == LayerMetadata::Stream {
        // A digest of the stream needs all of it first.
        if let Some(repositories) = repositories.filter(|_| hints.content.is_none())
            && let Some(found) = offered(core, repositories, &[]).await?
        {
            return Ok(Some(found));
        }
        // All other claims describe an archive.
        let encoding = core.encoding().await?;
        let found = match encoding {
            Some(StreamEncoding::Zstd) => seek_table_walk::spans(core).await?,
            Some(StreamEncoding::Xz) => seek_table_walk::xz_spans(core).await?,
            _ => None,
        };
        return match (found, encoding, hints.size) {
            // A digest of the stream needs all of it first.
            (None, Some(encoding), Some(size)) if hints.content.is_none() => {
                seek_table_walk::claimed_size(core, encoding, size)
            }
            (found, ..) => Ok(found),
        };
    }
    let mut refuted = Vec::new();
    for scope in [None].into_iter().chain(repositories.iter().flat_map(|it| it.scopes()).map(Some)) {
        match kept(core, hints.policy, scope.cloned()).await? {
            KeptVerdict::Index(kept) => return Ok(Some(kept)),
            KeptVerdict::Refuted(id) => refuted.push(id),
            KeptVerdict::Nothing => {}
        }
    }
    let is_announced = foreign::announced(&hints.annotations).is_some();
    // Asked before the layer is read: an index makes even its first bytes superfluous.
    if !is_announced
        && let Some(repositories) = repositories
        && let Some(found) = offered(core, repositories, &refuted).await?
    {
        return Ok(Some(found));
    }
    let encoding = match core.encoding().await? {
        Some(encoding @ (StreamEncoding::Gzip | StreamEncoding::Zstd)) => encoding,
        Some(encoding @ StreamEncoding::Xz) => {
            return Ok(seek_table_walk::find(core, encoding)
                .await?
                .filter(|found| !refuted.contains(&found.id)));
        }
        _ => return Ok(None),
    };
    let is_new = |found: &ForeignIndex| !refuted.contains(&found.id);
    if is_announced {
        if let Some(found) = carried(core, encoding, hints).await?.filter(is_new) {
            return Ok(Some(found));
        }
        if let Some(repositories) = repositories
            && let Some(found) = offered(core, repositories, &refuted).await?
        {
            return Ok(Some(found));
        }
    }
    if let Some(offers) = &hints.offers
        && let Some(found) = offered(core, &**offers, &refuted).await?
    {
        return Ok(Some(found));
    }
    if !is_announced && let Some(found) = carried(core, encoding, hints).await?.filter(is_new) {
        return Ok(Some(found));
    }
    match encoding {
        StreamEncoding::Zstd => Ok(seek_table_walk::find(core, encoding).await?.filter(is_new)),
        _ => Ok(None),
    }
}

/// The first usable index that `offers` has, other than the `refuted` ones.
async fn offered(
    core: &LayerShared,
    offers: &dyn IndexProvider,
    refuted: &[[u8; 32]],
) -> Result<Option<ForeignIndex>, ReadError> {
    let mut number = 0;
    while let Some(offer) = offers.offer(core.blob.digest(), number).await {
        number += 1;
        let taken = match &offer {
            Ok(offer) => parse(core, offer).await?.map_err(|why| format!("{} index: {why}", offer.kind)),
            Err(why) => Err(why.clone()),
        };
        match (taken, &offer) {
            (Ok(found), Ok(offer)) if !refuted.contains(&found.id) => {
                keep(core, offer).await;
                return Ok(Some(found));
            }
            (Ok(found), _) => core.warn(format!("{} index is not used: it was refuted before", found.kind)),
            (Err(why), _) => core.warn(format!("{why}; the layer is read without it")),
        }
    }
    Ok(None)
}

/// The index that the manifest covers down to every part; `None` where the layer itself was compared as a whole.
async fn rooted(core: &LayerShared, hints: &LayerOptions) -> Result<Option<ForeignIndex>, ReadError> {
    if core.is_proven_first() {
        return Ok(None);
    }
    let named =
        core.form == LayerMetadata::Archive && chunk_verification::parts_named(&hints.annotations).is_some();
    let encoding = if named { core.encoding().await? } else { None };
    let found = match encoding {
        Some(encoding @ (StreamEncoding::Gzip | StreamEncoding::Zstd)) => {
            carried(core, encoding, hints).await?
        }
        _ => None,
    };
    match found {
        Some(found) if chunk_verification::is_rooted(&found) => Ok(Some(found)),
        Some(_) => Err(chunk_verification::no_parts("its index has none for some of them")),
        None => Err(chunk_verification::no_parts("it has no usable index of them")),
    }
}

/// The index at the end of the layer.
async fn carried(
    core: &LayerShared,
    encoding: StreamEncoding,
    hints: &LayerOptions,
) -> Result<Option<ForeignIndex>, ReadError> {
    match foreign::find_foreign(&*core.blob, encoding, &hints.annotations, ForeignLimits::default()).await {
        Ok(found) => {
            for warning in found.iter().flat_map(|found| &found.warnings) {
                core.warn(warning.clone());
            }
            Ok(found)
        }
        Err(FindError::Index(error)) => {
            core.warn(format!("{error}; the layer is read without it"));
            Ok(None)
        }
        Err(FindError::Read(error)) => Err(error),
    }
}

/// Parses an offered index on a blocking thread: it may have millions of entries.
async fn parse(core: &LayerShared, offer: &IndexOffer) -> Result<Result<ForeignIndex, String>, ReadError> {
    let (offer, size, cache) = (offer.clone(), core.blob.size(), core.cache().clone());
    let form = core.form;
    compute(move || Ok(read(&offer, form, size, &cache))).await
}

fn read(
    offer: &IndexOffer,
    form: LayerMetadata,
    stored_size: u64,
    cache: &BlockCache,
) -> Result<ForeignIndex, String> {
    if form != LayerMetadata::Stream && offer.form == LayerMetadata::Stream {
        return Err("it is of a bare stream, and has no names".into());
    }
    match offer.kind {
        IndexKind::Soci => {
            let mut found =
                foreign::parse_ztoc(&offer.bytes, stored_size).map_err(|error| error.to_string())?;
            found.is_bound = offer.is_bound;
            if found.index.toc.last().is_some_and(|last| foreign::is_table(last.path)) {
                // The layer is an eStargz too.
                found.index.toc = foreign::without_markers(&found.index.toc);
            }
            Ok(found)
        }
        IndexKind::Pushed => {
            let mut index = LayerIndex::from_foreign_bytes(&offer.bytes, stored_size, cache)
                .ok_or("it is of another version, damaged, or about another layer")?;
            if form == LayerMetadata::Stream {
                index.toc = TableOfContents::default();
            }
            let id = *blake3::hash(&offer.bytes).as_bytes();
            Ok(ForeignIndex {
                kind: IndexKind::Pushed,
                index,
                id,
                is_bound: offer.is_bound,
                scope: offer.scope.clone(),
                warnings: Vec::new(),
            })
        }
        IndexKind::Local
        | IndexKind::Estargz
        | IndexKind::ZstdChunked
        | IndexKind::ZstdSeekable
        | IndexKind::XzBlocks
        | IndexKind::ClaimedSize => Err("this kind is stored in the layer".into()),
    }
}

/// The record of an earlier mount about claims.
enum KeptVerdict {
    /// An offered index that the earlier mount used, and that the policy of this one accepts.
    Index(ForeignIndex),
    /// The index with this id is false.
    Refuted([u8; 32]),
    Nothing,
}

/// Bytes of memory for one file to compare: its name and both locations.
const FILE_BYTES: u64 = 160;

/// The byte before the id of a refuted index, instead of the byte of a kind.
const REFUTED: u8 = 0;

/// Records that an index is false, for mounts that cannot cache the layer's own.
fn note_refuted(core: &LayerShared, claim: &ForeignIndex) {
    if core.form == LayerMetadata::Stream {
        // The record would replace an index of the archive.
        return;
    }
    let note = [&[REFUTED], &claim.id[..]].concat();
    if let Err(error) = core.scope(claim.scope.as_deref()).put_offer(core.blob.digest(), &note) {
        tracing::debug!(%error, "cannot record that an index is refuted");
    }
}

async fn kept(
    core: &LayerShared,
    policy: IndexPolicy,
    scope: Option<Arc<str>>,
) -> Result<KeptVerdict, ReadError> {
    let (cache, digest, size) = (core.scope(scope.as_deref()), core.blob.digest().clone(), core.blob.size());
    compute(move || {
        let Some(bytes) = cache.offer(&digest)? else { return Ok(KeptVerdict::Nothing) };
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(KeptVerdict::Nothing) };
        if byte == REFUTED {
            return Ok(rest.try_into().map_or(KeptVerdict::Nothing, KeptVerdict::Refuted));
        }
        let Some(&(kind, is_bound, _)) = KEPT.iter().find(|(_, _, number)| *number == byte) else {
            return Ok(KeptVerdict::Nothing);
        };
        let mut memory = MEMORY.passing();
        // For the bytes and their parsed form, which must not wait for this share.
        let grown = memory.grow(2 * bytes.len() as u64);
        grown.map_err(|error| error.into_read("a kept index"))?;
        memory.pin();
        let bytes = bytes::Bytes::from(bytes).slice(1..);
        let form = LayerMetadata::Archive;
        let offer = IndexOffer { kind, bytes, is_bound, form, scope };
        let taken = takes(policy, &offer).then(|| read(&offer, form, size, &cache).ok()).flatten();
        Ok(taken.map_or(KeptVerdict::Nothing, KeptVerdict::Index))
    })
    .await
}

/// Whether the policy of this mount accepts an index that an earlier mount accepted under its own.
fn takes(policy: IndexPolicy, offer: &IndexOffer) -> bool {
    match policy {
        IndexPolicy::All => true,
        // An index repository that may be asked is one that the user named.
        _ if offer.scope.is_some() => true,
        IndexPolicy::Auto => offer.is_bound || offer.kind != IndexKind::Soci,
        // It may have been bound to another image with the same layer.
        IndexPolicy::Bound | IndexPolicy::Local | IndexPolicy::Off => false,
    }
}

/// The kinds that are cached, whether they are bound to the image, and the byte that encodes both.
const KEPT: [(IndexKind, bool, u8); 3] =
    [(IndexKind::Soci, true, 1), (IndexKind::Pushed, false, 2), (IndexKind::Soci, false, 3)];

/// Caches an offered index, so that the next mount does not request it.
async fn keep(core: &LayerShared, offer: &IndexOffer) {
    if core.form == LayerMetadata::Stream {
        // It would replace an index of the archive.
        return;
    }
    let is_it =
        |(kind, is_bound, _): &&(IndexKind, bool, u8)| (*kind, *is_bound) == (offer.kind, offer.is_bound);
    let Some(&(_, _, number)) = KEPT.iter().find(is_it) else { return };
    let (cache, digest, offer) =
        (core.scope(offer.scope.as_deref()), core.blob.digest().clone(), offer.clone());
    let kept = compute(move || {
        let bytes = [&[number], &offer.bytes[..]].concat();
        Ok(cache.put_offer(&digest, &bytes)?)
    });
    if let Err(error) = kept.await {
        tracing::warn!(layer = %core.blob.digest(), error = error.chain(), "cannot store the index");
    }
}

/// The result of an audit.
pub(super) enum ClaimVerdict {
    True,
    /// The first difference.
    False(String),
}

/// Compares a claim with the layer, whose stored bytes are complete and verified. The layer's own index is cached
/// as a result, and the next mount uses it whatever the verdict is.
pub(super) async fn audit(core: &LayerShared, claim: &ForeignIndex) -> Result<ClaimVerdict, ReadError> {
    let own = match core.audited_index().await {
        // A layer that is no archive has no names, so an index with names is false.
        Err(error) if error.fault() == FaultClass::Malformed => {
            return Ok(ClaimVerdict::False(error.chain()));
        }
        own => own?,
    };
    if core.form == LayerMetadata::Stream {
        return audit_stream(core, claim, &own).await;
    }
    let (kind, theirs) = (claim.kind, claim.index.toc.clone().whole().await?);
    let own = LayerIndex { toc: own.toc.clone().whole().await?, ..own };
    // Held during reads of the layer, which is complete by now.
    let of_files = MEMORY.take(own.toc.len() as u64 * FILE_BYTES).await;
    let _of_files = of_files.map_err(|error| error.into_read("comparing an index"))?;
    let (differs, files, own) = compute(move || {
        let differs = audit::names_differ(kind, &theirs, &own.toc);
        let files = audit::files(kind, &theirs, &own.toc);
        Ok((differs, files, own))
    })
    .await?;
    if let Some(why) = differs {
        return Ok(ClaimVerdict::False(why));
    }
    compared(core, claim, &own, files).await
}

/// Compares all bytes of a bare stream.
async fn audit_stream(
    core: &LayerShared,
    claim: &ForeignIndex,
    own: &LayerIndex,
) -> Result<ClaimVerdict, ReadError> {
    let (theirs, ours) = (claim.index.spans.stream_size(), own.spans.stream_size());
    if theirs != ours {
        return Ok(ClaimVerdict::False(format!("the stream has {ours} bytes, not {theirs}")));
    }
    if claim.index.spans == own.spans {
        // Both span maps are equal, so only bytes decoded before can differ.
        let fetch = decoded(core.blob.clone(), &claim.index);
        let other = core.claimed(claim, fetch).and_then(|cached| cached.first_other(&own.blocks));
        return Ok(match other {
            Some(block) => ClaimVerdict::False(format!("block {block} of the stream differs")),
            None => ClaimVerdict::True,
        });
    }
    let whole = SharedContent { size: ours, offset: 0, runs: None };
    compared(core, claim, own, vec![(b"the stream".to_vec(), whole.clone(), whole)]).await
}

/// Compares the bytes of `files`: name, claimed location and actual location.
async fn compared(
    core: &LayerShared,
    claim: &ForeignIndex,
    own: &LayerIndex,
    files: Vec<(Vec<u8>, SharedContent, SharedContent)>,
) -> Result<ClaimVerdict, ReadError> {
    let (claimed, truth) = (core.claim_as_served(claim), core.uncached(own));
    match audit::content_differs(&claimed, &truth, files).await {
        Ok(None) => Ok(ClaimVerdict::True),
        Ok(Some(why)) => Ok(ClaimVerdict::False(why)),
        // An undecodable location refutes the claim.
        Err(error) if matches!(error.fault(), FaultClass::Malformed | FaultClass::Mismatch) => {
            Ok(ClaimVerdict::False(error.chain()))
        }
        Err(error) => Err(error),
    }
}

impl LayerShared {
    /// Stops serving bytes decoded by the claim, and records that no mount may use it again.
    pub(super) fn refute(&self, claim: &ForeignIndex, why: &str) {
        let message = format!("its {} index contradicts the layer: {why}", claim.kind);
        tracing::error!(layer = %self.blob.digest(), message, "further reads through it fail");
        self.warn(message.clone());
        self.refuted.set(ReadError::new(FaultClass::Mismatch, message)).ok();
        note_refuted(self, claim);
        self.cache.distrust(self.blob.digest());
    }

    /// The stream as `index` describes it, for sequential reading; not cached.
    pub(super) fn uncached(&self, index: &LayerIndex) -> SharedReader {
        if index.spans.encoding() == StreamEncoding::Plain && !index.spans.is_made_up() {
            return self.blob.clone();
        }
        Arc::new(SequentialReader::new(decoded(self.blob.clone(), index)))
    }

    /// The stream as a claim describes it: cached bytes unchanged, because readers get those, and the rest decoded
    /// now. Caches nothing.
    pub(super) fn claim_as_served(&self, claim: &ForeignIndex) -> SharedReader {
        let rest = self.uncached(&claim.index);
        if claim.index.spans.encoding() == StreamEncoding::Plain && !claim.index.spans.is_made_up() {
            return rest;
        }
        match self.claimed(claim, decoded(self.blob.clone(), &claim.index)) {
            Some(cached) => cached.as_served(rest),
            None => rest,
        }
    }

    /// The pass of an audit, without a reader waiting for it.
    async fn audited_index(&self) -> Result<LayerIndex, ReadError> {
        self.own_index(&Mutex::new(LayerState::Untouched)).await
    }
}
