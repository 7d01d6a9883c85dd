//! Command-line arguments shared by the subcommands: the image, the registry, and the serving of a mount.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::oci::{EntryCondition, GlobPattern, OciError, Platform};
use crate::source::ImageLocation;

use super::cache_args::CacheArgs;
use super::cache_size::CacheSizeArgs;
use super::content_store_args::ContentArgs;
use super::daemon_args::DaemonArgs;
use super::index_source_args::IndexSourceArgs;
use super::network::NetworkArgs;
use super::verify_args::TrustArgs;

/// The reference, and how to reach it.
#[derive(Args, Debug)]
#[allow(rustdoc::broken_intra_doc_links, reason = "brackets of a help text are no links")]
pub(super) struct ImageArgs {
    /// Reference: HOST/REPOSITORY[:TAG][@DIGEST] in a registry (docker://, oras:// and oci:// may precede it), oci:DIR,
    /// oci-archive:FILE or docker-archive:FILE, each with [:TAG|@DIGEST], a path that begins with ./, ../, / or ~/, the http(s)
    /// address of an archive, or - for an archive on standard input.
    #[arg(value_name = "REF")]
    pub(super) location: ImageLocation,

    /// Choose this platform of an index: os[(version)]/arch[/variant], or all, each in a directory of its own. Default: this
    /// machine's. Only export and pull take more than one.
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Vec<PlatformChoice>,

    /// Choose only among the entries of an index whose property KEY matches: an annotation, artifactType, mediaType, digest,
    /// os, architecture, variant, os.version, os.features, or ref.name, title or disktype for short. Case does not matter,
    /// and * matches anything. May be repeated: all have to match.
    #[arg(long, value_name = "KEY=GLOB")]
    pub(super) select: Vec<EntryCondition>,

    /// Present only the layer with this number; 0 is the lowest. May be repeated. The manifest and blobs/ stay complete.
    #[arg(long, value_name = "N")]
    pub(super) layer: Vec<usize>,

    /// Present only layers of a media type that matches. May be repeated: one has to match.
    #[arg(long, value_name = "GLOB")]
    pub(super) media_type: Vec<GlobPattern>,

    /// Present only layers with a title that matches. May be repeated: one has to match.
    #[arg(long, value_name = "GLOB")]
    pub(super) title: Vec<GlobPattern>,

    /// Show the referrers of the image too: signatures, attestations, SBOMs.
    #[arg(long)]
    pub(super) referrers: bool,

    /// Fetch nondistributable layers from the https addresses in the manifest, without credentials.
    #[arg(long)]
    pub(super) foreign_layers: bool,

    /// Decide between layers of one artifact that have different entries at one path.
    #[arg(long, value_name = "HOW", default_value = "later")]
    pub(super) on_conflict: OnConflictArg,

    /// Name the directories in layers/ by this annotation of the layers, where they have it.
    #[arg(long, value_name = "ANNOTATION")]
    pub(super) layer_name: Option<String>,

    /// Order the parts of a split disk.
    #[arg(long, value_name = "ORDER", default_value = "epoch")]
    pub(super) part_order: PartOrderArg,

    #[command(flatten)]
    pub(super) cache: CacheArgs,

    #[command(flatten)]
    pub(super) cache_size: CacheSizeArgs,

    #[command(flatten)]
    pub(super) content: ContentArgs,

    /// Use the cache alone, without any network.
    #[arg(long)]
    pub(super) offline: bool,

    #[command(flatten)]
    pub(super) trust: TrustArgs,

    /// Log in to the registry with USER:PASSWORD. Other users can see arguments while the command runs: prefer the variable or
    /// --authfile.
    #[arg(long, value_name = "USER:PASSWORD", env = "OCIFS_CREDS", hide_env_values = true, conflicts_with_all = ["authfile", "anonymous"])]
    pub(super) creds: Option<String>,

    /// Use no credentials.
    #[arg(long, conflicts_with = "authfile")]
    pub(super) anonymous: bool,

    #[command(flatten)]
    pub(super) network: NetworkArgs,

    /// Wait no longer than this for one read when the registry does not answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,

    /// Choose the indexes of compressed layers to use.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub(super) index: IndexUse,

    #[command(flatten)]
    pub(super) index_source: IndexSourceArgs,

    /// Write the log to this file instead of standard error. OCIFS_LOG sets its level: "debug", or "ocifs=trace".
    #[arg(long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,
}

/// A value of `--platform`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PlatformChoice {
    One(Platform),
    All,
}

