//! False foreign indexes: served until the layer is complete, and refused from then on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ocifs::layer::{LayerIndex, TocEntryKind};
use serde_json::{Value, json};

use crate::chunked::{self, Estargz, Made};
use crate::fault_registry::FaultRegistry;
use crate::foreign_image::{
    Image, Index, KIB, SIZE, archive, complete, confirmed, content, errno_of, index_of, listing, named,
    own_index, push, push_index, push_soci, read_everything, refuted, relabelled, truth, ztoc,
};
use crate::proc_files::{proc_of, processor_time};
use crate::process::{Need, able};
use crate::site::{Mount, Site};

const NEEDS: [Need<'_>; 2] = [Need::Root, Need::Fuse];

/// A change of a table of contents, and what a mount then shows that is not so.
type Lie = (&'static str, fn(&mut Vec<Value>), fn(&Mount));

const LIES: [Lie; 6] = [
    (
        "mode",
        |entries| named(entries, "./d/020")["mode"] = json!(0o4755),
        |mount| {
            assert_eq!(
                fs::metadata(mount.join("merged/d/020")).unwrap().permissions().mode() & 0o7777,
                0o4755
            )
        },
    ),
    (
        "size",
        |entries| {
            let entry = named(entries, "./d/020").as_object_mut().unwrap();
            entry.insert("size".into(), json!(10));
            entry.remove("digest");
            entry.remove("chunkDigest");
        },
        |mount| shows(mount, "merged/d/020", &content(20)[..10]),
    ),
    (
        "name",
        |entries| named(entries, "./d/020")["name"] = json!("./d/renamed"),
        |mount| shows(mount, "merged/d/renamed", &content(20)),
    ),
    (
        "content",
        |entries| {
            let [one, other] = ["./d/020", "./d/021"].map(|name| named(entries, name)["offset"].clone());
            for (name, offset) in [("./d/020", other), ("./d/021", one)] {
                let entry = named(entries, name).as_object_mut().unwrap();
                entry.insert("offset".into(), offset);
                entry.remove("digest");
                entry.remove("chunkDigest");
            }
        },
        |mount| shows(mount, "merged/d/020", &content(21)),
    ),
    (
        "missing",
        |entries| entries.retain(|entry| entry["name"] != "./d/020"),
        |mount| {
            let error = fs::symlink_metadata(mount.join("merged/d/020")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        },
    ),
    (
        "extra",
        |entries| {
            entries.push(json!({"name": "backdoor", "type": "symlink", "linkName": "d/000", "mode": 0o777}))
        },
        |mount| shows(mount, "merged/backdoor", &content(0)),
    ),
];

/// Holds the file at `path` to the bytes that the lie makes of it. Reading ahead may complete the layer meanwhile: then the lie
/// is found out and the read is refused.
#[track_caller]
fn shows(mount: &Mount, path: &str, bytes: &[u8]) {
    match fs::read(mount.join(path)) {
        Ok(read) => assert!(read == bytes, "{path}"),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => refuted(mount),
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Holds a mount of `image`, whose index lies, to what is promised of such indexes.
fn is_found_out(image: &Image, shown: &str, what: &str, sees: impl Fn(&Mount)) {
    let site = Site::new();
    let mount = site.mount(&image.reference, &["--prefetch=none"]);
    let listed = listing(&mount);
    assert_eq!(index_of(&mount), shown, "{what}");
    sees(&mount);
    complete(&mount, image);
    refuted(&mount);
    // Names stay, bytes do not: neither those that nobody has read yet, nor those that only our cache has.
    assert_eq!(listing(&mount), listed, "{what}");
    assert_eq!(errno_of(&mount.join("merged/d/035")), Some(libc::EIO), "{what}");
    mount.unmount();
    let again = site.mount(&image.reference, &[]);
    assert_eq!(listing(&again), truth(image), "{what}: the truth");
    assert_eq!(index_of(&again), "local", "{what}");
    read_everything(&again);
}

#[test]
fn a_false_table_of_contents_is_served_until_the_layer_is_complete() {
    if !able(&NEEDS) {
        return;
    }
    let good = Estargz::default().make(&archive(Some(".no.prefetch.landmark")));
    for (what, lie, sees) in LIES {
        let registry = FaultRegistry::start();
        let image = push(&registry, &relabelled(&good, b"", lie), None);
        is_found_out(&image, "eStargz", what, sees);
    }
}

#[test]
fn a_published_index_that_lies_is_found_out() {
    if !able(&NEEDS) {
        return;
    }
    let made = Made { bytes: chunked::gzip(&archive(None)), annotations: Default::default() };
    let registry = FaultRegistry::start();
    let image = push(&registry, &made, None);
    let mut index: LayerIndex = own_index(&made.bytes);
    let mut entries: Vec<_> = index.toc.iter().map(|entry| entry.to_entry()).collect();
    let offset = |at: usize| match &entries[at].kind {
        TocEntryKind::File(content) => content.offset,
        other => panic!("{other:?}"),
    };
    // The root and a directory come first.
    let other = offset(2 + 21);
    if let TocEntryKind::File(content) = &mut entries[2 + 20].kind {
        content.offset = other;
    }
    index.toc = entries.into_iter().collect();
    push_index(&registry, &image, &index.to_bytes().unwrap());
    let sees = |mount: &Mount| shows(mount, "merged/d/020", &content(21));
    is_found_out(&image, "pushed", "content", sees);
}

#[test]
fn a_ztoc_that_lies_is_found_out() {
    if !able(&NEEDS) {
        return;
    }
    let made = Made { bytes: chunked::gzip(&archive(None)), annotations: Default::default() };
    let registry = FaultRegistry::start();
    let mut ztoc = ztoc(&made);
    let file = ztoc.files.iter_mut().find(|file| file.name.ends_with(b"d/020")).unwrap();
    file.name = b"d/renamed".to_vec();
    let image = push_soci(&registry, &made, &ztoc);
    let sees = |mount: &Mount| shows(mount, "merged/d/renamed", &content(20));
    is_found_out(&image, "SOCI", "name", sees);
}

#[test]
fn index_of_a_layer_without_an_archive_is_refuted() {
    if !able(&NEEDS) {
        return;
    }
    let good = Estargz::default().make(&archive(Some(".no.prefetch.landmark")));
    let registry = FaultRegistry::start();
    let image = push(&registry, &relabelled(&good, &[b'x'; 512], |_| {}), None);
    let site = Site::new();
    let mount = site.mount(&image.reference, &["--prefetch=none"]);
    listing(&mount);
    complete(&mount, &image);
    refuted(&mount);
    assert!(mount.status().contains("tar header"), "{}", mount.status());
    assert_eq!(errno_of(&mount.join("merged/d/035")), Some(libc::EIO));
    mount.unmount();
    // There is no index of its own that could be kept; that the other one lies is remembered all the same.
    let again = site.mount_at("again", &image.reference, &["--prefetch=none"]);
    let listed = fs::read_dir(again.join("merged")).and_then(|mut names| names.next().transpose());
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(again.status().contains("tar header"), "{}", again.status());
}

/// The kernel keeps pages as long as it likes: what it has it gives, and it asks for the rest.
#[test]
fn pages_that_the_kernel_has_stay_and_others_are_refused() {
    if !able(&NEEDS) {
        return;
    }
    let good = Estargz::default().make(&archive(Some(".no.prefetch.landmark")));
    let registry = FaultRegistry::start();
    let image = push(&registry, &relabelled(&good, b"", LIES[3].1), None);
    let site = Site::new();
    let mount = site.mount(&image.reference, &["--prefetch=all"]);
    let lied = mount.join("merged/d/020");
    // With everything fetched at once the comparison may be over before anybody reads.
    match fs::read(&lied) {
        Ok(bytes) => assert!(bytes == content(21)),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
    }
    refuted(&mount);
    if let Ok(bytes) = fs::read(&lied) {
        assert!(bytes == content(21), "what was served is what is served");
    }
    // Whoever wants none of it drops the pages, and is refused.
    let file = fs::File::open(&lied).unwrap();
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert_eq!(errno_of(&lied), Some(libc::EIO));
    assert!(mount.status().contains("contradicts the layer"), "{}", mount.status());
}

#[test]
fn a_chunk_that_is_not_its_digest_is_refused_at_once() {
    if !able(&NEEDS) {
        return;
    }
    let good = Estargz::default().make(&archive(Some(".no.prefetch.landmark")));
    let registry = FaultRegistry::start();
    let swapped = relabelled(&good, b"", |entries| {
        let [one, other] = ["./d/020", "./d/021"].map(|name| named(entries, name)["offset"].clone());
        named(entries, "./d/020")["offset"] = other;
        named(entries, "./d/021")["offset"] = one;
    });
    let image = push(&registry, &swapped, None);
    let site = Site::new();
    let mount = site.mount(&image.reference, &[]);
    assert_eq!(errno_of(&mount.join("merged/d/020")), Some(libc::EIO));
    assert!(fs::read(mount.join("merged/d/005")).unwrap() == content(5), "others are what they are");
}

#[test]
fn a_comparison_that_is_cut_short_is_made_again() {
    if !able(&NEEDS) {
        return;
    }
    for index in [Index::Estargz, Index::ChunkedStorage, Index::SociV2] {
        let (site, registry) = (Site::new(), FaultRegistry::start());
        let image = index.push(&registry);
        for round in 0..6 {
            let mount = site.mount(&image.reference, &[index.policy()]);
            listing(&mount);
            assert!(fs::read(mount.join("merged/d/030")).unwrap() == content(30), "{index:?} {round}");
            complete(&mount, &image);
            // Sooner or later in the comparison, or after it.
            std::thread::sleep(Duration::from_millis(20 * round));
            if round % 2 == 0 { mount.kill() } else { mount.unmount() }
        }
        let mount = site.mount(&image.reference, &[index.policy()]);
        listing(&mount);
        confirmed(&mount);
        read_everything(&mount);
        assert!(
            crate::foreign_image::warnings(&mount).iter().all(|it| it.contains("digest")),
            "{}",
            mount.status()
        );
    }
}

#[test]
fn many_small_files_are_compared_in_little_time() {
    if !able(&NEEDS) {
        return;
    }
    const COUNT: usize = 4000;
    let mut tar = crate::tarball::Tarball::new().dir("d");
    for number in 0..COUNT {
        tar = tar.file(&format!("d/{number:03}"), &crate::tarball::noise(KIB, number as u64 + 1));
    }
    let registry = FaultRegistry::start();
    let image = push(&registry, &Estargz { member: SIZE, ..Estargz::default() }.make(&tar.bytes()), None);
    let site = Site::new();
    let mount = site.mount(&image.reference, &[]);
    assert_eq!(fs::read_dir(mount.join("merged/d")).unwrap().count(), COUNT);
    assert_eq!(index_of(&mount), "eStargz");
    let daemon = proc_of(mount.pid());
    let started = processor_time(&daemon);
    complete(&mount, &image);
    // Each file alone would cost a block or more of decoding on both sides: 4 GB.
    confirmed(&mount);
    let worked = processor_time(&daemon) - started;
    assert!(worked < Duration::from_secs(60), "{worked:?}");
}
