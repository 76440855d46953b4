//! A test extension: a register whose commands carry a digest, as those of a real extension carry
//! signatures.

use std::sync::Arc;

use bytes::Bytes;
use satrap_ring_core::{Command, Extension, Extensions, Registration, Rejected, StateSetup};

const TAG: u8 = 9;
const DIGEST_BYTES: usize = 32;

/// The last written value, and the number of writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    version: u64,
    value: Bytes,
}

/// The setup of a ring with a register.
pub fn config() -> StateSetup {
    let initial = Arc::new(Register::default());
    let register = Registration { tag: TAG, page: "register", initial };
    StateSetup { extensions: Extensions::new([register]), ..StateSetup::default() }
}

/// Writes `value`.
pub fn write(value: &[u8]) -> Vec<u8> {
    let body = [&blake3::hash(value).as_bytes()[..], value].concat();
    Command::Extension { tag: TAG, body: body.into() }.encode()
}

/// Changes the value of a command, whose digest stays.
pub fn forged(mut command: Vec<u8>) -> Vec<u8> {
    *command.last_mut().unwrap() ^= 1;
    command
}

fn checked(body: &[u8]) -> Result<Bytes, Rejected> {
    let reject = || Rejected { rule: "CLOCK-1".into(), why: "the digest is another".into() };
    let (digest, value) = body.split_first_chunk::<DIGEST_BYTES>().ok_or_else(reject)?;
    if blake3::hash(value) != *digest {
        return Err(reject());
    }
    Ok(Bytes::copy_from_slice(value))
}

impl Extension for Register {
    fn apply(&self, body: &Bytes) -> Result<Arc<dyn Extension>, Rejected> {
        Ok(Arc::new(Self { version: self.version + 1, value: checked(body)? }))
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn snapshot(&self) -> Vec<u8> {
        let digest = blake3::hash(&self.value);
        [&self.version.to_be_bytes()[..], digest.as_bytes(), &self.value].concat()
    }

    fn restore(&self, page: &[u8]) -> Result<Arc<dyn Extension>, Rejected> {
        let reject = || Rejected { rule: "CLOCK-1".into(), why: "it is cut short".into() };
        let (version, body) = page.split_first_chunk().ok_or_else(reject)?;
        Ok(Arc::new(Self { version: u64::from_be_bytes(*version), value: checked(body)? }))
    }
}
