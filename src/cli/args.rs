//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::cache_size::CacheSizeArgs;
use crate::oci::{Condition, Glob, OciError, Platform};
use crate::source::Location;

use super::cache_args::{CacheArgs, CacheCommand};
use super::content::ContentArgs;
use super::copy::CpArgs;
use super::csi::CsiArgs;
use super::daemon::DaemonArgs;
use super::doctor::DoctorArgs;
use super::export::ExportArgs;
use super::list::ListArgs;
use super::network::NetworkArgs;
use super::pages::{CompletionArgs, ManArgs};
use super::pull::PullArgs;
use super::resolve::ResolveArgs;
use super::run::RunArgs;
use super::status::StatusArgs;
use super::trust::TrustArgs;
use super::verify::VerifyArgs;

/// Mount any OCI registry reference as a read-only tree; bytes are fetched when they are first read.
#[derive(Parser, Debug)]
#[command(name = "ocifs", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Mount a reference at a directory.
    Mount(MountArgs),
    /// Take a mount away.
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// Show what is in a reference and how lazily each part can be read, without fetching a layer.
    Inspect(InspectArgs),
    /// List names in a reference, without mounting it.
    Ls(LsArgs),
    /// Write a file of a reference to standard output, without mounting it.
    Cat(CatArgs),
    /// Write a file or a directory of a reference to this machine, without mounting it.
    Cp(CpArgs),
    /// Write whole references as archives, as OCI layouts, or as files.
    Export(ExportArgs),
    /// Fetch everything of references into the cache, and compare it with its digests.
    Pull(PullArgs),
    /// Tell what a reference names now: its digest.
    Resolve(ResolveArgs),
    /// Make the indexes of a reference's layers, or publish them.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Compare everything of a reference, or of what is mounted at a directory, with its digests and checksums.
    Verify(VerifyArgs),
    /// Run a command on a mount of a reference, and write down what it reads: for mount --prefetch=trace.
    Record(RecordArgs),
    /// Run a command on a mount of a reference that lasts as long as the command.
    Run(RunArgs),
    /// Look whether this machine can mount, and what a registry can do.
    Doctor(DoctorArgs),
    /// List the mounts there are.
    #[command(alias = "ps")]
    List(ListArgs),
    /// Show what a mount has fetched and given out, what is cached, and why something is slow.
    Status(StatusArgs),
    /// Look after the cache: what it keeps, how large it is, and what can go.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Serve volumes to the pods of a Kubernetes node: a plugin for the Container Storage Interface.
    Csi(CsiArgs),
    /// Write a completion for a shell to standard output.
    Completion(CompletionArgs),
    /// Write a manual page to standard output, in the form that man(1) reads.
    Man(ManArgs),
}

/// The reference, and how to reach it.
#[derive(Args, Debug)]
pub(super) struct ImageArgs {
    /// HOST/REPOSITORY[:TAG][@DIGEST] in a registry (docker://, oras:// and oci:// may stand in front), oci:DIR, oci-archive:FILE or
    /// docker-archive:FILE, each with [:TAG|@DIGEST] behind it, a path that begins with ./, ../, / or ~/, the http(s) address of an
    /// archive, or - for an archive on standard input.
    #[arg(value_name = "REF")]
    pub(super) location: Location,

    /// The platform to choose from an index: os/arch[/variant]; or all, each in a directory of its own. Default: this
    /// machine's. Only export and pull take more than one.
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Vec<PlatformChoice>,

    /// Choose only among the entries of an index whose property KEY matches: an annotation, artifactType, mediaType, digest, or
    /// ref.name, title or disktype for short. Case does not matter, and * matches anything. May be repeated: all have to match.
    #[arg(long, value_name = "KEY=GLOB")]
    pub(super) select: Vec<Condition>,

    /// Present only the layer with this number; 0 is the lowest. May be repeated. The manifest and blobs/ stay complete.
    #[arg(long, value_name = "N")]
    pub(super) layer: Vec<usize>,

    /// Present only layers of a media type that matches. May be repeated: one has to match.
    #[arg(long, value_name = "GLOB")]
    pub(super) media_type: Vec<Glob>,

