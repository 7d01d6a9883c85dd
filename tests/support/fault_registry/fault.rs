//! The ways in which the fault registry misbehaves.

use std::time::Duration;

/// Where an upload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the registry, by a whole URL.
    Absolute,
    /// At the second host, by a signed URL.
    SecondHost,
}

/// How the registry misbehaves. Several can be set at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 200 and the whole blob, whatever the range.
    IgnoreRange,
    /// 206 with the range one byte further on, and its bytes.
    WrongContentRange,
    /// This status for every request with a range; without one there is the whole blob.
    RefuseRange(u16),
    /// 200 and `Content-Length: 0` to HEAD of a blob.
    EmptyHead,
    /// 206 with a Content-Range whose total is `*`.
    UnknownTotal,
    /// 206 with at most so many of the bytes that were asked for.
    AtMost(u64),
    /// 200 with the range, and the Content-Range that says so.
    OkWithRange,
    /// 200 with the range, and nothing that says so.
    OkSlice,
    /// A Content-Encoding of this name over bytes as they are.
    ContentEncoding(&'static str),
    /// The header by which a cache of pieces makes itself known.
    Pieces,
    /// A Warning header of this value with every answer.
    Warning(&'static str),
    /// A correct Content-Range over a body (and a Content-Length) that lacks this many bytes.
    ShortBody { by: u64 },
    /// A correct Content-Range over a body (and a Content-Length) with one byte too many.
    LongBody,
    /// No Content-Length but chunks.
    Chunked,
    /// Closes the connection after this many bytes of a body, this many times.
    TruncateAfter { bytes: u64, times: u32 },
    /// Goes silent after this many bytes of a body.
    StallAfter(u64),
    /// Resets the connection after this many bytes of a body.
    ResetAfter(u64),
    /// 206 with the right bytes as the only part of a multipart/byteranges.
    Multipart,
    /// 416, and a blob of this many bytes.
    Unsatisfiable { size: u64 },
    /// Accepts requests for blobs and manifests and never answers.
    Silent,
    /// Accepts requests of this method for blobs and manifests and never answers.
    SilentTo(&'static str),
    /// Answers requests for blobs and manifests with this status, this many times.
    Status { code: u16, times: u32, retry_after: Option<String> },
    /// Sends every blob request to a second host with a signed URL.
    RedirectTo307SecondHost,
    /// Sends every blob request to itself.
    RedirectLoop,
    /// Sends every blob request on to an address that was not asked for before.
    RedirectOn,
    /// Sends every blob request to this URL.
    RedirectTo(String),
    /// Wants this user; beside `RequireBearer` it is the token server that wants it.
    RequireBasic { user: String, pass: String },
    /// Wants a token of its token server, which lives this long.
    RequireBearer { token_lifetime: Duration },
    /// Names this realm in its challenges.
    Realm(String),
    /// The token server answers 503.
    TokenServerDown,
    /// The token server answers with a web page.
    TokenServerHtml,
    /// The token server redirects to the second host.
    TokenServerRedirects,
    /// Compresses the body, as a proxy does for browsers.
    ContentEncodingGzip,
    /// One bit in the middle of each body is wrong.
    FlipBit,
    /// The bit at this place of each body is wrong; past its end, it begins anew.
    FlipBitAt(u64),
    /// No token that was given so far is good any longer.
    TokensEnd,
    /// No signed URL that was given so far is good any longer.
    SignedUrlsEnd,
    /// Signed URLs are good for so long.
    SignedUrlsLive(Duration),
    /// Sends the heads of blobs this late.
    FirstByteAfter(Duration),
    /// Sends bodies of blobs this slowly.
    SlowBytesPerSecond(u64),
    /// Answers requests for blobs and manifests with a web page.
    Html,
    /// Manifests are documents of this many bytes.
    BigManifest(u64),
    /// Answers requests of this method with this status, this many times.
    StatusOf { method: &'static str, code: u16, times: u32 },
    /// Lists referrers, this many on a page. Without this the registry knows no referrers.
    ReferrersApi { page: usize },
    /// Lists all referrers, whatever kind was asked for.
    ReferrersUnfiltered,
    /// Every page of referrers leads to itself.
    ReferrersLoop,
    /// Every page of referrers leads to another one that never was.
    ReferrersEndless,
    /// Only the first page of referrers is there.
    ReferrersHole,
    /// Every page of referrers leads to the second host.
    ReferrersElsewhere,
    /// Names this place for uploads instead of a relative one.
    UploadAt(Place),
    /// Names this text as the place for uploads.
    UploadLocation(String),
    /// Stores what is uploaded and never says so.
    SilentAfterPut,
    /// Says that it stored something of this digest.
    StoredDigestHeader(String),
    /// Whenever a tag is written, somebody else writes what was there before.
    TagsSnapBack,
    /// Manifests come with this Docker-Content-Digest.
    ManifestDigestHeader(String),
}
