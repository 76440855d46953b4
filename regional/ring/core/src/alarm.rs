//! Alarms: the members that are out of space or corrupt, and the requests that the ring refuses
//! meanwhile.
//!
//! As in etcd: while a member has NOSPACE, the ring refuses to write keys and to grant leases; while
//! a member is CORRUPT, the ring refuses all writes, because no member can say which copy is right.

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    limits,
    refusal::Refusal,
    table::{Row, Table},
};

/// The kind of an alarm. The numbers are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AlarmKind {
    /// The quota is used up.
    NoSpace = 1,
    /// The member's state differs from the others'.
    Corrupt = 2,
}

impl AlarmKind {
    fn from_number(number: u8) -> Result<Self, DecodeError> {
        match number {
            1 => Ok(Self::NoSpace),
            2 => Ok(Self::Corrupt),
            _ => Err(DecodeError::Invalid("alarm")),
        }
    }
}

/// An alarm of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlarmMember {
    /// Its kind.
    pub kind: AlarmKind,
    /// The member's id.
    pub member: u64,
}

/// Raises or clears an alarm. Listing is a read: [`Alarms::list`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmRequest {
    /// Raise.
    Activate(AlarmMember),
    /// Clear.
    Deactivate(AlarmMember),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Raised;

/// The alarms of all members.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    pub(crate) raised: Table<Raised>,
}

impl Alarms {
    /// Raises or clears an alarm; returns the alarms that changed.
    pub(crate) fn apply(&mut self, request: &AlarmRequest) -> Result<Vec<AlarmMember>, Refusal> {
        match request {
            AlarmRequest::Activate(alarm) => {
                if self.raised.len() >= limits::ALARMS_MAX && self.raised.get(alarm).is_none() {
                    return Err(Refusal::Full("alarms"));
                }
                self.raised.insert(*alarm, Raised);
                Ok(vec![*alarm])
            }
            AlarmRequest::Deactivate(alarm) => Ok(self.clear(*alarm).into_iter().collect()),
        }
    }

    /// Clears an alarm and returns it, if it was raised.
    pub(crate) fn clear(&mut self, alarm: AlarmMember) -> Option<AlarmMember> {
        self.raised.remove(&alarm).map(|_| alarm)
    }

    /// All alarms of one kind, or of every kind, in order of kind and member.
    pub fn list(&self, kind: Option<AlarmKind>) -> impl Iterator<Item = AlarmMember> {
        let of_kind = move |alarm: &AlarmMember| kind.is_none_or(|kind| alarm.kind == kind);
        self.raised.iter().map(|(alarm, _)| *alarm).filter(of_kind)
    }

    /// Whether an alarm of this kind is raised for any member.
    #[must_use]
    pub fn any(&self, kind: AlarmKind) -> bool {
        self.raised.len() != 0 && self.list(Some(kind)).next().is_some()
    }
}

impl Canonical for AlarmMember {
    fn encode(&self, w: &mut Writer) {
        w.u8(self.kind as u8);
        w.u64(self.member);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { kind: AlarmKind::from_number(r.u8()?)?, member: r.u64()? })
    }
}

impl Canonical for AlarmRequest {
    fn encode(&self, w: &mut Writer) {
        let (tag, alarm) = match self {
            Self::Activate(alarm) => (0, alarm),
            Self::Deactivate(alarm) => (1, alarm),
        };
        w.u8(tag);
        alarm.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Self::Activate(AlarmMember::decode(r)?)),
            1 => Ok(Self::Deactivate(AlarmMember::decode(r)?)),
            _ => Err(DecodeError::Invalid("alarm request")),
        }
    }
}

impl Canonical for Raised {
    fn encode(&self, _: &mut Writer) {}

    fn decode(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Row for Raised {
    type Key = AlarmMember;
    const NAME: &'static str = "alarms";
    const PAGE_ROWS_MAX: usize = limits::ALARMS_MAX;

    fn encode_key(key: &AlarmMember, w: &mut Writer) {
        key.encode(w);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<AlarmMember, DecodeError> {
        AlarmMember::decode(r)
    }
}
