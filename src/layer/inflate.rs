//! Inflate with stops at deflate blocks, and from the middle of a member: a safe wrapper of zlib's interface.
//!
//! Safe wrappers of inflate neither report the starts of deflate blocks nor resume at them. The C interface of
//! zlib-rs, which is written in Rust throughout, does both. This is the only file of the crate with `unsafe`. No
//! pointer to a caller's buffer is used after the call that got it, and nothing is parsed.

#![allow(unsafe_code, reason = "the interface of zlib takes pointers; each use says why it is sound")]

use std::ffi::{CStr, c_int};

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateGetDictionary,
    inflateInit2_, inflatePrime, inflateReset2, inflateSetDictionary, z_stream, zlibVersion,
};

use super::packed_window::WINDOW;

/// The largest window, and a gzip wrapper around the deflate data (`zlib.h`: 16 is added for gzip).
const MEMBER: c_int = 15 + 16;

/// The largest window, and no wrapper (`zlib.h`: negative for raw deflate).
const RAW: c_int = -15;

/// The limit of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateUntil {
    /// As far as the buffers allow.
    Filled,
    /// At most to the start of the next deflate block.
    Block,
}

/// The reason why a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateStop {
    /// The input is used up, or the output is full.
    Buffers,
    /// At the start of a deflate block; this many bits (0 to 7) of the last consumed byte belong to it.
    Block(u8),
    /// The deflate data ended, and its checks passed if it has a wrapper.
    End,
}

/// The result of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InflateProgress {
    /// Bytes consumed from the input.
    pub consumed: usize,
    /// Bytes written to the output.
    pub produced: usize,
    /// The reason why the call returned.
    pub stop: InflateStop,
}

/// One inflate state.
///
/// Invariant: `stream` was initialised by `inflateInit2_` and not ended, and it does not move, as zlib demands.
pub(super) struct InflateState {
    stream: Box<z_stream>,
}

// SAFETY: the state behind the pointers of `stream` is owned by it alone, and nothing in zlib-rs is bound to a
// thread. The pointers to buffers are not used after the call that got them.
unsafe impl Send for InflateState {}

impl InflateState {
    /// For a gzip member from its first byte.
    pub(super) fn member() -> Result<Self, String> {
        Self::with(MEMBER)
    }

    /// For deflate data from the start of a block, which follows the stream bytes of `window`.
    pub(super) fn block(window: &[u8]) -> Result<Self, String> {
        let mut made = Self::with(RAW)?;
        if !window.is_empty() {
            let len = u32::try_from(window.len().min(WINDOW)).map_err(|error| error.to_string())?;
            let last = &window[window.len() - len as usize..];
            // SAFETY: `stream` is initialised, and `last` is readable for its length; zlib copies it.
            let code = unsafe { inflateSetDictionary(&mut *made.stream, last.as_ptr(), len) };
            made.check(code)?;
        }
        Ok(made)
    }

    fn with(wrapper: c_int) -> Result<Self, String> {
        let mut stream = Box::new(z_stream::default());
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: `stream` is a default `z_stream`, which has an allocator and no state, and the version and the
        // size are those of the library that is called.
        let code = unsafe { inflateInit2_(&mut *stream, wrapper, zlibVersion(), size) };
        if code != Z_OK {
            // Without a state, `inflateEnd` must not be called, so no `InflateState` is made.
            return Err(format!("inflate cannot start: zlib returned {code}"));
        }
        Ok(Self { stream })
    }

