//! `ocifs mount`: opens the image, mounts it, and serves until the mount is gone.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use crate::image::{AheadCost, PrefetchMode, ReadRecording};
use crate::metrics::MetricFamily;
use crate::mount::{self, MountAccess, MountFlags, MountOptions, PassthroughMode, UnmountMode};
use crate::registry::RegistryClient;
use crate::sandbox::{AppliedPart, SandboxReport};
use crate::view::MountNamespace;

use super::args::{MountArgs, PrefetchUse, ServeArgs};
use super::background::say;
use super::daemon::DaemonSignals;
use super::delay_connect::DelayedMount;
use super::exit::CliError;
use super::kernel_choice::{BY_KERNEL, KernelChoice};
use super::metrics_server::MetricsSocket;
use super::service::{ManagedService, MountTarget};
use super::setup::{LAST_TASKS, consistent, open_with, prepare, registry, scope};
use super::{background, daemon, metrics_server, network, output, record, refresh, require_lazy, threads};

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
    let kernel = KernelChoice::of(&args.serve)?;
    // Before the first thread: a thread would keep rights that the process drops.
    let registry = registry(&args.image)?;
    let sandboxed = daemon::confine(&args, &dir, &options, endpoint.as_ref(), &registry)?;
    let runtime = threads::runtime()?;
    threads::start_for_mount()?;
    let result = runtime.block_on(async {
        let scope = scope(&args);
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
            let server = kernel.server(&namespace, service.left_image()).await?;
            Ok::<_, CliError>((Arc::new(namespace), server, prefetch, record))
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
        let (namespace, server, prefetch, record) = match (prepared, delayed.is_some()) {
            (Ok(Some(prepared)), _) => prepared,
            (Err(failure), false) => return Err(failure),
            (stopped, _) => {
                if let Some(delayed) = delayed {
                    delayed.detach();
                }
                service.ended();
                return stopped.map(drop).inspect_err(|failure| {
                    // In the background the failure has no other output than the log.
                    tracing::error!(%failure, "cannot open the mounted image");
                });
            }
        };
        let family = namespace.family().clone();
        let pinned = family.pinned().to_owned();
        let is_announced = delayed.is_some();
        let shown = namespace.clone();
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
            let mounted = service.mount(namespace, server, place, &options, &handle);
            (service, mounted)
        });
        let (service, mounted) = mounting.await.map_err(|error| CliError::local("mounting", &error))?;
        let mounted = mounted?;
        let by_kernel = shown.serving().is_some_and(|words| words == BY_KERNEL);
        let served_by = if by_kernel { ", served by the kernel" } else { "" };
        drop(shown);
        let message = format!("{pinned} mounted at {}{served_by}", mounted.dir().display());
        output::warn(&family.warnings());
        let announced = if is_announced { Ok(()) } else { say(&message, in_background) };
        if announced.is_err() {
            // The caller is gone.
            let unmounted = mounted.unmount().await;
            service.ended();
            unmounted?;
            return announced;
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
            tracing::error!(%failure, "the mount ended with an error");
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

fn climbs(path: &OsStr) -> bool {
    Path::new(path).components().any(|part| part == std::path::Component::ParentDir)
}

/// Labels of a mount, shown beside its counters.
fn about(pinned: &str, dir: &Path, sandboxed: Option<&SandboxReport>) -> Vec<MetricFamily> {
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
                tracing::info!("unmounted by another process");
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
