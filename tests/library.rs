//! The library as a program uses it: open, look, read, without a mount.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test fails by panicking; parts of the support are for others"
)]

use ocifs::io::FaultClass;
use ocifs::library::oci_client::manifest::OciManifest;
use ocifs::library::oci_client::secrets::RegistryAuth;
use ocifs::tree::InodeKind;
use ocifs::{Image, Options};

use crate::encode::Encoding;
use crate::layout::{Layer, Layout};
use crate::tarball::{Tarball, noise};

fn options(room: &std::path::Path) -> Options {
    Options::new().cache_dir(room.join("cache")).anonymous()
}

#[tokio::test]
async fn a_program_opens_a_reference_looks_at_names_and_reads_bytes() {
    let room = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(room.path().join("layout"));
    let big = noise(3_000_000, 7);
    let tar =
        Tarball::new().dir("d").file("d/big", &big).file("d/small", b"small").symlink("link", "d/small");
    layout.image("v1", &[Layer::of(&tar.bytes(), Encoding::Gzip)]);
    let image = Image::open(&layout.reference("v1"), options(room.path())).await.unwrap();
    assert!(image.reference().ends_with(image.digest().as_str()), "{}", image.reference());

    let merged = image.merged().await.unwrap();
    let entries = merged.entries().await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
    assert_eq!(names, [("d", InodeKind::Directory), ("link", InodeKind::Symlink)]);
    assert_eq!(entries[1].link.as_deref(), Some("d/small".as_ref()));
    let inside = merged.directory("d").await.unwrap().entries().await.unwrap();
    assert_eq!(inside[0].size, big.len() as u64);

    let file = merged.open("d/big").await.unwrap();
    let mut part = vec![0; 1000];
    file.read_at(2_000_000, &mut part).await.unwrap();
    assert!(part == big[2_000_000..2_001_000]);
    assert!(file.read(2_999_000, 5000).await.unwrap() == big[2_999_000..]);
    assert!(file.read_at(2_999_999, &mut part).await.is_err(), "past the end");
    assert_eq!(image.file("merged/link").await.unwrap().read(0, 100).await.unwrap(), b"small");
    assert_eq!(image.root().open("manifest.json").await.unwrap().read(0, 1).await.unwrap(), b"{");
    let OciManifest::Image(manifest) = image.manifest() else { panic!("it is a manifest") };
    assert_eq!((manifest.schema_version, manifest.layers.len()), (2, 1));
}

#[tokio::test]
async fn library_errors_have_their_fault_class() {
    let room = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(room.path().join("layout"));
    layout.image("v1", &[Layer::of(&Tarball::new().file("f", b"x").bytes(), Encoding::Plain)]);
    let image = Image::open(&layout.reference("v1"), options(room.path())).await.unwrap();
    assert_eq!(image.file("merged/none").await.unwrap_err().fault(), FaultClass::NotFound);
    assert_eq!(image.file("merged").await.unwrap_err().fault(), FaultClass::Usage);
    assert_eq!(image.disk().await.unwrap_err().fault(), FaultClass::NotFound);
    assert_eq!(image.directory("merged/f").await.unwrap_err().fault(), FaultClass::Usage);
    let open = |reference: String| {
        let options = options(room.path());
        async move { Image::open(&reference, options).await.unwrap_err() }
    };
    assert_eq!(open(layout.reference("none")).await.fault(), FaultClass::NotFound);
    assert_eq!(open("docker.io/UPPER/case".to_owned()).await.fault(), FaultClass::Usage);
    let chosen = options(room.path()).layer(7);
    assert_eq!(Image::open(&layout.reference("v1"), chosen).await.unwrap_err().fault(), FaultClass::NotFound);
}

#[tokio::test]
async fn options_are_those_of_the_command_line() {
    let room = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(room.path().join("layout"));
    let layers = ["one", "two"]
        .map(|name| Layer::of(&Tarball::new().file(name, name.as_bytes()).bytes(), Encoding::Zstd));
    layout.image("v1", &layers);
    let all = Image::open(&layout.reference("v1"), options(room.path())).await.unwrap();
    assert_eq!(all.merged().await.unwrap().entries().await.unwrap().len(), 2);
    let pinned = all.reference().to_owned();
    let second = Image::open(&pinned, options(room.path()).layer(1).offline()).await.unwrap();
    let names = second.merged().await.unwrap().entries().await.unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].name, "two");
}

#[tokio::test]
async fn references_and_credentials_of_oci_client_are_taken() {
    let room = tempfile::tempdir().unwrap();
    for auth in
        [RegistryAuth::Basic("user".into(), "pa55word".into()), RegistryAuth::Bearer("pa55word".into())]
    {
        let shown = format!("{:?}", Options::new().auth(auth));
        assert!(!shown.contains("pa55word"), "{shown}");
    }
    let reference = ocifs::library::oci_client::Reference::with_tag(
        "registry.invalid".into(),
        "Not/A-Name".into(),
        "v1".into(),
    );
    let options = options(room.path()).auth(RegistryAuth::Anonymous).offline();
    let error = Image::open_reference(&reference, options.clone()).await.unwrap_err();
    assert!(error.to_string().contains("lowercase"), "{error}");
    let reference = ocifs::library::oci_client::Reference::with_digest(
        "registry.invalid".into(),
        "a/b".into(),
        format!("sha256:{}", "0".repeat(64)),
    );
    let error = Image::open_reference(&reference, options).await.unwrap_err();
    assert_eq!(error.fault(), FaultClass::Unavailable, "{error}");
}
