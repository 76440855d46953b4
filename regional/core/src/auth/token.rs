//! Bearer tokens: rows of the replicated state, so that every member knows them after a change of
//! leader, and a revocation counts on all members at one revision.
//!
//! The state holds digests. Whoever steals a snapshot or a log learns no token that still works.
//! A token lives for a fixed time, unlike etcd's simple tokens whose every use is a renewal: a
//! renewal would have to go through the log. Clients authenticate again when theirs is refused.

use std::collections::BTreeSet;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    keyspace::RingTime,
    limits,
    table::{Row, Table},
};

/// What the state knows of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenDigest(pub [u8; 32]);

impl TokenDigest {
    /// The digest of a token as the client presents it.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(blake3::derive_key("satrap regional bearer token v1", token.as_bytes()))
    }
}

/// Whose token, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub user: String,
    pub expires: RingTime,
}

/// All tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub rows: Table<Grant>,
    /// Derived: those that end first come first.
    by_expiry: BTreeSet<(RingTime, TokenDigest)>,
    /// Derived: those of one user, those that end first come first.
    by_user: BTreeSet<(String, RingTime, TokenDigest)>,
}

impl Tokens {
    /// Whose token this is, if it is valid at `at`.
    pub fn user(&self, token: &TokenDigest, at: RingTime) -> Option<&str> {
        let grant = self.rows.get(token).filter(|grant| grant.expires > at)?;
        Some(&grant.user)
    }

    /// Gives a token; beyond the user's limit the one that would end first gives way.
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

    /// Ends every token of one user.
    pub fn revoke_user(&mut self, user: &str) {
        for token in self.of_user(user).collect::<Vec<_>>() {
            self.revoke(&token);
        }
    }

    /// Ends every token.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.by_expiry.clear();
        self.by_user.clear();
    }

    /// Forgets some of the tokens whose time is over.
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

    /// Rebuilds what is derived.
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
