//! Volumes on this node: published, inspected, unpublished, and mounted again when their process is gone.
//!
//! Each call compares the request with the mount table and the records, and makes only the difference. So every call
//! can be repeated, also by a plugin that starts after a crash and knows nothing. Mounts of other programs are left
//! alone, and no file is served by the plugin itself.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use super::child::MountStarter;
use super::error::CsiError;
use super::grant::{self, UnreachablePolicy, VolumeClients};
use super::messages::{NodePublishVolumeRequest, UsageUnit, VolumeCondition, VolumeStats, VolumeUsage};
use super::places::{PER_NODE, PlacePool};
use super::pull_secret::KEY;
use super::state::{RecordStore, VolumeRecord};
use super::volume::{self, RequestedVolume, VolumeAttributes};
use crate::io::{chain, lock};
use crate::mount::{self, DirectoryMount, FilesystemUsage, MountError, UnmountMode};

/// Time limit for a mount's process to answer a query.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between checks that every mount is alive.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// The most mounts unmounted from one directory: one live mount, and dead ones below it.
const MAX_STACKED: usize = 64;

/// The settings of a plugin.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The orchestrator's name for this node.
    pub node_id: String,
    /// The directory of records and logins.
    pub state_dir: PathBuf,
    /// A directory with a subdirectory for each secret that `pullSecret` can name; `None` refuses `pullSecret`.
    pub pull_secrets: Option<PathBuf>,
    /// The credential file of volumes that bring no login; `None`: the mount gets no `--authfile`.
    pub authfile: Option<PathBuf>,
    /// The program that mounts: the plugin's own executable.
    pub program: PathBuf,
    /// Options for every mount.
    pub mount_options: Vec<OsString>,
    /// Makes clients like those of the mounts.
    pub clients: VolumeClients,
    /// The policy for cached images whose registry does not answer.
    pub unreachable: UnreachablePolicy,
}

/// The volumes of this node.
pub struct VolumeNode {
    settings: NodeSettings,
    state: Arc<RecordStore>,
    starter: MountStarter,
    /// One holder per target at a time.
    turns: Mutex<HashMap<PathBuf, Weak<Turn<()>>>>,
    /// Targets with a pending query. A process that does not answer is not queried again, because each query holds a
    /// thread.
    asked: Arc<Mutex<HashSet<PathBuf>>>,
    places: PlacePool,
}

impl VolumeNode {
    /// Opens the state directory. Mounts nothing.
    pub fn open(settings: NodeSettings) -> Result<Self, CsiError> {
        let state = Arc::new(RecordStore::open(&settings.state_dir)?);
        state.forget_logins_but(&state.all()?)?;
        let starter = MountStarter {
            program: settings.program.clone(),
            options: settings.mount_options.clone(),
            unreachable: settings.unreachable,
        };
        Ok(Self {
            settings,
            state,
            starter,
            turns: Mutex::default(),
            asked: Arc::default(),
            places: PlacePool::default(),
        })
    }

    /// The orchestrator's name for this node.
    pub fn id(&self) -> &str {
        &self.settings.node_id
    }

    /// Checks that this node can mount.
    pub(super) fn probe(&self) -> Result<(), CsiError> {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        device.map(drop).map_err(|error| {
            CsiError::Unready(format!(
                "/dev/fuse: {error}; load the module fuse on the node, and run the plugin privileged"
            ))
        })
    }

