//! The errors that clients get when the ring does not answer, or says that it cannot.

use std::time::Duration;

use bytes::Bytes;
use satrap_proto::etcdserverpb as pb;
use satrap_proto::fault::Fault;
use satrap_proto::v1::FaultKind;
use satrap_proto::v3lockpb as lpb;
use satrap_ring_api::backend::{Call, Member as RingMember, RingView, Unavailable};
use satrap_ring_api::grpc;
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::{KeyRange, RangeRequest};
use tonic::Code;

use crate::harness::Member;
use crate::kv::{put, range};

const PUT: &str = "/etcdserverpb.KV/Put";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const RANGE: &str = "/etcdserverpb.KV/Range";

fn a_put() -> Bytes {
    grpc::frame(&put("k", "v"))
}

#[tokio::test]
async fn a_deadline_of_the_client_is_kept() {
    let (mut member, _ring) = Member::stalled(16).await;
    let mut raw = member.raw().await;
    let error = raw.call(PUT, &[("grpc-timeout", "5m")], a_put()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::DeadlineExceeded, "context deadline exceeded")
    );
}

#[tokio::test]
async fn what_the_ring_says_reaches_the_client_in_etcds_words() {
    let (mut member, mut ring) = Member::stalled(16).await;
    let mut raw = member.raw().await;
    for (answer, code, text) in [
        (Unavailable::NoLeader, Code::Unavailable, "etcdserver: no leader"),
        (Unavailable::LeaderChanged, Code::Unavailable, "etcdserver: leader changed"),
        (Unavailable::Timeout, Code::Unavailable, "etcdserver: request timed out"),
        (Unavailable::TooManyRequests, Code::ResourceExhausted, "etcdserver: too many requests"),
        (Unavailable::Stopped, Code::Unavailable, "etcdserver: server stopped"),
    ] {
        let ring = async {
            let Some(Call::Propose { reply, .. }) = ring.calls.recv().await else { panic!() };
            reply.send(Err(answer)).unwrap();
        };
        let (error, ()) = tokio::join!(raw.call(PUT, &[], a_put()), ring);
        let error = error.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text));
    }
    drop(ring);
    let error = raw.call(PUT, &[], a_put()).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: server stopped", "a ring that is gone");
    assert_eq!(Fault::of(&error).kind(), FaultKind::Undecided, "the put may have been done");
}

/// QUEUES-2: at the bound of the queue, and one over it. Another class is not affected (QUEUES-1).
#[tokio::test]
async fn a_full_queue_refuses_its_own_class_only() {
    let (mut member, mut ring) = Member::stalled(2).await;
    let mut raw = member.raw().await;
    for _ in 0..2 {
        let error = raw.call(PUT, &[("grpc-timeout", "1m")], a_put()).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "there was room to wait");
    }
    let error = raw.call(PUT, &[], a_put()).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: too many requests");
    let read = grpc::frame(&range("k", ""));
    let error = raw.call(RANGE, &[("grpc-timeout", "1m")], read).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "reads wait elsewhere");
    for _ in 0..2 {
        assert!(matches!(ring.calls.try_recv(), Some(Call::Propose { .. })), "writes go first");
    }
    assert!(matches!(ring.calls.try_recv(), Some(Call::Read { .. })));
    assert!(ring.calls.try_recv().is_none());
}

/// QUEUES-1: a renewal that comes last is taken before the writes and reads that wait.
#[tokio::test]
async fn a_renewal_that_comes_last_is_taken_first() {
    let (mut member, mut ring) = Member::stalled(4).await;
    let mut raw = member.raw().await;
    for (path, message) in [(RANGE, grpc::frame(&range("k", ""))), (PUT, a_put())] {
        let error = raw.call(path, &[("grpc-timeout", "500m")], message).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{path} waits for the ring");
    }
    let renewal = grpc::frame(&pb::LeaseKeepAliveRequest { id: 7 });
    drop(raw.call(KEEP_ALIVE, &[("grpc-timeout", "500m")], renewal).await.unwrap_err());
    let mut taken = || match ring.calls.try_recv() {
        Some(Call::Propose { proposal, .. }) => Some(proposal.request),
        Some(Call::Read { .. }) => None,
        other => panic!("{other:?}"),
    };
    assert!(matches!(taken(), Some(Request::LeaseRenew { id: 7 })));
    assert!(matches!(taken(), Some(Request::Put(_))));
    assert!(taken().is_none(), "the read is last");
}

#[tokio::test]
async fn a_serializable_read_needs_no_ring() {
    let (mut member, _ring) = Member::stalled(1).await;
    let mut raw = member.raw().await;
    let request = pb::RangeRequest { serializable: true, ..range("k", "") };
    raw.ask(RANGE, &request).await.unwrap();
}

#[tokio::test]
async fn a_client_that_requires_a_leader_gets_the_error_that_there_is_none() {
    let (mut member, _ring) = Member::stalled(1).await;
    let mut raw = member.raw().await;
    let error = raw.call(PUT, &[("hasleader", "true")], a_put()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert_eq!(Fault::of(&error).kind(), FaultKind::Unavailable, "nothing was done");
}

#[tokio::test]
async fn a_learner_serves_reads_that_may_be_stale_and_nothing_else() {
    let (mut member, ring) = Member::stalled(1).await;
    let me = RingMember { id: 2, is_learner: true, ..Default::default() };
    ring.publisher.ring(RingView { leader: 9, members: vec![me], ..Default::default() });
    let mut raw = member.raw().await;
    let stale = pb::RangeRequest { serializable: true, ..range("k", "") };
    raw.ask(RANGE, &stale).await.unwrap();
    for (path, message) in [(PUT, a_put()), (RANGE, grpc::frame(&range("k", "")))] {
        let error = raw.call(path, &[], message).await.unwrap_err();
        let expected = (Code::FailedPrecondition, "etcdserver: rpc not supported for learner");
        assert_eq!((error.code(), error.message()), expected);
    }
}

/// A call that only waits is given up when its client gives up: by a reset, by its deadline, or with
/// its connection.
#[tokio::test]
async fn a_client_that_gives_up_waiting_for_a_lock_leaves_the_queue() {
    let member = Member::start().await;
    let mut leases = pb::lease_client::LeaseClient::new(member.channel().await);
    for id in [0xa, 0xb] {
        leases.lease_grant(pb::LeaseGrantRequest { id, ttl: 1_000 }).await.unwrap();
    }
    let lock = async |channel, lease, timeout_ms: Option<u64>| {
        let mut request = tonic::Request::new(lpb::LockRequest { name: "l".into(), lease });
        if let Some(ms) = timeout_ms {
            request.set_timeout(Duration::from_millis(ms));
        }
        lpb::lock_client::LockClient::new(channel).lock(request).await
    };
    lock(member.channel().await, 0xa, None).await.unwrap();
    let mut applied = member.backend.applied();
    let mut contenders = async |count| {
        let prefix = KeyRange::prefix("l/");
        let range = RangeRequest::of(prefix);
        while member.backend.inspect(|keyspace| keyspace.store().range(&range).unwrap().kvs.len())
            != count
        {
            applied.changed().await.unwrap();
        }
    };
    // A deadline that the client keeps, too.
    let error = lock(member.channel().await, 0xb, Some(200)).await.unwrap_err();
    assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error}");
    contenders(1).await;
    // A reset, then a connection that ends.
    let kept = member.channel().await;
    for channel in [kept.clone(), member.channel().await] {
        tokio::select! {
            _ = lock(channel, 0xb, None) => panic!("the lock is held"),
            () = contenders(2) => {}
        }
        contenders(1).await;
    }
}
