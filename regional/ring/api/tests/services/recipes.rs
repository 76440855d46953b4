//! 001-45: locks and elections that exclude those of etcd's clients.

use std::sync::atomic::Ordering::Relaxed;

use futures::StreamExt;
use satrap_proto::{etcdserverpb as pb, v3electionpb as epb, v3lockpb as lpb};
use satrap_ring_api::limits::OBSERVERS_MAX;
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::{DeleteRangeRequest, KeyRange};
use tonic::Status;

use crate::harness::{Client, Member, run};

async fn lease(member: &Member, id: i64) {
    let wanted = pb::LeaseGrantRequest { id, ttl: 1_000 };
    member.anyone().leases().lease_grant(wanted).await.unwrap();
}

async fn lock(client: Client, lease: i64) -> Result<lpb::LockResponse, Status> {
    let asked = lpb::LockRequest { name: "l".into(), lease };
    client.locks().lock(asked).await.map(tonic::Response::into_inner)
}

async fn campaign(
    client: Client,
    lease: i64,
    value: &'static str,
) -> Result<epb::CampaignResponse, Status> {
    let asked = epb::CampaignRequest { name: "e".into(), lease, value: value.into() };
    client.elections().campaign(asked).await.map(tonic::Response::into_inner)
}

async fn delete(member: &Member, key: &str) {
    let range = KeyRange::key(key.to_owned());
    let delete = DeleteRangeRequest { range, prev_kv: false };
    member.apply(Default::default(), Request::DeleteRange(delete)).await;
}

#[test]
fn a_lock_passes_from_the_oldest_to_the_next() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb, 0xc] {
            lease(&member, id).await;
        }
        let held = lock(member.anyone(), 0xa).await.unwrap();
        assert_eq!((held.key.as_ref(), held.header.unwrap().revision), (&b"l/a"[..], 2));
        let again = lock(member.anyone(), 0xa).await.unwrap();
        assert_eq!(again.key, held.key, "who holds it holds it");

        let second = lock(member.anyone(), 0xb);
        let third = async {
            member.until(|| member.keys("l/").len() == 2).await;
            lock(member.anyone(), 0xc).await
        };
        let release = async {
            member.until(|| member.keys("l/").len() == 3).await;
            let unlock = lpb::UnlockRequest { key: "l/a".into() };
            member.anyone().locks().unlock(unlock).await.unwrap();
        };
        futures::pin_mut!(second, third);
        let (second, ()) = tokio::select! {
            both = futures::future::join(second, release) => both,
            _ = &mut third => panic!("the third may not overtake the second"),
        };
        let second = second.unwrap();
        assert_eq!((second.key.as_ref(), second.header.unwrap().revision), (&b"l/b"[..], 5));
        // The holder's lease ends instead of being given back.
        let revoke = pb::LeaseRevokeRequest { id: 0xb };
        let (third, revoked) =
            futures::future::join(third, member.anyone().leases().lease_revoke(revoke)).await;
        revoked.unwrap();
        assert_eq!(third.unwrap().key.as_ref(), b"l/c");
        assert_eq!(member.keys("l/"), ["l/c"]);
    });
}

#[test]
fn a_lock_waits_for_the_key_of_etcds_go_mutex() {
    run(async {
        let member = Member::start();
        lease(&member, 0xa).await;
        lease(&member, 0x99).await;
        // The write of its mutex.
        member.put("l/99", "", 0x99).await;
        let waiting = lock(member.anyone(), 0xa);
        let released = async {
            member.until(|| member.keys("l/").len() == 2).await;
            delete(&member, "l/99").await;
        };
        let (held, ()) = futures::future::join(waiting, released).await;
        assert_eq!(held.unwrap().key.as_ref(), b"l/a");
    });
}

