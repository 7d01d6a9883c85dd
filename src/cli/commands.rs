//! Command functions: mount, umount, inspect, ls and cat, and the setup shared by all commands.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::cache::{self, BlockCache};
use crate::disk;
use crate::export::{self, ListDepth};
use crate::image::{
    self, AheadCost, ImageSet, NetworkAccess, OpenImage, OpenOptions, PlatformScope, PrefetchMode,
    ReadRecording, ReferrerScope,
};
use crate::layer::IndexPolicy;
use crate::metrics::MetricFamily as Counters;
use crate::mount::{self, MountAccess, MountFlags, MountOptions, PassthroughMode, UnmountMode};
use crate::oci::LayerSelection;
use crate::registry::{RegistryClient, RegistryOptions, UserCredential};
use crate::sandbox::{AppliedPart, SandboxReport};
use crate::source::{ForeignLayers, ImageLocation};
use crate::view::{LinkPolicy, MountNamespace, OverlayMarks, ViewScope};

use super::again::{OutputGuard, once_more};
use super::args::{
    CatArgs, ImageArgs, IndexUse, InspectArgs, LsArgs, MountArgs, OnConflictArg, PartOrderArg,
    PlatformChoice, PrefetchUse, ServeArgs, UmountArgs,
};
use super::daemon::DaemonSignals;
use super::delay_connect::DelayedMount;
use super::exit::CliError;
use super::metrics_server::MetricsSocket;
use super::service::{ManagedService, MountTarget};
use super::table::TextStyle;
use super::{
    background, daemon, inspect as report, listing, metrics_server, network, output, record, refresh,
    require_lazy, secret, threads,
};

/// How long tasks may take to end after the mount: an unmount in an outage must not hang on the network.
pub(super) const LAST_TASKS: Duration = Duration::from_millis(500);

