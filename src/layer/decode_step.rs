//! Decode step: the result of one step, the position where it ends, and the windows that a decoder may use.
//!
//! All decoders share these values, whatever their format is.

/// Maximum decoder windows: stored bytes may request more memory than a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowLimits {
    /// At most 8 MiB, the default maximum of tools.
    Common,
    /// At most 128 MiB, the limit of `zstd -d --long=27`.
    Large,
}

impl WindowLimits {
    /// The maximum window in bytes, as a power of two.
    pub(super) const fn log(self) -> u32 {
        match self {
            WindowLimits::Common => 23,
            WindowLimits::Large => 27,
        }
    }
}

/// The result of one step of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeStep {
    /// Stored bytes consumed from the input.
    pub consumed: usize,
    /// Stream bytes written to the output.
    pub produced: usize,
}

/// The position where a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepEnd {
    /// Decoding cannot resume at this position.
    Inside,
    /// At the start of a block that refers to nothing before it, with the block parameters of the unit.
    Block(u8),
    /// At the end of a unit.
    Unit,
}
