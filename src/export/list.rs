//! The names below a path.

use crate::tree::Kind;
use crate::view::{Attributes, Namespace, NodeId, ViewError};

/// One name that [`list`] found.
pub struct Listed {
    /// Its path below the listed directory; the path as asked for when that was no directory.
    pub path: Vec<u8>,
    /// What `stat` says about it.
    pub attributes: Attributes,
    /// Where it points, when it is a symbolic link.
    pub link: Option<Vec<u8>>,
}

/// How far down to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The directory itself.
    One,
    /// Everything below it.
    All,
}

/// What is asked about each name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Only what it is called and of what type it is: sizes that are not known yet are 0.
    Names,
    /// Everything, however long it takes.
    Attributes,
}

/// Calls `each` for every name in the directory at `path`, and with [`Depth::All`] for everything below too, depth first in name
/// order, until it answers `false`. Something that is no directory is its own only entry.
pub async fn list(
    namespace: &Namespace,
    path: &[u8],
    depth: Depth,
    detail: Detail,
    mut each: impl FnMut(Listed) -> bool,
) -> Result<(), ViewError> {
    let start = namespace.resolve(path).await?;
    let missing = || ViewError::NotFound { path: String::from_utf8_lossy(path).into_owned() };
    if detail == Detail::Attributes {
        namespace.settle(start).await?;
    }
    let attributes = namespace.attributes(start).ok_or_else(missing)?;
    if !matches!(attributes.kind, Kind::Directory) {
        each(Listed { path: path.to_vec(), attributes, link: None });
        return Ok(());
    }
    // Depth first without recursion: directories wait on the stack, last in first out.
    let mut todo = entries(namespace, start, b"", detail).await?;
    todo.reverse();
    while let Some((listed, node)) = todo.pop() {
        let inner = (depth == Depth::All && matches!(listed.attributes.kind, Kind::Directory))
            .then(|| listed.path.clone());
        if !each(listed) {
            return Ok(());
        }
        if let Some(prefix) = inner {
            let mut below = entries(namespace, node, &[&prefix, &b"/"[..]].concat(), detail).await?;
            below.reverse();
            todo.append(&mut below);
        }
    }
    Ok(())
}

async fn entries(
    namespace: &Namespace,
    directory: NodeId,
    prefix: &[u8],
    detail: Detail,
) -> Result<Vec<(Listed, NodeId)>, ViewError> {
    namespace.build(directory).await?;
    let mut found = Vec::new();
    namespace.entries(directory, 0, |entry| {
        let path = [prefix, entry.name].concat();
        let link = namespace.link(entry.node).map(<[u8]>::to_vec);
        found.push((Listed { path, attributes: entry.attributes, link }, entry.node));
        true
    });
    for (listed, node) in &mut found {
        if detail == Detail::Attributes && !namespace.is_settled(*node) {
            namespace.settle(*node).await?;
            listed.attributes = namespace.attributes(*node).unwrap_or(listed.attributes);
        }
    }
    Ok(found)
}
