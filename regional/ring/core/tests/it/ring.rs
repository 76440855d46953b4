//! A keyspace with short methods for tests.

use bytes::Bytes;
use satrap_ring_core::{
    Batch, Caller, Keyspace, Proposal, Refusal, Reply, Request, Response, RingTime,
    auth::{AuthRequest, Permission, PermissionKind},
    fencing::GrantRole,
    fencing_token::FencingToken,
    kv::{DeleteRangeRequest, KeyRange, LeaseId, PutRequest, Revision},
};

/// A keyspace and the caller of its requests.
#[derive(Default)]
pub struct Ring {
    pub keyspace: Keyspace,
    pub now: u64,
    pub caller: Caller,
}

impl Ring {
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies a batch of one.
    pub fn ask(&mut self, request: Request) -> Reply {
        let proposal = Proposal { caller: self.caller.clone(), request };
        let batch = Batch { time: RingTime(self.now), proposals: vec![proposal] };
        let mut replies = self.keyspace.apply(&batch);
        assert_eq!(replies.len(), 1);
        replies.remove(0)
    }

    /// Advances time.
    pub fn at(&mut self, ms: u64) -> &mut Self {
        self.now = ms;
        self.ask(Request::Tick).unwrap();
        self
    }

    /// Sets the caller to this user, authenticated just now; anonymous if the name is empty.
    pub fn by(&mut self, user: &str) -> &mut Self {
        self.caller = match user {
            "" => Caller::default(),
            user => self.keyspace.auth().caller_of_user(user),
        };
        self
    }

    pub fn auth(&mut self, request: AuthRequest) -> Result<(), Refusal> {
        self.ask(Request::Auth(request)).map(|_| ())
    }

    pub fn put(&mut self, key: &str, value: &str) -> Result<Revision, Refusal> {
        self.put_by(key, value, 0)
    }

    pub fn put_by(&mut self, key: &str, value: &str, lease: LeaseId) -> Result<Revision, Refusal> {
        let put = PutRequest { lease, ..put(key, value) };
        self.ask(Request::Put(put)).map(|response| response.revision())
    }

    pub fn delete(&mut self, key: &str) -> Result<Revision, Refusal> {
        let delete = DeleteRangeRequest { range: KeyRange::key(text(key)), prev_kv: false };
        self.ask(Request::DeleteRange(delete)).map(|response| response.revision())
    }

    pub fn grant(&mut self, id: LeaseId, ttl_s: i64) -> Result<i64, Refusal> {
        match self.ask(Request::LeaseGrant { id, ttl_s })? {
            Response::LeaseGranted { id: granted, ttl_s, .. } => {
                assert_eq!(granted, id);
                Ok(ttl_s)
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn renew(&mut self, id: LeaseId) -> Result<i64, Refusal> {
        match self.ask(Request::LeaseRenew { id })? {
            Response::LeaseRenewed { ttl_s, .. } => Ok(ttl_s),
            other => panic!("{other:?}"),
        }
    }

    pub fn role(
        &mut self,
        role: &str,
        holder: &str,
        lease: LeaseId,
    ) -> Result<FencingToken, Refusal> {
        let grant = GrantRole { role: role.into(), holder: holder.into(), ttl_s: 5, lease };
        match self.ask(Request::GrantRole(grant))? {
            Response::RoleGranted { token, .. } => Ok(token),
            other => panic!("{other:?}"),
        }
    }

    pub fn value(&self, key: &str) -> Option<String> {
        let kv = self.keyspace.store().get(key.as_bytes())?;
        (!kv.is_deletion()).then(|| String::from_utf8_lossy(kv.value()).into_owned())
    }

    pub fn keys_of(&self, lease: LeaseId) -> Vec<String> {
        let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
        self.keyspace.leases().keys(lease).map(text).collect()
    }

    /// Users `root` and `u`; `u` has the role `r` with these permissions. Authentication is on.
    pub fn guarded(permissions: &[(PermissionKind, &str, &str)]) -> Self {
        let mut ring = Self::new();
        let all = [
            AuthRequest::UserAdd { name: "root".into(), password: Some("hash".into()) },
            AuthRequest::UserGrantRole { user: "root".into(), role: "root".into() },
            AuthRequest::UserAdd { name: "u".into(), password: Some("hash of u".into()) },
            AuthRequest::RoleAdd { name: "r".into() },
            AuthRequest::UserGrantRole { user: "u".into(), role: "r".into() },
        ];
        all.into_iter().for_each(|request| ring.auth(request).unwrap());
        for (kind, start, end) in permissions {
            ring.allow(*kind, start, end);
        }
        ring.auth(AuthRequest::Enable).unwrap();
        ring
    }

    pub fn allow(&mut self, kind: PermissionKind, start: &str, end: &str) {
        let permission = Permission { kind, range: KeyRange::between(text(start), text(end)) };
        self.auth(AuthRequest::RoleGrantPermission {
            name: "r".into(),
            permission: Some(permission),
        })
        .unwrap();
    }
}

pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn put(key: &str, value: &str) -> PutRequest {
    PutRequest::of(text(key), text(value))
}
