//! Export: parts of a mount written elsewhere through the same names and reads as the mount's, and whole references
//! as archives and layouts.
//!
//! This module knows no FUSE and prints nothing: the caller passes the writer, and a callback for progress.
//!
//! Export an image of one platform as an archive that containerd, Docker and skopeo load:
//!
//! ```no_run
//! use ocifs::cache::BlockCache;
//! use ocifs::export::{ReplacementFile, write_archive};
//! use ocifs::image::{ArchiveForm, ArchiveOptions, ArchiveSelection, ArchiveView, OpenOptions};
//! use ocifs::registry::{RegistryClient, RegistryOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = RegistryClient::new(RegistryOptions::default())?;
//! let cache = BlockCache::open("/var/cache/ocifs".as_ref())?;
//! let options = OpenOptions::new("docker.io/library/nginx:1.27".parse()?);
//! let selected = ArchiveOptions::new().platform("linux/arm64".parse()?).skip_nondistributable();
//! let selection = ArchiveSelection::open(&options, &registry, cache, &selected).await?;
//! let archive = ArchiveView::of(&[selection], ArchiveForm::Oci)?;
//! let file = ReplacementFile::begin("nginx.tar".as_ref())?;
//! write_archive(&archive, &mut file.file(), &|_bytes| {}).await?;
//! file.commit()?;
//! # Ok(())
//! # }
//! ```
//!
//! Copy one file of an image to a sparse file of this machine:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use ocifs::cache::BlockCache;
//! use ocifs::export::copy_file;
//! use ocifs::image::{ImageSet, OpenOptions};
//! use ocifs::registry::{RegistryClient, RegistryOptions};
//! use ocifs::view::{MountNamespace, ViewScope};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = RegistryClient::new(RegistryOptions::default())?;
//! let cache = BlockCache::open("/var/cache/ocifs".as_ref())?;
//! let options = OpenOptions::new("ghcr.io/example/vm:1".parse()?);
//! let family = Arc::new(ImageSet::open(&options, &registry, cache).await?);
//! let namespace = MountNamespace::open(family, &ViewScope::default()).await?;
//! copy_file(&namespace, b"disk/vm.qcow2", "vm.qcow2".as_ref(), &|_bytes| {}).await?;
//! # Ok(())
//! # }
//! ```

mod archive;
mod cat;
mod copy;
mod error;
mod layout;
mod list;
mod place;
mod preserve;
mod private_tree;
mod replace;
mod tree_dir;
mod tree_tar;
mod walk;

pub use archive::{ExportProgress, write_archive};
pub use cat::{CatError, cat};
pub use copy::copy_file;
pub use error::ExportError;
pub use layout::{LayoutReport, write_layout};
pub use list::{ListDepth, ListDetail, ListedName, list};
pub use preserve::{PreservedMetadata, WithheldCounts};
pub use replace::ReplacementFile;
pub use tree_dir::{DirReport, write_tree};
pub use tree_tar::write_tree_tar;

use crate::io::ReadError;
use crate::view::MountNamespace;

/// Waits until all blobs that were read in full were compared with their digests.
async fn compared(namespace: &MountNamespace) -> Result<(), ReadError> {
    for image in namespace.family().images() {
        image.compared().await?;
    }
    Ok(())
}
