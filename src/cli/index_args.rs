//! Arguments of `ocifs index`.

use clap::{Args, Subcommand};

use super::args::ImageArgs;
use super::index_source_args::{IndexPublishArgs, RepositoryArg};

#[derive(Subcommand, Debug)]
pub(super) enum IndexCommand {
    /// Read every layer once and keep its index: later mounts need no pass over it.
    Build(IndexBuildArgs),
    /// Publish the indexes beside the image or in an index repository, and build those that are missing.
    Push(IndexPushArgs),
}

#[derive(Args, Debug)]
pub(super) struct IndexBuildArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    #[command(flatten)]
    pub(super) publish: IndexPublishArgs,
}

#[derive(Args, Debug)]
pub(super) struct IndexPushArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Publish the index of each layer in this repository, where --index-from finds it by the layer's digest, and not beside the
    /// image. A layer whose index is there is not read. A trace that this machine recorded for the image is published too.
    #[arg(long, value_name = "HOST/REPO")]
    pub(super) to: Option<RepositoryArg>,
}
