//! Permissions of a role on ranges of keys, and the union of the permissions of a user's roles.
//!
//! A user may access a range if its permissions of that kind *together* cover it: two adjacent
//! ranges permit a read across their border, as in etcd.

use bytes::Bytes;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::kv::request::KeyRange;

/// The kind of a permission. The numbers are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PermissionKind {
    /// Read only.
    Read = 0,
    /// Write only.
    Write = 1,
    /// Both.
    ReadWrite = 2,
}

/// One permission of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Its kind.
    pub kind: PermissionKind,
    /// The keys; ranges are interpreted as in requests.
    pub range: KeyRange,
}

/// The access that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Keys `[start, end)`; `None` is the end of the keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    fn of(range: &KeyRange) -> Self {
        let end = match range.end.as_ref() {
            // One key: a span up to its successor.
            b"" => Some([range.start.as_ref(), b"\0"].concat().into()),
            b"\0" => None,
            _ => Some(range.end.clone()),
        };
        Self { start: range.start.clone(), end }
    }

    fn reaches(&self, key: &Bytes) -> bool {
        self.end.as_ref().is_none_or(|end| end >= key)
    }
}

/// Whether a permission can have this range, by etcd's rules.
pub(crate) fn is_valid(range: &KeyRange) -> bool {
    !range.start.is_empty()
        && (range.end.is_empty() || range.start < range.end || range.end.as_ref() == b"\0")
}

/// Disjoint spans in order, none adjacent to the next.
#[derive(Clone, Debug, Default)]
struct Cover(Vec<Span>);

impl Cover {
    fn of(mut spans: Vec<Span>) -> Self {
        spans.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.reaches(&span.start) => {
                    let longer = match (&last.end, &span.end) {
                        (Some(last), Some(end)) => end > last,
                        (last, None) => last.is_some(),
                        (None, Some(_)) => false,
                    };
                    if longer {
                        last.end = span.end;
                    }
                }
                _ => merged.push(span),
            }
        }
        Self(merged)
    }

    /// The spans between those of this cover, before the first and after the last.
    fn gaps(&self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        let ends = self.0.iter().map(|span| span.end.clone());
        let starts = self.0.iter().map(|span| Some(span.start.clone())).chain([None]);
        // Nothing follows a span that reaches to the end of the keyspace.
        let from = std::iter::once(Some(Bytes::new())).chain(ends).map_while(|end| end);
        from.zip(starts)
    }

    fn contains(&self, asked: &Span) -> bool {
        let after = self.0.partition_point(|span| span.start <= asked.start);
        let Some(span) = after.checked_sub(1).map(|before| &self.0[before]) else { return false };
        // etcd permits or denies a range that ends before it starts by the shape of the tree in
        // which it keeps permissions. Such a range holds no key, so no client needs it.
        if asked.end.as_ref().is_some_and(|end| *end < asked.start) {
            return false;
        }
        let starts_inside = span.end.as_ref().is_none_or(|end| end > &asked.start);
        let ends_inside = match (&span.end, &asked.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(asked)) => end >= asked,
        };
        starts_inside && ends_inside
    }
}

/// The union of the permissions of all roles of one user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    read: Cover,
    write: Cover,
}

impl Allowed {
    pub fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let span = Span::of(&permission.range);
            match permission.kind {
                PermissionKind::Read => read.push(span),
                PermissionKind::Write => write.push(span),
                PermissionKind::ReadWrite => {
                    read.push(span.clone());
                    write.push(span);
                }
            }
        }
        Self { read: Cover::of(read), write: Cover::of(write) }
    }

    fn cover(&self, access: Access) -> &Cover {
        match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        }
    }

    pub fn covers(&self, access: Access, range: &KeyRange) -> bool {
        self.cover(access).contains(&Span::of(range))
    }

    /// The spans of keys, in order, to which this access is not permitted: each from its first key up to, not
    /// including, its end; `None` is the end of the keyspace.
    pub fn gaps(&self, access: Access) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        self.cover(access).gaps()
    }
}

impl Canonical for Permission {
    fn encode(&self, w: &mut Writer) {
        w.u8(self.kind as u8);
        self.range.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = match r.u8()? {
            0 => PermissionKind::Read,
            1 => PermissionKind::Write,
            2 => PermissionKind::ReadWrite,
            _ => return Err(DecodeError::Invalid("permission")),
        };
        Ok(Self { kind, range: KeyRange::decode(r)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: Bytes::from(start), end: Bytes::from(end) }
    }

    fn reads(ranges: &[(&'static str, &'static str)]) -> Allowed {
        let permission = |&(start, end): &(&'static str, &'static str)| Permission {
            kind: PermissionKind::Read,
            range: range(start, end),
        };
        let permissions: Vec<_> = ranges.iter().map(permission).collect();
        Allowed::of(permissions.iter())
    }

    #[test]
    fn adjacent_ranges_allow_across_their_border_and_gaps_do_not() {
        let allowed = reads(&[("c", "e"), ("a", "c"), ("f", ""), ("x", "\0")]);
        assert!(allowed.covers(Access::Read, &range("a", "e")));
        assert!(allowed.covers(Access::Read, &range("b", "")));
        assert!(!allowed.covers(Access::Read, &range("a", "f")), "e is missing");
        assert!(!allowed.covers(Access::Read, &range("e", "")));
        assert!(allowed.covers(Access::Read, &range("f", "f\0")), "a point is a range of one key");
        assert!(!allowed.covers(Access::Read, &range("f", "g")));
        assert!(allowed.covers(Access::Read, &range("y", "\0")));
        assert!(!allowed.covers(Access::Read, &range("w", "\0")));
        assert!(!allowed.covers(Access::Write, &range("a", "")), "reading is not writing");
    }

    #[test]
    fn an_inverted_range_opens_nothing() {
        let allowed = reads(&[("b", "d")]);
        assert!(!allowed.covers(Access::Read, &range("z", "b")));
        assert!(!allowed.covers(Access::Read, &range("a", "b")));
    }

    /// etcd denies both: it does not find `[y, z)` from the root of its tree, `[b, d)`.
    #[test]
    fn an_inverted_range_that_starts_where_reading_is_allowed_is_denied() {
        let allowed = reads(&[("b", "d"), ("x", "z")]);
        assert!(!allowed.covers(Access::Read, &range("y", "a")));
        assert!(!allowed.covers(Access::Read, &range("y", "b")));
        assert!(!allowed.covers(Access::Read, &range("c", "b")));
        assert!(allowed.covers(Access::Read, &range("c", "c")), "an empty one is not inverted");
    }

    #[test]
    fn ranges_that_no_key_can_be_in_are_refused() {
        assert!(is_valid(&range("a", "")) && is_valid(&range("a", "b")));
        assert!(is_valid(&range("a", "\0")) && is_valid(&range("\0", "\0")));
        assert!(!is_valid(&range("", "b")) && !is_valid(&range("b", "b")));
        assert!(!is_valid(&range("c", "b")));
    }
}
