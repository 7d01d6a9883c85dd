//! The images that are measured, as OCI layouts made by the tools that make such images.
//!
//! The main one is a Debian root and a layer of Python wheels on top: two gzip layers without any index. The others are
//! one synthetic layer each, for trees that are larger than an image has. All are made once and kept under
//! `target/bench-data`; a change of a recipe changes its name and makes a new one.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::measure::{run, tool};

/// The name of the main image and of its tag in the registry.
const RECIPE: &str = "debian-bookworm-wheels-1";

/// Pinned, so that two machines measure the same bytes of them.
const WHEELS: [&str; 15] = [
    "numpy==2.2.6",
    "scipy==1.15.3",
    "pandas==2.2.3",
    "matplotlib==3.10.3",
    "scikit-learn==1.6.1",
    "sympy==1.14.0",
    "pyarrow==20.0.0",
    "statsmodels==0.14.4",
    "polars==1.29.0",
    "opencv-python-headless==4.11.0.86",
    "llvmlite==0.44.0",
    "numba==0.61.2",
    "networkx==3.4.2",
    "Django==5.2.1",
    "babel==2.17.0",
];

/// The tag of an image in its layout.
const TAG: &str = "bench";

/// An image as an OCI layout.
#[derive(Clone)]
pub(crate) struct Image {
    /// Where the layout lies.
    pub(crate) layout: PathBuf,
    /// What it is called, with its recipe's number.
    pub(crate) name: String,
    /// Bytes of the layer archives before compression.
    pub(crate) uncompressed: u64,
    /// The layers as they are stored, the lowest first.
    pub(crate) layers: Vec<Layer>,
}

/// A layer as it is stored.
#[derive(Clone)]
pub(crate) struct Layer {
    /// `sha256:...`
    pub(crate) digest: String,
    /// What its descriptor says it is.
    pub(crate) media_type: String,
    /// Its file in the layout.
    pub(crate) path: PathBuf,
    /// Stored bytes.
    pub(crate) size: u64,
}

impl Image {
    /// Debian with Python wheels, made now if it is not there.
    pub(crate) fn debian(data: &Path) -> Result<Self> {
        Self::get(data, RECIPE, |home| {
            let root = home.join("root");
            debootstrap(&root, "python3")?;
            let python = home.join("python");
            run(tool("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-compile", "--root-user-action=ignore"])
                .args(["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--target"])
                .arg(python.join("usr/lib/python3/dist-packages"))
                .args(WHEELS))?;
            [root, python].into_iter().map(archive).collect()
        })
    }

    /// One layer of so many small files, a thousand to a directory.
    pub(crate) fn of_files(data: &Path, files: u32) -> Result<Self> {
        Self::get(data, &format!("files-{files}-1"), |home| {
            let path = home.join("files.tar");
            let mut archive = tar::Builder::new(BufWriter::new(File::create(&path)?));
            for number in 0..files {
                let body = format!("{number}\n").repeat(1 + number as usize % 8);
                let mut header = tar::Header::new_gnu();
                header.set_mode(0o644);
                header.set_mtime(1_700_000_000 + u64::from(number));
                header.set_size(body.len() as u64);
                let name = format!("tree/{:04}/file-{number:07}", number / 1000);
                archive.append_data(&mut header, name, body.as_bytes())?;
            }
            archive.into_inner()?.flush()?;
            Ok(vec![path])
        })
    }

    /// The image of this recipe. `make` makes the archives of its layers in a folder, the lowest first.
    fn get(data: &Path, recipe: &str, make: impl FnOnce(&Path) -> Result<Vec<PathBuf>>) -> Result<Self> {
        let home = data.join(recipe);
        once(&home, |home| {
            let layout = home.join("layout");
            let image = format!("{}:{TAG}", layout.display());
            run(tool("umoci").args(["init", "--layout"]).arg(&layout))?;
            run(tool("umoci").args(["new", "--image", &image]))?;
            let mut bytes = 0;
            for archive in make(home)? {
                run(tool("umoci").args(["raw", "add-layer", "--image", &image]).arg(&archive))?;
                bytes += fs::metadata(&archive)?.len();
                fs::remove_file(archive)?;
            }
            run(tool("umoci").args(["gc", "--layout"]).arg(&layout))?;
            Ok(fs::write(home.join("uncompressed"), bytes.to_string())?)
        })?;
        let uncompressed = fs::read_to_string(home.join("uncompressed"))?.trim().parse()?;
        Self::open(home.join("layout"), recipe, uncompressed)
    }

    /// A layout with one image, whoever made it.
    pub(crate) fn open(layout: PathBuf, name: &str, uncompressed: u64) -> Result<Self> {
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let mut manifest = index;
        // The image may stand in an index of its own, before what was converted from it.
        while manifest["manifests"].is_array() {
            let first = blob(&layout, &manifest["manifests"][0])?;
            manifest = serde_json::from_slice(&fs::read(first.path)?)?;
        }
        let layers = manifest["layers"].as_array().ok_or("the manifest has no layers")?;
        let layers = layers.iter().map(|layer| blob(&layout, layer)).collect::<Result<_>>()?;
        Ok(Self { layout, name: name.to_owned(), uncompressed, layers })
    }

    /// Bytes of all layers as they are stored.
    pub(crate) fn stored(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// The layout as skopeo and umoci name it.
    pub(crate) fn in_layout(&self) -> Result<String> {
        let index: Value = serde_json::from_slice(&fs::read(self.layout.join("index.json"))?)?;
        let tag = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
        Ok(match tag.as_str() {
            Some(tag) => format!("oci:{}:{tag}", self.layout.display()),
            None => format!("oci:{}", self.layout.display()),
        })
    }
}

fn blob(layout: &Path, descriptor: &Value) -> Result<Layer> {
    let digest = descriptor["digest"].as_str().ok_or("a descriptor without digest")?.to_owned();
    let hex = digest.strip_prefix("sha256:").ok_or("a digest that is not sha256")?;
    let path = layout.join("blobs/sha256").join(hex);
    let media_type = descriptor["mediaType"].as_str().unwrap_or_default().to_owned();
    let size = descriptor["size"].as_u64().ok_or("a descriptor without size")?;
    Ok(Layer { digest, media_type, path, size })
}

/// Calls `make` for a folder that is not there yet, so that a run that was broken off leaves no half of one.
pub(crate) fn once(home: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if home.is_dir() {
        return Ok(());
    }
    eprintln!("making {}, once", home.display());
    let unfinished = home.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    make(&unfinished)?;
    Ok(fs::rename(&unfinished, home)?)
}

/// A minimal Debian with these packages, comma separated, in `root`.
pub(crate) fn debootstrap(root: &Path, packages: &str) -> Result<()> {
    let include = format!("--include={packages}");
    run(tool("debootstrap").args(["--variant=minbase", &include, "bookworm"]).arg(root))?;
    // What `apt-get clean` removes: the packages that were unpacked.
    for package in fs::read_dir(root.join("var/cache/apt/archives"))? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(package)?;
        }
    }
    Ok(())
}

/// The archive of a tree, which is removed.
fn archive(tree: PathBuf) -> Result<PathBuf> {
    let archive = tree.with_extension("tar");
    run(tool("tar")
        .args(["--create", "--numeric-owner", "--sort=name", "--xattrs", "--format=posix", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&tree)
        .arg("."))?;
    fs::remove_dir_all(tree)?;
    Ok(archive)
}
