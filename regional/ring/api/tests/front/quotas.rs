//! Quotas: what operators set, what writers meet, and who may do which.

use bytes::Bytes;
use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::auth_client::AuthClient;
use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::lease_client::LeaseClient;
use satrap_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use satrap_proto::fault::Fault;
use satrap_proto::v1::store_client::StoreClient;
use satrap_proto::v1::{self, FaultKind, Quota};
use satrap_ring_core::kv::VERSION_OVERHEAD_BYTES;
use satrap_ring_core::limits::QUOTA_PREFIX_BYTES_MAX;
use satrap_ring_core::quota::TOTAL_BYTES_MAX_DEFAULT;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::harness::Member;

/// A client, by token.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    token: Option<String>,
}

impl Caller {
    fn asks<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    fn store(&self) -> StoreClient<Channel> {
        StoreClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str, value: &str) -> Result<(), Status> {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let put = self.asks(pb::PutRequest { key, value, ..Default::default() });
        KvClient::new(self.channel.clone()).put(put).await.map(drop)
    }

    async fn set(&self, prefix: &str, bytes_max: u64, keys_max: u64) -> Result<Quota, Status> {
        let prefix = prefix.to_owned().into();
        let set = self.asks(v1::SetQuotaRequest { prefix, bytes_max, keys_max });
        Ok(self.store().set_quota(set).await?.into_inner().quota.unwrap())
    }

    async fn remove(&self, prefix: &str) -> Result<(), Status> {
        let remove = self.asks(v1::RemoveQuotaRequest { prefix: prefix.to_owned().into() });
        self.store().remove_quota(remove).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<Quota>, Status> {
        let list = self.asks(v1::ListQuotasRequest::default());
        Ok(self.store().list_quotas(list).await?.into_inner().quotas)
    }
}

async fn anonymous(member: &Member) -> Caller {
    Caller { channel: member.channel().await, token: None }
}

fn quota(prefix: &'static str, limits: (u64, u64), used: (u64, u64)) -> Quota {
    let ((bytes_max, keys_max), (bytes, keys)) = (limits, used);
    Quota { prefix: Bytes::from_static(prefix.as_bytes()), bytes_max, keys_max, bytes, keys }
}

#[tokio::test]
async fn a_writer_meets_the_limits_that_were_set() {
    let member = Member::start().await;
    let me = anonymous(&member).await;
    me.put("team/a", "12").await.unwrap();
    let set = me.set("team/", 0, 2).await.unwrap();
    assert_eq!(set, quota("team/", (0, 2), (8, 1)), "what was there counts");
    me.put("team/b", "1").await.unwrap();
    let refused = me.put("team/c", "1").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "satrap: quota of prefix \"team/\" exceeded: 3 of at most 2 keys"
    );
    assert_eq!(Fault::of(&refused).kind(), FaultKind::Limited, "from the details or the code");
    assert!(!refused.details().is_empty(), "the store's refusals carry their fault");

    // Set again, the limits are others, and what is in use may be beyond them.
    let set = me.set("team/", 10, 0).await.unwrap();
    assert_eq!(set, quota("team/", (10, 0), (15, 2)));
    me.put("team/a", "1").await.unwrap();
    assert!(me.put("team/a", "12").await.is_err());

    let total = 3 * (VERSION_OVERHEAD_BYTES + 8) - 2;
    let whole = quota("", (TOTAL_BYTES_MAX_DEFAULT, 0), (total, 2));
    let team = quota("team/", (10, 0), (14, 2));
    assert_eq!(me.list().await.unwrap(), [whole.clone(), team.clone()]);
    let set = me.set("", total + 1, 0).await.unwrap();
    assert_eq!(set, Quota { bytes_max: total + 1, ..whole.clone() });
    let refused = me.put("elsewhere", "1").await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    assert_eq!(me.list().await.unwrap(), [set, team]);

    me.remove("").await.unwrap();
    me.remove("team/").await.unwrap();
    assert_eq!(me.list().await.unwrap(), [whole]);
    let refused = me.put("team/c", "123").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "the alarm is still there");
    // In a ring, the member that raised it does this by itself.
    let disarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Deactivate.into(),
        member_id: member.backend.identity().member_id,
        alarm: pb::AlarmType::Nospace.into(),
    };
    MaintenanceClient::new(me.channel.clone()).alarm(disarm).await.unwrap();
    me.put("team/c", "123").await.unwrap();
    member.stop().await;
}

