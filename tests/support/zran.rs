//! Checkpoints of a gzip file, found as zlib's `zran` example finds them, and decoding from one.
//!
//! An oracle: it knows nothing of the product but the shape of what it compares with. The only unsafe code of the tests is
//! the calls of zlib's interface, all in [`Inflate`].
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unsafe_code, reason = "zlib's interface is C, and flate2 does not show block boundaries")]

use std::ptr;

use libz_rs_sys as z;

/// The most bytes that deflate refers back to.
const WINDOW: usize = 32 * 1024;

/// Output of one call.
const OUTPUT: usize = 16 * 1024;

/// Flags for the window size: raw deflate, and a gzip member.
const RAW: i32 = -15;
const GZIP: i32 = 15 + 16;

/// A place where decoding can start.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// Stored bytes that were read.
    pub(crate) stored: u64,
    /// Stream bytes before.
    pub(crate) stream: u64,
    /// How many bits of the last read byte are still to decode.
    pub(crate) bits: u8,
    /// The stream bytes before, oldest first, zeros in front.
    pub(crate) window: Vec<u8>,
}

/// How far an index goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// Points in the first gzip member only, as the tools of before 2026 do it.
    First,
    /// Points in all of them.
    All,
}

/// The points of `gzip` that are more than `span` bytes of the stream apart: the first after the header of the first
/// member, and one at a block boundary whenever enough has come since the last.
pub(crate) fn points(gzip: &[u8], span: u64, members: Members) -> Vec<Point> {
    let mut inflate = Inflate::new(GZIP);
    let (mut at, mut stream, mut out) = (0, Vec::new(), [0; OUTPUT]);
    let mut points: Vec<Point> = Vec::new();
    loop {
        let step = inflate.step(&gzip[at..], &mut out, z::Z_BLOCK);
        at += step.consumed;
        stream.extend_from_slice(&out[..step.produced]);
        if step.ended {
            if at == gzip.len() || members == Members::First {
                return points;
            }
            inflate.reset(GZIP);
            continue;
        }
        let last = points.last().map(|point| point.stream);
        let far = last.is_none_or(|last| stream.len() as u64 - last > span);
        if step.data_type & 128 != 0 && step.data_type & 64 == 0 && far {
            let mut window = vec![0; WINDOW.saturating_sub(stream.len())];
            window.extend_from_slice(&stream[stream.len().saturating_sub(WINDOW)..]);
            points.push(Point {
                stored: at as u64,
                stream: stream.len() as u64,
                bits: (step.data_type & 7) as u8,
                window,
            });
        }
        assert!(step.consumed + step.produced > 0 || at < gzip.len(), "the gzip file is cut at {at}");
    }
}

/// Decodes `len` bytes from `stored`, where a gzip member starts.
pub(crate) fn from_member(stored: &[u8], len: usize) -> Vec<u8> {
    decode(Inflate::new(GZIP), stored, len, 0)
}

/// Decodes `len` bytes from a block in the middle of a member. With `bits` the first byte of `stored` is the one they
/// are in.
pub(crate) fn from_block(stored: &[u8], bits: u8, window: &[u8], len: usize) -> Vec<u8> {
    let mut inflate = Inflate::new(RAW);
    let mut stored = stored;
    if bits > 0 {
        inflate.prime(bits, stored[0] >> (8 - bits));
        stored = &stored[1..];
    }
    inflate.dictionary(window);
    // The trailer is not zlib's business when it inflates raw data.
    decode(inflate, stored, len, 8)
}

fn decode(mut inflate: Inflate, stored: &[u8], len: usize, mut trailer: usize) -> Vec<u8> {
    let (mut at, mut stream) = (0, vec![0; len]);
    let mut done = 0;
    while done < len {
        let step = inflate.step(&stored[at..], &mut stream[done..], z::Z_NO_FLUSH);
        at += step.consumed;
        done += step.produced;
        if step.ended {
            at += trailer;
            trailer = 0;
            inflate.reset(GZIP);
        }
        assert!(
            step.consumed + step.produced > 0 || step.ended,
            "{done} of {len} bytes from {}",
            stored.len()
        );
    }
    stream
}

/// What one call did.
struct Step {
    consumed: usize,
    produced: usize,
    /// zlib's description of where it stopped.
    data_type: i32,
    ended: bool,
}

/// zlib's inflate.
struct Inflate {
    stream: Box<z::z_stream>,
}

impl Inflate {
    fn new(window_bits: i32) -> Self {
        let mut stream = Box::new(z::z_stream::default());
        let size = size_of::<z::z_stream>() as i32;
        // SAFETY: the stream is valid and stays where it is, in its box.
        let code = unsafe { z::inflateInit2_(&raw mut *stream, window_bits, z::zlibVersion(), size) };
        assert_eq!(code, z::Z_OK);
        Self { stream }
    }

    fn reset(&mut self, window_bits: i32) {
        // SAFETY: the stream was initialised in `new`.
        assert_eq!(unsafe { z::inflateReset2(&raw mut *self.stream, window_bits) }, z::Z_OK);
    }

    fn prime(&mut self, bits: u8, value: u8) {
        // SAFETY: as in `reset`.
        let code = unsafe { z::inflatePrime(&raw mut *self.stream, bits.into(), value.into()) };
        assert_eq!(code, z::Z_OK);
    }

    fn dictionary(&mut self, window: &[u8]) {
        // SAFETY: as in `reset`, and the window is read during the call only.
        let code =
            unsafe { z::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), window.len() as u32) };
        assert_eq!(code, z::Z_OK);
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], flush: i32) -> Step {
        let (given, room) = (u32::try_from(input.len()).unwrap(), u32::try_from(output.len()).unwrap());
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room;
        // SAFETY: as in `reset`; both slices outlive the call, and the pointers to them do not outlive it.
        let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
        self.stream.next_in = ptr::null();
        self.stream.next_out = ptr::null_mut();
        assert!(matches!(code, z::Z_OK | z::Z_STREAM_END | z::Z_BUF_ERROR), "inflate answers {code}");
        Step {
            consumed: (given - self.stream.avail_in) as usize,
            produced: (room - self.stream.avail_out) as usize,
            data_type: self.stream.data_type,
            ended: code == z::Z_STREAM_END,
        }
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: as in `reset`; nobody uses the stream after this.
        unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}
