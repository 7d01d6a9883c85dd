//! The image that is measured: a Debian root and a layer of NumPy and SciPy on top, two gzip layers without any index.
//!
//! It is made once by the tools that make such images, and kept under `target/bench-data`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::measure::{run, tool};

/// Part of the folder's name: a change of the recipe makes a new image.
const RECIPE: &str = "debian-bookworm-scipy-1.15.3";

/// Pinned, so that two machines measure the same bytes of them.
const WHEELS: [&str; 2] = ["numpy==2.2.6", "scipy==1.15.3"];

/// The tag of the image in its layout.
const TAG: &str = "bench";

/// The image as an OCI layout.
pub(crate) struct Image {
    /// Where the layout lies.
    pub(crate) layout: PathBuf,
    /// Bytes of the layer archives before compression.
    pub(crate) uncompressed: u64,
    /// How many layers there are.
    pub(crate) layers: usize,
}

impl Image {
    /// The image of this recipe, made now if it is not there.
    pub(crate) fn get(data: &Path) -> Result<Self> {
        let home = data.join(RECIPE);
        if !home.is_dir() {
            let unfinished = data.join(format!("{RECIPE}.unfinished"));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            fs::create_dir_all(&unfinished)?;
            make(&unfinished)?;
            fs::rename(&unfinished, &home)?;
        }
        let sizes = fs::read_to_string(home.join("uncompressed"))?;
        let sizes: Vec<u64> = sizes.lines().map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { layout: home.join("layout"), uncompressed: sizes.iter().sum(), layers: sizes.len() })
    }

    /// The layout as skopeo and umoci name it.
    pub(crate) fn name(&self) -> String {
        format!("{}:{TAG}", self.layout.display())
    }
}

/// Makes the layout and the list of uncompressed sizes in `home`, and leaves nothing else.
fn make(home: &Path) -> Result<()> {
    eprintln!("making the image {RECIPE}: a few minutes, once");
    let root = home.join("root");
    run(tool("debootstrap").args(["--variant=minbase", "--include=python3", "bookworm"]).arg(&root))?;
    // What `apt-get clean` removes: the packages that were unpacked.
    for package in fs::read_dir(root.join("var/cache/apt/archives"))? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(package)?;
        }
    }
    let python = home.join("python");
    run(tool("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-compile", "--root-user-action=ignore"])
        .args(["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--target"])
        .arg(python.join("usr/lib/python3/dist-packages"))
        .args(WHEELS))?;

    let layout = home.join("layout");
    let image = format!("{}:{TAG}", layout.display());
    run(tool("umoci").args(["init", "--layout"]).arg(&layout))?;
    run(tool("umoci").args(["new", "--image", &image]))?;
    let mut sizes = String::new();
    for tree in [root, python] {
        let archive = tree.with_extension("tar");
        run(tool("tar")
            .args(["--create", "--numeric-owner", "--sort=name", "--xattrs", "--format=posix", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&tree)
            .arg("."))?;
        run(tool("umoci").args(["raw", "add-layer", "--image", &image]).arg(&archive))?;
        sizes.push_str(&format!("{}\n", fs::metadata(&archive)?.len()));
        fs::remove_file(archive)?;
        fs::remove_dir_all(tree)?;
    }
    run(tool("umoci").args(["gc", "--layout"]).arg(&layout))?;
    fs::write(home.join("uncompressed"), sizes)?;
    Ok(())
}
