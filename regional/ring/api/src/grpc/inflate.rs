//! Decompresses one gzip message within a bound on its size.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

/// The size of the buffer for the first piece of a message.
const FIRST_BYTES: usize = 4 * 1024;

/// Why a message was not decompressed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is longer than the bound.
    TooLong,
    /// The input is not a single, valid gzip stream.
    Broken(io::Error),
}

/// Decompresses `compressed` to at most `bytes_max` bytes. It must be one gzip member: each of many takes
/// time, and may hold no bytes at all.
///
/// The result has no spare room. While it grows it is in memory twice, which happens on one thread at a
/// time: nothing here waits.
pub(super) fn gzip(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let mut decoder = GzDecoder::new(compressed);
    let (mut message, mut filled) = (Vec::new(), 0);
    loop {
        if filled > bytes_max {
            return Err(Failure::TooLong);
        }
        if filled == message.len() {
            // One byte beyond the bound shows that the message is too long.
            let len = (2 * filled).max(FIRST_BYTES).min(bytes_max + 1);
            message.reserve_exact(len - filled);
            message.resize(len, 0);
        }
        match decoder.read(&mut message[filled..]).map_err(Failure::Broken)? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    if !decoder.into_inner().is_empty() {
        return Err(Failure::Broken(io::Error::other("bytes follow the end of the gzip member")));
    }
    message.truncate(filled);
    message.shrink_to_fit();
    Ok(message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn compress(bytes: usize) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&vec![b'v'; bytes]).unwrap();
        encoder.finish().unwrap()
    }

    /// FRAME-4: at the bound and one over it, with lengths around those at which room is made.
    #[test]
    fn what_comes_out_takes_what_it_needs() {
        for bytes_max in [FIRST_BYTES - 1, FIRST_BYTES, 2 * FIRST_BYTES, 100_000] {
            for bytes in [0, 1, bytes_max - 1, bytes_max] {
                let message = gzip(&compress(bytes), bytes_max).unwrap();
                assert_eq!((message.len(), message.capacity()), (bytes, bytes), "{bytes_max}");
            }
            for bytes in [bytes_max + 1, 10 * bytes_max] {
                let refused = gzip(&compress(bytes), bytes_max);
                assert!(matches!(refused, Err(Failure::TooLong)), "{bytes} of {bytes_max}");
            }
        }
    }

    /// Two megabytes of members out of which nothing comes took a hundred thousand starts.
    #[test]
    fn a_message_is_one_member() {
        for second in [compress(3), compress(0), vec![0]] {
            let joined = [compress(5_000), second].concat();
            let Err(Failure::Broken(error)) = gzip(&joined, 10_000) else { panic!("taken") };
            assert!(error.to_string().contains("follow the end"), "{error}");
        }
    }
}
