//! Names: short, printable, and safe as parts of paths, SPIFFE ids and Merkle keys.

use core::fmt;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::limits::{BUNDLE_NAME_BYTES_MAX, CHAIN_ID_BYTES_MAX, LABEL_BYTES_MAX};

/// A text that is not a name of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: expected {expected}")]
pub struct NameError {
    text: String,
    kind: &'static str,
    expected: &'static str,
}

fn is_label(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:expr, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Checks `text`.
            ///
            /// # Errors
            ///
            /// [`NameError`] says what was expected.
            pub fn new(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    return Ok(Self(text.to_owned()));
                }
                let text = text.chars().take(2 * $max).collect();
                Err(NameError { text, kind: $kind, expected: $expected })
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl core::str::FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Canonical for $type {
            fn encode(&self, w: &mut Writer) {
                w.bytes(self.0.as_bytes());
            }

            fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::new(r.text($max)?).map_err(|_| DecodeError::Invalid($kind))
            }
        }
    };
}

name!(
    /// The name of a realm; part of every signature.
    ChainId,
    "chain id",
    CHAIN_ID_BYTES_MAX,
    "1 to 50 of a-z 0-9 - _ . starting with a letter or digit",
    |text| is_label(text, CHAIN_ID_BYTES_MAX)
);
name!(
    /// The name of a validator, region, member, edge or principal.
    Label,
    "name",
    LABEL_BYTES_MAX,
    "1 to 63 of a-z 0-9 - _ . starting with a letter or digit",
    |text| is_label(text, LABEL_BYTES_MAX)
);
name!(
    /// The name of a bundle: labels joined by slashes, such as `pki/edge-trust`.
    BundleName,
    "bundle name",
    BUNDLE_NAME_BYTES_MAX,
    "labels of a-z 0-9 - _ . joined by `/`, at most 128 bytes in all",
    |text| text.len() <= BUNDLE_NAME_BYTES_MAX
        && text.split('/').all(|label| is_label(label, LABEL_BYTES_MAX))
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_alphabet_and_length() {
        for good in ["pki/edge-trust", "a", "x/y/z.0_1"] {
            assert_eq!(BundleName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "/a", "a/", "a//b", "A", "a b", "../etc", "a/../b", "a\0", ".hidden"] {
            let error = BundleName::new(bad).unwrap_err();
            assert!(error.to_string().contains("expected"), "{error}");
        }
        assert!(Label::new(&"a".repeat(LABEL_BYTES_MAX)).is_ok());
        assert!(Label::new(&"a".repeat(LABEL_BYTES_MAX + 1)).is_err());
        assert!(ChainId::new(&"a".repeat(CHAIN_ID_BYTES_MAX)).is_ok());
        assert!(ChainId::new(&"a".repeat(CHAIN_ID_BYTES_MAX + 1)).is_err());
        assert!(BundleName::new(&["a"; 64].join("/")).is_ok());
        assert!(BundleName::new(&["a"; 65].join("/")).is_err());
    }
}
