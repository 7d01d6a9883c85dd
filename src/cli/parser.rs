//! Root parser: the subcommands of ocifs and their arguments.
//!
//! Imports every command that has arguments. Only the dispatch and the commands that parse a command line import it.

use clap::{Parser, Subcommand};

use super::args::MountArgs;
use super::cache_args::CacheCommand;
use super::cat::CatArgs;
use super::cp::CpArgs;
#[cfg(feature = "csi")]
use super::csi_args::CsiArgs;
use super::doctor::DoctorArgs;
use super::export::ExportArgs;
use super::index_args::IndexCommand;
use super::inspect::InspectArgs;
use super::list::MountListArgs;
use super::ls::LsArgs;
use super::man_args::{CompletionArgs, ManArgs};
use super::pull::PullArgs;
use super::record::RecordArgs;
use super::resolve::ResolveArgs;
use super::run::RunArgs;
use super::status::StatusArgs;
use super::umount::UmountArgs;
use super::verify::VerifyCommandArgs;

/// Mount any OCI registry reference as a read-only tree; bytes are fetched when they are first read.
#[derive(Parser, Debug)]
#[command(name = "ocifs", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum CliCommand {
    /// Mount a reference at a directory.
    Mount(MountArgs),
    /// Unmount.
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// Show the content of a reference and how lazily each part is read, without fetching a layer.
    Inspect(InspectArgs),
    /// List names in a reference, without mounting it.
    Ls(LsArgs),
    /// Write a file of a reference to standard output, without mounting it.
    Cat(CatArgs),
    /// Copy a file or a directory of a reference to this machine, without mounting it.
    Cp(CpArgs),
    /// Write whole references as archives, as OCI layouts, or as files.
    Export(ExportArgs),
    /// Fetch whole references into the cache, and verify their digests.
    Pull(PullArgs),
    /// Print the digest that a reference names now.
    Resolve(ResolveArgs),
    /// Build or publish the indexes of a reference's layers.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Compare all content of a reference, or of a mount, with its digests and checksums.
    Verify(VerifyCommandArgs),
    /// Run a command on a mount, and record its reads: for mount --prefetch=trace.
    Record(RecordArgs),
    /// Run a command on a mount of a reference that lasts as long as the command.
    Run(RunArgs),
    /// Check whether this machine can mount, and which features a registry supports.
    Doctor(DoctorArgs),
    /// List the mounts of this machine.
    #[command(alias = "ps")]
    List(MountListArgs),
    /// Show the bytes that a mount fetched and served, and its part of the cache.
    Status(StatusArgs),
    /// List, measure, verify and clean the cache.
    #[command(subcommand)]
    Cache(CacheCommand),
    #[cfg(feature = "csi")]
    /// Serve volumes to the pods of a Kubernetes node (CSI plugin).
    Csi(CsiArgs),
    /// Print the completion of a shell.
    Completion(CompletionArgs),
    /// Print a manual page for man(1).
    Man(ManArgs),
}