    /// Mounts a volume at its target. An existing mount of the same volume is success.
    pub(super) async fn publish(&self, request: &NodePublishVolumeRequest) -> Result<(), CsiError> {
        let RequestedVolume { id, target, attributes, login, namespace } = volume::wanted(request)?;
        let _turn = self.turn(&target).await;
        let known = self.load(&target).await?;
        if let Some(known) = &known {
            agrees(known, &id, &attributes)?;
        }
        let authfile = self.authfile(&attributes)?;
        let mut standing = self.standing(&target).await?;
        if let (DirectoryMount::Alive(there), None) = (&standing, &known) {
            // A crash left this mount without a record. Its content is unknown, so it is replaced.
            tracing::warn!(volume = id, there, target = %target.display(), "unmounting a mount without a record");
            self.look(&target, clear).await?;
            standing = self.standing(&target).await?;
        }
        if let DirectoryMount::Foreign(fs_type) = &standing {
            return Err(foreign(&target, fs_type));
        }
        let has_login = login.is_some() || known.as_ref().is_some_and(|known| known.has_login);
        let mut volume =
            known.unwrap_or_else(|| VolumeRecord::new(id, target.clone(), attributes, has_login));
        volume.has_login = has_login;
        if let (DirectoryMount::Alive(there), None) = (&standing, &volume.pinned) {
            // The earlier plugin ended before it could record the digest.
            volume.pinned = Some(there.clone());
        }
        let (state, to_keep) = (self.state.clone(), volume.clone());
        blocking(move || {
            if let Some(login) = &login {
                state.save_login(&to_keep.target, login)?;
            }
            state.save(&to_keep)
        })
        .await?;
        match standing {
            DirectoryMount::Alive(_) => return Ok(()),
            DirectoryMount::Dead(_) | DirectoryMount::Foreign(_) => {}
            DirectoryMount::Nothing => {
                // Nothing is mounted, so no reader holds the old content: the tag is resolved anew.
                volume.pinned = None;
                if let Err(error) = self.prepare(&volume, authfile.as_deref()).await {
                    self.withdraw(&target).await;
                    return Err(error);
                }
            }
        }
        let was_dead = matches!(standing, DirectoryMount::Dead(_));
        let mounted = self.mount(volume, authfile, &namespace).await;
        if mounted.is_err() && !was_dead {
            self.withdraw(&target).await;
        }
        mounted
    }

    /// Asks the registry whether this volume may be shown, and makes its directory. Only the target's turn is held
    /// meanwhile: the registry may not answer.
    async fn prepare(&self, volume: &VolumeRecord, authfile: Option<&Path>) -> Result<(), CsiError> {
        let own = volume.has_login.then(|| self.state.login(&volume.target));
        let authfile = own.as_deref().or(authfile);
        let NodeSettings { clients, unreachable, .. } = &self.settings;
        grant::ask(clients, *unreachable, &volume.attributes.reference, authfile).await?;
        let target = volume.target.clone();
        blocking(move || make_target(&target)).await
    }

    /// Unmounts a volume from its target. An absent volume is success.
    pub(super) async fn unpublish(&self, id: &str, target: &str) -> Result<(), CsiError> {
        let id = volume::id(id)?;
        let target = volume::target(target)?;
        let _turn = self.turn(&target).await;
        if let Some(other) = self.load(&target).await?.filter(|known| known.volume_id != id) {
            tracing::warn!(
                volume = id,
                there = other.volume_id,
                target = %target.display(),
                "unpublish names another volume than its target has; that one stays"
            );
            return Ok(());
        }
        let at = target.clone();
        blocking(move || take_away(&at)).await?;
        let (state, at) = (self.state.clone(), target.clone());
        blocking(move || state.forget(&at)).await?;
        tracing::info!(volume = id, target = %target.display(), "volume unpublished");
        Ok(())
    }

    /// Usage and condition of a volume.
    pub(super) async fn stats(&self, id: &str, path: &str) -> Result<VolumeStats, CsiError> {
        let id = volume::id(id)?;
        let target = volume::target(path)?;
        let _turn = self.turn(&target).await;
        let known = self.load(&target).await?.filter(|known| known.volume_id == id);
        if known.is_none() {
            return Err(CsiError::Absent(format!("volume {id} is not published at {}", target.display())));
        }
        match self.standing(&target).await? {
            DirectoryMount::Alive(_) => {}
            DirectoryMount::Dead(_) => {
                return Ok(broken("the process that served the volume is gone; it is mounted again"));
            }
            DirectoryMount::Nothing => return Ok(broken("the volume was unmounted by another process")),
            DirectoryMount::Foreign(fs_type) => return Err(foreign(&target, &fs_type)),
        }
        let filling = self.look(&target, |target| Ok(mount::filling(target)?)).await?;
        Ok(healthy(filling))
    }