/// Mounts, and stays until the mount is gone.
pub(super) fn mount(mut args: MountArgs, argv: &[OsString]) -> Result<(), CliError> {
    let in_background = background::is_child();
    if in_background {
        background::detach()?;
    }
    background::unblock_signals()?;
    let is_root = nix::unistd::geteuid().is_root();
    if (args.serve.allow_suid || args.serve.allow_dev) && !is_root {
        return Err(CliError::usage("mount options allow_suid and allow_dev are for root only"));
    }
    if args.serve.subdir.as_deref().is_some_and(climbs) {
        return Err(CliError::usage("--subdir is a path inside the tree, without .."));
    }
    // The background child was started as /proc/self/exe. Process lists show this name.
    nix::sys::prctl::set_name(c"ocifs").ok();
    consistent(&args.image)?;
    daemon::keep_clear(&args)?;
    prepare(&args.image)?;
    // Before the sandbox: this process may still unmount the mount of an earlier process.
    let mut service = ManagedService::new()?;
    let source = network::written(argv, &args.image.location);
    args.image.location = service.location(&args.image.location)?;
    let mut options = MountOptions {
        access: access(&args.serve)?,
        flags: MountFlags {
            suid: args.serve.allow_suid,
            dev: args.serve.allow_dev,
            noexec: args.serve.noexec,
            default_permissions: args.serve.default_permissions,
            nonempty: args.serve.nonempty,
            over_dead: args.serve.over_dead,
        },
        source,
        passthrough: passthrough(&args)?,
        keep: service.keep(),
        record: None,
    };
    let replaced = if args.refresh { refresh::standing(&args)?.map(|(dir, _)| dir) } else { None };
    let dir = match service.left() {
        Some(dir) => dir.to_owned(),
        None if replaced.is_some() => replaced.clone().unwrap_or_default(),
        None if args.serve.over_dead => mount::check_over_dead(&args.dir, args.serve.nonempty)?,
        None => mount::check(&args.dir, args.serve.nonempty)?,
    };
    let endpoint = args.serve.daemon.metrics.as_ref().map(MetricsSocket::open).transpose()?;
    // Before the first thread: a thread would keep rights that the process drops.
    let registry = registry(&args.image)?;
    let sandboxed = daemon::confine(&args, &dir, &options, endpoint.as_ref(), &registry)?;
    let runtime = threads::runtime()?;
    threads::start_for_mount()?;
    let result = runtime.block_on(async {
        let scope = scope(&args.serve);
        let landmarks = match args.serve.prefetch {
            PrefetchUse::Landmarks => PrefetchMode::Landmarks,
            PrefetchUse::None | PrefetchUse::Trace | PrefetchUse::All => PrefetchMode::None,
        };
        // Signals are caught before there is a mount to leave behind.
        let mut signals = DaemonSignals::new()?;
        let delayed = match args.serve.delay_connect && service.left().is_none() {
            true => Some(DelayedMount::attach(&args, &dir, &options, in_background, &service)?),
            false => None,
        };
        let prepare = async {
            let open = || open_with(&args.image, &registry, landmarks.clone(), ReadRecording::Off);
            let family = Arc::new(match &delayed {
                Some(delayed) => delayed.until_open(open).await?,
                None => open().await?,
            });
            if args.serve.require_lazy {
                require_lazy::demand(&family, scope.view.as_deref()).await?;
            }
            if let Some(image) = family.main()
                && scope.view.as_deref().is_none_or(|view| view == "merged")
            {
                // With --view=merged the first lookup needs the merged tree: merge at any cost, except with
                // --prefetch=none. Otherwise merge only if that is cheap.
                let is_wanted = scope.view.is_some() && args.serve.prefetch != PrefetchUse::None;
                tokio::spawn(image.clone().merge_ahead(if is_wanted { AheadCost::Any } else { AheadCost::Little }));
            }
            let prefetch = record::chosen(&family, args.serve.prefetch, args.serve.trace.as_deref()).await?;
            let pinned = family.pinned().to_owned();
            let mut namespace = MountNamespace::open(family, &scope).await?;
            let record = service.record(&mut namespace, &pinned)?;
            Ok::<_, CliError>((Arc::new(namespace), prefetch, record))
        };
        // Until the mount exists, any signal ends this process, and so does the end of the command that waits for it.
        let stopped = async {
            match delayed {
                Some(_) => signals.until_stop(&registry).await,
                None => signals.until_any().await,
            }
        };
        let prepared = tokio::select! {
            prepared = prepare => prepared.map(Some),
            () = background::abandoned(), if in_background && delayed.is_none() => Err(CliError::interrupted()),
            () = stopped => if delayed.is_some() { Ok(None) } else { Err(CliError::interrupted()) },
        };
        let (namespace, prefetch, record) = match (prepared, delayed.is_some()) {
            (Ok(Some(prepared)), _) => prepared,
            (Err(failure), false) => return Err(failure),
            (stopped, _) => {
                if let Some(delayed) = delayed {
                    delayed.detach();
                }
                service.ended();
                return stopped.map(drop).inspect_err(|failure| {
                    // In the background the failure has no other output than the log.
                    tracing::error!(%failure, "what was mounted cannot be opened");
                });
            }
        };
        let family = namespace.family().clone();
        let pinned = family.pinned().to_owned();
        let is_told = delayed.is_some();
        options.record = record;
        let handle = tokio::runtime::Handle::current();
        // Mounting checks its own mount, and the runtime may have to answer.
        let mounting = tokio::task::spawn_blocking(move || {
            let place = match delayed {
                Some(delayed) => MountTarget::Attached(delayed.attached),
                None => MountTarget::At(&dir),
            };
            // Open files of the replaced mount stay readable.
            if replaced.is_some()
                && let Err(error) = mount::unmount(&dir, UnmountMode::Lazy)
            {
                return (service, Err(error.into()));
            }
            let mounted = service.mount(namespace, place, &options, &handle);
            (service, mounted)
        });
        let (service, mounted) = mounting.await.map_err(|error| CliError::local("mounting", &error))?;
        let mounted = mounted?;
        let message = format!("{pinned} mounted at {}", mounted.dir().display());
        output::warn(&family.warnings());
        let told = if is_told { Ok(()) } else { say(&message, in_background) };
        if told.is_err() {
            // The caller is gone.
            let unmounted = mounted.unmount().await;
            service.ended();
            unmounted?;
            return told;
        }
        service.ready(&message);
        tracing::info!(reference = pinned, dir = %mounted.dir().display(), "mounted");
        let complete = args.serve.complete;
        let prefetch = tokio::spawn(async move {
            for image in family.images() {
                if complete {
                    image.clone().complete().await;
                } else {
                    image.clone().prefetch(prefetch.clone()).await;
                }
            }
        });
        let shown = endpoint
            .map(|endpoint| tokio::spawn(endpoint.serve(about(&pinned, mounted.dir(), sandboxed.as_ref()))));
        let stayed = stay(&mounted, signals, &registry).await;
        if let Err(failure) = &stayed {
            // In the background the failure has no other output than the log.
            tracing::error!(%failure, "the mount did not end well");
        }
        prefetch.abort();
        if let Some(shown) = shown {
            // The task removes its socket. Its error is only the abort.
            shown.abort();
            shown.await.ok();
        }
        service.ended();
        stayed
    });
    runtime.shutdown_timeout(LAST_TASKS);
    result
}

