//! One of every kind of call, with arguments that show who is refused, and why.

use futures::StreamExt;
use satrap_proto::{authpb, etcdserverpb as pb, v3electionpb as epb, v3lockpb as lpb};
use tonic::Status;

use crate::harness::Remote;
use crate::permissions::Call;

/// The only member of the ring.
const SELF: u64 = 0xa1;
/// Another member.
const OTHER: u64 = 7;
const SELF_URL: &str = "http://127.0.0.1:2380";

/// `"Name", service.call(request);` makes one call of it.
macro_rules! calls {
    ($($name:literal, $service:ident . $call:ident ( $request:expr );)+) => {
        vec![$(Call::new($name, move |client| {
            let request = $request;
            async move { client.$service().$call(request).await.map(drop) }
        })),+]
    };
}

/// All of them.
pub fn all() -> Vec<Call> {
    [keys(), leases(), cluster(), maintenance(), users(), roles(), recipes()]
        .into_iter()
        .flatten()
        .collect()
}

fn s(text: &str) -> String {
    text.to_owned()
}

async fn renew(client: Remote, id: i64, ttl: i64) -> Result<(), Status> {
    let request = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
    let mut answers = client.leases().lease_keep_alive(request).await?.into_inner();
    let answer = answers.next().await.expect("every renewal is answered")?;
    assert_eq!(answer.ttl, ttl);
    Ok(())
}

async fn watch(client: Remote) -> Result<(), Status> {
    let create = pb::WatchCreateRequest { key: "a/1".into(), ..Default::default() };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request = pb::WatchRequest { request_union: Some(create) };
    // The stream of requests stays open: its end would cancel the watch.
    let requests = futures::stream::iter([request]).chain(futures::stream::pending());
    let answer = client.watch().watch(requests).await?.into_inner().next().await;
    let answer = answer.expect("a watch is opened or refused")?;
    // A refusal is sent in the stream.
    match answer.canceled {
        true => Err(Status::ok(answer.cancel_reason)),
        false => Ok(()),
    }
}

fn keys() -> Vec<Call> {
    let get = || pb::RangeRequest { key: "a/1".into(), ..Default::default() };
    let put = |lease| pb::PutRequest {
        key: "a/2".into(),
        value: "v".into(),
        lease,
        ..Default::default()
    };
    let txn = |request| {
        let success = vec![pb::RequestOp { request: Some(request) }];
        pb::TxnRequest { success, ..Default::default() }
    };
    let delete = || pb::DeleteRangeRequest { key: "a/3".into(), ..Default::default() };
    let compact = || pb::CompactionRequest { revision: 1 << 40, physical: false };
    use pb::request_op::Request::{RequestPut, RequestRange};
    let mut calls = calls![
        "KV/Range", kv.range(get());
        "KV/RangeStream", kv.range_stream(get());
        "KV/Put", kv.put(put(0));
        "KV/Put lease", kv.put(put(100));
        "KV/DeleteRange", kv.delete_range(delete());
        "KV/Txn", kv.txn(txn(RequestPut(put(0))));
        "KV/Txn read", kv.txn(txn(RequestRange(get())));
        "KV/Compact", kv.compact(compact());
    ];
    calls.push(Call::new("Watch/Watch", watch));
    calls
}

fn leases() -> Vec<Call> {
    let ttl = |id, keys| pb::LeaseTimeToLiveRequest { id, keys };
    let mut calls = calls![
        "Lease/LeaseGrant", leases.lease_grant(pb::LeaseGrantRequest { id: 0, ttl: 1_000 });
        "Lease/LeaseRevoke missing", leases.lease_revoke(pb::LeaseRevokeRequest { id: 9 });
        "Lease/LeaseRevoke a", leases.lease_revoke(pb::LeaseRevokeRequest { id: 100 });
        "Lease/LeaseTimeToLive", leases.lease_time_to_live(ttl(100, false));
        "Lease/LeaseTimeToLive keys", leases.lease_time_to_live(ttl(100, true));
        "Lease/LeaseTimeToLive missing", leases.lease_time_to_live(ttl(9, true));
        "Lease/LeaseLeases", leases.lease_leases(pb::LeaseLeasesRequest {});
    ];
    calls.insert(3, Call::new("Lease/LeaseKeepAlive missing", |client| renew(client, 9, 0)));
    calls.insert(4, Call::new("Lease/LeaseKeepAlive a", |client| renew(client, 100, 1_000)));
    calls
}