#[test]
fn a_waiter_that_loses_its_lease_gets_nothing() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        lock(member.anyone(), 0xa).await.unwrap();
        campaign(member.anyone(), 0xa, "first").await.unwrap();
        let lost = async {
            member.until(|| member.keys("").len() == 4).await;
            let revoke = pb::LeaseRevokeRequest { id: 0xb };
            member.anyone().leases().lease_revoke(revoke).await.unwrap();
        };
        // Neither of them waits for the holder any longer than its own lease lives.
        let waiting = futures::future::join(
            lock(member.anyone(), 0xb),
            campaign(member.anyone(), 0xb, "second"),
        );
        let ((locked, elected), ()) = futures::future::join(waiting, lost).await;
        assert_eq!(locked.unwrap_err().message(), "mutex: session is expired");
        assert_eq!(elected.unwrap_err().message(), "election: session is expired");
        assert_eq!(member.keys(""), ["e/a", "l/a"]);
    });
}

#[test]
fn a_client_that_goes_away_leaves_the_queue() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        lock(member.anyone(), 0xa).await.unwrap();
        {
            let waiting = lock(member.anyone(), 0xb);
            tokio::select! {
                _ = waiting => panic!("the lock is held"),
                () = member.until(|| member.keys("l/").len() == 2) => {}
            }
        }
        member.until(|| member.keys("l/") == ["l/a"]).await;
    });
}

#[test]
fn one_release_among_hundreds_of_contenders_wakes_the_next() {
    run(async {
        const CONTENDERS: i64 = 300;
        let member = Member::start();
        for id in 1..=CONTENDERS {
            lease(&member, id).await;
        }
        let (mut order, mut running) = (Vec::new(), futures::stream::FuturesUnordered::new());
        for id in 1..=CONTENDERS {
            running.push(lock(member.anyone(), id));
        }
        while let Some(Ok(held)) = running.next().await {
            let created = member.backend.inspect(|keyspace| {
                keyspace.store().get(&held.key).expect("the holder's key").create_revision
            });
            order.push(created);
            let unlock = lpb::UnlockRequest { key: held.key };
            member.anyone().locks().unlock(unlock).await.unwrap();
        }
        assert_eq!(order.len(), 300);
        assert!(order.is_sorted(), "first come, first served: {order:?}");
    });
}

#[test]
fn a_wait_survives_a_compaction_of_what_it_waits_for() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        lock(member.anyone(), 0xa).await.unwrap();
        let waiting = lock(member.anyone(), 0xb);
        let compacted = async {
            member.until(|| member.keys("l/").len() == 2).await;
            // One batch: the waiter never sees the log between these.
            let delete = DeleteRangeRequest { range: KeyRange::key("l/a"), prev_kv: false };
            let put = satrap_ring_core::kv::request::PutRequest::of("x", "");
            let requests = [
                Request::DeleteRange(delete),
                Request::Put(put.clone()),
                Request::Put(put),
                Request::Compact { revision: 6 },
            ];
            let proposals = requests
                .map(|request| satrap_ring_core::Proposal { caller: Default::default(), request });
            let applied = member.backend.propose_many(proposals.to_vec()).await.unwrap();
            assert!(applied.replies.iter().all(Result::is_ok), "{:?}", applied.replies);
        };
        let (held, ()) = futures::future::join(waiting, compacted).await;
        assert_eq!(held.unwrap().key.as_ref(), b"l/b");
    });
}

#[test]
fn a_leader_proclaims_resigns_and_is_followed() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        let none = epb::LeaderRequest { name: "e".into() };
        let none = member.anyone().elections().leader(none).await.unwrap_err();
        assert_eq!(none.message(), "election: no leader");

        let first = campaign(member.anyone(), 0xa, "one").await.unwrap().leader.unwrap();
        assert_eq!((first.key.as_ref(), first.rev, first.lease), (&b"e/a"[..], 2, 0xa));
        let again = campaign(member.anyone(), 0xa, "uno").await.unwrap().leader.unwrap();
        assert_eq!((again, member.value("e/a").unwrap()), (first.clone(), "uno".to_owned()));

        let proclaim = epb::ProclaimRequest { leader: Some(first.clone()), value: "eins".into() };
        let said = member.anyone().elections().proclaim(proclaim.clone()).await.unwrap();
        assert_eq!(said.into_inner().header.unwrap().revision, 4);
        let waiting = campaign(member.anyone(), 0xb, "two");
        let resigned = async {
            member.until(|| member.keys("e/").len() == 2).await;
            let resign = epb::ResignRequest { leader: Some(first) };
            member.anyone().elections().resign(resign.clone()).await.unwrap();
            member.anyone().elections().resign(resign).await.unwrap();
        };
        let (second, ()) = futures::future::join(waiting, resigned).await;
        assert_eq!(second.unwrap().leader.unwrap().rev, 5);
        let late = member.anyone().elections().proclaim(proclaim).await.unwrap_err();
        assert_eq!(late.message(), "election: not leader");
    });
}

