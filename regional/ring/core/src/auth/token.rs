//! Bearer tokens, as rows of the replicated state: every member accepts them after a change of
//! leader, and a revocation takes effect on all members at one revision.
//!
//! The state holds digests, so a stolen snapshot or log contains no valid token. A token lives for
//! a fixed time, unlike etcd's simple tokens, whose every use is a renewal: a renewal would have to
//! go through the log. Clients authenticate again when their token is refused.

use std::collections::BTreeSet;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    limits,
    table::{Row, Table},
    time::RingTime,
};

/// The digest of a token, as the state stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenDigest(pub [u8; 32]);

impl TokenDigest {
    /// The digest of a token as the client presents it.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(blake3::derive_key("satrap regional bearer token v1", token.as_bytes()))
    }
}

/// The user of a token, and its expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub user: String,
    pub expires: RingTime,
}

/// All tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub rows: Table<Grant>,
    /// Derived: all tokens, by expiry.
    by_expiry: BTreeSet<(RingTime, TokenDigest)>,
    /// Derived: the tokens of each user, by expiry.
    by_user: BTreeSet<(String, RingTime, TokenDigest)>,
}

impl Tokens {
    /// The user of a token, if it is valid at `at`.
    pub fn user(&self, token: &TokenDigest, at: RingTime) -> Option<&str> {
        let grant = self.rows.get(token).filter(|grant| grant.expires > at)?;
        Some(&grant.user)
    }

    /// Adds a token; beyond the user's limit, drops the one that expires first.
    pub fn grant(&mut self, token: TokenDigest, user: String, expires: RingTime) {
        self.revoke(&token);
        while self.of_user(&user).count() >= limits::USER_TOKENS_MAX {
            let Some(oldest) = self.of_user(&user).next() else { break };
            self.revoke(&oldest);
        }
        self.by_expiry.insert((expires, token));
        self.by_user.insert((user.clone(), expires, token));
        self.rows.insert(token, Grant { user, expires });
    }

    fn revoke(&mut self, token: &TokenDigest) {
        if let Some(Grant { user, expires }) = self.rows.remove(token) {
            self.by_expiry.remove(&(expires, *token));
            self.by_user.remove(&(user, expires, *token));
        }
    }

    fn of_user(&self, user: &str) -> impl Iterator<Item = TokenDigest> {
        let first = (user.to_owned(), RingTime(0), TokenDigest([0; 32]));
        let mine = move |(of, ..): &&(String, RingTime, TokenDigest)| *of == first.0;
        let from = (user.to_owned(), RingTime(0), TokenDigest([0; 32]));
        self.by_user.range(from..).take_while(mine).map(|(_, _, token)| *token)
    }

    /// Revokes every token of one user.
    pub fn revoke_user(&mut self, user: &str) {
        for token in self.of_user(user).collect::<Vec<_>>() {
            self.revoke(&token);
        }
    }

    /// Revokes every token.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.by_expiry.clear();
        self.by_user.clear();
    }

    /// Removes a bounded number of expired tokens.
    pub fn expire(&mut self, now: RingTime) {
        for _ in 0..limits::BATCH_TOKEN_EXPIRIES_MAX {
            match self.by_expiry.first() {
                Some((expires, token)) if *expires <= now => {
                    let token = *token;
                    self.revoke(&token);
                }
                _ => break,
            }
        }
    }

    /// Rebuilds the derived fields.
    pub fn rebuild(&mut self) {
        self.by_expiry = self.rows.iter().map(|(token, row)| (row.expires, *token)).collect();
        let mine = |(token, row): (&TokenDigest, &Grant)| (row.user.clone(), row.expires, *token);
        self.by_user = self.rows.iter().map(mine).collect();
    }
}

impl Canonical for Grant {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.user.as_bytes());
        w.u64(self.expires.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let user = r.text(limits::NAME_BYTES_MAX)?.to_owned();
        Ok(Self { user, expires: RingTime(r.u64()?) })
    }
}

impl Row for Grant {
    type Key = TokenDigest;
    const NAME: &'static str = "tokens";
    const SHARDS: u16 = 64;

    fn shard(token: &TokenDigest) -> u16 {
        u16::from(token.0[0]) % Self::SHARDS
    }

    fn encode_key(key: &TokenDigest, w: &mut Writer) {
        w.array(&key.0);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<TokenDigest, DecodeError> {
        Ok(TokenDigest(r.array()?))
    }
}
