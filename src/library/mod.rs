//! Library API: open a reference, list names, read bytes.
//!
//! Makes no mount and prints nothing. This module covers the command line's features with fewer names; the rest is in
//! the public modules [`image`](crate::image), [`view`](crate::view), [`mount`](crate::mount).
//!
//! ```no_run
//! use ocifs::{Image, Options};
//!
//! # async fn example() -> Result<(), ocifs::Error> {
//! let image = Image::open("ghcr.io/org/thing:tag", Options::new()).await?;
//! println!("{}", image.reference());
//!
//! // A file of the merged tree: only the blocks that are read are fetched.
//! let mut start = [0; 64];
//! image.merged().await?.open("usr/bin/env").await?.read_at(0, &mut start).await?;
//!
//! // The names in a directory.
//! for entry in image.merged().await?.entries().await? {
//!     println!("{} {}", entry.size, entry.name.display());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Options choose logins, platforms and caches:
//!
//! ```no_run
//! use ocifs::{Image, Options};
//!
//! # async fn example() -> Result<(), ocifs::Error> {
//! let options = Options::new()
//!     .platform("linux/arm64".parse()?)
//!     .authfile("/etc/ocifs/auth.json")
//!     .cache_dir("/var/cache/ocifs")
//!     .layers_titled("*.qcow2".parse()?);
//! let image = Image::open("oci:./layout:v1", options).await?;
//! let disk = image.directory("disk").await?;
//! # Ok(())
//! # }
//! ```
//!
//! To mount an opened image:
//!
//! ```no_run
//! use ocifs::mount::{MountOptions, mount};
//! use ocifs::{Image, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let image = Image::open("ghcr.io/org/thing:tag", Options::new()).await?;
//! let options = MountOptions { source: image.reference().to_owned(), ..MountOptions::default() };
//! let mounted = mount(image.namespace().clone(), "/mnt/x".as_ref(), &options, &tokio::runtime::Handle::current())?;
//! mounted.ended().await?;
//! # Ok(())
//! # }
//! ```

mod error;
mod options;
mod tree;

use std::sync::Arc;

pub use oci_client;
use oci_client::manifest::OciManifest;

pub use error::Error;
pub use options::Options;
pub use tree::{Directory, DirectoryEntry, File};

use crate::cache::{BlockCache, default_directory};
use crate::image::{ImageError, ImageSet, OpenOptions};
use crate::oci::{Digest, Reference};
use crate::registry::RegistryClient;
use crate::source::ImageLocation;
use crate::view::{MountNamespace, ViewScope};

/// An opened image, index or artifact. Cheap to clone; usable from any number of tasks at once.
///
/// Opening fetches the manifest, and the index that leads to it. Other content is fetched when it is read, cached in
/// the directory that all commands and mounts of this user share, and verified against its digest.
#[derive(Clone)]
pub struct Image {
    namespace: Arc<MountNamespace>,
}

impl Image {
    /// Opens a reference in the syntax of the command line. Requires a Tokio runtime with timers and I/O.
    ///
    /// # Errors
    /// If the reference is invalid, names nothing, or is unavailable; [`Error::fault`] gives the party at fault.
    pub async fn open(reference: &str, options: Options) -> Result<Self, Error> {
        let (registry, cache) = (RegistryClient::new(options.registry), options.cache);
        let registry = registry.map_err(|error| ImageError::Source(error.into()))?;
        let location = reference.parse::<ImageLocation>()?.absolute().map_err(Error::directory)?;
        let location = match location {
            ImageLocation::Registry(short) => ImageLocation::Registry(
                registry.expand(&short).map_err(|error| ImageError::Source(error.into()))?,
            ),
            other => other,
        };
        let dir = match cache {
            Some(dir) => dir,
            None => default_directory().map_err(Error::directory)?,
        };
        let cache = BlockCache::open_limited(&dir, options.limit).map_err(ImageError::Cache)?;
        let family = ImageSet::open(&OpenOptions { location, ..options.open }, &registry, cache).await?;
        Ok(Self { namespace: Arc::new(MountNamespace::open(Arc::new(family), &ViewScope::default()).await?) })
    }

    /// Opens a reference of [`oci_client`].
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_reference(reference: &oci_client::Reference, options: Options) -> Result<Self, Error> {
        let checked = Reference::try_from(reference)?;
        Self::open(&checked.to_string(), options).await
    }

    /// The manifest or index behind the reference, in the type of [`oci_client`].
    pub fn manifest(&self) -> OciManifest {
        self.namespace.family().document().into()
    }

    /// The reference with its digest.
    pub fn reference(&self) -> &str {
        self.namespace.family().pinned()
    }

    /// The digest of the manifest or index behind the reference.
    pub fn digest(&self) -> &Digest {
        self.namespace.family().digest()
    }

    /// The root of the tree that a mount shows.
    pub fn root(&self) -> Directory {
        Directory::new(self.namespace.clone(), self.namespace.root(), Vec::new())
    }

    /// A directory of that tree.
    ///
    /// # Errors
    /// If the directory does not exist, or its content is unavailable.
    pub async fn directory(&self, path: &str) -> Result<Directory, Error> {
        self.root().directory(path).await
    }

    /// The layers that are archives, merged into one tree.
    ///
    /// # Errors
    /// If the image has no archives, or one cannot be read.
    pub async fn merged(&self) -> Result<Directory, Error> {
        self.directory("merged").await
    }

    /// The files of an artifact.
    ///
    /// # Errors
    /// If there are none.
    pub async fn files(&self) -> Result<Directory, Error> {
        self.directory("files").await
    }

    /// The disk images, unpacked and joined.
    ///
    /// # Errors
    /// If there are none.
    pub async fn disk(&self) -> Result<Directory, Error> {
        self.directory("disk").await
    }

    /// A file by its path in the tree, such as `merged/etc/os-release`. Symbolic links are followed.
    ///
    /// # Errors
    /// If the file does not exist, or is unavailable.
    pub async fn file(&self, path: &str) -> Result<File, Error> {
        self.root().open(path).await
    }

    /// The namespace of this image, for [`mount`](crate::mount::mount()).
    pub fn namespace(&self) -> &Arc<MountNamespace> {
        &self.namespace
    }

    /// The image set behind the reference, with its metadata.
    pub fn family(&self) -> &Arc<ImageSet> {
        self.namespace.family()
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Image").field(&self.reference()).finish()
    }
}
