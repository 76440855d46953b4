//! 001-33, 001-38: leases as etcd's clients see them, with time that is exact.

use std::sync::atomic::Ordering::Relaxed;

use futures::StreamExt;
use satrap_proto::etcdserverpb as pb;
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::DeleteRangeRequest;
use satrap_ring_core::kv::request::KeyRange;
use tonic::Code;

use crate::harness::{Member, run};

async fn grant(member: &Member, id: i64, ttl: i64) -> pb::LeaseGrantResponse {
    let wanted = pb::LeaseGrantRequest { id, ttl };
    member.anyone().leases().lease_grant(wanted).await.unwrap().into_inner()
}

async fn time_to_live(member: &Member, id: i64) -> pb::LeaseTimeToLiveResponse {
    let asked = pb::LeaseTimeToLiveRequest { id, keys: true };
    member.anyone().leases().lease_time_to_live(asked).await.unwrap().into_inner()
}

#[test]
fn a_lease_is_granted_listed_asked_about_and_revoked() {
    run(async {
        let member = Member::start();
        let granted = grant(&member, 7, 100).await;
        assert_eq!((granted.id, granted.ttl), (7, 100));
        let header = granted.header.unwrap();
        assert_eq!((header.cluster_id, header.member_id, header.revision), (0xc1, 0xa1, 1));
        assert_eq!(grant(&member, 8, 1).await.ttl, 2, "etcd's shortest");

        member.put("b", "", 7).await;
        member.put("a", "", 7).await;
        let left = time_to_live(&member, 7).await;
        assert!((90..=99).contains(&left.ttl), "{left:?}");
        assert_eq!((left.granted_ttl, left.keys.len()), (100, 2));
        assert_eq!(left.keys, ["a", "b"]);

        let client = member.anyone();
        let listed = client.leases().lease_leases(pb::LeaseLeasesRequest {}).await.unwrap();
        let ids: Vec<_> = listed.into_inner().leases.iter().map(|lease| lease.id).collect();
        assert_eq!(ids, [8, 7], "the one that ends first first");

        let revoke = pb::LeaseRevokeRequest { id: 7 };
        let revoked = client.leases().lease_revoke(revoke).await.unwrap().into_inner();
        assert_eq!(revoked.header.unwrap().revision, 4, "both keys at one revision");
        assert_eq!(member.keys(""), Vec::<String>::new());
        assert_eq!(time_to_live(&member, 7).await.ttl, -1);
        let again = client.leases().lease_revoke(revoke).await.unwrap_err();
        assert_eq!(again.message(), "etcdserver: requested lease not found");
    });
}

#[test]
fn ids_are_chosen_positive_and_never_twice() {
    run(async {
        let member = Member::start();
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let id = grant(&member, 0, 100).await.id;
            assert!(id > 0 && ids.insert(id), "{id}");
        }
        let wanted = pb::LeaseGrantRequest { id: *ids.first().unwrap(), ttl: 100 };
        let taken = member.anyone().leases().lease_grant(wanted).await.unwrap_err();
        assert_eq!(taken.code(), Code::FailedPrecondition);
        assert_eq!(taken.message(), "etcdserver: lease already exists");
        let wanted = pb::LeaseGrantRequest { id: 0, ttl: 9_000_000_001 };
        let long = member.anyone().leases().lease_grant(wanted).await.unwrap_err();
        assert_eq!(
            (long.code(), long.message()),
            (Code::OutOfRange, "etcdserver: too large lease TTL")
        );
    });
}

#[test]
fn what_is_left_is_exact_by_the_leaders_clock() {
    run(async {
        let member = Member::start();
        grant(&member, 7, 100).await;
        member.put("a", "", 7).await;
        member.levers.ahead_ms.store(40_000, Relaxed);
        let left = time_to_live(&member, 7).await.ttl;
        assert!((59..=60).contains(&left), "{left}");
        // Nothing was written since the deadline passed, and still no client gets the answer that it lives.
        member.levers.ahead_ms.store(100_000, Relaxed);
        assert_eq!(time_to_live(&member, 7).await.ttl, -1);
        assert_eq!(member.value("a"), None);
    });
}

