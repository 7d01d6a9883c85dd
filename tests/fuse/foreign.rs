//! Foreign indexes: requests and bytes of a cold start, and no refutation of a true index.

use std::fs;

use serde_json::Value;

use crate::chunked::{Estargz, Made};
use crate::fault_registry::FaultRegistry;
use crate::foreign_image::{
    Image, Index, archive, complete, confirmed, content, index_of, listing, named, push, push_index,
    push_soci, read_everything, relabelled, truth, warnings, ztoc,
};
use crate::process::{CONDITION_TIMEOUT, Need, able, becomes_true};
use crate::site::{Mount, Site};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];
/// The unit in which a cold read is fetched.
const BLOCK: u64 = 256 << 10;
const MARKERS: [&str; 3] = [".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"];

/// How much of a blob is cached from its first byte on.
fn cached_from_the_start(mount: &Mount, digest: &str) -> u64 {
    let status: Value = serde_json::from_str(&mount.status()).unwrap();
    let blob = status["blobs"].as_array().unwrap().iter().find(|blob| blob["digest"] == digest).unwrap();
    let cached: Vec<(u64, u64)> = serde_json::from_value(blob["extents"]["cached"].clone()).unwrap();
    cached.first().filter(|range| range.0 == 0).map_or(0, |range| range.1)
}

/// Mounts, lists, and reads one file, cold. The answer is requests and bytes of blobs for the names, and for the file.
fn cold(index: Index) -> [(usize, u64); 2] {
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = index.push(&registry);
    assert!(image.size > 15 * BLOCK, "{}", image.size);
    let mount = site.mount(&image.reference, &[index.policy(), "--prefetch=none"]);
    registry.reset_counts();
    let listed = listing(&mount);
    assert_eq!(index_of(&mount), index.shown(), "{index:?}: {}", mount.status());
    assert!(listed.contains("d/039 "), "{listed}");
    assert!(MARKERS.iter().all(|marker| !listed.contains(marker)), "{listed}");
    let names = (registry.blob_requests().len(), registry.blob_bytes());
    registry.reset_counts();
    assert!(fs::read(mount.join("merged/d/025")).unwrap() == content(25));
    let file = (registry.blob_requests().len(), registry.blob_bytes());
    [names, file]
}

#[test]
fn names_and_one_file_of_an_indexed_layer_cost_a_few_blocks() {
    if !able(&NEEDS) {
        return;
    }
    for index in Index::ALL {
        let [names, file] = cold(index);
        // The zTOC of nine megabytes has nearly one itself.
        assert!(names.0 <= 3 && names.1 <= 4 * BLOCK, "{index:?}: the names cost {names:?}");
        let most = match index {
            Index::Estargz | Index::EstargzLegacy | Index::ChunkedStargz => (1, 3 * BLOCK),
            Index::ChunkedStorage => (1, 4 * BLOCK),
            // Units that files share are decoded as wholes, and spans with a digest are compared as wholes.
            Index::EstargzShared => (3, 6 * BLOCK),
            Index::SociV2 | Index::SociV1 | Index::SociOfEstargz => (2, 6 * BLOCK),
            // From the checkpoint before: one each MiB.
            Index::Pushed => (2, 6 * BLOCK),
        };
        assert!(file.0 <= most.0 && file.1 <= most.1, "{index:?}: a file costs {file:?}");
    }
}

#[test]
fn a_true_index_is_confirmed_and_the_own_one_that_follows_shows_the_same() {
    if !able(&NEEDS) {
        return;
    }
    for index in Index::ALL {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let image = index.push(&registry);
        let mount = site.mount(&image.reference, &[index.policy()]);
        let listed = listing(&mount);
        assert_eq!(index_of(&mount), index.shown());
        complete(&mount, &image);
        confirmed(&mount);
        read_everything(&mount);
        assert!(warnings(&mount).iter().all(|it| it.contains("digest")), "{index:?}: {:?}", warnings(&mount));
        mount.unmount();
        let again = site.mount(&image.reference, &[index.policy()]);
        let own = listing(&again);
        assert_eq!(index_of(&again), "local", "{index:?}");
        // But for the seconds of what the other index had rounded.
        let unrounded = |text: &str| text.replace(" 1600000001 ", " 1600000000 ");
        assert_eq!(unrounded(&own), unrounded(&listed), "{index:?}: names, attributes, inode numbers");
        read_everything(&again);
    }
}

