//! Every archive of the corpus, in every encoding, through a real mount of an OCI layout.

use std::fs;
use std::io;
use std::path::Path;

use crate::compare::{read_tree, sha256_of};
use crate::corpus::{self, Case};
use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::process::{Need, able};
use crate::site::{Mount, Site};

#[test]
fn every_corpus_case_has_its_answer_when_stored_plain() {
    every_case_has_its_answer(Encoding::Plain);
}

#[test]
fn every_corpus_case_has_its_answer_when_stored_as_one_gzip_member() {
    every_case_has_its_answer(Encoding::Gzip);
}

#[test]
fn every_corpus_case_has_its_answer_when_stored_as_many_gzip_members() {
    every_case_has_its_answer(Encoding::GzipMembers);
}

#[test]
fn every_corpus_case_has_its_answer_when_stored_as_one_zstd_frame() {
    every_case_has_its_answer(Encoding::Zstd);
}

#[test]
fn every_corpus_case_has_its_answer_when_stored_as_many_zstd_frames() {
    every_case_has_its_answer(Encoding::ZstdFrames);
}

fn every_case_has_its_answer(encoding: Encoding) {
    if !able(&[Need::Root, Need::Fuse, Need::Path(&corpus::directory())]) {
        return;
    }
    let cases = corpus::cases();
    assert_eq!(cases.len(), 125);
    let site = Site::new();
    let mut layout = Layout::create(site.scratch().join("layout"));
    let mut failed = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let tag = format!("case-{index}");
        let layers: Vec<Layer> = case.layers.iter().map(|tar| Layer::of(tar, encoding)).collect();
        layout.image(&tag, &layers);
        let mount = site.mount(&layout.reference(&tag), &[]);
        let found = match &case.tree {
            Some(_) => accepted(case, &mount),
            None => rejected(&mount, &layers),
        };
        failed.extend(found.into_iter().map(|what| format!("{} as {encoding:?}: {what}", case.name)));
        mount.unmount();
    }
    assert!(failed.is_empty(), "{} failures\n{}", failed.len(), failed.join("\n"));
}

fn accepted(case: &Case, mount: &Mount) -> Vec<String> {
    match read_tree(&mount.join("merged")) {
        Ok(tree) => case.differences(&tree),
        Err(error) => vec![error.to_string()],
    }
}

/// The content is an error, the stored bytes are there all the same, and the status says which layer is at fault.
fn rejected(mount: &Mount, layers: &[Layer]) -> Vec<String> {
    let mut found = Vec::new();
    match list(&mount.join("merged")) {
        Ok(names) => found.push(format!("merged/ lists {names:?} instead of failing")),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        Err(error) => found.push(format!("merged/ fails with {error} instead of EIO")),
    }
    for layer in layers {
        let digest = layer.digest();
        let blob = mount.join("blobs").join(digest.replace(':', "/"));
        match sha256_of(&blob) {
            Ok(sha256) if digest.ends_with(&sha256) => {}
            other => found.push(format!("{blob:?} reads as {other:?}")),
        }
    }
    let status = mount.status();
    if !layers.iter().any(|layer| status.contains(&layer.digest())) {
        found.push(format!("status.json names no layer: {status}"));
    }
    found
}

fn list(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}
