//! Cache size limit: a number of bytes or a share of the disk.
//!
//! Every limit leaves 5 % of the disk free for other programs, except for [`SizeLimit::None`].

use std::str::FromStr;

use nix::sys::statvfs::Statvfs;

/// The share of the disk that stays free.
const FLOOR_PERCENT: u64 = 5;
/// Default limit, in percent of the bytes in the cache and the free bytes of its disk.
const DEFAULT_PERCENT: u64 = 80;
/// Smallest limit, in bytes: a smaller cache would not hold the blocks of one read and its readahead.
const MIN_CACHE_BYTES: u64 = 4 << 20;

/// The most that a cache directory may take of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SizeLimit {
    /// No limit: nothing is removed until the disk is full.
    None,
    /// 80 % of the bytes in the cache and the free bytes of its disk, as long as 5 % of the disk stay free.
    #[default]
    Share,
    /// So many bytes, as long as 5 % of the disk stay free.
    Bytes(u64),
    /// So many percent of the disk, as long as 5 % of it stay free.
    Percent(u8),
}

/// Why a text is not a limit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LimitError {
    /// Not in a known form.
    #[error(
        "{0:?} is not a size: write a number and K, M, G or T (such as 20G), or a share of the disk (such as 30%)"
    )]
    Form(String),
    /// Below the smallest limit.
    #[error("a cache of {0:?} is too small: the least is 4M")]
    Small(String),
}

impl FromStr for SizeLimit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let form = || LimitError::Form(text.to_owned());
        // No sign and no spaces: digits alone.
        let number = |digits: &str| match digits {
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u64>().ok(),
            _ => None,
        };
        if let Some(percent) = text.strip_suffix('%') {
            return match number(percent) {
                Some(percent @ 1..=100) => Ok(SizeLimit::Percent(percent as u8)),
                _ => Err(form()),
            };
        }
        let bare = text.strip_suffix("iB").unwrap_or(text);
        let (digits, shift) = match bare.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
            Some(b'K') => (&bare[..bare.len() - 1], 10),
            Some(b'M') => (&bare[..bare.len() - 1], 20),
            Some(b'G') => (&bare[..bare.len() - 1], 30),
            Some(b'T') => (&bare[..bare.len() - 1], 40),
            _ if bare.len() < text.len() => return Err(form()),
            _ => (bare, 0),
        };
        let bytes = number(digits).and_then(|number| number.checked_mul(1 << shift)).ok_or_else(form)?;
        if bytes < MIN_CACHE_BYTES {
            return Err(LimitError::Small(text.to_owned()));
        }
        Ok(SizeLimit::Bytes(bytes))
    }
}

/// Space of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskSpace {
    pub(super) size: u64,
    /// Bytes that we may still write.
    pub(super) free: u64,
}

impl From<&Statvfs> for DiskSpace {
    fn from(found: &Statvfs) -> Self {
        let unit = found.fragment_size();
        Self {
            size: unit.saturating_mul(found.blocks()),
            free: unit.saturating_mul(found.blocks_available()),
        }
    }
}

impl SizeLimit {
    /// Bytes that the limit allows, of which `used` are taken.
    pub(super) fn most(self, used: u64, disk: DiskSpace) -> u64 {
        match self {
            SizeLimit::None => u64::MAX,
            SizeLimit::Share => percent(used.saturating_add(disk.free), DEFAULT_PERCENT),
            SizeLimit::Bytes(bytes) => bytes,
            SizeLimit::Percent(share) => percent(disk.size, u64::from(share)),
        }
    }

    /// Bytes that a directory may take that takes `used` now, if nothing else on the disk changes.
    pub(super) fn capacity(self, used: u64, disk: DiskSpace) -> u64 {
        let all = used.saturating_add(disk.free);
        match self {
            SizeLimit::None => all,
            _ => self.most(used, disk).min(all.saturating_sub(percent(disk.size, FLOOR_PERCENT))),
        }
    }

    /// Bytes that must be removed before `more` can be added to the `used` ones.
    pub(super) fn excess(self, used: u64, more: u64, disk: DiskSpace) -> u64 {
        if self == SizeLimit::None {
            return 0;
        }
        let over = used.saturating_add(more).saturating_sub(self.most(used, disk));
        let floor = percent(disk.size, FLOOR_PERCENT).saturating_add(more).saturating_sub(disk.free);
        over.max(floor)
    }
}

/// `percent` % of `whole`, without overflow.
fn percent(whole: u64, percent: u64) -> u64 {
    (u128::from(whole) * u128::from(percent) / 100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_and_shares_a_percent_sign() {
        let good = [
            ("4194304", SizeLimit::Bytes(4 << 20)),
            ("8192K", SizeLimit::Bytes(8 << 20)),
            ("20M", SizeLimit::Bytes(20 << 20)),
            ("20m", SizeLimit::Bytes(20 << 20)),
            ("20MiB", SizeLimit::Bytes(20 << 20)),
            ("3G", SizeLimit::Bytes(3 << 30)),
            ("1T", SizeLimit::Bytes(1 << 40)),
            ("1%", SizeLimit::Percent(1)),
            ("100%", SizeLimit::Percent(100)),
        ];
        for (text, limit) in good {
            assert_eq!(text.parse(), Ok(limit), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "+9M",
            "1.5G",
            " 20M",
            "20 M",
            "20B",
            "20iB",
            "0%",
            "101%",
            "%",
            "9999999999T",
            "20é",
            "é",
        ] {
            assert_eq!(text.parse::<SizeLimit>(), Err(LimitError::Form(text.into())), "{text}");
        }
        for text in ["0", "1", "4194303", "3M", "4095K"] {
            assert_eq!(text.parse::<SizeLimit>(), Err(LimitError::Small(text.into())), "{text}");
        }
    }

    #[test]
    fn the_limit_and_the_floor_hold_at_once() {
        let disk = |free| DiskSpace { size: 1000, free };
        assert_eq!(SizeLimit::None.excess(900, 900, disk(0)), 0);
        assert_eq!(SizeLimit::Bytes(500).excess(400, 100, disk(600)), 0);
        assert_eq!(SizeLimit::Bytes(500).excess(400, 101, disk(600)), 1);
        assert_eq!(SizeLimit::Bytes(500).excess(600, 10, disk(600)), 110);
        assert_eq!(SizeLimit::Bytes(500).excess(100, 10, disk(60)), 0);
        assert_eq!(SizeLimit::Bytes(500).excess(100, 10, disk(59)), 1, "five percent stay free");
        assert_eq!(SizeLimit::Percent(30).excess(290, 10, disk(700)), 0);
        assert_eq!(SizeLimit::Percent(30).excess(290, 11, disk(700)), 1);
        // 100 here and 400 free beside: 400.
        assert_eq!(SizeLimit::Share.excess(100, 300, disk(400)), 0);
        assert_eq!(SizeLimit::Share.excess(100, 301, disk(400)), 1);
        assert_eq!(SizeLimit::Share.excess(u64::MAX, u64::MAX, disk(0)), u64::MAX);
    }
}