#[test]
fn prefetch_landmarks_fetches_the_files_that_authors_marked() {
    if !able(&NEEDS) {
        return;
    }
    let registry = FaultRegistry::start();
    let made = Estargz::default().make(&archive(Some(".prefetch.landmark")));
    let image = push(&registry, &made, None);
    for (option, wanted) in [("--prefetch=landmarks", true), ("--prefetch=none", false)] {
        let site = Site::new();
        let mount = site.mount(&image.reference, &[option]);
        registry.reset_counts();
        listing(&mount);
        // Ten files of 100 KiB of noise and their headers are in front of the landmark, in five blocks, the first of which is here.
        if wanted {
            let is_cached = || cached_from_the_start(&mount, &image.layer) >= 5 * BLOCK;
            assert!(
                becomes_true(CONDITION_TIMEOUT, is_cached),
                "{:?}: {}",
                registry.blob_requests(),
                mount.status()
            );
            registry.reset_counts();
        }
        assert!(fs::read(mount.join("merged/d/007")).unwrap() == content(7));
        let requests = registry.blob_requests();
        assert_eq!(requests.is_empty(), wanted, "{option}: {requests:?}");
        if wanted {
            assert!(fs::read(mount.join("merged/d/025")).unwrap() == content(25));
            assert!(!registry.blob_requests().is_empty(), "what is behind it was not fetched");
        }
        mount.unmount();
        // With the mount all that it does on its own has ended. The second block has marked files, and no byte of what was read.
        let has_second = |(start, end): (u64, u64)| start < 2 * BLOCK && end > BLOCK;
        let second = registry.blob_requests().iter().any(|request| request.range.is_some_and(has_second));
        assert!(wanted || !second, "{option}: {:?}", registry.blob_requests());
    }
}

#[test]
fn pushed_soci_index_is_used_only_on_request() {
    if !able(&NEEDS) {
        return;
    }
    let (site, registry) = (Site::new(), FaultRegistry::start());
    let image = Index::SociV1.push(&registry);
    let mount = site.mount(&image.reference, &["--index=all"]);
    listing(&mount);
    assert_eq!(index_of(&mount), "SOCI");
    mount.unmount();
    // It is kept now, and not for this one.
    let mount = site.mount(&image.reference, &[]);
    listing(&mount);
    assert_eq!(index_of(&mount), "local");
    read_everything(&mount);
}

#[test]
fn index_options_local_and_off_request_no_foreign_index() {
    if !able(&NEEDS) {
        return;
    }
    for index in [Index::Estargz, Index::ChunkedStorage, Index::SociV2, Index::Pushed] {
        for policy in ["--index=local", "--index=off"] {
            let (site, registry) = (Site::new(), FaultRegistry::start());
            let image = index.push(&registry);
            let mount = site.mount(&image.reference, &[policy]);
            let listed = listing(&mount);
            assert_eq!(index_of(&mount), "local", "{index:?}");
            let requests = registry.requests();
            assert!(requests.iter().all(|it| !it.path.contains("/referrers/")), "{requests:?}");
            let manifests = registry.manifest_requests();
            assert_eq!(manifests.len(), 1, "{index:?}: {manifests:?}");
            assert!(
                registry
                    .blob_requests()
                    .iter()
                    .all(|it| it.path.ends_with(&image.layer) || it.bytes_sent == image.config),
                "{requests:?}"
            );
            assert!(MARKERS.iter().all(|marker| !listed.contains(marker)), "{index:?}: {listed}");
            read_everything(&mount);
        }
    }
}