    /// Present only layers with a title that matches. May be repeated: one has to match.
    #[arg(long, value_name = "GLOB")]
    pub(super) title: Vec<Glob>,

    /// Also show what says that it is about the image: signatures, attestations, lists of contents.
    #[arg(long)]
    pub(super) referrers: bool,

    /// What to do when archives that were made apart have different things at one path: later shows the later one, error
    /// refuses to merge them.
    #[arg(long, value_name = "HOW", default_value = "later")]
    pub(super) on_conflict: OnConflict,

    /// Call the directories in layers/ after this annotation of the layers, where they have it.
    #[arg(long, value_name = "ANNOTATION")]
    pub(super) layer_name: Option<String>,

    /// Whose indexes of compressed layers are used: auto takes what the image carries or what was pushed beside it, all also what
    /// others may have pushed (SOCI version 1), local only what was made on this machine, off none.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub(super) index: IndexUse,

    /// Fetch layers that their authors do not let others hand on from the https addresses in the manifest, without credentials.
    #[arg(long)]
    pub(super) foreign_layers: bool,

    /// How the parts of a split disk are put in order.
    #[arg(long, value_name = "ORDER", default_value = "epoch")]
    pub(super) part_order: PartOrder,

    #[command(flatten)]
    pub(super) trust: TrustArgs,

    #[command(flatten)]
    pub(super) cache: CacheArgs,

    #[command(flatten)]
    pub(super) cache_size: CacheSizeArgs,

    #[command(flatten)]
    pub(super) content: ContentArgs,

    /// USER:PASSWORD for the registry. Other users of this machine can see an argument while the command runs; the variable
    /// and --authfile are safer.
    #[arg(long, value_name = "USER:PASSWORD", env = "OCIFS_CREDS", hide_env_values = true, conflicts_with_all = ["authfile", "anonymous"])]
    pub(super) creds: Option<String>,

    /// Use no credentials.
    #[arg(long, conflicts_with = "authfile")]
    pub(super) anonymous: bool,

    #[command(flatten)]
    pub(super) network: NetworkArgs,

    /// Ask no network: mount a digest that the cache has, and read what the cache has.
    #[arg(long)]
    pub(super) offline: bool,

    /// How long one read may take when the registry does not answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,

    /// Write the log to this file instead of standard error. What is logged: OCIFS_LOG, e.g. "debug" or "ocifs=trace".
    #[arg(long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,
}

/// What --platform can be.
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
pub(super) enum OnConflict {
    /// The later one is shown.
    Later,
    /// There is no merged tree.
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PartOrder {
    /// By title, byte by byte.
    Epoch,
    /// By title, numbers by their value.
    Natural,
    /// As the manifest lists them.
    Manifest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IndexUse {
    /// Those made here, else those that the image carries or that were pushed beside it.
    Auto,
    /// As auto, and SOCI indexes of version 1.
    All,
    /// Only those made here.
    Local,
    /// None.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PrefetchUse {
    /// Nothing.
    None,
    /// What the authors of layers marked as needed first, once a layer is looked into.
    Landmarks,
    /// What was read when a trace was recorded.
    Trace,
    /// Everything.
    All,
}

#[derive(Subcommand, Debug)]
pub(super) enum IndexCommand {
    /// Read every layer once and keep its index, so that later mounts need no pass over it.
    Build(IndexArgs),
    /// Publish the indexes beside the image, for other machines; they are made first if need be.
    Push(IndexArgs),
}

#[derive(Args, Debug)]
pub(super) struct IndexArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
}

#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Show only one of the views as the root: merged, files, disk, layers, blobs or export.
    #[arg(long, value_name = "VIEW")]
    pub(super) view: Option<String>,

    /// Also write the trace to this file. It is kept in the cache in any case.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Publish the trace beside the image, for other machines.
    #[arg(long)]
    pub(super) push: bool,