/// Whether files are passed through to the kernel. Not for a stackable mount with its cache on an overlay: a layer
/// over the mount would exceed the kernel's stacking depth.
fn passthrough(args: &MountArgs) -> Result<PassthroughMode, CliError> {
    let cache = args.image.cache.dir()?;
    let is_full = args.serve.stackable && mount::is_on_overlay(&cache);
    Ok(match daemon::passes_through(&args.serve) && !is_full {
        true => PassthroughMode::Auto { cache },
        false => PassthroughMode::Off,
    })
}

/// Reports to the caller that the mount exists.
pub(super) fn say(message: &str, in_background: bool) -> Result<(), CliError> {
    if in_background { background::ready(message) } else { tell(message) }
}

/// Which users have access to a mount.
fn access(args: &ServeArgs) -> Result<MountAccess, CliError> {
    match (args.allow_other, args.allow_root) {
        (true, _) => Ok(MountAccess::Everyone),
        // Root is the owner of the mount, so owner access is root access.
        (false, true) if nix::unistd::geteuid().is_root() => Ok(MountAccess::Owner),
        // The kernel has only allow_other, and answers from its caches for every user. Names, attributes and link
        // targets that the owner has looked up would be visible to all.
        (false, true) => Err(CliError::usage(
            "mount option allow_root is refused: the kernel would show names and attributes to every user; \
             allow_other with default_permissions lets all users in as the modes allow",
        )),
        (false, false) => Ok(MountAccess::Owner),
    }
}