/// Sends `ids` down one stream and collects what comes back.
async fn keep_alive(member: &Member, ids: Vec<i64>) -> Vec<pb::LeaseKeepAliveResponse> {
    let requests = futures::stream::iter(ids).map(|id| pb::LeaseKeepAliveRequest { id });
    let answers = member.anyone().leases().lease_keep_alive(requests).await.unwrap();
    answers.into_inner().map(Result::unwrap).collect().await
}

#[test]
fn renewals_keep_their_order_and_unknown_leases_have_no_time() {
    run(async {
        let member = Member::start();
        let count = 3_000;
        let grants = (1..=count).map(|id| {
            let request = Request::LeaseGrant { id, ttl_s: 100 };
            member.backend.propose(Default::default(), request)
        });
        futures::future::try_join_all(grants).await.unwrap();
        grant(&member, count + 1, 100).await;
        let ids: Vec<i64> = (1..=count).rev().chain([count + 2]).collect();
        let answers = keep_alive(&member, ids.clone()).await;
        assert_eq!(answers.iter().map(|answer| answer.id).collect::<Vec<_>>(), ids);
        let (unknown, known) = answers.split_last().unwrap();
        assert!(known.iter().all(|answer| answer.ttl == 100));
        assert_eq!(unknown.ttl, 0);
        // More than one shared a batch; otherwise a client could not keep many leases.
        assert!(member.backend.mark().index < count.cast_unsigned(), "{:?}", member.backend.mark());
    });
}

#[test]
fn a_corrupt_member_says_of_no_lease_that_it_lives_or_has_ended() {
    run(async {
        let member = Member::start();
        let granted = pb::LeaseGrantRequest { ttl: 60, id: 5 };
        member.anyone().leases().lease_grant(granted).await.unwrap();
        member.corrupt().await;
        for id in [5, 7] {
            let requests = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
            let answers = member.anyone().leases().lease_keep_alive(requests).await.unwrap();
            let refused = answers.into_inner().next().await.unwrap().unwrap_err();
            assert_eq!(refused.message(), "etcdserver: corrupt cluster");
        }
    });
}

#[test]
fn a_renewal_starts_the_time_again_and_revives_no_expired_lease() {
    run(async {
        let member = Member::start();
        grant(&member, 7, 100).await;
        member.levers.ahead_ms.store(90_000, Relaxed);
        assert_eq!(keep_alive(&member, vec![7]).await[0].ttl, 100);
        member.levers.ahead_ms.store(180_000, Relaxed);
        assert!((9..=10).contains(&time_to_live(&member, 7).await.ttl));
        member.levers.ahead_ms.store(190_001, Relaxed);
        assert_eq!(keep_alive(&member, vec![7, 7]).await.iter().map(|a| a.ttl).sum::<i64>(), 0);
    });
}

#[test]
fn a_renewal_never_names_a_revision_at_which_the_lease_was_gone() {
    run(async {
        let member = Member::start();
        grant(&member, 7, 100).await;
        member.put("a", "", 7).await;
        let before = member.backend.mark().revision;
        member.levers.ahead_ms.store(200_000, Relaxed);
        let answer = keep_alive(&member, vec![7]).await.remove(0);
        assert_eq!((answer.ttl, answer.header.unwrap().revision), (0, before));
    });
}

#[test]
fn a_key_leaves_its_lease_when_it_is_deleted() {
    run(async {
        let member = Member::start();
        grant(&member, 7, 100).await;
        member.put("a", "", 7).await;
        let delete = DeleteRangeRequest { range: KeyRange::key("a"), prev_kv: false };
        member.apply(Default::default(), Request::DeleteRange(delete)).await;
        assert!(time_to_live(&member, 7).await.keys.is_empty());
    });
}

/// Leases and the keys on them are part of the copy that may be wrong.
#[test]
fn a_corrupt_member_tells_nothing_about_leases() {
    run(async {
        let member = Member::start();
        let client = member.anyone();
        client.leases().lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap();
        member.put("k", "v", 7).await;
        member.corrupt().await;
        for keys in [false, true] {
            let asked = pb::LeaseTimeToLiveRequest { id: 7, keys };
            let refused = client.leases().lease_time_to_live(asked).await.unwrap_err();
            assert_eq!(refused.message(), "etcdserver: corrupt cluster", "with keys: {keys}");
        }
        let listed = client.leases().lease_leases(pb::LeaseLeasesRequest {}).await;
        assert_eq!(listed.unwrap_err().message(), "etcdserver: corrupt cluster");
    });
}
