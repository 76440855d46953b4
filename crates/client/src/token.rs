//! The number that orders the holders of a role, and how it travels.

use core::fmt;
use core::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use satrap_proto::v1;

/// The header, or gRPC metadata key, that carries a token: `EPOCH-COUNTER`, both decimal.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("satrap-fencing-token");

/// Proof of having been granted a role; larger means later. Zero is never granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken {
    /// Grows when the ring is restored, so that grants lost by it are never repeated.
    pub epoch: u32,
    /// Grants within that epoch.
    pub counter: u32,
}

/// A text that is not `EPOCH-COUNTER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fencing token is written EPOCH-COUNTER, two decimal numbers below 2^32")]
pub struct NotAToken;

impl FencingToken {
    /// The token as one number, in the same order, for resources that store integers.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.counter)
    }

    /// The token of a number.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a u64")]
    pub fn from_u64(number: u64) -> Self {
        Self { epoch: (number >> 32) as u32, counter: number as u32 }
    }

    /// Adds the token to the headers of a request, in place of any other.
    pub fn attach(self, headers: &mut HeaderMap) {
        let text = self.to_string();
        let value = HeaderValue::from_str(&text).expect("digits and a hyphen are visible ASCII");
        headers.insert(TOKEN_HEADER, value);
    }

    /// The token that a request carries; nothing if it has none.
    ///
    /// # Errors
    ///
    /// If what it has is not a token, or there are several.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, NotAToken> {
        let mut values = headers.get_all(TOKEN_HEADER).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map_err(|_| NotAToken)?.parse().map(Some),
            (Some(_), Some(_)) => Err(NotAToken),
        }
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.counter)
    }
}

impl FromStr for FencingToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let number = |digits: &str| {
            // One spelling per token: no sign, no leading zero.
            let is_plain = digits.bytes().all(|b| b.is_ascii_digit());
            let is_short = digits.len() == 1 || !digits.starts_with('0');
            digits.parse().ok().filter(|_| is_plain && is_short).ok_or(NotAToken)
        };
        let (epoch, counter) = text.split_once('-').ok_or(NotAToken)?;
        Ok(Self { epoch: number(epoch)?, counter: number(counter)? })
    }
}

impl From<v1::FencingToken> for FencingToken {
    fn from(token: v1::FencingToken) -> Self {
        Self { epoch: token.epoch, counter: token.counter }
    }
}

impl From<FencingToken> for v1::FencingToken {
    fn from(token: FencingToken) -> Self {
        Self { epoch: token.epoch, counter: token.counter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strangers_do_not_pass_for_tokens() {
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "01-2", "1-4294967296", "1 - 2"] {
            assert_eq!(text.parse::<FencingToken>(), Err(NotAToken), "{text:?}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(FencingToken::of(&headers), Ok(None));
        headers.append(TOKEN_HEADER, HeaderValue::from_static("1-33"));
        headers.append(TOKEN_HEADER, HeaderValue::from_static("1-34"));
        assert_eq!(FencingToken::of(&headers), Err(NotAToken));
    }

    proptest! {
        #[test]
        fn a_token_survives_every_form_in_order(a: (u32, u32), b: (u32, u32)) {
            let of = |(epoch, counter)| FencingToken { epoch, counter };
            let (a, b) = (of(a), of(b));
            prop_assert_eq!(a.cmp(&b), a.to_u64().cmp(&b.to_u64()));
            prop_assert_eq!(FencingToken::from_u64(a.to_u64()), a);
            let mut headers = HeaderMap::new();
            b.attach(&mut headers);
            a.attach(&mut headers);
            prop_assert_eq!(FencingToken::of(&headers), Ok(Some(a)));
        }
    }
}
