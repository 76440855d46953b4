//! The maintenance calls, as operators and monitoring see them.

use std::sync::atomic::Ordering::Relaxed;

use futures::StreamExt;
use satrap_proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};

use crate::harness::{Member, run};

#[test]
fn status_is_what_etcds_clients_expect() {
    run(async {
        let member = Member::start();
        member.put("a", "v", 0).await;
        let mut maintenance = member.anyone().maintenance();
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        let header = status.header.unwrap();
        assert_eq!((header.cluster_id, header.member_id), (0xc1, 0xa1));
        assert_eq!((header.revision, header.raft_term, status.raft_term), (2, 2, 2));
        assert_eq!((status.leader, status.is_learner), (0xa1, false));
        assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.0", "3.7.0"));
        assert_eq!((status.raft_index, status.raft_applied_index), (1, 1));
        assert!(status.db_size >= status.db_size_in_use && status.db_size_in_use > 0);
        assert_eq!((status.errors.len(), status.downgrade_info.unwrap().enabled), (0, false));
    });
}

#[test]
fn alarms_are_raised_listed_shown_and_cleared() {
    run(async {
        let member = Member::start();
        let mut maintenance = member.anyone().maintenance();
        let nospace = pb::AlarmType::Nospace.into();
        let alarm = |action: pb::alarm_request::AlarmAction, member_id, alarm| pb::AlarmRequest {
            action: action.into(),
            member_id,
            alarm,
        };
        use pb::alarm_request::AlarmAction::{Activate, Deactivate, Get};
        let raised = maintenance.alarm(alarm(Activate, 7, nospace)).await.unwrap().into_inner();
        assert_eq!(raised.alarms, [pb::AlarmMember { member_id: 7, alarm: nospace }]);
        for (kind, count) in [(0, 1), (nospace, 1), (pb::AlarmType::Corrupt.into(), 0)] {
            let listed = maintenance.alarm(alarm(Get, 0, kind)).await.unwrap().into_inner();
            assert_eq!(listed.alarms.len(), count, "{kind}");
        }
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.errors, ["memberID:7 alarm:NOSPACE"]);
        let wanted = pb::LeaseGrantRequest { id: 0, ttl: 100 };
        let full = member.anyone().leases().lease_grant(wanted).await.unwrap_err();
        assert_eq!(full.message(), "etcdserver: mvcc: database space exceeded");
        let cleared = maintenance.alarm(alarm(Deactivate, 7, nospace)).await.unwrap();
        assert_eq!(cleared.into_inner().alarms.len(), 1);
        let cleared = maintenance.alarm(alarm(Deactivate, 7, nospace)).await.unwrap();
        assert_eq!(cleared.into_inner().alarms.len(), 0, "there was none left");
        member.anyone().leases().lease_grant(wanted).await.unwrap();
    });
}

#[test]
fn a_snapshot_is_whole_units_and_their_digest() {
    run(async {
        let member = Member::start();
        let messages =
            member.anyone().maintenance().snapshot(pb::SnapshotRequest {}).await.unwrap();
        let messages: Vec<_> =
            messages.into_inner().map(|message| message.unwrap()).collect().await;
        let (digest, parts) = messages.split_last().unwrap();
        let blob: Vec<u8> = parts.iter().flat_map(|part| part.blob.to_vec()).collect();
        assert_eq!(blob.len() % 512, 0, "etcdctl takes no other file for whole");
        assert_eq!(digest.blob, Sha256::digest(&blob).to_vec());
        let mut left = blob.len() as u64;
        for part in parts {
            left -= part.blob.len() as u64;
            assert_eq!(part.remaining_bytes, left);
        }
        assert_eq!((left, digest.remaining_bytes), (0, 0));
        assert_eq!(digest.version, "3.7.0");
    });
}