/// The part of the image that a mount shows.
pub(super) fn scope(args: &ServeArgs) -> ViewScope {
    ViewScope {
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

fn climbs(path: &OsStr) -> bool {
    Path::new(path).components().any(|part| part == std::path::Component::ParentDir)
}

/// Labels of a mount, shown beside its counters.
fn about(pinned: &str, dir: &Path, sandboxed: Option<&SandboxReport>) -> Vec<Counters> {
    let labels = vec![
        ("reference", pinned.to_owned()),
        ("directory", dir.to_string_lossy().into_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let parts = sandboxed.map(SandboxReport::parts);
    let parts: Vec<_> =
        parts.iter().flatten().map(|(part, applied)| (*part, **applied == AppliedPart::Whole)).collect();
    metrics_server::about(labels, &parts)
}

/// Waits for the end of the mount, or for a signal to end it.
async fn stay(
    mounted: &mount::ServedMount,
    mut signals: DaemonSignals,
    registry: &RegistryClient,
) -> Result<(), CliError> {
    tokio::select! {
        ended = mounted.ended() => match ended {
            Ok(()) => {
                tracing::info!("unmounted by somebody else");
                Ok(())
            }
            Err(reason) => {
                // Leaves no dead mount behind; it may be gone already.
                mounted.detach().ok();
                Err(CliError::local("serving the mount", &std::io::Error::other(reason)))
            }
        },
        () = signals.until_stop(registry) => {
            tracing::info!("asked to stop, unmounting");
            tokio::select! {
                unmounted = mounted.unmount() => Ok(unmounted?),
                // A second signal detaches at once.
                () = signals.stop.wait() => Ok(mounted.detach()?),
            }
        }
    }
}

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

fn tell(message: &str) -> Result<(), CliError> {
    let mut out = output::stdout();
    output::printed(writeln!(out, "{message}").and_then(|()| out.flush()))
}

/// Unmounts directories.
pub(super) fn umount(args: &UmountArgs) -> Result<(), CliError> {
    let how = if args.lazy { UnmountMode::Lazy } else { UnmountMode::Now };
    let mut result = Ok(());
    for dir in &args.dirs {
        // The first failure is reported; the other directories are unmounted all the same.
        result = result.and(mount::unmount(dir, how));
    }
    Ok(result?)
}

/// Prints the content of a reference.
pub(super) fn inspect(args: &InspectArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (family, offered) = runtime.block_on(async {
        let family = open(&args.image).await?;
        let offered = match family.main() {
            Some(image) if image.has_archives() => image.offered_indexes().await,
            _ => Vec::new(),
        };
        Ok::<_, CliError>((family, offered))
    })?;
    let mut out = output::plain_stdout();
    let look = TextStyle::of_stdout(!args.no_trunc);
    output::printed(report::print(&family, &offered, args.format, look, &mut out).and_then(|()| out.flush()))
}

/// Lists names.
pub(super) fn ls(args: &LsArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let path = args.path.as_deref().map_or(&b""[..], OsStr::as_bytes);
    let depth = if args.recursive { ListDepth::All } else { ListDepth::One };
    let mut out = output::stdout();
    let mut written = Ok(());
    runtime.block_on(async {
        let family = open(&args.image).await?;
        let namespace = MountNamespace::open(Arc::new(family), &ViewScope::default()).await?;
        let detail = if args.long { export::ListDetail::Attributes } else { export::ListDetail::Names };
        export::list(&namespace, path, depth, detail, |listed| {
            written = listing::line(&mut out, &listed, args.long);
            written.is_ok()
        })
        .await
        .map_err(CliError::from)?;
        output::warn(&namespace.family().warnings());
        Ok::<_, CliError>(())
    })?;
    output::printed(written.and_then(|()| out.flush()))
}

/// Writes files to standard output.
pub(super) fn cat(args: &CatArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let door = OutputGuard::default();
    runtime.block_on(once_more(&door, async || {
        let namespace =
            MountNamespace::open(Arc::new(open(&args.image).await?), &ViewScope::default()).await?;
        // Not line buffered, and not locked: the writer moves between threads.
        let mut out = door.outgoing(std::fs::File::from(stdout_fd()?));
        for path in &args.paths {
            export::cat(&namespace, path.as_bytes(), &mut out).await?;
        }
        Ok(())
    }))
}

pub(super) fn stdout_fd() -> Result<std::os::fd::OwnedFd, CliError> {
    use std::os::fd::AsFd as _;
    let duplicated = std::io::stdout().as_fd().try_clone_to_owned();
    duplicated.map_err(|error| CliError::local("opening standard output", &error))
}

/// Starts the log and the runtime.
pub(super) fn start(args: &ImageArgs) -> Result<Runtime, CliError> {
    prepare(args)?;
    threads::runtime()
}

/// Rejects options that contradict each other, before anything is done.
fn consistent(args: &ImageArgs) -> Result<(), CliError> {
    if args.location.is_input() && args.cache.is_private() {
        return Err(CliError::usage(
            "--no-cache and standard input contradict each other: an archive that comes once has to be kept while it is read",
        ));
    }
    Ok(())
}

/// Starts the log, and does everything else that comes before threads.
fn prepare(args: &ImageArgs) -> Result<(), CliError> {
    consistent(args)?;
    output::start_log(args.log_file.as_deref())?;
    secret::guard_memory();
    raise_file_limit();
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

/// Rejects options that select layers, for commands that take all layers.
pub(super) fn refuse_selection(args: &ImageArgs, why: &str) -> Result<(), CliError> {
    if args.layer.is_empty() && args.media_type.is_empty() && args.title.is_empty() {
        return Ok(());
    }
    Err(CliError::usage(format!("--layer, --media-type and --title choose what is shown: {why}")))
}

/// The one image that the arguments name.
pub(super) fn only(family: &ImageSet) -> Result<&Arc<OpenImage>, CliError> {
    family.main().ok_or_else(|| {
        CliError::usage(format!("{}: name one platform of it with --platform", family.pinned()))
    })
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

pub(super) async fn open_with(
    args: &ImageArgs,
    registry: &RegistryClient,
    prefetch: PrefetchMode,
    recording: ReadRecording,
) -> Result<ImageSet, CliError> {
    let platforms = match &args.platform[..] {
        [] => PlatformScope::Host,
        [PlatformChoice::One(platform)] => PlatformScope::One(platform.clone()),
        [PlatformChoice::All] => PlatformScope::All,
        [..] => return Err(CliError::usage("--platform can be given only once here")),
    };
    let options = OpenOptions { platforms, prefetch, recording, ..options(args, &args.location, registry)? };
    let opened = ImageSet::open(&options, registry, cache(args)?).await;
    opened.map_err(|error| CliError::from(error).hinting(network::namesake(&args.location)))
}

/// The cache that the arguments name.
pub(super) fn cache(args: &ImageArgs) -> Result<BlockCache, CliError> {
    Ok(BlockCache::open_limited(&args.cache.dir()?, args.cache_size.limit())?)
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
        verify: args.trust.verify.into(),
        small: cache::VERIFY_FIRST_BYTES,
        signed_by: args.trust.keys()?,
        ..OpenOptions::new(network::in_full(location, registry)?)
    })
}