#[tokio::test]
async fn each_mistake_is_explained() {
    let member = Member::start().await;
    let me = anonymous(&member).await;
    let long = "x".repeat(QUOTA_PREFIX_BYTES_MAX + 1);
    for (outcome, code, expected) in [
        (me.set("team/", 0, 0).await.map(drop), Code::InvalidArgument, "the quota has no limit"),
        (me.set("", 1, 1).await.map(drop), Code::InvalidArgument, "can limit bytes only"),
        (me.set(&long, 1, 0).await.map(drop), Code::InvalidArgument, "has 513 bytes"),
        (me.remove(&long).await, Code::InvalidArgument, "has 513 bytes"),
        (
            me.remove("team/").await,
            Code::NotFound,
            "satrap: this prefix has no quota of its own; list the quotas to see which have",
        ),
    ] {
        let status = outcome.unwrap_err();
        assert!(status.message().contains(expected), "{status}");
        assert_eq!(status.code(), code, "{status}");
    }
    me.set(&long[1..], 1, 0).await.unwrap();
    assert_eq!(me.list().await.unwrap().len(), 2);
    me.remove(&long[1..]).await.unwrap();
    assert_eq!(me.list().await.unwrap().len(), 1, "of what was refused nothing is left");
    member.stop().await;
}

/// Once authentication is on, quotas are for administrators: as with all of etcd's calls that are.
#[tokio::test]
async fn only_administrators_see_and_change_quotas() {
    let member = Member::start().await;
    let anonymous = anonymous(&member).await;
    let mut auth = AuthClient::new(anonymous.channel.clone());
    auth.role_add(pb::AuthRoleAddRequest { name: "root".to_owned() }).await.unwrap();
    for name in ["root", "bob"] {
        let (name, password) = (name.to_owned(), "pw".to_owned());
        let add = pb::AuthUserAddRequest { name, password, ..Default::default() };
        auth.user_add(add).await.unwrap();
    }
    let (user, role) = ("root".to_owned(), "root".to_owned());
    auth.user_grant_role(pb::AuthUserGrantRoleRequest { user, role }).await.unwrap();
    anonymous.set("team/", 100, 0).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let mut log_in = async |name: &str| {
        let (name, password) = (name.to_owned(), "pw".to_owned());
        let token = auth.authenticate(pb::AuthenticateRequest { name, password }).await.unwrap();
        Caller { token: Some(token.into_inner().token), ..anonymous.clone() }
    };
    let (root, bob) = (log_in("root").await, log_in("bob").await);
    let stranger = Caller { token: Some("bad.1".to_owned()), ..anonymous.clone() };
    for (who, code, expected) in [
        (&anonymous, Code::InvalidArgument, "etcdserver: user name is empty"),
        (&stranger, Code::Unauthenticated, "etcdserver: invalid auth token"),
        (&bob, Code::PermissionDenied, "etcdserver: permission denied"),
    ] {
        for outcome in [
            who.set("team/", 200, 0).await.map(drop),
            who.set("", 200, 0).await.map(drop),
            who.remove("team/").await,
            who.remove("").await,
            who.list().await.map(drop),
        ] {
            let status = outcome.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, expected));
        }
    }
    let expected =
        [quota("", (TOTAL_BYTES_MAX_DEFAULT, 0), (0, 0)), quota("team/", (100, 0), (0, 0))];
    assert_eq!(root.list().await.unwrap(), expected, "those who may not changed nothing");
    root.set("team/", 200, 0).await.unwrap();
    root.remove("team/").await.unwrap();
    member.stop().await;
}

/// As in etcd: a client that gets the refusal finds the alarm, however far from full the ring is.
#[tokio::test]
async fn the_first_refusal_for_want_of_room_raises_the_alarm() {
    for refused in ["a put", "a grant", "a bulk write"] {
        let member = Member::start().await;
        let id = member.backend.identity().member_id;
        let caller = anonymous(&member).await;
        caller.set("", 40, 0).await.unwrap();
        let alarms = || {
            member.backend.inspect(|keyspace| {
                keyspace.alarms().list(None).map(|alarm| alarm.member).collect::<Vec<_>>()
            })
        };
        assert!(alarms().is_empty());
        let error = match refused {
            "a put" => caller.put("k", &"v".repeat(100)).await.unwrap_err(),
            "a grant" => {
                let grant = caller.asks(pb::LeaseGrantRequest { ttl: 60, id: 0 });
                let mut leases = LeaseClient::new(caller.channel.clone());
                leases.lease_grant(grant).await.unwrap_err()
            }
            _ => {
                let put = v1::StreamedPut {
                    key: "k".into(),
                    value: "v".repeat(100).into(),
                    ..Default::default()
                };
                let message = v1::PutStreamRequest { puts: vec![put] };
                let requests = tokio_stream::iter([message]);
                let mut answers = caller.store().put_stream(requests).await.unwrap().into_inner();
                let answer = answers.message().await.unwrap().unwrap();
                let refusal = &answer.refusals[0];
                Status::new(Code::from_i32(refusal.code as i32), refusal.message.clone())
            }
        };
        let expected = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert_eq!((error.code(), error.message()), expected, "{refused}");
        assert_eq!(alarms(), [id], "{refused}");
        let health = member.http("GET /health", "").await;
        assert!(health.body.contains("ALARM NOSPACE"), "{}", health.body);
        member.stop().await;
    }
}