impl FromStr for PlatformChoice {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        match text {
            "all" => Ok(PlatformChoice::All),
            text => Ok(PlatformChoice::One(text.parse()?)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnConflictArg {
    /// Show the later entry.
    Later,
    /// Refuse to merge them.
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PartOrderArg {
    /// By title, byte by byte.
    Epoch,
    /// By title, numbers by their value.
    Natural,
    /// As the manifest lists them.
    Manifest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IndexUse {
    /// Indexes made here, else those in the image or pushed beside it.
    Auto,
    /// As auto, and SOCI indexes of version 1, which any account with push rights may have added.
    All,
    /// Indexes made here.
    Local,
    /// No index.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PrefetchUse {
    /// Nothing.
    None,
    /// Content that layers mark as needed first, when a layer is first read.
    Landmarks,
    /// Content that a recorded trace lists.
    Trace,
    /// Everything.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PassthroughWhen {
    /// Only when it costs no right: with --sandbox=off.
    Auto,
    /// Where the kernel allows it; the process keeps CAP_SYS_ADMIN.
    On,
    /// Never: ocifs serves every read.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KernelWhen {
    /// When it can, and every name is known without reading a layer; else by FUSE.
    Auto,
    /// Once all layers are compared with their digests; fail where it cannot.
    On,
    /// Never: ocifs serves names and reads.
    Off,
}

#[derive(Args, Debug)]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Mount point: an empty directory.
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,

    #[command(flatten)]
    pub(super) serve: ServeArgs,

    /// Replace the mount at DIR when the reference names another digest than the one mounted.
    #[arg(long, conflicts_with = "delay_connect")]
    pub(super) refresh: bool,

    /// Stay in the foreground until the mount is gone.
    #[arg(short, long)]
    pub(super) foreground: bool,
}

/// The content of a mount, and how it is served.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Mount only one of the views as the root: merged, files, disk, layers, blobs or export; layers/N for one layer.
    #[arg(long, value_name = "VIEW")]
    pub(super) view: Option<String>,

    /// Mount only this directory (below --view, if given).
    #[arg(long, value_name = "PATH")]
    pub(super) subdir: Option<OsString>,

    /// Leave the symbolic links of archives out of merged/, layers/ and files/.
    #[arg(long)]
    pub(super) hide_symlinks: bool,

    /// Leave out the attributes trusted.overlay.* and user.overlay.* of the image, which an overlay over the mount would obey.
    /// Implied by run --rw.
    #[arg(long)]
    pub(super) hide_overlay_xattrs: bool,

    /// Fetch content before its first read.
    #[arg(long, value_name = "WHAT", default_value = "landmarks")]
    pub(super) prefetch: PrefetchUse,

    /// Use this trace for --prefetch=trace. Default: the one recorded on this machine, else the one published beside the image, else
    /// the one in a repository of --index-from.
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,

    /// Fetch everything in the background, and retry until it is here; the mount then needs no network.
    #[arg(long, conflicts_with_all = ["prefetch", "offline"])]
    pub(super) complete: bool,

    /// Refuse to mount when a file could only be read after a pass over its whole layer.
    #[arg(long)]
    pub(super) require_lazy: bool,

    /// Mount before the registry answers; readers wait until it does. For machines that start before their network.
    #[arg(long)]
    pub(super) delay_connect: bool,

    /// Let the kernel read whole, verified files from the cache without ocifs. Needs CAP_SYS_ADMIN.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) passthrough: PassthroughWhen,

    /// Let the kernel's EROFS serve names and cached reads, with --view merged or layers/N. Needs root and Linux 6.12; every user
    /// gets in, as the modes allow.
    #[arg(long, value_name = "WHEN", default_value = "off")]
    pub(super) kernel: KernelWhen,

    #[command(flatten)]
    pub(super) daemon: DaemonArgs,

    /// Set mount(8) options: any long option of this command without its dashes, and ro, nosuid, nodev, noexec, allow_other,
    /// default_permissions and their kin.
    #[arg(short = 'o', value_name = "OPTION[,OPTION...]")]
    pub(super) options: Vec<String>,

    /// Let other users in, as the modes allow.
    #[arg(long, hide = true, conflicts_with = "allow_root")]
    pub(super) allow_other: bool,

    #[arg(long, hide = true)]
    pub(super) allow_root: bool,

    #[arg(long, hide = true)]
    pub(super) default_permissions: bool,

    /// Honour set-user-id and set-group-id bits of the image (root only).
    #[arg(long, alias = "suid")]
    pub(super) allow_suid: bool,

    /// Let device nodes of the image work (root only).
    #[arg(long, alias = "dev")]
    pub(super) allow_dev: bool,

    #[arg(long, hide = true)]
    pub(super) noexec: bool,

    #[arg(long, hide = true)]
    pub(super) nonempty: bool,

    /// Leave room for a layer over the mount.
    #[arg(long, hide = true)]
    pub(super) stackable: bool,

    /// Mount over a dead mount and leave it below, for processes that hold a copy of it.
    #[arg(long, hide = true)]
    pub(super) over_dead: bool,
}
