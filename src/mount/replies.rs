//! Replies to SEEK and GETXATTR that need no file system.

use fuser::{ReplyLseek, ReplyXattr};

use crate::io::{ReadAt as _, SharedReader};

use super::errno;

/// Replies with the next data or hole at or after an offset inside the file.
pub(super) fn seek(bytes: &SharedReader, offset: u64, whence: i32, reply: ReplyLseek) {
    let found = match whence {
        libc::SEEK_DATA => bytes.next_data(offset),
        _ => Some(bytes.next_hole(offset)),
    };
    match found.and_then(|found| i64::try_from(found).ok()) {
        Some(found) => reply.offset(found),
        None => reply.error(errno::PAST_END),
    }
}

/// The two-step protocol of xattr(7): size 0 asks for the size.
pub(super) fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match (size, value.len()) {
        (0, len) => reply.size(len as u32),
        (size, len) if len > size as usize => reply.error(errno::XATTR_TOO_BIG),
        _ => reply.data(value),
    }
}