    /// Restarts with a gzip member.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        // SAFETY: `stream` is initialised.
        let code = unsafe { inflateReset2(&mut *self.stream, MEMBER) };
        self.check(code)
    }

    /// Puts the highest `bits` (1 to 7) of `byte` before the input.
    pub(super) fn prime(&mut self, bits: u8, byte: u8) -> Result<(), String> {
        let bits = bits.clamp(1, 7);
        // SAFETY: `stream` is initialised.
        let code = unsafe { inflatePrime(&mut *self.stream, bits.into(), (byte >> (8 - bits)).into()) };
        self.check(code)
    }

    /// The stream bytes before this point, as many as deflate can refer to.
    pub(super) fn window(&mut self) -> Result<Vec<u8>, String> {
        let (mut window, mut len) = (vec![0; WINDOW], 0);
        // SAFETY: `stream` is initialised, and `window` is writable for the largest window of zlib.
        let code = unsafe { inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut len) };
        self.check(code)?;
        window.truncate(len as usize);
        Ok(window)
    }

    /// Inflates some of `input` into `output`.
    pub(super) fn run(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        until: InflateUntil,
    ) -> Result<InflateProgress, String> {
        // Longer buffers are used in part, as the caller expects.
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = given;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        let flush = match until {
            InflateUntil::Filled => Z_NO_FLUSH,
            InflateUntil::Block => Z_BLOCK,
        };
        // SAFETY: `stream` is initialised; `next_in` is readable for `avail_in` and `next_out` writable for
        // `avail_out`, which are at most the lengths of the two slices, and both outlive the call.
        let code = unsafe { inflate(stream, flush) };
        let stop = match code {
            Z_STREAM_END => InflateStop::End,
            // No progress was possible.
            Z_BUF_ERROR => InflateStop::Buffers,
            _ => {
                self.check(code)?;
                self.place()
            }
        };
        let (consumed, produced) = (given - self.stream.avail_in, room - self.stream.avail_out);
        Ok(InflateProgress { consumed: consumed as usize, produced: produced as usize, stop })
    }

    /// Whether a deflate block starts at this point (`zlib.h`: 128 at the end of a block, 64 for the last, and the
    /// unused bits).
    fn place(&self) -> InflateStop {
        let place = self.stream.data_type;
        let bits = place & 63;
        match place & 192 {
            128 if bits < 8 => InflateStop::Block(bits as u8),
            _ => InflateStop::Buffers,
        }
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == Z_OK {
            return Ok(());
        }
        if self.stream.msg.is_null() {
            return Err(format!("zlib returned {code}"));
        }
        // SAFETY: where it is not null, `msg` points to a constant of zlib-rs that ends with a zero byte.
        let message = unsafe { CStr::from_ptr(self.stream.msg) };
        Err(message.to_string_lossy().into_owned())
    }
}

impl Drop for InflateState {
    fn drop(&mut self) {
        // SAFETY: `stream` is initialised and is not used again. An error could only mean that it was not
        // initialised.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Words that repeat, so that there are blocks, literals and distances.
    fn text(len: usize) -> Vec<u8> {
        let mut state = 7u32;
        let words = std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("{} ", (state >> 16) % 5000)
        });
        words.flat_map(String::into_bytes).take(len).collect()
    }

    #[test]
    fn every_block_of_a_member_can_be_taken_up() {
        let plain = text(600_000);
        let stored = gzip(&plain);
        let mut inflate = InflateState::member().unwrap();
        let (mut at, mut out, mut blocks) = (0, vec![0; plain.len()], Vec::new());
        let mut filled = 0;
        loop {
            let step = inflate.run(&stored[at..], &mut out[filled..], InflateUntil::Block).unwrap();
            at += step.consumed;
            filled += step.produced;
            match step.stop {
                InflateStop::Block(bits) => blocks.push((at, filled, bits, inflate.window().unwrap())),
                InflateStop::Buffers => assert!(step.consumed + step.produced > 0),
                InflateStop::End => break,
            }
        }
        assert_eq!(out, plain);
        assert!(blocks.len() > 5, "{} blocks", blocks.len());
        assert!(blocks.iter().any(|block| block.2 > 0), "none starts within a byte");
        for (at, filled, bits, window) in blocks {
            assert_eq!(window, plain[filled.saturating_sub(WINDOW)..filled]);
            let mut inflate = InflateState::block(&window).unwrap();
            if bits > 0 {
                inflate.prime(bits, stored[at - 1]).unwrap();
            }
            let mut rest = vec![0; plain.len() - filled];
            let step = inflate.run(&stored[at..], &mut rest, InflateUntil::Filled).unwrap();
            assert_eq!((step.produced, &rest[..]), (plain.len() - filled, &plain[filled..]));
        }
    }

    #[test]
    fn broken_data_is_reported_with_the_reason() {
        let mut stored = gzip(b"some text");
        stored[3] |= 0xe0;
        let mut inflate = InflateState::member().unwrap();
        let error = inflate.run(&stored, &mut [0; 64], InflateUntil::Filled).unwrap_err();
        assert!(error.contains("header"), "{error}");
        inflate.restart().unwrap();
        let step = inflate.run(&gzip(b"some text"), &mut [0; 64], InflateUntil::Filled).unwrap();
        assert_eq!((step.produced, step.stop), (9, InflateStop::End));
    }
}
