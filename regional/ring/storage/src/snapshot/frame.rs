//! The encoding of one frame: a bounded piece of a snapshot whose digest covers it and all frames
//! before it.
//!
//! ```text
//!   magic u32 │ kind u8 │ number u64 │ length u32 │ payload │ digest [32]
//!   digest = blake3(digest of the frame before ‖ everything left of it)
//! ```
//!
//! Digests are chained, so a frame fits in one place of one stream only, and the digest of the last
//! frame covers all of them. A receiver needs only 32 bytes to interrupt and resume a stream
//! anywhere.

use bytes::{Buf, BufMut};

use super::Refused;
use crate::limits::FRAME_BYTES_MAX;

const MAGIC: u32 = 0x7370_6e73;
pub(super) const PREFIX_BYTES: usize = 4 + 1 + 8 + 4;
const DIGEST_BYTES: usize = 32;
/// The largest payload of a frame.
pub(super) const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - PREFIX_BYTES - DIGEST_BYTES;

/// The digest of a frame and of all frames before it.
pub(super) type Chain = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first frame: describes the snapshot.
    Header = 1,
    /// Bytes of rows; a row may go on in the next frame.
    Rows = 2,
    /// The last frame; empty.
    Trailer = 3,
}

/// A frame whose digest matched.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    pub kind: Kind,
    pub payload: &'a [u8],
    pub chain: Chain,
}

/// Encodes `payload` as a frame; returns it and its digest.
pub(super) fn encode(kind: Kind, number: u64, payload: &[u8], before: &Chain) -> (Vec<u8>, Chain) {
    let mut out = Vec::with_capacity(PREFIX_BYTES + payload.len() + DIGEST_BYTES);
    out.put_u32_le(MAGIC);
    out.put_u8(kind as u8);
    out.put_u64_le(number);
    out.put_u32_le(u32::try_from(payload.len()).expect("a payload within its limit"));
    out.put_slice(payload);
    let chain = chain(before, &out);
    out.put_slice(&chain);
    (out, chain)
}

fn chain(before: &Chain, frame: &[u8]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(frame);
    *hasher.finalize().as_bytes()
}

/// The length of the frame that begins with `prefix`.
pub(super) fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, Refused> {
    let mut rest = &prefix[..];
    let magic = rest.get_u32_le();
    rest.advance(1 + 8);
    let payload_bytes = rest.get_u32_le() as usize;
    if magic != MAGIC {
        return Err(Refused::Malformed(
            "it is another kind of file, or damaged; take another copy of the snapshot",
        ));
    }
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(Refused::Malformed("a frame is longer than the limit"));
    }
    Ok(PREFIX_BYTES + payload_bytes + DIGEST_BYTES)
}

/// The number in a frame, unverified.
pub(super) fn number(frame: &[u8]) -> Result<u64, Refused> {
    let prefix = frame.first_chunk().ok_or(Refused::Malformed("a frame is cut short"))?;
    length(prefix)?;
    Ok((&prefix[5..]).get_u64_le())
}

/// Verifies and opens frame `number`, which must follow the frame whose digest is `before`.
pub(super) fn open<'a>(
    frame: &'a [u8],
    number: u64,
    before: &Chain,
) -> Result<Opened<'a>, Refused> {
    let found = self::number(frame)?;
    let prefix = frame.first_chunk().ok_or(Refused::Malformed("a frame is cut short"))?;
    if length(prefix)? != frame.len() {
        return Err(Refused::Malformed("a frame is not as long as it says"));
    }
    if found != number {
        return Err(Refused::OutOfOrder { expected: number, found });
    }
    let (signed, digest) = frame
        .split_last_chunk::<DIGEST_BYTES>()
        .ok_or(Refused::Malformed("a frame is cut short"))?;
    let chain = chain(before, signed);
    if chain != *digest {
        return Err(Refused::Digest { frame: number });
    }
    let kind = match frame[4] {
        1 => Kind::Header,
        2 => Kind::Rows,
        3 => Kind::Trailer,
        _ => return Err(Refused::Malformed("a frame of unknown kind")),
    };
    Ok(Opened { kind, payload: &signed[PREFIX_BYTES..], chain })
}
