//! ocifs mounts any OCI registry reference as a read-only file tree whose bytes are fetched on first read.
//!
//! A program begins with [`Image::open`]; [`library`] has examples. The command line uses the public modules below it.
//!
//! The folders are the architecture: each module has a rank and imports only modules of a lower rank
//! (`tests/layering.rs` enforces it, `docs/architecture.md` explains it).

pub mod io;
pub mod metrics;
pub mod oci;
pub mod owner;
pub mod sandbox;

pub mod registry;

pub mod cache;
pub mod source;

pub mod artifact;
pub mod layer;

pub mod archive_source;
pub mod disk;
pub mod tree;

pub mod erofs;
pub mod image;

pub mod view;

pub mod export;
pub mod library;
pub mod mount;

#[cfg(feature = "csi")]
pub mod csi;

pub mod cli;

pub use library::{Directory, DirectoryEntry, Error, File, Image, Options};
