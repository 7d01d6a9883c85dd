//! Crash-safe state of the plugin: one small record for each target, and the login files.
//!
//! A record is written before its mount is made and removed after the mount is gone, so every mount has one. Records
//! are written to a temporary file and renamed, so each is complete or absent. Records hold no secret, and a file
//! that is no valid record of its target is not used. The directory belongs on a file system that a reboot empties
//! together with the mount table: /run.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::CsiError;
use super::pull_secret::PullLogins;
use super::volume::VolumeAttributes;
use crate::oci::Digest;

/// The version of the record format. Records of other versions are not read.
const SCHEMA: u32 = 1;
/// The largest record that is read, in bytes: paths and names, each within a page.
const MAX_RECORD: u64 = 64 * 1024;
/// The file name suffix of records.
const SUFFIX: &str = ".json";

/// The volume that is, or is to be, mounted at a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeRecord {
    schema_version: u32,
    pub(super) volume_id: String,
    pub(super) target: PathBuf,
    pub(super) attributes: VolumeAttributes,
    /// The reference with the digest it had when it was mounted, so that a later mount shows the same content; `None`
    /// before the first mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pinned: Option<String>,
    /// Whether a credential file is stored beside the records.
    pub(super) has_login: bool,
}

impl VolumeRecord {
    pub(super) fn new(
        volume_id: String,
        target: PathBuf,
        attributes: VolumeAttributes,
        has_login: bool,
    ) -> Self {
        Self { schema_version: SCHEMA, volume_id, target, attributes, pinned: None, has_login }
    }
}

/// The state directory.
pub(super) struct RecordStore {
    dir: PathBuf,
    /// Held while this process lives: two plugins would end each other's mounts.
    _lock: File,
}

impl RecordStore {
    /// Opens the directory, creating it if absent.
    pub(super) fn open(dir: &Path) -> Result<Self, CsiError> {
        for part in [dir.to_owned(), dir.join("volumes"), dir.join("logins")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&part)
                .map_err(CsiError::file("making the directory", &part))?;
        }
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(CsiError::file("opening", &path))?;
        if lock.try_lock().is_err() {
            return Err(CsiError::Unready(format!(
                "another ocifs csi uses the state directory {}: give each its own with --state-dir",
                dir.display()
            )));
        }
        let state = Self { dir: dir.to_owned(), _lock: lock };
        state.forget_halves()?;
        Ok(state)
    }

    /// Removes partly written records of a crash. To be called before any record is written.
    fn forget_halves(&self) -> Result<(), CsiError> {
        let folder = self.dir.join("volumes");
        for entry in fs::read_dir(&folder).map_err(CsiError::file("reading", &folder))? {
            let path = entry.map_err(CsiError::file("reading", &folder))?.path();
            if !is_record(&path) {
                gone(fs::remove_file(&path)).map_err(CsiError::file("removing", &path))?;
            }
        }
        Ok(())
    }

    /// The record of a target; `None` if there is no record for exactly this target.
    pub(super) fn load(&self, target: &Path) -> Result<Option<VolumeRecord>, CsiError> {
        let path = self.record(target);
        let read = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.and_then(read).map_err(CsiError::file("reading", &path))?,
        };
        Ok(Some(read).filter(|volume| volume.target == target))
    }

    /// All records. An unreadable record is logged and left on disk. Records may be written meanwhile.
    pub(super) fn all(&self) -> Result<Vec<VolumeRecord>, CsiError> {
        let folder = self.dir.join("volumes");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(CsiError::file("reading", &folder))? {
            let path = entry.map_err(CsiError::file("reading", &folder))?.path();
            if !is_record(&path) {
                continue;
            }
            match File::open(&path).and_then(read) {
                Ok(volume) if self.record(&volume.target) == path => found.push(volume),
                Ok(_) => {
                    tracing::warn!(path = %path.display(), "record skipped: its name is not that of its target")
                }
                // The volume was unpublished after the listing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, path = %path.display(), "cannot read a record"),
            }
        }
        Ok(found)
    }

    /// Writes the record of a volume.
    pub(super) fn save(&self, volume: &VolumeRecord) -> Result<(), CsiError> {
        let path = self.record(&volume.target);
        let text = serde_json::to_vec(volume)
            .map_err(|error| CsiError::Internal(format!("writing a record: {error}")))?;
        write(&path, &text)
    }

    /// The path of a target's credential file.
    pub(super) fn login(&self, target: &Path) -> PathBuf {
        // A directory of its own, because the process of a mount can read the files beside its credential file.
        self.dir.join("logins").join(name(target)).join("config.json")
    }

    /// Writes the login of a target.
    pub(super) fn save_login(&self, target: &Path, login: &PullLogins) -> Result<(), CsiError> {
        let path = self.login(target);
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(CsiError::file("making the directory", folder))?;
        }
        write(&path, login.bytes())
    }

    /// Removes record and login of a target. Absent files are success.
    pub(super) fn forget(&self, target: &Path) -> Result<(), CsiError> {
        let login = self.login(target);
        if let Some(folder) = login.parent() {
            gone(fs::remove_dir_all(folder)).map_err(CsiError::file("removing", folder))?;
        }
        let record = self.record(target);
        gone(fs::remove_file(&record)).map_err(CsiError::file("removing", &record))
    }

    /// Removes the logins of all other volumes.
    pub(super) fn forget_logins_but(&self, volumes: &[VolumeRecord]) -> Result<(), CsiError> {
        let kept: Vec<String> = volumes.iter().map(|volume| name(&volume.target)).collect();
        let folder = self.dir.join("logins");
        for entry in fs::read_dir(&folder).map_err(CsiError::file("reading", &folder))? {
            let entry = entry.map_err(CsiError::file("reading", &folder))?;
            if !entry.file_name().to_str().is_some_and(|name| kept.iter().any(|kept| kept == name)) {
                gone(fs::remove_dir_all(entry.path())).map_err(CsiError::file("removing", entry.path()))?;
            }
        }
        Ok(())
    }

    fn record(&self, target: &Path) -> PathBuf {
        self.dir.join("volumes").join(format!("{}{SUFFIX}", name(target)))
    }
}

