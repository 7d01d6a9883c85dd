//! Selection of the pass over a layer by its encoding, and its memory and threads.

use crate::cache::{Learnt, StreamWriter};
use crate::io::{ByteRange, Fault, MEMORY, ReadError};

use super::codec::Windows;
use super::crew::Input;
use super::head;
use super::index::LayerIndex;
use super::pass::{self, Stopped};
use super::sniff::{Encoding, Sniffed};
use super::stored::Core;

impl Core {
    /// The index from one pass over the stored bytes, and the stream that the pass wrote.
    pub(super) async fn pass(&self) -> Result<(LayerIndex, Option<StreamWriter>), ReadError> {
        match self.sniff(&*self.blob).await? {
            Sniffed::Stream(Encoding::Plain) if self.form == Learnt::Stream => Ok((self.identity(), None)),
            Sniffed::Other(_) if self.form == Learnt::Stream => Ok((self.identity(), None)),
            Sniffed::Stream(Encoding::Plain) => Ok((pass::walk(self.blob.clone()).await?, None)),
            Sniffed::Stream(encoding) => {
                let passed = match self.forward(encoding, Windows::Common).await {
                    Err(Stopped::LargeWindow) => {
                        // Fetched first: a pass must not hold memory while it waits for a network.
                        self.blob.ensure(ByteRange::new(0, self.size())).await?;
                        let memory = MEMORY.take(1 << Windows::Large.log()).await;
                        let _memory = memory.map_err(|error| error.into_read("a window of 128 MiB"))?;
                        self.forward(encoding, Windows::Large).await
                    }
                    done => done,
                }
                .map_err(|stopped| match stopped {
                    Stopped::Failed(error) => error,
                    Stopped::LargeWindow => ReadError::new(Fault::Unsupported, "its window is too large"),
                })?;
                if let Some(hashed) = passed.hashed {
                    self.hashed.set(hashed).ok();
                }
                Ok((passed.index, passed.kept))
            }
            Sniffed::Other(name) => Err(head::not_an_archive(name)),
        }
    }

    /// One pass over the layer.
    async fn forward(&self, encoding: Encoding, windows: Windows) -> Result<pass::Passed, Stopped> {
        let is_here = self.blob.present(ByteRange::new(0, self.size()));
        let plan = pass::Plan {
            encoding,
            input: if is_here { Input::Here } else { Input::Far },
            windows,
            is_archive: self.form == Learnt::Archive,
            cache: Some(self.cache.clone()),
            writer: Some(self.cache.stream_writer(self.blob.digest())),
            hasher: self.hasher.clone(),
            progress: self.progress.clone(),
        };
        pass::forward(self.blob.clone(), plan).await
    }
}
