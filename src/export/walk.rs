//! Everything below a directory, in the order in which it can be made again: a directory before what is in it, names sorted.
//!
//! Keeps what is on the way down, and not the whole tree. The idea: who writes a tree needs of each name where it is, what it is,
//! and whether it is another name of something that came before.

use std::collections::HashMap;

use crate::tree::Kind;
use crate::view::{Attributes, Namespace, NodeId, ViewError};

/// One name of a tree.
pub(super) struct Step {
    /// Its path below the directory.
    pub(super) path: Vec<u8>,
    pub(super) node: NodeId,
    pub(super) attributes: Attributes,
    /// The path of the same thing that came before.
    pub(super) before: Option<Vec<u8>>,
}

/// A walk over a tree.
pub(super) struct Walk<'a> {
    namespace: &'a Namespace,
    /// What is still to come, last in first out.
    todo: Vec<(Vec<u8>, NodeId)>,
    /// The first path of whatever has several.
    linked: HashMap<NodeId, Vec<u8>>,
}

impl<'a> Walk<'a> {
    /// A walk over what is below `directory`, which is not part of it.
    pub(super) async fn below(namespace: &'a Namespace, directory: NodeId) -> Result<Self, ViewError> {
        let mut walk = Self { namespace, todo: Vec::new(), linked: HashMap::new() };
        walk.enter(b"", directory).await?;
        Ok(walk)
    }

    /// The next name.
    pub(super) async fn next(&mut self) -> Result<Option<Step>, ViewError> {
        let Some((path, node)) = self.todo.pop() else { return Ok(None) };
        self.namespace.settle(node).await?;
        let missing = || ViewError::NotFound { path: String::from_utf8_lossy(&path).into_owned() };
        let mut attributes = self.namespace.attributes(node).ok_or_else(missing)?;
        if matches!(attributes.kind, Kind::Directory) {
            self.enter(&path, node).await?;
            // What a directory that nobody had looked into is like is known now.
            attributes = self.namespace.attributes(node).unwrap_or(attributes);
            return Ok(Some(Step { path, node, attributes, before: None }));
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
        Ok(Some(Step { path, node, attributes, before }))
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