    /// Reconciles records and mounts when the plugin starts: volumes whose process is gone are mounted again, and
    /// leftovers of volumes that are gone are removed.
    pub async fn recover(&self) -> Result<(), CsiError> {
        let state = self.state.clone();
        let known = blocking(move || state.all()).await?;
        tracing::info!(volumes = known.len(), "taking over the mounts of an earlier plugin");
        self.revive_all(known, LostVolume::Forget).await;
        Ok(())
    }

    /// Mounts volumes again whose process is gone, until the future is dropped.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(HEALTH_INTERVAL).await;
            let state = self.state.clone();
            let known = match blocking(move || state.all()).await {
                Ok(known) => known,
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "the records cannot be read");
                    continue;
                }
            };
            self.revive_all(known, LostVolume::Leave).await;
        }
    }

    /// Mounts volumes again whose process is gone. Failures are logged, and tried again later.
    async fn revive_all(&self, volumes: Vec<VolumeRecord>, lost: LostVolume) {
        let each = |volume: VolumeRecord| async move {
            if let Err(error) = self.revive(&volume.target, lost).await {
                let (reason, target) = (chain(&error), volume.target.display());
                tracing::warn!(reason, volume = volume.volume_id, %target, "not mounted again yet");
            }
        };
        stream::iter(volumes).for_each_concurrent(PER_NODE, each).await;
    }

    async fn revive(&self, target: &Path, lost: LostVolume) -> Result<(), CsiError> {
        let _turn = self.turn(target).await;
        // The volume may have been unpublished meanwhile.
        let Some(volume) = self.load(target).await? else { return Ok(()) };
        match self.standing(&volume.target).await? {
            DirectoryMount::Alive(_) => Ok(()),
            DirectoryMount::Foreign(fs_type) => Err(foreign(&volume.target, &fs_type)),
            DirectoryMount::Nothing if lost == LostVolume::Leave => Ok(()),
            DirectoryMount::Nothing => {
                self.withdraw(&volume.target).await;
                Ok(())
            }
            DirectoryMount::Dead(_) => {
                tracing::warn!(volume = volume.volume_id, target = %volume.target.display(), "mount process ended; remounting the volume");
                let authfile = self.authfile(&volume.attributes)?;
                // The pod is unknown after a crash: all such mounts of one registry share the empty namespace.
                self.mount(volume, authfile, "").await
            }
        }
    }

    /// Starts the mount process, and records the digest it resolved.
    async fn mount(
        &self,
        mut volume: VolumeRecord,
        authfile: Option<PathBuf>,
        namespace: &str,
    ) -> Result<(), CsiError> {
        let registry = grant::named(&volume.attributes.reference)?;
        let _place = self.places.take(namespace, registry.registry()).await?;
        let own = volume.has_login.then(|| self.state.login(&volume.target));
        let reference = volume.pinned.as_deref().unwrap_or(&volume.attributes.reference);
        let started = self
            .starter
            .mount(reference, &volume.attributes, own.or(authfile).as_deref(), &volume.target)
            .await;
        if let Err(error) = started {
            if let (CsiError::Late(_), DirectoryMount::Alive(_)) =
                (&error, self.standing(&volume.target).await?)
            {
                // The mount came up just as the wait ended, and may not stay.
                let target = volume.target.clone();
                blocking(move || Ok(mount::unmount(&target, UnmountMode::Lazy)?)).await?;
            }
            return Err(error);
        }
        let DirectoryMount::Alive(pinned) = self.standing(&volume.target).await? else {
            return Err(CsiError::Internal(format!(
                "the mount at {} ended right after its start",
                volume.target.display()
            )));
        };
        tracing::info!(volume = volume.volume_id, reference = pinned, target = %volume.target.display(), "published");
        if volume.pinned.as_ref() == Some(&pinned) {
            // The record has this digest already.
            return Ok(());
        }
        volume.pinned = Some(pinned);
        let (state, target) = (self.state.clone(), volume.target.clone());
        let saved = blocking(move || state.save(&volume)).await;
        if saved.is_err() {
            // After a crash, another content than the present one would be mounted.
            blocking(move || Ok(mount::unmount(&target, UnmountMode::Lazy)?)).await?;
        }
        saved
    }

    /// Undoes a volume that failed: unmounts it, and removes its directory and record. A record is removed only when
    /// its mount is gone. The first error is the one that matters.
    async fn withdraw(&self, target: &Path) {
        let state = self.state.clone();
        let undone = self.look(target, move |at| {
            clear(at)?;
            let removed = remove_target(at);
            state.forget(at).and(removed)
        });
        if let Err(error) = undone.await {
            tracing::warn!(reason = chain(&error), target = %target.display(), "cannot clean up the target");
        }
    }

    /// The credential file of volumes with these attributes that bring no login.
    fn authfile(&self, attributes: &VolumeAttributes) -> Result<Option<PathBuf>, CsiError> {
        let Some(name) = &attributes.pull_secret else { return Ok(self.settings.authfile.clone()) };
        let Some(dir) = &self.settings.pull_secrets else {
            return Err(CsiError::Invalid(
                "the attribute pullSecret: this plugin was started without --pull-secrets; use nodePublishSecretRef".into(),
            ));
        };
        let file = dir.join(name).join(KEY);
        if !file.is_file() {
            return Err(CsiError::Absent(format!(
                "the pull secret {name} has no {KEY} on this node: mount it into the plugin, or use nodePublishSecretRef"
            )));
        }
        Ok(Some(file))
    }

    /// Waits for exclusive use of the target.
    async fn turn(&self, target: &Path) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(target).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Turn::new(()));
                    turns.insert(target.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }

    async fn load(&self, target: &Path) -> Result<Option<VolumeRecord>, CsiError> {
        let (state, target) = (self.state.clone(), target.to_owned());
        blocking(move || state.load(&target)).await
    }

    async fn standing(&self, target: &Path) -> Result<DirectoryMount, CsiError> {
        self.look(target, |target| Ok(mount::standing(target)?)).await
    }

    /// Queries a target, which needs an answer from its mount's process. The caller holds the target's turn.
    async fn look<T: Send + 'static>(
        &self,
        target: &Path,
        at: impl FnOnce(&Path) -> Result<T, CsiError> + Send + 'static,
    ) -> Result<T, CsiError> {
        let silent =
            || CsiError::Late(format!("the process of the mount at {} does not answer", target.display()));
        let asked = TargetRequest::new(&self.asked, target).ok_or_else(silent)?;
        let looking = blocking(move || at(&asked.target));
        tokio::time::timeout(STATUS_TIMEOUT, looking).await.unwrap_or_else(|_| Err(silent()))
    }
}

