//! `KV` as clients see it: revisions, and errors by code and text.

use satrap_proto::etcdserverpb::alarm_request::AlarmAction;
use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use satrap_proto::etcdserverpb::request_op::Request as Op;
use satrap_proto::etcdserverpb::{self as pb, compare};
use satrap_proto::v1::{self, store_client::StoreClient};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::Member;

async fn client(member: &Member) -> KvClient<Channel> {
    KvClient::new(member.channel().await).max_decoding_message_size(usize::MAX)
}

pub fn put(key: impl Into<String>, value: impl Into<String>) -> pb::PutRequest {
    let (key, value) = (key.into().into(), value.into().into());
    pb::PutRequest { key, value, ..Default::default() }
}

pub fn range(key: &str, end: &str) -> pb::RangeRequest {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    pb::RangeRequest { key, range_end, ..Default::default() }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn version_is(key: &str, version: i64) -> pb::Compare {
    pb::Compare {
        target: compare::CompareTarget::Version.into(),
        key: key.to_owned().into(),
        target_union: Some(compare::TargetUnion::Version(version)),
        ..Default::default()
    }
}

#[tokio::test]
async fn revisions_and_headers_are_counted_as_in_etcd() {
    let member = Member::start().await;
    let mut kv = client(&member).await;
    let first = kv.put(put("a", "1")).await.unwrap().into_inner();
    let header = first.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (0xc1, 0xa1));
    assert_eq!((header.revision, header.raft_term), (2, 2));

    let request = pb::PutRequest { prev_kv: true, ..put("a", "2") };
    let second = kv.put(request).await.unwrap().into_inner();
    assert_eq!(second.header.unwrap().revision, 3);
    let prev = second.prev_kv.unwrap();
    assert_eq!((&prev.value[..], prev.mod_revision, prev.version), (&b"1"[..], 2, 1));

    let txn = pb::TxnRequest {
        compare: vec![version_is("a", 2)],
        success: vec![
            op(Op::RequestRange(range("a", ""))),
            op(Op::RequestPut(put("b", "1"))),
            op(Op::RequestPut(put("c", "1"))),
            op(Op::RequestTxn(pb::TxnRequest::default())),
        ],
        failure: vec![],
    };
    let answer = kv.txn(txn).await.unwrap().into_inner();
    assert!(answer.succeeded);
    assert_eq!(answer.header.unwrap().revision, 4, "one main revision for all its writes");
    let inner = |op: &pb::ResponseOp| match op.response.as_ref().unwrap() {
        pb::response_op::Response::ResponseRange(range) => range.header,
        pb::response_op::Response::ResponsePut(put) => put.header,
        pb::response_op::Response::ResponseDeleteRange(delete) => delete.header,
        pb::response_op::Response::ResponseTxn(txn) => txn.header,
    };
    let inner: Vec<_> = answer.responses.iter().map(|op| inner(op).unwrap()).collect();
    assert_eq!(inner.iter().map(|header| header.revision).collect::<Vec<_>>(), [3, 4, 4, 0]);
    assert!(inner.iter().all(|header| header.member_id == 0), "only the outer header is complete");

    // A transaction that only reads needs no revision of its own.
    let reads = pb::TxnRequest {
        success: vec![op(Op::RequestRange(range("a", "z")))],
        ..Default::default()
    };
    assert_eq!(kv.txn(reads).await.unwrap().into_inner().header.unwrap().revision, 4);

    let nothing = pb::DeleteRangeRequest { key: "x".into(), ..Default::default() };
    let nothing = kv.delete_range(nothing).await.unwrap().into_inner();
    assert_eq!((nothing.deleted, nothing.header.unwrap().revision), (0, 4));
    let delete = pb::DeleteRangeRequest { key: "b".into(), range_end: "d".into(), prev_kv: true };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.header.unwrap().revision), (2, 5));
    assert_eq!(deleted.prev_kvs.len(), 2);

    let old = pb::RangeRequest { revision: 4, ..range("a", "z") };
    let old = kv.range(old).await.unwrap().into_inner();
    assert_eq!((old.count, old.header.unwrap().revision), (3, 5));
    let compacted =
        kv.compact(pb::CompactionRequest { revision: 4, physical: true }).await.unwrap();
    assert_eq!(compacted.into_inner().header.unwrap().revision, 5);
    member.stop().await;
}

