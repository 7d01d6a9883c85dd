//! Setup of a command: log, runtime and stop signals, and from the arguments a client, a cache and an image.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::cache::{self, BlockCache};
use crate::disk;
use crate::image::{
    self, ImageSet, NetworkAccess, OpenImage, OpenOptions, PlatformScope, PrefetchMode, ReadRecording,
    ReferrerScope,
};
use crate::layer::IndexPolicy;
use crate::oci::{GlobPattern, LayerSelection};
use crate::registry::{RegistryClient, RegistryOptions, UserCredential};
use crate::source::{ForeignLayers, ImageLocation};
use crate::view::{LinkPolicy, OverlayMarks, ViewScope};

use super::args::{ImageArgs, IndexUse, MountArgs, OnConflictArg, PartOrderArg, PlatformChoice};
use super::exit::CliError;
use super::{network, output, secret, threads};

/// How long tasks may take to end after the mount: an unmount in an outage must not hang on the network.
pub(super) const LAST_TASKS: Duration = Duration::from_millis(500);

/// SIGINT and SIGTERM.
pub(super) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    pub(super) fn new() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::local("catching signals", &error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Starts the log and the runtime.
pub(super) fn start(args: &ImageArgs) -> Result<Runtime, CliError> {
    prepare(args)?;
    threads::runtime()
}

/// Starts the log, and does everything else that comes before threads.
pub(super) fn prepare(args: &ImageArgs) -> Result<(), CliError> {
    consistent(args)?;
    output::start_log(args.log_file.as_deref())?;
    secret::guard_memory();
    raise_file_limit();
    Ok(())
}

/// Rejects options that contradict each other, before anything is done.
pub(super) fn consistent(args: &ImageArgs) -> Result<(), CliError> {
    if args.location.is_input() && args.cache.is_private() {
        return Err(CliError::usage(
            "--no-cache and standard input contradict each other: an archive that comes once has to be kept while it is read",
        ));
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard limit: an image needs four open files per layer.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

pub(super) async fn open(args: &ImageArgs) -> Result<ImageSet, CliError> {
    open_with(args, &registry(args)?, PrefetchMode::None, ReadRecording::Off).await
}

pub(super) async fn open_with(
    args: &ImageArgs,
    registry: &RegistryClient,
    prefetch: PrefetchMode,
    recording: ReadRecording,
) -> Result<ImageSet, CliError> {
    let platforms = one_platform(args)?;
    let options = OpenOptions { platforms, prefetch, recording, ..options(args, &args.location, registry)? };
    let opened = ImageSet::open(&options, registry, cache(args)?).await;
    opened.map_err(|error| CliError::from(error).hinting(network::namesake(&args.location)))
}

/// The platforms that a command shows which takes --platform once.
pub(super) fn one_platform(args: &ImageArgs) -> Result<PlatformScope, CliError> {
    match &args.platform[..] {
        [] => Ok(PlatformScope::Host),
        [PlatformChoice::One(platform)] => Ok(PlatformScope::One(platform.clone())),
        [PlatformChoice::All] => Ok(PlatformScope::All),
        [..] => Err(CliError::usage("--platform can be given only once")),
    }
}

/// The client with the credentials and limits that the arguments name.
pub(super) fn registry(args: &ImageArgs) -> Result<RegistryClient, CliError> {
    registry_with(args, args.network.authfile.as_deref())
}

/// The client with another credential file.
pub(super) fn registry_with(args: &ImageArgs, authfile: Option<&Path>) -> Result<RegistryClient, CliError> {
    let creds = args.creds.as_deref().map(|text| {
        UserCredential::parse(text).ok_or_else(|| CliError::usage("--creds is not of the form USER:PASSWORD"))
    });
    let read_budget = Duration::from_secs(args.timeout);
    let usual = RegistryOptions::default();
    let options = RegistryOptions {
        creds: creds.transpose()?,
        anonymous: args.anonymous,
        read_budget,
        // At most a quarter of the read budget, so that time remains for another attempt.
        connect_timeout: usual.connect_timeout.min(read_budget / 4),
        stall_timeout: usual.stall_timeout.min(read_budget / 4),
        ..usual
    };
    args.network.client(authfile, options)
}

/// The cache that the arguments name.
pub(super) fn cache(args: &ImageArgs) -> Result<BlockCache, CliError> {
    let cache = BlockCache::open_limited(&args.cache.dir()?, args.cache_size.limit())?;
    Ok(cache.sharing(args.cache.sharing()))
}

/// The options for opening `location`, except the platforms.
pub(super) fn options(
    args: &ImageArgs,
    location: &ImageLocation,
    registry: &RegistryClient,
) -> Result<OpenOptions, CliError> {
    Ok(OpenOptions {
        select: args.select.clone(),
        layers: LayerSelection {
            numbers: args.layer.clone(),
            media_types: args.media_type.clone(),
            titles: args.title.clone(),
        },
        referrers: if args.referrers { ReferrerScope::Shown } else { ReferrerScope::Hidden },
        on_conflict: match args.on_conflict {
            OnConflictArg::Later => image::ConflictPolicy::Later,
            OnConflictArg::Error => image::ConflictPolicy::Error,
        },
        layer_name: args.layer_name.clone(),
        content_stores: args.content.stores()?,
        foreign_layers: if args.foreign_layers { ForeignLayers::Fetched } else { ForeignLayers::Named },
        network: if args.offline { NetworkAccess::Offline } else { NetworkAccess::Online },
        part_order: match args.part_order {
            PartOrderArg::Epoch => disk::PartOrder::Epoch,
            PartOrderArg::Natural => disk::PartOrder::Natural,
            PartOrderArg::Manifest => disk::PartOrder::Manifest,
        },
        index: match args.index {
            IndexUse::Auto => IndexPolicy::Auto,
            IndexUse::All => IndexPolicy::All,
            IndexUse::Local => IndexPolicy::Local,
            IndexUse::Off => IndexPolicy::Off,
        },
        index_keys: args.index_source.keys()?,
        index_from: args.index_source.repositories(registry)?,
        verify: args.trust.verify.into(),
        small: cache::VERIFY_FIRST_BYTES,
        signed_by: args.trust.keys()?,
        ..OpenOptions::new(network::in_full(location, registry)?)
    })
}

/// The options that select the content of an image, as words of the command line.
fn selection(args: &ImageArgs) -> Vec<String> {
    let globs = |name: &'static str, globs: &[GlobPattern]| -> Vec<String> {
        globs.iter().map(|glob| format!("{name}={}", glob.as_str())).collect()
    };
    let platforms = args.platform.iter().map(|platform| match platform {
        PlatformChoice::One(platform) => format!("platform={platform}"),
        PlatformChoice::All => "platform=all".to_owned(),
    });
    platforms
        .chain(args.select.iter().map(|condition| format!("select={condition}")))
        .chain(args.layer.iter().map(|number| format!("layer={number}")))
        .chain(globs("media-type", &args.media_type))
        .chain(globs("title", &args.title))
        .chain(args.referrers.then(|| "referrers".to_owned()))
        .collect()
}

/// The one image that the arguments name.
pub(super) fn only(family: &ImageSet) -> Result<&Arc<OpenImage>, CliError> {
    family.main().ok_or_else(|| {
        CliError::usage(format!("{}: name one platform of it with --platform", family.pinned()))
    })
}

/// Rejects options that select layers, for commands that take all layers.
pub(super) fn refuse_selection(args: &ImageArgs, why: &str) -> Result<(), CliError> {
    if args.layer.is_empty() && args.media_type.is_empty() && args.title.is_empty() {
        return Ok(());
    }
    Err(CliError::usage(format!("--layer, --media-type and --title select layers: {why}")))
}

/// The part of the image that a mount shows.
pub(super) fn scope(MountArgs { image, serve: args, .. }: &MountArgs) -> ViewScope {
    ViewScope {
        selection: selection(image),
        view: args.view.clone(),
        subdir: args.subdir.as_ref().map(|path| path.as_bytes().to_vec()),
        links: if args.hide_symlinks { LinkPolicy::Hidden } else { LinkPolicy::Shown },
        overlay_marks: if args.hide_overlay_xattrs || args.stackable {
            OverlayMarks::Hidden
        } else {
            OverlayMarks::Shown
        },
    }
}