/// What is wrong with an index, and the image.
fn broken_indexes(registry: &FaultRegistry) -> Vec<(&'static str, Image)> {
    let tar = archive(Some(".no.prefetch.landmark"));
    let good = Estargz::default().make(&tar);
    let with_digest = |digest: &[u8]| {
        let mut made = good.clone();
        let digest = crate::byte_text::digest_of(digest);
        made.annotations.values_mut().for_each(|value| value.clone_from(&digest));
        made
    };
    let mut cut = good.clone();
    // All of it: with half a footer the layer is half a gzip file too, and no archive.
    cut.bytes.truncate(good.bytes.len() - 51);
    let overlapping = relabelled(&good, b"", |entries| {
        let first = named(entries, "./d/001")["offset"].clone();
        named(entries, "./d/002")["offset"] = first;
    });
    let plain = Made { bytes: crate::chunked::gzip(&archive(None)), annotations: Default::default() };
    let other =
        Made { bytes: crate::chunked::gzip(&archive(Some("other"))), annotations: Default::default() };
    let pushed = |change: fn(&mut Vec<u8>), stretch: u8| {
        // Each layer is another one, or its indexes would be offered to all.
        let mut tar = archive(None);
        tar.extend(vec![0; 512 * usize::from(stretch)]);
        let made = Made { bytes: crate::chunked::gzip(&tar), annotations: Default::default() };
        let image = push(registry, &made, None);
        let mut bytes = crate::foreign_image::own_index(&made.bytes).to_bytes().unwrap();
        change(&mut bytes);
        push_index(registry, &image, &bytes);
        image
    };
    vec![
        ("the manifest states sha256", push(registry, &with_digest(b"another"), None)),
        ("the footer is missing", push(registry, &cut, None)),
        ("overlaps", push(registry, &overlapping, None)),
        ("layer of", push_soci(registry, &plain, &ztoc(&other))),
        ("another version", pushed(|bytes| bytes[0] ^= 1, 1)),
        ("damaged", pushed(|bytes| *bytes.last_mut().unwrap() ^= 1, 2)),
        ("damaged", pushed(|bytes| bytes.truncate(bytes.len() / 2), 3)),
    ]
}

#[test]
fn a_broken_index_is_a_warning_and_the_layer_is_read_without_it() {
    if !able(&NEEDS) {
        return;
    }
    let registry = FaultRegistry::start();
    for (word, image) in broken_indexes(&registry) {
        let site = Site::new();
        let mount = site.mount(&image.reference, &[]);
        let listed = listing(&mount);
        assert_eq!(index_of(&mount), "local", "{word}");
        let shown_warnings = warnings(&mount);
        assert!(shown_warnings.iter().any(|warning| warning.contains(word)), "{word}: {shown_warnings:?}");
        read_everything(&mount);
        assert!(MARKERS.iter().all(|marker| !listed.contains(marker)), "{word}: {listed}");
        assert_eq!(listed, truth(&image), "{word}");
    }
}

#[test]
fn processes_that_know_different_indexes_share_a_cache_and_no_offsets() {
    if !able(&NEEDS) {
        return;
    }
    for index in [Index::Estargz, Index::EstargzShared, Index::ChunkedStorage, Index::SociV2] {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let image = index.push(&registry);
        let claim = site.mount_at("claim", &image.reference, &[index.policy()]);
        let listed = listing(&claim);
        assert!(fs::read(claim.join("merged/d/005")).unwrap() == content(5));
        let own = site.mount_at("own", &image.reference, &["--index=local"]);
        listing(&own);
        let third = site.mount_at("third", &image.reference, &[index.policy()]);
        listing(&third);
        assert_eq!((index_of(&claim).as_str(), index_of(&own).as_str()), (index.shown(), "local"));
        assert_eq!(index_of(&third), "local", "the own index is there now");
        std::thread::scope(|scope| {
            for mount in [&claim, &own, &third] {
                scope.spawn(|| read_everything(mount));
            }
        });
        confirmed(&claim);
        assert_eq!(listing(&claim), listed);
    }
}