/// A pending query of a target.
struct TargetRequest {
    all: Arc<Mutex<HashSet<PathBuf>>>,
    target: PathBuf,
}

impl TargetRequest {
    /// Registers a query; `None` while an earlier one is unanswered.
    fn new(all: &Arc<Mutex<HashSet<PathBuf>>>, target: &Path) -> Option<Self> {
        let is_first = lock(all).insert(target.to_owned());
        is_first.then(|| Self { all: all.clone(), target: target.to_owned() })
    }
}

impl Drop for TargetRequest {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.target);
    }
}

/// The fate of the record of a volume that is not mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LostVolume {
    /// Remove it: kubelet publishes the volume again if it is still wanted.
    Forget,
    /// Leave it until kubelet's next call.
    Leave,
}

/// Checks that a record matches the requested volume.
fn agrees(known: &VolumeRecord, id: &str, attributes: &VolumeAttributes) -> Result<(), CsiError> {
    let target = known.target.display();
    if known.volume_id != id {
        return Err(CsiError::Exists(format!("volume {} is published at {target} already", known.volume_id)));
    }
    if known.attributes != *attributes {
        return Err(CsiError::Exists(format!(
            "volume {id} is published at {target} with other attributes: {}",
            known.attributes.reference
        )));
    }
    Ok(())
}

