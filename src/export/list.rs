//! Listing of the names below a path.

use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeAttributes, NodeId, ViewError};

/// One name that [`list`] found.
pub struct ListedName {
    /// The path below the listed directory; the requested path if that is no directory.
    pub path: Vec<u8>,
    /// The attributes, as `stat` reports them.
    pub attributes: NodeAttributes,
    /// The target of a symbolic link; `None` for other types.
    pub link: Option<Vec<u8>>,
}

/// The depth of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDepth {
    /// The entries of the directory.
    One,
    /// All descendants.
    All,
}

/// The detail of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDetail {
    /// Names and types only: unknown sizes are 0.
    Names,
    /// All attributes, at any cost.
    Attributes,
}

/// Calls `each` for every name in the directory at `path`, and with [`ListDepth::All`] for all descendants, depth first
/// in name order, until it returns `false`. A path that is no directory is its own only entry.
pub async fn list(
    namespace: &MountNamespace,
    path: &[u8],
    depth: ListDepth,
    detail: ListDetail,
    mut each: impl FnMut(ListedName) -> bool,
) -> Result<(), ViewError> {
    let start = namespace.resolve(path).await?;
    let missing = || ViewError::NotFound { path: String::from_utf8_lossy(path).into_owned() };
    if detail == ListDetail::Attributes {
        namespace.settle(start).await?;
    }
    let attributes = namespace.attributes(start).ok_or_else(missing)?;
    if !matches!(attributes.kind, InodeKind::Directory) {
        each(ListedName { path: path.to_vec(), attributes, link: None });
        return Ok(());
    }
    // Depth first without recursion: pending entries are on a stack, last in first out.
    let mut todo = entries(namespace, start, b"", detail).await?;
    todo.reverse();
    while let Some((listed, node)) = todo.pop() {
        let inner = (depth == ListDepth::All && matches!(listed.attributes.kind, InodeKind::Directory))
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
    namespace: &MountNamespace,
    directory: NodeId,
    prefix: &[u8],
    detail: ListDetail,
) -> Result<Vec<(ListedName, NodeId)>, ViewError> {
    namespace.build(directory).await?;
    let mut found = Vec::new();
    namespace.entries(directory, 0, |entry| {
        let path = [prefix, entry.name].concat();
        let link = namespace.link(entry.node).map(<[u8]>::to_vec);
        found.push((ListedName { path, attributes: entry.attributes, link }, entry.node));
        true
    });
    for (listed, node) in &mut found {
        if detail == ListDetail::Attributes && !namespace.is_settled(*node) {
            namespace.settle(*node).await?;
            listed.attributes = namespace.attributes(*node).unwrap_or(listed.attributes);
        }
    }
    Ok(found)
}
