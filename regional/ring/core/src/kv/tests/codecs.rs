//! Tests of the encodings: every value survives, and every other input is refused.

use bytes::Bytes;
use proptest::prelude::*;
use satrap_merkle::codec::{Canonical, DecodeError, Reader};

use super::random::{some_range_request, some_txn};
use super::*;
use crate::limits::TXN_DEPTH_MAX;

fn survives<T: Canonical + PartialEq + core::fmt::Debug>(value: &T) -> Vec<u8> {
    let bytes = value.to_canonical();
    assert_eq!(T::from_canonical(&bytes).as_ref(), Ok(value));
    for cut in 0..bytes.len().min(64) {
        assert!(T::from_canonical(&bytes[..cut]).is_err());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn requests_and_their_answers_survive(txn in some_txn(), range in some_range_request()) {
        let bytes = Bytes::from(survives(&txn));
        let mut r = Reader::new(&bytes);
        let shared = TxnRequest::decode_with(&mut r, Ownership::Shared(&bytes));
        prop_assert_eq!(shared.as_ref(), Ok(&txn));
        survives(&range);
        let mut store = Store::new();
        for key in ["a", "b", "c"] {
            put(&mut store, key, "1");
        }
        survives(&store.range(&range).unwrap());
        if let Ok(answer) = store.txn(&txn, &mut ()) {
            survives(&answer);
        }
    }

    /// A hostile member's bytes are either refused or decoded.
    #[test]
    fn any_bytes_are_harmless(bytes in prop::collection::vec(0..6u8, 0..200)) {
        if let Ok(request) = TxnRequest::from_canonical(&bytes) {
            let _ = Store::new().txn(&request, &mut ());
            prop_assert_eq!(request.to_canonical(), bytes);
        }
    }
}

#[test]
fn sharing_copies_nothing() {
    let entry = Bytes::from(PutRequest::of("key", "value").to_canonical());
    let mut r = Reader::new(&entry);
    let put = PutRequest::decode_with(&mut r, Ownership::Shared(&entry)).unwrap();
    assert!(entry.as_ptr_range().contains(&put.value.as_ptr()));
    let copied = PutRequest::from_canonical(&entry).unwrap();
    assert!(!entry.as_ptr_range().contains(&copied.value.as_ptr()));
}

/// A value has one encoding.
#[test]
fn flags_that_mean_nothing_are_refused() {
    let mut bytes = PutRequest::of("k", "v").to_canonical();
    *bytes.last_mut().unwrap() = 8;
    assert_eq!(PutRequest::from_canonical(&bytes), Err(DecodeError::Invalid("flags")));
}

#[test]
fn nesting_is_bounded() {
    let deep = |n| {
        (0..n).fold(TxnRequest::default(), |inner, _| TxnRequest {
            success: vec![RequestOp::Txn(inner)],
            ..TxnRequest::default()
        })
    };
    survives(&deep(TXN_DEPTH_MAX));
    let bytes = deep(TXN_DEPTH_MAX + 1).to_canonical();
    let too_deep = DecodeError::TooLong { claimed: TXN_DEPTH_MAX + 1, max: TXN_DEPTH_MAX };
    assert_eq!(TxnRequest::from_canonical(&bytes), Err(too_deep));
}

#[test]
fn a_deletion_survives() {
    survives(&KeyValue::new(b"k", b"", Stamp { mod_revision: 5, ..Stamp::default() }));
}
