//! What shared parts of the tests want of `scratch`, where nothing else of it is needed.

/// A path that may be no UTF-8.
pub(crate) fn path_of(bytes: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}
