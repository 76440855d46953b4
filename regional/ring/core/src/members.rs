//! The member registry: invitations into the ring, and the client URLs of its members.
//!
//! The voters are part of Raft's membership, not of this registry. A member enters the membership
//! only after it has contacted the ring and shown its certificate: etcd counts an added member as a
//! voter before it has ever run, so a typo can cost a ring of three its quorum. Here `member add`
//! writes an *invitation* for an address; a process at that address with a certificate of this ring
//! accepts it, becomes a learner, and is promoted once it has caught up.
//!
//! # Invariants
//!
//! - **INVITATION-1** An address is invited at most once.
//! - **INVITATION-2** The attributes that a member publishes are kept under its id until it is
//!   removed.

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    limits,
    refusal::Refusal,
    table::{Row, Table},
};

/// An address from which a member may join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The URLs where its peers will reach it.
    pub peer_urls: Vec<String>,
    /// Whether the operator asked for a learner. The member is promoted all the same once it has
    /// caught up, and a later request to promote it succeeds.
    pub learner: bool,
}

/// The attributes that a member publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The URLs where clients reach it.
    pub client_urls: Vec<String>,
}

/// A change of invitations or attributes; the API checks the caller's permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberRequest {
    /// Invites a member, or changes the address of an invited one.
    Invite {
        /// Its id; chosen by the member that received the request.
        id: u64,
        /// The invitation.
        invitation: Invitation,
    },
    /// Removes an invitation or attributes: the member joined, was removed, or is no longer
    /// invited.
    Forget {
        /// The id.
        id: u64,
    },
    /// Publishes the attributes of a member.
    Publish {
        /// The id.
        id: u64,
        /// Its attributes.
        published: Published,
    },
}

/// The member registry.
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
                // INVITATION-1
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
            // INVITATION-2
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

    /// All invitations, by id.
    pub fn invited(&self) -> impl Iterator<Item = (u64, &Invitation)> {
        self.invited.iter().map(|(id, invitation)| (*id, invitation))
    }

    /// The attributes that a member has published.
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
    fn an_invited_member_may_change_its_address() {
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
