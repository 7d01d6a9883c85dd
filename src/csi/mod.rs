//! Container Storage Interface (CSI) node plugin: pods name a reference as a volume, and the node mounts it.
//!
//! Every volume is an ordinary mount in a process of its own. The plugin starts and ends these processes; its only
//! state is one small record for each. Volumes are inline and ephemeral: they live as long as their pod. The plugin
//! calls no orchestrator and serves no file itself. The only importer of `tonic` and `prost`.

mod child;
mod error;
mod grant;
/// The messages of the protocol.
pub mod messages;
mod node;
mod places;
mod pull_secret;
mod service;
mod state;
mod volume;

pub use error::{CsiError, code_name};
pub use grant::{MakeClient, UnreachablePolicy, VolumeClients};
pub use node::{NodeSettings, VolumeNode};
pub use service::serve;

/// The name of the driver, which a `CSIDriver` object and the pods use.
pub const NAME: &str = "csi.ocifs";