fn foreign(target: &Path, fs_type: &str) -> CsiError {
    CsiError::Exists(format!("another program ({fs_type}) is mounted at {}", target.display()))
}

/// Makes the directory of a volume. kubelet has made its parent.
fn make_target(target: &Path) -> Result<(), CsiError> {
    match DirBuilder::new().mode(0o750).create(target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(target).map_err(CsiError::file("looking at", target))?;
            match meta.is_dir() {
                true => Ok(()),
                false => Err(CsiError::Invalid(format!("the target {} is no directory", target.display()))),
            }
        }
        Err(error) => Err(CsiError::file("making the directory", target)(error)),
    }
}

fn remove_target(target: &Path) -> Result<(), CsiError> {
    match fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CsiError::file("removing the directory", target)(error))
        }
        _ => Ok(()),
    }
}

/// Unmounts every mount of ocifs at a target.
fn clear(target: &Path) -> Result<(), CsiError> {
    for _ in 0..MAX_STACKED {
        match mount::reference_at(target) {
            Ok(Some(_)) => {}
            Ok(None) | Err(MountError::NotMounted { .. }) => break,
            Err(error) => return Err(error.into()),
        }
        match mount::unmount(target, UnmountMode::Now) {
            Ok(()) => {}
            Err(MountError::Busy { .. }) => {
                tracing::warn!(target = %target.display(), "in use, unmounting lazily");
                mount::unmount(target, UnmountMode::Lazy)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Unmounts every mount of ocifs at a target, and removes the directory.
fn take_away(target: &Path) -> Result<(), CsiError> {
    clear(target)?;
    if let DirectoryMount::Foreign(fs_type) = mount::standing(target)? {
        return Err(foreign(target, &fs_type));
    }
    remove_target(target)
}

fn broken(why: &str) -> VolumeStats {
    VolumeStats {
        usage: Vec::new(),
        condition: Some(VolumeCondition { abnormal: true, message: why.to_owned() }),
    }
}

fn healthy(filling: FilesystemUsage) -> VolumeStats {
    let usage = |unit: UsageUnit, (total, available): (u64, u64)| {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        VolumeUsage {
            available: number(available),
            total: number(total),
            used: number(total.saturating_sub(available)),
            unit: unit.into(),
        }
    };
    let mut all = vec![usage(UsageUnit::Bytes, filling.bytes)];
    // A mount that has not counted its files reports zero.
    if filling.files.0 > 0 {
        all.push(usage(UsageUnit::Inodes, filling.files));
    }
    VolumeStats {
        usage: all,
        condition: Some(VolumeCondition { abnormal: false, message: "mounted".to_owned() }),
    }
}

/// Runs file operations on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CsiError> + Send + 'static,
) -> Result<T, CsiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(CsiError::Internal(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_answer_is_asked_once() {
        let all = Arc::default();
        let first = TargetRequest::new(&all, Path::new("/a")).unwrap();
        assert!(TargetRequest::new(&all, Path::new("/a")).is_none());
        assert!(TargetRequest::new(&all, Path::new("/b")).is_some());
        drop(first);
        assert!(TargetRequest::new(&all, Path::new("/a")).is_some());
    }
}