#[test]
fn an_empty_keyspace_has_a_hash_and_a_size() {
    run(async {
        let mut maintenance = Member::start().anyone().maintenance();
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert!(status.db_size >= status.db_size_in_use && status.db_size_in_use > 0);
        let hash = maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap();
        assert_ne!(hash.into_inner().hash, 0);
    });
}

#[test]
fn digests_say_at_which_revision() {
    run(async {
        let member = Member::start();
        member.put("a", "1", 0).await;
        let mut maintenance = member.anyone().maintenance();
        let mut hash = async |revision| {
            let asked = pb::HashKvRequest { revision };
            maintenance.hash_kv(asked).await.map(|answer| answer.into_inner())
        };
        let first = hash(0).await.unwrap();
        assert_eq!((first.compact_revision, first.hash_revision), (-1, 2));
        member.put("a", "2", 0).await;
        let then = hash(2).await.unwrap();
        assert_eq!((then.hash, then.header.unwrap().revision), (first.hash, 3));
        let now = hash(0).await.unwrap();
        assert_ne!(now.hash, first.hash);
        let future = hash(4).await.unwrap_err();
        assert_eq!(future.message(), "etcdserver: mvcc: required revision is a future revision");
    });
}

#[test]
fn members_are_invited_and_go() {
    run(async {
        let member = Member::start();
        let mut cluster = member.anyone().cluster();
        let url = vec!["http://127.0.0.1:9".to_owned()];
        let add = pb::MemberAddRequest { peer_ur_ls: url.clone(), is_learner: true };
        let added = cluster.member_add(add.clone()).await.unwrap().into_inner();
        assert_eq!((added.header.unwrap().revision, added.members.len()), (0, 2));
        let new = added.member.unwrap();
        assert_eq!((new.peer_ur_ls.clone(), new.is_learner), (url, true));
        let again = cluster.member_add(add).await.unwrap_err();
        assert_eq!(again.message(), "etcdserver: Peer URLs already exists");
        let promote = pb::MemberPromoteRequest { id: new.id };
        let early = cluster.member_promote(promote).await.unwrap_err();
        let refusal = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(early.message(), refusal);
        let update = pb::MemberUpdateRequest {
            id: new.id,
            peer_ur_ls: vec!["http://127.0.0.1:8".to_owned()],
        };
        cluster.member_update(update).await.unwrap();
        let remove = pb::MemberRemoveRequest { id: new.id };
        let left = cluster.member_remove(remove).await.unwrap().into_inner();
        assert_eq!(left.members.len(), 1);
        let gone = cluster.member_remove(remove).await.unwrap_err();
        assert_eq!(gone.message(), "etcdserver: member not found");
    });
}

#[test]
fn changes_of_members_show_at_once_even_if_the_leader_was_faster() {
    run(async {
        let member = Member::start();
        let mut cluster = member.anyone().cluster();
        // The view of the ring stays as it was: only what was applied tells of the invitation.
        let view = member.backend.status();
        member.levers.answers_early.store(true, Relaxed);
        let url = vec!["http://127.0.0.1:9".to_owned()];
        let add = pb::MemberAddRequest { peer_ur_ls: url, is_learner: false };
        let added = cluster.member_add(add).await.unwrap().into_inner();
        let all = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap();
        let all = all.into_inner().members;
        assert_eq!(all, added.members);
        assert_eq!((all.len(), all.last()), (2, added.member.as_ref()));
        assert_eq!(member.backend.status().members, view.members);
        let id = added.member.unwrap().id;
        let peer_ur_ls = vec!["http://127.0.0.1:8".to_owned()];
        let update = pb::MemberUpdateRequest { id, peer_ur_ls: peer_ur_ls.clone() };
        let updated = cluster.member_update(update).await.unwrap().into_inner();
        assert_eq!(updated.members.last().unwrap().peer_ur_ls, peer_ur_ls);
        let left = cluster.member_remove(pb::MemberRemoveRequest { id }).await.unwrap();
        assert_eq!(left.into_inner().members.len(), 1);
    });
}