    /// The command and its arguments. {} and the variable OCIFS_MOUNT stand for the mount.
    #[arg(value_name = "CMD", required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PassthroughWhen {
    /// When it costs no right: the process keeps CAP_SYS_ADMIN anyway (--sandbox=off).
    Auto,
    /// When the kernel allows it: the process keeps CAP_SYS_ADMIN.
    On,
    /// Never: every read comes to ocifs.
    Off,
}

#[derive(Args, Debug)]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// The mount point: an empty directory.
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,

    #[command(flatten)]
    pub(super) serve: ServeArgs,

    /// If DIR is a mount already, leave it when the reference still names the same, and else replace it.
    #[arg(long, conflicts_with = "delay_connect")]
    pub(super) refresh: bool,

    /// Stay in the foreground until the mount is gone.
    #[arg(short, long)]
    pub(super) foreground: bool,
}

/// What is shown in a mount, and how it is served.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Mount only one of the views as the root: merged, files, disk, layers, blobs or export.
    #[arg(long, value_name = "VIEW")]
    pub(super) view: Option<String>,

    /// Mount only this directory (below --view, if given).
    #[arg(long, value_name = "PATH")]
    pub(super) subdir: Option<OsString>,

    /// Leave the symbolic links of archives out of merged/, layers/ and files/.
    #[arg(long)]
    pub(super) hide_symlinks: bool,

    /// Leave out the attributes trusted.overlay.* and user.overlay.* of the image, which an overlay over the mount would obey. run --rw
    /// always does.
    #[arg(long)]
    pub(super) hide_overlay_xattrs: bool,

    /// What is fetched before anybody asks.
    #[arg(long, value_name = "WHAT", default_value = "landmarks")]
    pub(super) prefetch: PrefetchUse,

    /// The trace for --prefetch=trace. Default: the one recorded on this machine, else the one published beside the image.
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,

    /// Fetch everything in the background and keep at it, so that the mount needs no network once that is done.
    #[arg(long, conflicts_with_all = ["prefetch", "offline"])]
    pub(super) complete: bool,

    /// Refuse to mount when a file of an archive could only be read after reading all of the archive.
    #[arg(long)]
    pub(super) require_lazy: bool,

    /// Mount before the registry was asked for anything, and ask until it answers; who looks into the mount waits. For machines that
    /// start before their network.
    #[arg(long)]
    pub(super) delay_connect: bool,

    /// Whether the kernel reads whole, verified files of the cache by itself. It lets a process with CAP_SYS_ADMIN alone: on keeps
    /// that right, auto does so with --sandbox=off only.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) passthrough: PassthroughWhen,

    #[command(flatten)]
    pub(super) daemon: DaemonArgs,

    /// Options as mount(8) takes them: any long option of this command without its dashes, and ro, nosuid, nodev, noexec,
    /// allow_suid, allow_dev, allow_other, allow_root, default_permissions, nonempty.
    #[arg(short = 'o', value_name = "OPTION[,OPTION...]")]
    pub(super) options: Vec<String>,

    /// Let other users look into the mount, as the modes allow.
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

    /// Mount over a dead mount and leave it below, for those who have a copy of it.
    #[arg(long, hide = true)]
    pub(super) over_dead: bool,
}

#[derive(Args, Debug)]
pub(super) struct UmountArgs {
    /// The mount point.
    #[arg(value_name = "DIR", required = true)]
    pub(super) dirs: Vec<PathBuf>,

    /// Take it out of the tree even while it is in use.
    #[arg(short, long)]
    pub(super) lazy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs; the form has a schemaVersion.
    Json,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// How to print.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: Format,

    /// Show whole digests, types and titles.
    #[arg(long)]
    pub(super) no_trunc: bool,
}

#[derive(Args, Debug)]
pub(super) struct LsArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// The path, as in a mount. Default: the top.
    #[arg(value_name = "PATH")]
    pub(super) path: Option<OsString>,

    /// Also type, mode, owner, size, time and link target.
    #[arg(short, long)]
    pub(super) long: bool,

    /// Everything below, too.
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
}

#[derive(Args, Debug)]
pub(super) struct CatArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// The path of a file, as in a mount: merged/etc/os-release, disk/NAME.qcow2, blobs/sha256/... Plain disk means the only
    /// disk there is.
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<OsString>,
}
