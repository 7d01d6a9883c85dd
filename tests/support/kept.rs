//! Test data that takes long to make: made once, and kept in cargo's directory for test files.
//!
//! Never gives out something half made. The idea: it is built under another name and renamed, with a lock around both,
//! so that a build that was killed is begun again and two test programs do not build at once.

use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// The directory `NAME-RECIPE`, filled by `build` if it is not there. A changed recipe gets a higher number.
pub(crate) fn kept(name: &str, recipe: u32, build: impl FnOnce(&Path)) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = parent.join(format!("{name}-{recipe}"));
    // Two test programs may want it at once; the second waits for the first.
    let lock = fs::File::create(parent.join(format!("{name}.lock"))).expect("a directory of ours");
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("a lock");
    if !dir.exists() {
        let partial = parent.join(format!("{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).expect("a directory of ours");
        }
        fs::create_dir(&partial).expect("a directory of ours");
        build(&partial);
        fs::rename(&partial, &dir).expect("a directory of ours");
    }
    dir
}