/// The file name of a target: a hash, because paths are longer than file names may be.
fn name(target: &Path) -> String {
    Digest::sha256(target.as_os_str().as_encoded_bytes()).encoded().to_owned()
}

/// Whether a file among the records is a finished record.
fn is_record(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes())
}

fn read(file: File) -> io::Result<VolumeRecord> {
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text)?;
    let volume: VolumeRecord = serde_json::from_slice(&text)?;
    match volume.schema_version {
        SCHEMA => Ok(volume),
        other => Err(io::Error::other(format!("schemaVersion {other} is not known"))),
    }
}

/// Writes a file readable only by its owner, atomically.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CsiError> {
    let beside = path.with_extension("new");
    let written = gone(fs::remove_file(&beside)).and_then(|()| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    written.map_err(CsiError::file("writing", path))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::pull_secret::KEY;
    use super::*;

    fn volume(target: &str) -> VolumeRecord {
        let attributes = VolumeAttributes {
            reference: "r.example/a:v1".into(),
            view: Some("merged".into()),
            subdir: None,
            platform: None,
            kernel: None,
            pull_secret: None,
            noexec: false,
        };
        VolumeRecord::new("csi-1".into(), target.into(), attributes, true)
    }

    fn login(password: &str) -> PullLogins {
        let text = format!(r#"{{"auths": {{"r.example": {{"password": "{password}"}}}}}}"#);
        PullLogins::of_secrets(&HashMap::from([(KEY.to_owned(), text)])).unwrap().unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_for_its_owner() {
        let room = tempfile::tempdir().unwrap();
        let state = RecordStore::open(&room.path().join("state")).unwrap();
        let volume = volume("/t/1");
        assert_eq!(state.load(&volume.target).unwrap(), None);
        state.save(&volume).unwrap();
        state.save_login(&volume.target, &login("s3cret")).unwrap();
        assert_eq!(state.load(&volume.target).unwrap().as_ref(), Some(&volume));
        assert_eq!(state.all().unwrap(), std::slice::from_ref(&volume));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let record = state.record(&volume.target);
        assert_eq!((mode(&record), mode(&state.login(&volume.target))), (0o600, 0o600));
        assert_eq!((mode(record.parent().unwrap()), mode(&room.path().join("state"))), (0o700, 0o700));
        assert!(!fs::read_to_string(record).unwrap().contains("s3cret"));
        state.forget(&volume.target).unwrap();
        state.forget(&volume.target).unwrap();
        assert!(state.all().unwrap().is_empty() && !state.login(&volume.target).exists());
    }

    #[test]
    fn foreign_records_are_skipped_and_unowned_halves_removed() {
        let room = tempfile::tempdir().unwrap();
        let state = RecordStore::open(room.path()).unwrap();
        state.save(&volume("/t/1")).unwrap();
        let folder = room.path().join("volumes");
        for (name, text) in [("x.json", "{}"), ("y.json", "{"), ("half.new", "")] {
            fs::write(folder.join(name), text).unwrap();
        }
        // A record under the name of another target is not believed.
        fs::copy(state.record(Path::new("/t/1")), state.record(Path::new("/t/2"))).unwrap();
        assert_eq!(state.all().unwrap(), [volume("/t/1")]);
        assert_eq!(state.load(Path::new("/t/2")).unwrap(), None);
        // It may be one that is being written; after a crash it is not.
        assert!(folder.join("half.new").exists() && folder.join("y.json").exists());
        drop(state);
        assert_eq!(RecordStore::open(room.path()).unwrap().all().unwrap(), [volume("/t/1")]);
        assert!(!folder.join("half.new").exists() && folder.join("y.json").exists());
    }

    #[test]
    fn logins_without_a_volume_go() {
        let room = tempfile::tempdir().unwrap();
        let state = RecordStore::open(room.path()).unwrap();
        for target in ["/t/1", "/t/2"] {
            state.save_login(Path::new(target), &login("p")).unwrap();
        }
        state.forget_logins_but(&[volume("/t/2")]).unwrap();
        assert!(!state.login(Path::new("/t/1")).exists() && state.login(Path::new("/t/2")).exists());
    }

    #[test]
    fn a_state_directory_has_one_plugin() {
        let room = tempfile::tempdir().unwrap();
        let first = RecordStore::open(room.path()).unwrap();
        assert!(matches!(RecordStore::open(room.path()), Err(CsiError::Unready(_))));
        drop(first);
        RecordStore::open(room.path()).unwrap();
    }
}
