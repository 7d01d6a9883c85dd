//! Compression of a disk by its title and media type.
//!
//! These names only mark a part as compressed and give the disk inside a name. The first bytes of a part decide how
//! it is unpacked.

use crate::oci::{MediaType, StreamEncoding};

/// A compression by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskCompression {
    /// The name in media types of image-spec.
    pub(super) name: &'static str,
    /// The extension in titles.
    extension: &'static str,
    /// The command that unpacks to standard output; `None` for archives, which are not unpacked.
    pub(super) command: Option<&'static str>,
}

/// Archives of files, which are not unpacked.
const FILE_ARCHIVES: [DiskCompression; 2] = [
    DiskCompression { name: "zip", extension: ".zip", command: None },
    DiskCompression { name: "7z", extension: ".7z", command: None },
];

/// The encodings that titles name, and the archives.
fn compressions() -> impl Iterator<Item = DiskCompression> {
    let encodings = StreamEncoding::in_titles().map(StreamEncoding::names);
    let encodings = encodings.map(|names| DiskCompression {
        name: names.name,
        extension: names.extension,
        command: names.command,
    });
    encodings.chain(FILE_ARCHIVES)
}

/// The compression by the extension of a title, and the title without it.
pub(super) fn by_title(title: &str) -> Option<(DiskCompression, &str)> {
    compressions().find_map(|compression| {
        let end = title.len().checked_sub(compression.extension.len())?;
        let (inner, extension) = title.split_at_checked(end)?;
        let fits = !inner.is_empty() && extension.eq_ignore_ascii_case(compression.extension);
        fits.then_some((compression, inner))
    })
}

/// The compression by the end of a media type: `…+zstd`, `….gz`.
pub(super) fn by_type(media_type: &MediaType) -> Option<DiskCompression> {
    let essence = media_type.essence();
    let (_, last) = essence.rsplit_once(['+', '.'])?;
    let extension = media_type.compression().map(|encoding| encoding.names().extension);
    let is_it = |it: &DiskCompression| Some(it.extension) == extension || it.name == last;
    // A type that is only the name of a compression gives no information about a disk inside.
    compressions().find(is_it)
}

/// A title without the extension of a compression.
pub(super) fn inner(title: &str) -> &str {
    by_title(title).map_or(title, |(_, inner)| inner)
}

/// `disk.img.gz.00`: the compression, the name of the disk, and the rest behind the extension.
pub(super) fn cut_behind(title: &str) -> Option<(DiskCompression, &str, &str)> {
    let lower = title.to_ascii_lowercase();
    compressions().find_map(|compression| {
        // Lower case in ASCII preserves byte offsets.
        let at = lower.rfind(compression.extension)?;
        let (disk, rest) = title.split_at_checked(at)?;
        let tail = rest.get(compression.extension.len()..)?;
        (!disk.is_empty() && tail.starts_with(['.', '-', '_'])).then_some((compression, disk, tail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_types_name_compressions() {
        for (title, name, disk) in [
            ("a.img.gz", "gzip", "a.img"),
            ("a.QCOW2.ZST", "zstd", "a.QCOW2"),
            ("a.xz", "xz", "a"),
            ("ä.bz2", "bzip2", "ä"),
            ("a.lz4", "lz4", "a"),
        ] {
            let (compression, inner) = by_title(title).unwrap();
            assert_eq!((compression.name, inner), (name, disk));
        }
        for title in ["", "gz", ".gz", "a.gzip", "agz", "𝄞"] {
            assert_eq!(by_title(title), None, "{title}");
        }
        let typed = |text: &str| by_type(&text.into()).map(|compression| compression.name);
        assert_eq!(typed("application/x-qemu-qcow2+zstd"), Some("zstd"));
        assert_eq!(typed("application/X+GZIP; a=b"), Some("gzip"));
        assert_eq!(typed("application/vnd.x.disk.qcow2.xz"), Some("xz"));
        assert_eq!(typed("application/gzip"), None);
        assert_eq!(typed("application/x+json"), None);
    }

    #[test]
    fn pieces_of_a_compressed_file_are_seen() {
        let cut = |title| cut_behind(title).map(|(compression, disk, tail)| (compression.name, disk, tail));
        assert_eq!(cut("disk.img.gz.00"), Some(("gzip", "disk.img", ".00")));
        assert_eq!(cut("disk.img.GZ-part-1"), Some(("gzip", "disk.img", "-part-1")));
        assert_eq!(cut("disk.img.gz"), None);
        assert_eq!(cut(".gz.00"), None);
    }
}
