//! Flatbuffer reader for untrusted input: every offset, length and count is checked against the buffer before use.
//!
//! The reader never panics. It follows an offset only on request for a field, so the caller bounds the depth. The
//! layout is that of "FlatBuffer Internals" (flatbuffers.dev). A table starts with the distance back to its vtable.
//! A vtable has its own length, the table's length, and one offset for each field, 0 for an absent field.

/// A table of a flatbuffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlatTable<'a> {
    bytes: &'a [u8],
    /// Offset of its start. Invariant: `at + len <= bytes.len()`.
    at: usize,
    /// Its length in bytes, including the distance to the vtable.
    len: usize,
    /// The offsets of its fields. Invariant: the length is even.
    fields: &'a [u8],
}

/// A vector of references to tables or strings.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlatVector<'a> {
    bytes: &'a [u8],
    /// Offset of the first element. Invariant: `start + 4 * len <= bytes.len()`.
    start: usize,
    len: usize,
}

impl<'a> FlatTable<'a> {
    /// The root table of the buffer.
    pub(super) fn root(bytes: &'a [u8]) -> Result<Self, String> {
        Self::at(bytes, follow(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Result<Self, String> {
        let bad = |what: &str| format!("flatbuffer table at {at} {what}");
        let back = i64::from(i32::from_le_bytes(array(bytes, at)?));
        // Both numbers have less than 63 bits, so the difference does not overflow.
        let vtable = usize::try_from(at as i64 - back).map_err(|_| bad("has its vtable before the start"))?;
        let vtable_len = usize::from(u16::from_le_bytes(array(bytes, vtable)?));
        let head: [u8; 4] = array(bytes, vtable)?;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if vtable_len < 4 || !vtable_len.is_multiple_of(2) {
            return Err(bad(&format!("has a vtable of {vtable_len} bytes")));
        }
        if len < 4 || at.checked_add(len).is_none_or(|end| end > bytes.len()) {
            return Err(bad(&format!("has {len} bytes, and the buffer {}", bytes.len())));
        }
        let end = vtable.checked_add(vtable_len);
        let fields = end.and_then(|end| bytes.get(vtable + 4..end));
        let fields = fields.ok_or_else(|| bad(&format!("has its vtable at {vtable}, past the end")))?;
        Ok(Self { bytes, at, len, fields })
    }

    /// Offset of the field in `slot`, with room for `size` bytes; `None` for an absent field.
    fn field(&self, slot: usize, size: usize) -> Result<Option<usize>, String> {
        let Some(&[low, high]) = self.fields.get(2 * slot..2 * slot + 2) else { return Ok(None) };
        let offset = usize::from(u16::from_le_bytes([low, high]));
        if offset == 0 {
            return Ok(None);
        }
        if offset < 4 || offset + size > self.len {
            return Err(format!("field {slot} of the flatbuffer table at {} lies outside of it", self.at));
        }
        Ok(Some(self.at + offset))
    }

    fn scalar<const N: usize>(&self, slot: usize) -> Result<Option<[u8; N]>, String> {
        self.field(slot, N)?.map(|at| array(self.bytes, at)).transpose()
    }

    /// A number of 64 bits; 0 when absent.
    pub(super) fn i64(&self, slot: usize) -> Result<i64, String> {
        Ok(self.scalar(slot)?.map_or(0, i64::from_le_bytes))
    }

    /// A number of 32 bits; 0 when absent.
    pub(super) fn i32(&self, slot: usize) -> Result<i32, String> {
        Ok(self.scalar(slot)?.map_or(0, i32::from_le_bytes))
    }

    /// A number of 32 bits without a sign; 0 when absent.
    pub(super) fn u32(&self, slot: usize) -> Result<u32, String> {
        Ok(self.scalar(slot)?.map_or(0, u32::from_le_bytes))
    }

    /// A number of 8 bits; `default` when absent.
    pub(super) fn i8(&self, slot: usize, default: i8) -> Result<i8, String> {
        Ok(self.scalar(slot)?.map_or(default, i8::from_le_bytes))
    }

    /// A string or a vector of bytes; empty when absent.
    pub(super) fn bytes(&self, slot: usize) -> Result<&'a [u8], String> {
        match self.field(slot, 4)? {
            Some(at) => string(self.bytes, follow(self.bytes, at)?),
            None => Ok(&[]),
        }
    }

    /// A table in a field; `None` when absent.
    pub(super) fn table(&self, slot: usize) -> Result<Option<FlatTable<'a>>, String> {
        let at = self.field(slot, 4)?;
        at.map(|at| FlatTable::at(self.bytes, follow(self.bytes, at)?)).transpose()
    }

    /// A vector of tables or strings; empty when absent.
    pub(super) fn vector(&self, slot: usize) -> Result<FlatVector<'a>, String> {
        let Some(at) = self.field(slot, 4)? else {
            return Ok(FlatVector { bytes: self.bytes, start: 0, len: 0 });
        };
        let at = follow(self.bytes, at)?;
        let (start, len) = counted(self.bytes, at, 4)?;
        Ok(FlatVector { bytes: self.bytes, start, len })
    }
}

impl<'a> FlatVector<'a> {
    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The elements, as tables.
    pub(super) fn tables(self) -> impl Iterator<Item = Result<FlatTable<'a>, String>> {
        self.targets().map(move |at| FlatTable::at(self.bytes, at?))
    }

    /// The elements, as strings.
    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a [u8], String>> {
        self.targets().map(move |at| string(self.bytes, at?))
    }

    fn targets(self) -> impl Iterator<Item = Result<usize, String>> {
        (0..self.len).map(move |index| follow(self.bytes, self.start + 4 * index))
    }
}

/// The target of the reference at `at`: forward, relative to the reference.
fn follow(bytes: &[u8], at: usize) -> Result<usize, String> {
    let distance = u32::from_le_bytes(array(bytes, at)?) as usize;
    let target = at.checked_add(distance).filter(|&target| distance > 0 && target < bytes.len());
    target.ok_or_else(|| {
        format!("flatbuffer offset {distance} at {at} points out of the {} bytes", bytes.len())
    })
}

/// The offset of the first element and the number of elements of the vector at `at`, with `width` bytes each.
fn counted(bytes: &[u8], at: usize, width: usize) -> Result<(usize, usize), String> {
    let len = u32::from_le_bytes(array(bytes, at)?) as usize;
    // The count was inside the buffer, so `at + 4` does not overflow.
    let start = at + 4;
    let end = len.checked_mul(width).and_then(|size| start.checked_add(size));
    if end.is_none_or(|end| end > bytes.len()) {
        return Err(format!(
            "flatbuffer vector at {at} has {len} elements, more than fit into {} bytes",
            bytes.len()
        ));
    }
    Ok((start, len))
}

fn string(bytes: &[u8], at: usize) -> Result<&[u8], String> {
    let (start, len) = counted(bytes, at, 1)?;
    Ok(&bytes[start..start + len])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let end = at.checked_add(N);
    let slice = end.and_then(|end| bytes.get(at..end)).and_then(|slice| slice.try_into().ok());
    slice.ok_or_else(|| format!("flatbuffer of {} bytes is cut at {at}", bytes.len()))
}
