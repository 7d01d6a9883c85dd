//! Limits of names, as Linux has them.

/// Limit of one component, in bytes: `NAME_MAX` of every file system that layers are written for.
pub(super) const MAX_NAME: usize = 255;
/// Limit of one path without a leading slash, in bytes: `PATH_MAX` of Linux.
pub(super) const MAX_PATH: usize = 4096;
/// Limit of symbolic links followed for one path: `MAXSYMLINKS` of Linux.
pub(super) const MAX_LINKS: usize = 40;
