//! Maps each path of the JSON gateway to its gRPC method. Paths under `/v3/` are those of etcd's own gateway. Paths
//! under `/v1/` are for the `satrap.v1` services, which etcd does not have.

/// The prefix of etcd 3.3 for `/v3/`. Later etcd releases still accept it, because old clients use it.
const V3BETA: &str = "/v3beta/";

/// The gRPC method behind a path, as `service/method`.
pub(super) fn grpc_method(path: &str) -> Option<&'static str> {
    if let Some(rest) = path.strip_prefix(V3BETA) {
        let found = PATHS.iter().find(|(known, _)| known.strip_prefix("/v3/") == Some(rest));
        return found.map(|(_, name)| *name);
    }
    PATHS.iter().find(|(known, _)| path == *known).map(|(_, name)| *name)
}

/// Whether the path is in a namespace of gRPC calls, so that an unknown path there is "not found" and is not passed to
/// the probes.
pub(super) fn is_call_path(path: &str) -> bool {
    path.starts_with("/v3/") || path.starts_with(V3BETA) || path.starts_with("/v1/")
}

const PATHS: [(&str, &str); 64] = [
    ("/v3/kv/range", "etcdserverpb.KV/Range"),
    ("/v3/kv/put", "etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV/Compact"),
    ("/v3/watch", "etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("/v3/lock/lock", "v3lockpb.Lock/Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock/Unlock"),
    ("/v3/election/campaign", "v3electionpb.Election/Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election/Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election/Leader"),
    ("/v3/election/observe", "v3electionpb.Election/Observe"),
    ("/v3/election/resign", "v3electionpb.Election/Resign"),
    ("/v1/kv/get", "satrap.v1.Store/Get"),
    ("/v1/kv/list", "satrap.v1.Store/ListPage"),
    ("/v1/kv/put-if-revision", "satrap.v1.Store/PutIfRevision"),
    ("/v1/kv/put-sequential", "satrap.v1.Store/PutSequential"),
    ("/v1/kv/put-stream", "satrap.v1.Store/PutStream"),
    // These roles are exclusive, leased and fenced; they are not the roles of etcd's auth.
    ("/v1/role/grant", "satrap.v1.Store/GrantRole"),
    ("/v1/role/renew", "satrap.v1.Store/RenewRole"),
    ("/v1/role/release", "satrap.v1.Store/ReleaseRole"),
    ("/v1/role/status", "satrap.v1.Store/RoleStatus"),
    ("/v1/quota/set", "satrap.v1.Store/SetQuota"),
    ("/v1/quota/remove", "satrap.v1.Store/RemoveQuota"),
    ("/v1/quota/list", "satrap.v1.Store/ListQuotas"),
    ("/v1/watch", "satrap.v1.StoreWatch/Watch"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;

    use super::*;

    #[test]
    fn v3beta_is_an_alias_of_v3() {
        assert_eq!(grpc_method("/v3beta/kv/put"), Some("etcdserverpb.KV/Put"));
        assert_eq!(grpc_method("/v3beta/kv/nope"), None);
        assert_eq!(grpc_method("/v3beta/v3/kv/put"), None);
        assert!(is_call_path("/v3beta/kv/nope"));
    }

    #[test]
    fn every_path_has_a_method_and_every_store_method_a_path() {
        let pool = DescriptorPool::decode(satrap_proto::DESCRIPTORS).unwrap();
        let calls: BTreeSet<_> = pool
            .services()
            .flat_map(|service| {
                let name = service.full_name().to_owned();
                service
                    .methods()
                    .map(move |method| format!("{name}/{}", method.name()))
                    .collect::<Vec<_>>()
            })
            .collect();
        for (path, name) in PATHS {
            assert!(calls.contains(name), "{path}");
        }
        for call in calls.iter().filter(|call| call.starts_with("satrap.v1.Store")) {
            assert!(PATHS.iter().any(|(_, name)| name == call), "{call}");
        }
    }
}
