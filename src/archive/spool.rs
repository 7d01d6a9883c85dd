//! A stream that comes once, put on the disk of the cache, and decoded on its way where it is compressed.
//!
//! What is on the disk is nobody else's, and gone with its owner. The idea: nothing names the bytes of an archive as a whole, so
//! that nothing which is kept of it could be proven later, as it is of a layer. It is decoded once, forward, by the decoders of
//! layers and within their bounds; what is inside has digests, and is kept by them.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::whole::encoding;
use crate::cache::Cache;
use crate::io::{BoxStream, Fault, Fetch, ReadError, compute};
use crate::layer::{CodecError, Decoder, SNIFF_LEN, most_stream};
use crate::source::{LocalFile, SourceError};

/// Decoded bytes that are written at once.
const OUTPUT: usize = 256 * 1024;

/// Writes what comes from `body`, the archive called `place`, to a file without a name.
pub(super) async fn spool(
    mut body: BoxStream<'static, Result<Bytes, ReadError>>,
    place: &str,
    cache: &Cache,
) -> Result<Arc<dyn Fetch>, SourceError> {
    let mut head = BytesMut::new();
    while head.len() < SNIFF_LEN
        && let Some(chunk) = body.next().await
    {
        head.extend_from_slice(&chunk?);
    }
    let decoder = Decoder::new(encoding(&head, place)?, 0).map_err(|error| broken(place, error))?;
    let file = cache.spool().map_err(ReadError::from)?;
    let mut spool = Spool { file, place: place.to_owned(), decoder, taken: 0, made: 0 };
    let mut next = Some(Ok(head.freeze()));
    while let Some(chunk) = next {
        let chunk = chunk?;
        spool = compute(move || spool.take(&chunk).map(|()| spool)).await?;
        next = body.next().await;
    }
    let file = compute(move || spool.end()).await?;
    tracing::debug!(place, bytes = file.size(), "an archive was put on the disk");
    Ok(Arc::new(file))
}

/// What is being written.
struct Spool {
    file: File,
    place: String,
    /// None for an archive that is not compressed.
    decoder: Option<Decoder>,
    taken: u64,
    made: u64,
}

impl Spool {
    fn take(&mut self, mut input: &[u8]) -> Result<(), ReadError> {
        self.taken += input.len() as u64;
        let Some(decoder) = &mut self.decoder else { return self.write(input) };
        let mut output = vec![0; OUTPUT];
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
                return Err(ReadError::new(Fault::Unsupported, message));
            }
            let is_over = input.is_empty() && step.produced < output.len();
            if is_over || made.len() >= OUTPUT {
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
        ReadError::caused(Fault::Io, format!("putting {place} on the disk of the cache"), error)
    })
}

fn broken(place: &str, error: CodecError) -> ReadError {
    let fault = match error {
        CodecError::Memory { .. } => Fault::Unsupported,
        _ => Fault::Malformed,
    };
    ReadError::caused(fault, format!("decoding {place}"), error)
}
