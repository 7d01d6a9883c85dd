//! Roles of a manifest's layers: files with names, directories, archives to merge.
//!
//! Reads no blob: labels decide names and kinds, and the reader of a layer finds its actual format. A manifest, for
//! some kinds with its config, becomes one [`ArtifactContents`] with all information for `files/`, `layers/` and `merged/`.

mod contents;
mod names;
mod path_component;
mod plan;
mod segments;
mod snapshot;

#[cfg(test)]
mod tests;

pub use contents::{
    ArchiveDirectory, ArchiveLayer, ArtifactContents, ArtifactFile, FileBody, FileSegment, UnionRules,
};
pub use path_component::component;
pub use plan::{TART_DISK, UNPACK, VETU_DISK, contents, needs_config};

/// A name for a report: quoted, escaped, and shortened for a terminal.
fn shown(name: &str) -> String {
    const SHOWN: usize = 200;
    let head: String = name.chars().take(SHOWN).collect();
    let more = if head.len() < name.len() { "..." } else { "" };
    format!("{head:?}{more}")
}
