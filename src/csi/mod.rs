//! A plugin for the Container Storage Interface: pods name a reference as a volume, and the node mounts it.
//!
//! Never talks to an orchestrator of its own accord, never serves a file itself, and has volumes only that live as long as their
//! pod (inline, ephemeral). The idea: every volume is an ordinary mount in a process of its own; the plugin starts and ends such
//! processes, and is stateless but for one small record for each of them. The only importer of `tonic` and `prost`.

mod child;
mod error;
mod grant;
mod login;
/// The messages of the protocol.
pub mod messages;
mod node;
mod places;
mod service;
mod state;
mod volume;

pub use child::PLUGIN_VARIABLES;
pub use error::{CsiError, code_name};
pub use grant::{Clients, MakeClient, Unreachable};
pub use node::{Node, Settings};
pub use service::serve;

/// The name of the driver, which a `CSIDriver` object and the pods use.
pub const NAME: &str = "csi.ocifs";