fn cluster() -> Vec<Call> {
    let add = |url, is_learner| pb::MemberAddRequest { peer_ur_ls: vec![s(url)], is_learner };
    let update = |url| pb::MemberUpdateRequest { id: OTHER, peer_ur_ls: vec![s(url)] };
    let list = |linearizable| pb::MemberListRequest { linearizable };
    calls![
        "Cluster/MemberAdd", cluster.member_add(add("bad", false));
        "Cluster/MemberAdd exists", cluster.member_add(add(SELF_URL, false));
        "Cluster/MemberAdd learner exists", cluster.member_add(add(SELF_URL, true));
        "Cluster/MemberRemove", cluster.member_remove(pb::MemberRemoveRequest { id: OTHER });
        "Cluster/MemberRemove self", cluster.member_remove(pb::MemberRemoveRequest { id: SELF });
        "Cluster/MemberUpdate", cluster.member_update(update("http://127.0.0.1:9"));
        "Cluster/MemberUpdate bad url", cluster.member_update(update("bad"));
        "Cluster/MemberList", cluster.member_list(list(false));
        "Cluster/MemberList linearizable", cluster.member_list(list(true));
        "Cluster/MemberPromote", cluster.member_promote(pb::MemberPromoteRequest { id: OTHER });
        "Cluster/MemberPromote self", cluster.member_promote(pb::MemberPromoteRequest { id: SELF });
    ]
}

fn maintenance() -> Vec<Call> {
    let alarm = |action, kind| pb::AlarmRequest { action, member_id: OTHER, alarm: kind };
    let downgrade = |action, version| pb::DowngradeRequest { action, version: s(version) };
    let mut calls = calls![
        "Maintenance/Alarm get", maintenance.alarm(alarm(0, 0));
        "Maintenance/Alarm activate", maintenance.alarm(alarm(1, 0));
        "Maintenance/Alarm deactivate", maintenance.alarm(alarm(2, 1));
        "Maintenance/Status", maintenance.status(pb::StatusRequest {});
        "Maintenance/Defragment", maintenance.defragment(pb::DefragmentRequest {});
        "Maintenance/Hash", maintenance.hash(pb::HashRequest {});
        "Maintenance/HashKV", maintenance.hash_kv(pb::HashKvRequest { revision: 0 });
        "Maintenance/HashKV future", maintenance.hash_kv(pb::HashKvRequest { revision: 1 << 40 });
        "Maintenance/MoveLeader", maintenance.move_leader(pb::MoveLeaderRequest { target_id: OTHER });
        "Maintenance/MoveLeader self", maintenance.move_leader(pb::MoveLeaderRequest { target_id: SELF });
        "Maintenance/Downgrade validate", maintenance.downgrade(downgrade(0, "3.5.0"));
        "Maintenance/Downgrade format", maintenance.downgrade(downgrade(0, "x"));
        "Maintenance/Downgrade enable", maintenance.downgrade(downgrade(1, "3.5.0"));
        "Maintenance/Downgrade cancel", maintenance.downgrade(downgrade(2, ""));
        "Maintenance/Downgrade unknown", maintenance.downgrade(downgrade(77, ""));
    ];
    let snapshot = Call::new("Maintenance/Snapshot", |client| async move {
        let messages = client.maintenance().snapshot(pb::SnapshotRequest {}).await?.into_inner();
        let ends: Vec<_> = messages.collect().await;
        ends.into_iter().try_for_each(|message| message.map(drop))
    });
    calls.insert(8, snapshot);
    calls
}

fn users() -> Vec<Call> {
    let who = |name, password| pb::AuthenticateRequest { name: s(name), password: s(password) };
    let add =
        |name| pb::AuthUserAddRequest { name: s(name), password: s("x"), ..Default::default() };
    let get = |name| pb::AuthUserGetRequest { name: s(name) };
    let delete = |name| pb::AuthUserDeleteRequest { name: s(name) };
    let change = |name| {
        let (name, password) = (s(name), s("pw"));
        pb::AuthUserChangePasswordRequest { name, password, ..Default::default() }
    };
    let grant = |user, role| pb::AuthUserGrantRoleRequest { user: s(user), role: s(role) };
    let revoke = |name, role| pb::AuthUserRevokeRoleRequest { name: s(name), role: s(role) };
    calls![
        "Auth/AuthStatus", auth.auth_status(pb::AuthStatusRequest {});
        "Auth/Authenticate", auth.authenticate(who("alice", "pw"));
        "Auth/Authenticate wrong", auth.authenticate(who("alice", "no"));
        "Auth/Authenticate nobody", auth.authenticate(who("nobody", "no"));
        "Auth/UserAdd", auth.user_add(add("alice"));
        "Auth/UserAdd empty", auth.user_add(add(""));
        "Auth/UserGet", auth.user_get(get("alice"));
        "Auth/UserGet root", auth.user_get(get("root"));
        "Auth/UserGet nobody", auth.user_get(get("nobody"));
        "Auth/UserList", auth.user_list(pb::AuthUserListRequest {});
        "Auth/UserDelete", auth.user_delete(delete("nobody"));
        "Auth/UserChangePassword", auth.user_change_password(change("nobody"));
        "Auth/UserGrantRole", auth.user_grant_role(grant("nobody", "ra"));
        "Auth/UserGrantRole norole", auth.user_grant_role(grant("bob", "norole"));
        "Auth/UserGrantRole again", auth.user_grant_role(grant("alice", "ra"));
        "Auth/UserRevokeRole", auth.user_revoke_role(revoke("bob", "ra"));
        "Auth/UserRevokeRole nobody", auth.user_revoke_role(revoke("nobody", "ra"));
    ]
}

