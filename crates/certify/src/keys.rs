//! Ed25519 keys, signatures and the addresses derived from them.

use core::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};
use sha2::{Digest as _, Sha256};

/// The 64 bytes of an Ed25519 signature (RFC 8032).
pub type SignatureBytes = [u8; 64];

/// A compressed Ed25519 public key. Whether it is a usable curve point shows at verification.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The public half of `key`.
    #[must_use]
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }

    /// The Tendermint account id: the first 20 bytes of SHA-256 over the key.
    #[must_use]
    pub fn address(&self) -> Address {
        let hash = Sha256::digest(self.0);
        Address(hash[..20].try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Whether `signature` is this key's over `message`, by the strict rules: canonical `S`, no
    /// small-order points. Whatever passes here also passes Tendermint's laxer ZIP-215 check.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &SignatureBytes) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .is_ok()
    }

    /// Whether the bytes are a curve point of full order, so that signatures can ever verify, in
    /// its one canonical encoding, so that no key can be listed twice under two spellings.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| !key.is_weak() && key.to_edwards().compress().to_bytes() == self.0)
    }
}

/// Signs `message`.
#[must_use]
pub fn sign(key: &SigningKey, message: &[u8]) -> SignatureBytes {
    key.sign(message).to_bytes()
}

/// A validator's address: the first 20 bytes of SHA-256 over its public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 20]);

macro_rules! hex_and_canonical {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), hex::encode(self.0))
            }
        }

        impl Canonical for $type {
            fn encode(&self, w: &mut Writer) {
                w.array(&self.0);
            }

            fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                r.array().map(Self)
            }
        }
    };
}

hex_and_canonical!(PublicKey);
hex_and_canonical!(Address);
