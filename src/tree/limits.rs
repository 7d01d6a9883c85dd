//! Limits of names, as Linux has them.

/// Limit of one component, in bytes: `NAME_MAX` of every file system that layers are written for.
pub(super) const MAX_NAME: usize = 255;
/// Limit of one path without a leading slash, in bytes: `PATH_MAX` of Linux.
pub(super) const MAX_PATH: usize = 4096;
/// Limit of the components that link targets add to all paths of one tree. Links of links make each short entry a walk
/// of 80,000 components; merged `/usr` directories add two to an entry, and a tree has at most 8 Mi of those.
pub(super) const MAX_LINK_STEPS: u64 = 1 << 26;
/// Bytes of a link target that count as another component: the time to split them.
pub(super) const LINK_STEP_BYTES: usize = 64;