fn roles() -> Vec<Call> {
    let add = |name| pb::AuthRoleAddRequest { name: s(name) };
    let get = |role| pb::AuthRoleGetRequest { role: s(role) };
    let delete = |role| pb::AuthRoleDeleteRequest { role: s(role) };
    let grant = |name, range: Option<(&'static str, &'static str)>| {
        let perm = range.map(|(key, end)| authpb::Permission {
            perm_type: 0,
            key: key.into(),
            range_end: end.into(),
        });
        pb::AuthRoleGrantPermissionRequest { name: s(name), perm }
    };
    let revoke = |role| pb::AuthRoleRevokePermissionRequest {
        role: s(role),
        key: "zz".into(),
        range_end: "".into(),
    };
    let user_revoke = |name, role| pb::AuthUserRevokeRoleRequest { name: s(name), role: s(role) };
    calls![
        "Auth/RoleAdd", auth.role_add(add("ra"));
        "Auth/RoleAdd empty", auth.role_add(add(""));
        "Auth/RoleGet", auth.role_get(get("ra"));
        "Auth/RoleGet norole", auth.role_get(get("norole"));
        "Auth/RoleList", auth.role_list(pb::AuthRoleListRequest {});
        "Auth/RoleDelete", auth.role_delete(delete("norole"));
        "Auth/RoleGrantPermission", auth.role_grant_permission(grant("norole", Some(("a/1", ""))));
        "Auth/RoleGrantPermission none", auth.role_grant_permission(grant("rx", None));
        "Auth/RoleGrantPermission range", auth.role_grant_permission(grant("rx", Some(("b", "a"))));
        "Auth/RoleGrantPermission empty", auth.role_grant_permission(grant("norole", Some(("", ""))));
        "Auth/RoleRevokePermission", auth.role_revoke_permission(revoke("ra"));
        "Auth/RoleRevokePermission norole", auth.role_revoke_permission(revoke("norole"));
        "Auth/UserDelete root",
            auth.user_delete(pb::AuthUserDeleteRequest { name: s("root") });
        "Auth/RoleDelete root", auth.role_delete(delete("root"));
        "Auth/UserRevokeRole root", auth.user_revoke_role(user_revoke("root", "root"));
        "Auth/AuthEnable", auth.auth_enable(pb::AuthEnableRequest {});
        "Auth/AuthDisable", auth.auth_disable(pb::AuthDisableRequest {});
    ]
}

fn recipes() -> Vec<Call> {
    let lock = |lease| lpb::LockRequest { name: "a/lock".into(), lease };
    let unlock = |key: &'static str| lpb::UnlockRequest { key: key.into() };
    let campaign = |lease| epb::CampaignRequest { name: "a/el".into(), lease, value: "v".into() };
    let leader = || {
        let (name, key) = ("a/x".into(), "a/x/65".into());
        Some(epb::LeaderKey { name, key, rev: 3, lease: 101 })
    };
    let of = |name: &'static str| epb::LeaderRequest { name: name.into() };
    let proclaim = |leader| epb::ProclaimRequest { leader, value: "v".into() };
    let mut calls = calls![
        "Lock/Lock", locks.lock(lock(0));
        "Lock/Lock lease", locks.lock(lock(101));
        "Lock/Lock missing lease", locks.lock(lock(9));
        "Lock/Unlock", locks.unlock(unlock("a/none"));
        "Lock/Unlock empty", locks.unlock(unlock(""));
        "Election/Campaign", elections.campaign(campaign(101));
        "Election/Campaign no lease", elections.campaign(campaign(0));
        "Election/Campaign missing", elections.campaign(campaign(9));
        "Election/Proclaim no leader", elections.proclaim(proclaim(None));
        "Election/Proclaim not leader", elections.proclaim(proclaim(leader()));
        "Election/Leader", elections.leader(of("a"));
        "Election/Leader none", elections.leader(of("a/none"));
        "Election/Resign no leader", elections.resign(epb::ResignRequest { leader: None });
        "Election/Resign not leader", elections.resign(epb::ResignRequest { leader: leader() });
    ];
    let observe = Call::new("Election/Observe", |client| async move {
        let mut leaders =
            client.elections().observe(epb::LeaderRequest { name: "a".into() }).await?;
        match leaders.get_mut().next().await {
            Some(leader) => leader.map(drop),
            None => Err(Status::ok("the stream ended")),
        }
    });
    calls.insert(12, observe);
    calls
}
