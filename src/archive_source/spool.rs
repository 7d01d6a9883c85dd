//! Spools a one-pass stream to the cache disk, and decompresses it on the way.
//!
//! The file is anonymous: no other process sees it, and it is deleted with its owner. No digest covers an archive as
//! a whole, so cached bytes of it could not be verified later, unlike those of a layer. The stream is decoded once,
//! forward, by the decoders of layers and within their limits. The blobs inside have digests and are cached by them.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::encoding::encoding;
use crate::cache::BlockCache;
use crate::io::{BoxStream, FaultClass, RangeFetch, ReadError, compute};
use crate::layer::{CodecError, SNIFF_LEN, UnitDecoder, most_stream};
use crate::source::{LocalFile, SourceError};

/// Decoded bytes per write.
const SPOOL_WRITE_BYTES: usize = 256 * 1024;

/// Writes the stream `body`, of the archive called `place`, to an anonymous file.
pub(super) async fn spool(
    mut body: BoxStream<'static, Result<Bytes, ReadError>>,
    place: &str,
    cache: &BlockCache,
) -> Result<Arc<dyn RangeFetch>, SourceError> {
    let mut head = BytesMut::new();
    while head.len() < SNIFF_LEN
        && let Some(chunk) = body.next().await
    {
        head.extend_from_slice(&chunk?);
    }
    let decoder = UnitDecoder::new(encoding(&head, place)?, 0).map_err(|error| broken(place, error))?;
    let file = cache.spool().map_err(ReadError::from)?;
    let mut spool = SpoolWriter { file, place: place.to_owned(), decoder, taken: 0, made: 0 };
    let mut next = Some(Ok(head.freeze()));
    while let Some(chunk) = next {
        let chunk = chunk?;
        spool = compute(move || spool.take(&chunk).map(|()| spool)).await?;
        next = body.next().await;
    }
    let file = compute(move || spool.end()).await?;
    tracing::debug!(place, bytes = file.size(), "archive spooled to disk");
    Ok(Arc::new(file))
}

/// The state of the write.
struct SpoolWriter {
    file: File,
    place: String,
    /// `None` for an uncompressed archive.
    decoder: Option<UnitDecoder>,
    taken: u64,
    made: u64,
}

impl SpoolWriter {
    fn take(&mut self, mut input: &[u8]) -> Result<(), ReadError> {
        self.taken += input.len() as u64;
        let Some(decoder) = &mut self.decoder else { return self.write(input) };
        let mut output = vec![0; SPOOL_WRITE_BYTES];
        let mut made = Vec::new();
        loop {
            let step = decoder.step(input, &mut output).map_err(|error| broken(&self.place, error))?;
            input = &input[step.consumed..];
            made.extend_from_slice(&output[..step.produced]);
            self.made += step.produced as u64;
            let limit = most_stream(self.taken);
            if self.made > limit {
                let (place, taken) = (&self.place, self.taken);
                let message = format!(
                    "{place} decodes to more than {limit} bytes, the limit for {taken} compressed ones"
                );
                return Err(ReadError::new(FaultClass::Unsupported, message));
            }
            let is_over = input.is_empty() && step.produced < output.len();
            if is_over || made.len() >= SPOOL_WRITE_BYTES {
                write(&mut self.file, &self.place, &made)?;
                made.clear();
            }
            if is_over {
                return Ok(());
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ReadError> {
        write(&mut self.file, &self.place, bytes)
    }

    fn end(self) -> Result<LocalFile, ReadError> {
        if let Some(decoder) = &self.decoder {
            decoder.finish().map_err(|error| broken(&self.place, error))?;
        }
        LocalFile::of(self.file, Path::new(&self.place))
    }
}

fn write(file: &mut File, place: &str, bytes: &[u8]) -> Result<(), ReadError> {
    file.write_all(bytes).map_err(|error| {
        ReadError::caused(FaultClass::Io, format!("spooling {place} to the disk of the cache"), error)
    })
}

fn broken(place: &str, error: CodecError) -> ReadError {
    let fault = match error {
        CodecError::Memory { .. } => FaultClass::Unsupported,
        _ => FaultClass::Malformed,
    };
    ReadError::caused(fault, format!("decoding {place}"), error)
}