/// Codes and texts are those of etcd 3.7.3.
#[tokio::test]
async fn errors_are_etcds() {
    let member = Member::start().await;
    let mut kv = client(&member).await;
    for number in 0..4 {
        kv.put(put("a", number.to_string())).await.unwrap();
    }
    kv.compact(pb::CompactionRequest { revision: 3, ..Default::default() }).await.unwrap();

    let revision = |revision| pb::RangeRequest { revision, ..range("a", "") };
    let sort_order = pb::RangeRequest { sort_order: 7, ..range("a", "") };
    let sort_target = pb::RangeRequest { sort_target: -1, ..range("a", "") };
    for (request, code, text) in [
        (range("", ""), Code::InvalidArgument, "etcdserver: key is not provided"),
        (revision(2), Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        (
            revision(99),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (sort_order, Code::InvalidArgument, "etcdserver: invalid sort option"),
        (sort_target, Code::InvalidArgument, "etcdserver: invalid sort option"),
    ] {
        let error = kv.range(request.clone()).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text), "{request:?}");
    }

    let with = |change: fn(&mut pb::PutRequest)| {
        let mut request = put("new", "v");
        change(&mut request);
        request
    };
    for (request, code, text) in [
        (put("", "v"), Code::InvalidArgument, "etcdserver: key is not provided"),
        (
            with(|put| put.ignore_value = true),
            Code::InvalidArgument,
            "etcdserver: value is provided",
        ),
        (
            with(|put| (put.ignore_lease, put.lease) = (true, 5)),
            Code::InvalidArgument,
            "etcdserver: lease is provided",
        ),
        (with(|put| put.lease = 5), Code::NotFound, "etcdserver: requested lease not found"),
        (with(|put| put.ignore_lease = true), Code::InvalidArgument, "etcdserver: key not found"),
    ] {
        let error = kv.put(request.clone()).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text), "{request:?}");
    }

    let twice = vec![op(Op::RequestPut(put("k", ""))), op(Op::RequestPut(put("k", "")))];
    let empty = vec![pb::RequestOp::default()];
    let nameless = vec![op(Op::RequestPut(put("", "")))];
    for (success, code, text) in [
        (twice, Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        (empty, Code::InvalidArgument, "etcdserver: key not found"),
        (nameless, Code::InvalidArgument, "etcdserver: key is not provided"),
    ] {
        let request = pb::TxnRequest { success, ..Default::default() };
        let error = kv.txn(request.clone()).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text), "{request:?}");
    }

    for (revision, text) in [
        (3, "etcdserver: mvcc: required revision has been compacted"),
        (99, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        let request = pb::CompactionRequest { revision, ..Default::default() };
        let error = kv.compact(request).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::OutOfRange, text));
    }
    member.stop().await;
}

/// Numbers without a name, as recorded from etcd 3.7.3.
#[tokio::test]
async fn comparisons_that_have_no_name_are_those_of_etcd() {
    use compare::CompareTarget::{Value, Version};
    let member = Member::start().await;
    let mut kv = client(&member).await;
    kv.put(put("is", "v")).await.unwrap();
    let (unknown, value, version) = (9, i32::from(Value), i32::from(Version));
    for (key, result, target, holds) in [
        ("is", unknown, version, true),
        ("is", unknown, value, true),
        ("is not", unknown, version, true),
        ("is not", unknown, value, false),
        ("is", 0, unknown, true),
        ("is", 1, unknown, false),
        ("is not", 2, unknown, false),
        ("is not", 3, unknown, false),
    ] {
        let compare = pb::Compare { key: key.into(), result, target, ..Default::default() };
        let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
        let answer = kv.txn(txn).await.unwrap().into_inner();
        assert_eq!(answer.succeeded, holds, "{key} {result} {target}");
    }
    member.stop().await;
}

