//! Who has been invited into the ring, and where clients reach its members.
//!
//! Who votes is the log's own business and stands in Raft's membership. Before a member can be in
//! there, it must have come and shown its certificate: etcd's way, to count a member as a voter that
//! nobody has seen yet, can cost a ring of three its quorum by a typing error. So an operator's
//! `member add` writes an *invitation* for an address; whoever comes from there with a certificate of
//! this region takes it, learns first, and votes once it has caught up.
//!
//! # Invariants
//!
//! - **I1** An address is invited at most once.
//! - **I2** What a member says about itself is kept under its id until it is removed.

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    limits,
    refusal::Refusal,
    table::{Row, Table},
};

/// An address from which a member may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Where its peers will reach it.
    pub peer_urls: Vec<String>,
    /// It was asked for as a learner; it gets its vote all the same once it has caught up, and an
    /// operator who promotes it then is not refused.
    pub learner: bool,
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// A change to either; whether the caller may is decided at the rim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberRequest {
    /// Expect a member, or one that is expected already at another address.
    Invite {
        /// What it will be called; chosen at the rim.
        id: u64,
        /// From where it comes.
        invitation: Invitation,
    },
    /// It has come, or shall not come any more, or was removed.
    Forget {
        /// Whose invitation or attributes go.
        id: u64,
    },
    /// A member that is in the ring.
    Publish {
        /// Which.
        id: u64,
        /// What it says.
        published: Published,
    },
}

/// All of that.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub(crate) invited: Table<Invitation>,
    pub(crate) published: Table<Published>,
}

impl Members {
    pub(crate) fn apply(&mut self, request: &MemberRequest) -> Result<(), Refusal> {
        match request {
            MemberRequest::Invite { id, invitation } => {
                let taken = |(other, theirs): (&u64, &Invitation)| {
                    other != id && theirs.peer_urls.iter().any(|u| invitation.peer_urls.contains(u))
                };
                // I1
                if self.invited.iter().any(taken) {
                    return Err(Refusal::PeerUrlExists);
                }
                if self.invited.len() >= limits::INVITATIONS_MAX && self.invited.get(id).is_none() {
                    return Err(Refusal::Full("invitations"));
                }
                self.invited.insert(*id, invitation.clone());
            }
            MemberRequest::Forget { id } => {
                self.invited.remove(id);
                self.published.remove(id);
            }
            // I2
            MemberRequest::Publish { id, published } => {
                if self.published.len() >= limits::PUBLISHED_MAX && self.published.get(id).is_none()
                {
                    return Err(Refusal::Full("members"));
                }
                self.published.insert(*id, published.clone());
            }
        }
        Ok(())
    }

    /// Whoever is expected, by id.
    pub fn invited(&self) -> impl Iterator<Item = (u64, &Invitation)> {
        self.invited.iter().map(|(id, invitation)| (*id, invitation))
    }

    /// What a member says about itself.
    #[must_use]
    pub fn published(&self, id: u64) -> Option<&Published> {
        self.published.get(&id)
    }
}

fn encode_urls(urls: &[String], w: &mut Writer) {
    w.count(urls.len());
    urls.iter().for_each(|url| w.bytes(url.as_bytes()));
}

fn decode_urls(r: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let count = r.count(limits::MEMBER_URLS_MAX)?;
    (0..count).map(|_| r.text(limits::URL_BYTES_MAX).map(str::to_owned)).collect()
}

impl Canonical for Invitation {
    fn encode(&self, w: &mut Writer) {
        encode_urls(&self.peer_urls, w);
        w.u8(u8::from(self.learner));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let peer_urls = decode_urls(r)?;
        let learner = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Invalid("invitation")),
        };
        Ok(Self { peer_urls, learner })
    }
}

impl Canonical for Published {
    fn encode(&self, w: &mut Writer) {
        encode_urls(&self.client_urls, w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { client_urls: decode_urls(r)? })
    }
}

impl Canonical for MemberRequest {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Invite { id, invitation } => {
                w.u8(0);
                w.u64(*id);
                invitation.encode(w);
            }
            Self::Forget { id } => {
                w.u8(1);
                w.u64(*id);
            }
            Self::Publish { id, published } => {
                w.u8(2);
                w.u64(*id);
                published.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Self::Invite { id: r.u64()?, invitation: Invitation::decode(r)? }),
            1 => Ok(Self::Forget { id: r.u64()? }),
            2 => Ok(Self::Publish { id: r.u64()?, published: Published::decode(r)? }),
            _ => Err(DecodeError::Invalid("member request")),
        }
    }
}

impl Row for Invitation {
    type Key = u64;
    const NAME: &'static str = "invited";
    const PAGE_ROWS_MAX: usize = limits::INVITATIONS_MAX;

    fn encode_key(key: &u64, w: &mut Writer) {
        w.u64(*key);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
        r.u64()
    }
}

impl Row for Published {
    type Key = u64;
    const NAME: &'static str = "members";
    const PAGE_ROWS_MAX: usize = limits::PUBLISHED_MAX;

    fn encode_key(key: &u64, w: &mut Writer) {
        w.u64(*key);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
        r.u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation(url: &str) -> Invitation {
        Invitation { peer_urls: vec![url.to_owned()], learner: false }
    }

    #[test]
    fn an_address_is_invited_once_and_again_after_it_was_forgotten() {
        let mut members = Members::default();
        let invite = |id, url: &str| MemberRequest::Invite { id, invitation: invitation(url) };
        members.apply(&invite(1, "https://a:1")).unwrap();
        assert_eq!(members.apply(&invite(2, "https://a:1")), Err(Refusal::PeerUrlExists));
        members.apply(&invite(2, "https://b:1")).unwrap();
        assert_eq!(members.invited().map(|(id, _)| id).collect::<Vec<_>>(), [1, 2]);
        members.apply(&MemberRequest::Forget { id: 1 }).unwrap();
        members.apply(&invite(3, "https://a:1")).unwrap();
    }

    #[test]
    fn whoever_is_expected_may_come_from_elsewhere() {
        let mut members = Members::default();
        let invite = |id, url: &str| MemberRequest::Invite { id, invitation: invitation(url) };
        for id in 0..limits::INVITATIONS_MAX as u64 {
            members.apply(&invite(id, &format!("https://a:{id}"))).unwrap();
        }
        let more = invite(u64::MAX, "https://b:1");
        assert_eq!(members.apply(&more), Err(Refusal::Full("invitations")));
        assert_eq!(members.apply(&invite(0, "https://a:1")), Err(Refusal::PeerUrlExists));
        members.apply(&invite(0, "https://b:1")).unwrap();
        members.apply(&invite(1, "https://a:0")).unwrap();
        assert_eq!(members.invited().count(), limits::INVITATIONS_MAX);
    }

    #[test]
    fn requests_survive_the_encoding() {
        for request in [
            MemberRequest::Invite { id: 7, invitation: invitation("https://a:1") },
            MemberRequest::Forget { id: 8 },
            MemberRequest::Publish {
                id: u64::MAX,
                published: Published { client_urls: vec!["https://c:2".into(), "x".into()] },
            },
        ] {
            assert_eq!(MemberRequest::from_canonical(&request.to_canonical()), Ok(request));
        }
    }
}
