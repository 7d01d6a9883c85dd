//! What the layers of a manifest are meant as: files with names, directories, archives to be merged.
//!
//! Never reads a blob: labels decide names and kinds, and what the bytes turn out to be is found out by whoever reads them.
//! The idea: a manifest, and for some kinds its config, become one [`Contents`] that says everything `files/`, `layers/` and
//! `merged/` have to know.

mod component;
mod contents;
mod names;
mod plan;
mod segments;
mod snapshot;

#[cfg(test)]
mod tests;

pub use component::component;
pub use contents::{Archive, Contents, File, FileBody, Segment, Tree, Union};
pub use plan::{TART_DISK, UNPACK, VETU_DISK, contents, needs_config};

/// A name for a report: in quotes, escaped, and not longer than a terminal can bear.
fn shown(name: &str) -> String {
    const SHOWN: usize = 200;
    let head: String = name.chars().take(SHOWN).collect();
    let more = if head.len() < name.len() { "..." } else { "" };
    format!("{head:?}{more}")
}