/// REQUEST-2: a range that takes several steps is the same as one that takes one.
#[tokio::test]
async fn a_long_range_is_whole_and_a_streamed_one_equals_it() {
    const KEYS: usize = 5_000;
    let member = Member::start().await;
    let mut kv = client(&member).await;
    for hundred in 0..KEYS / 100 {
        let puts = (0..100).map(|n| op(Op::RequestPut(put(format!("{hundred:02}{n:02}"), "v"))));
        let request = pb::TxnRequest { success: puts.collect(), ..Default::default() };
        kv.txn(request).await.unwrap();
    }
    let whole = kv.range(range("\0", "\0")).await.unwrap().into_inner();
    assert_eq!((whole.kvs.len(), whole.count, whole.more), (KEYS, KEYS as i64, false));
    assert!(whole.kvs.is_sorted_by(|a, b| a.key < b.key));

    for limit in [0, 1, 4_999, 5_000, 9_999] {
        let request = pb::RangeRequest { limit, ..range("\0", "\0") };
        let once = kv.range(request.clone()).await.unwrap().into_inner();
        let mut parts = kv.range_stream(request).await.unwrap().into_inner();
        let (mut streamed, mut ended) = (pb::RangeResponse::default(), false);
        while let Some(part) = parts.message().await.unwrap() {
            let part = part.range_response.unwrap();
            assert!(!ended, "nothing comes after the part with the header");
            ended = part.header.is_some();
            streamed.kvs.extend(part.kvs);
            (streamed.header, streamed.count, streamed.more) = (part.header, part.count, part.more);
        }
        assert_eq!(streamed, once, "limit {limit}");
    }
    let sorted = pb::RangeRequest { sort_order: 2, ..range("a", "b") };
    let error = kv.range_stream(sorted).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    member.stop().await;
}

/// Only the member that the alarm names is known to have a wrong copy.
#[tokio::test]
async fn a_corrupt_member_answers_no_reads() {
    const OWN: u64 = 0xa1;
    let member = Member::start().await;
    let channel = member.channel().await;
    let (mut kv, mut store) = (client(&member).await, StoreClient::new(channel.clone()));
    let mut maintenance = MaintenanceClient::new(channel);
    let mut alarm = async |action: AlarmAction, member_id| {
        let (action, alarm) = (action.into(), pb::AlarmType::Corrupt.into());
        maintenance.alarm(pb::AlarmRequest { action, member_id, alarm }).await.unwrap();
    };
    let mut reads = async || {
        let txn = pb::TxnRequest {
            success: vec![op(Op::RequestRange(range("a", "")))],
            ..Default::default()
        };
        let get = v1::GetRequest { key: "a".into(), ..Default::default() };
        let list = v1::ListPageRequest { key: "a".into(), ..Default::default() };
        let role = v1::RoleStatusRequest { role: "r".into(), ..Default::default() };
        [
            kv.range(range("a", "")).await.err(),
            kv.range(pb::RangeRequest { serializable: true, ..range("a", "") }).await.err(),
            kv.txn(txn).await.err(),
            store.get(get).await.err(),
            store.list_page(list).await.err(),
            store.role_status(role).await.err(),
        ]
    };
    alarm(AlarmAction::Activate, OWN + 1).await;
    let served = reads().await;
    assert!(served.iter().all(Option::is_none), "{served:?}");
    alarm(AlarmAction::Activate, OWN).await;
    for refused in reads().await {
        let status = refused.unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (Code::DataLoss, "etcdserver: corrupt cluster")
        );
    }
    alarm(AlarmAction::Deactivate, OWN).await;
    assert!(reads().await.iter().all(Option::is_none));
    member.stop().await;
}