#[test]
fn observers_hear_everything_in_order() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        let asked = epb::LeaderRequest { name: "e".into() };
        let mut heard = member.anyone().elections().observe(asked).await.unwrap().into_inner();
        // Not of this election, though its name starts like it.
        member.put("e", "decoy", 0).await;
        member.put("e0", "decoy", 0).await;
        member.put("e/a", "one", 0xa).await;
        let mut next = async || {
            let told = heard.next().await.unwrap().unwrap();
            let kv = told.kv.unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (text(&kv.key), text(&kv.value), told.header.unwrap().revision)
        };
        assert_eq!(next().await, ("e/a".to_owned(), "one".to_owned(), 4));
        member.put("e/b", "two", 0xb).await;
        for value in ["eins", "un", "uno"] {
            member.put("e/a", value, 0xa).await;
        }
        let said = [next().await.1, next().await.1, next().await.1];
        assert_eq!(said, ["eins", "un", "uno"]);
        delete(&member, "e/a").await;
        assert_eq!(next().await.0, "e/b");
    });
}

#[test]
fn observers_are_bounded() {
    run(async {
        let member = Member::start();
        let observe = async || {
            let asked = epb::LeaderRequest { name: "e".into() };
            member.anyone().elections().observe(asked).await
        };
        let mut observing = Vec::new();
        for _ in 0..OBSERVERS_MAX {
            observing.push(observe().await.unwrap());
        }
        assert_eq!(observe().await.unwrap_err().message(), "etcdserver: too many requests");
        observing.pop();
        observe().await.unwrap();
    });
}

/// The copy of a member with CORRUPT may lack an older contender, so the member grants nothing.
#[test]
fn a_corrupt_member_grants_no_lock_and_no_leadership() {
    run(async {
        for elects in [false, true] {
            let member = Member::start();
            for id in [0xa, 0xb] {
                lease(&member, id).await;
            }
            let waiting = async {
                match elects {
                    false => lock(member.anyone(), 0xb).await.map(drop),
                    true => campaign(member.anyone(), 0xb, "second").await.map(drop),
                }
            };
            let first = match elects {
                false => lock(member.anyone(), 0xa).await.map(drop),
                true => campaign(member.anyone(), 0xa, "first").await.map(drop),
            };
            first.unwrap();
            let released = async {
                member.until(|| member.keys("").len() == 2).await;
                // The alarm comes after the wait and before the last look at the contender's key.
                member.levers.corrupt_at_read.store(true, Relaxed);
                let held = if elects { "e/a" } else { "l/a" };
                delete(&member, held).await;
            };
            let (turn, ()) = futures::future::join(waiting, released).await;
            assert_eq!(turn.unwrap_err().message(), "etcdserver: corrupt cluster");
        }
    });
}

/// That a lease has ended is also read from the copy, so a corrupt member does not say it.
#[test]
fn a_corrupt_member_does_not_say_that_a_contender_lost_its_lease() {
    run(async {
        let member = Member::start();
        for id in [0xa, 0xb] {
            lease(&member, id).await;
        }
        lock(member.anyone(), 0xa).await.unwrap();
        let lost = async {
            member.until(|| member.keys("").len() == 2).await;
            member.corrupt().await;
            member.levers.ahead_ms.store(2_000_000, Relaxed);
        };
        let (turn, ()) = futures::future::join(lock(member.anyone(), 0xb), lost).await;
        assert_eq!(turn.unwrap_err().message(), "etcdserver: corrupt cluster");
    });
}
