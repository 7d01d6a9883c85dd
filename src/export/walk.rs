//! Tree walk in creation order: a directory before its content, names sorted.
//!
//! The walk holds the pending names and the paths of hard-linked files, not the whole tree. Each step has the path
//! and attributes of a name, and the earlier path if the name is a further hard link.

use std::collections::HashMap;

use crate::tree::InodeKind;
use crate::view::{MountNamespace, NodeAttributes, NodeId, ViewError};

/// One name of a tree.
pub(super) struct WalkStep {
    /// The path below the start directory.
    pub(super) path: Vec<u8>,
    pub(super) node: NodeId,
    pub(super) attributes: NodeAttributes,
    /// The earlier path of the same file; `None` for its first name.
    pub(super) before: Option<Vec<u8>>,
}

/// A walk over a tree.
pub(super) struct ExportWalk<'a> {
    namespace: &'a MountNamespace,
    /// Pending names, last in first out.
    todo: Vec<(Vec<u8>, NodeId)>,
    /// The first path of each file with several hard links.
    linked: HashMap<NodeId, Vec<u8>>,
}

impl<'a> ExportWalk<'a> {
    /// A walk over the content of `directory`, without `directory` itself.
    pub(super) async fn below(namespace: &'a MountNamespace, directory: NodeId) -> Result<Self, ViewError> {
        let mut walk = Self { namespace, todo: Vec::new(), linked: HashMap::new() };
        walk.enter(b"", directory).await?;
        Ok(walk)
    }

    /// The next name; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<WalkStep>, ViewError> {
        let Some((path, node)) = self.todo.pop() else { return Ok(None) };
        self.namespace.settle(node).await?;
        let missing = || ViewError::NotFound { path: String::from_utf8_lossy(&path).into_owned() };
        let mut attributes = self.namespace.attributes(node).ok_or_else(missing)?;
        if matches!(attributes.kind, InodeKind::Directory) {
            self.enter(&path, node).await?;
            // Entering a directory makes its attributes known.
            attributes = self.namespace.attributes(node).unwrap_or(attributes);
            return Ok(Some(WalkStep { path, node, attributes, before: None }));
        }
        let before = match attributes.nlink > 1 {
            true => match self.linked.get(&node) {
                Some(before) => Some(before.clone()),
                None => {
                    self.linked.insert(node, path.clone());
                    None
                }
            },
            false => None,
        };
        Ok(Some(WalkStep { path, node, attributes, before }))
    }

    async fn enter(&mut self, path: &[u8], directory: NodeId) -> Result<(), ViewError> {
        self.namespace.build(directory).await?;
        let mut found: Vec<(Vec<u8>, NodeId)> = Vec::new();
        self.namespace.entries(directory, 0, |entry| {
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            found.push(([path, slash, entry.name].concat(), entry.node));
            true
        });
        found.sort_unstable_by(|one, other| other.0.cmp(&one.0));
        self.todo.append(&mut found);
        Ok(())
    }
}
