//! Decides whether a message is safe to decode.
//!
//! In protobuf an element of a list may take two bytes on the wire and hundreds in memory, so a
//! request within its size limit could cost a hundred times that, before any check of its content. The
//! lists of a transaction, and of a bulk write, are therefore counted on the wire first.
//!
//! # Invariants
//!
//! - **E1** What passes decodes into at most the counted number of elements, at most so deep.
//! - **E2** What does not parse passes: the decoder refuses it, and in its own words.

use satrap_regional_core::Refusal;

use crate::limits::{STREAM_PUTS_MAX, TXN_DEPTH_MAX, TXN_ELEMENTS_MAX};

/// Field numbers of `TxnRequest`.
const COMPARE: u64 = 1;
const SUCCESS: u64 = 2;
const FAILURE: u64 = 3;
/// Field number of a nested transaction in `RequestOp`.
const REQUEST_TXN: u64 = 4;
/// Field number of the list in `PutStreamRequest`.
const PUTS: u64 = 1;

/// Whether a `TxnRequest` may be decoded.
///
/// # Errors
///
/// [`Refusal::TooManyOps`].
pub fn txn(message: &[u8]) -> Result<(), Refusal> {
    let mut elements = 0;
    count_txn(message, &mut elements, TXN_DEPTH_MAX)
}

/// Whether a `PutStreamRequest` may be decoded.
///
/// # Errors
///
/// [`Refusal::TooManyOps`].
pub fn put_stream(message: &[u8]) -> Result<(), Refusal> {
    match Fields(message).filter(|(number, _)| *number == PUTS).count() {
        0..=STREAM_PUTS_MAX => Ok(()),
        _ => Err(Refusal::TooManyOps),
    }
}

fn count_txn(message: &[u8], elements: &mut usize, depth_left: usize) -> Result<(), Refusal> {
    let depth_left = depth_left.checked_sub(1).ok_or(Refusal::TooManyOps)?;
    for (number, content) in Fields(message) {
        if !matches!(number, COMPARE | SUCCESS | FAILURE) {
            continue;
        }
        *elements += 1;
        if *elements > TXN_ELEMENTS_MAX {
            return Err(Refusal::TooManyOps);
        }
        if number != COMPARE {
            for (_, txn) in Fields(content).filter(|(number, _)| *number == REQUEST_TXN) {
                count_txn(txn, elements, depth_left)?;
            }
        }
    }
    Ok(())
}

/// Length-delimited fields of a message, until its end or until it stops making sense (E2).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.varint()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let len = usize::try_from(self.varint()?).ok()?;
                    return Some((key >> 3, self.take(len)?));
                }
                5 => drop(self.take(4)?),
                // Groups, which nobody has sent for twenty years; and what is not defined.
                _ => return None,
            }
        }
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use satrap_proto::etcdserverpb as pb;
    use satrap_proto::etcdserverpb::request_op::Request as Op;

    use super::*;

    fn elements(txn: &pb::TxnRequest) -> usize {
        let branches = txn.success.iter().chain(&txn.failure);
        let nested = branches.clone().map(|op| match &op.request {
            Some(Op::RequestTxn(txn)) => elements(txn),
            _ => 0,
        });
        txn.compare.len() + branches.count() + nested.sum::<usize>()
    }

    fn any_txn() -> impl Strategy<Value = pb::TxnRequest> {
        let leaf = prop_oneof![
            Just(pb::RequestOp::default()),
            any::<Vec<u8>>().prop_map(|key| {
                let put = pb::PutRequest { key: key.into(), ..Default::default() };
                pb::RequestOp { request: Some(Op::RequestPut(put)) }
            }),
        ];
        let txn = |op: BoxedStrategy<pb::RequestOp>| {
            let compare = prop::collection::vec(Just(pb::Compare::default()), 0..4);
            let ops = prop::collection::vec(op, 0..4);
            (compare, ops.clone(), ops).prop_map(|(compare, success, failure)| pb::TxnRequest {
                compare,
                success,
                failure,
            })
        };
        let op = leaf.prop_recursive(6, 64, 8, move |inner| {
            txn(inner).prop_map(|txn| pb::RequestOp { request: Some(Op::RequestTxn(txn)) })
        });
        txn(op.boxed())
    }

    proptest! {
        /// E1: what is counted is what the decoder makes.
        #[test]
        fn a_transaction_has_as_many_elements_as_were_counted(txn in any_txn()) {
            let mut counted = 0;
            count_txn(&txn.encode_to_vec(), &mut counted, TXN_DEPTH_MAX).unwrap();
            prop_assert_eq!(counted, elements(&txn));
        }

        /// E1 for hostile bytes: whatever decodes has at most the counted elements. E2: no panic.
        #[test]
        fn bytes_that_were_changed_never_hide_an_element(
            txn in any_txn(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = txn.encode_to_vec();
            for (place, byte) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut counted = 0;
            let verdict = count_txn(&bytes, &mut counted, TXN_DEPTH_MAX);
            if let (Ok(()), Ok(decoded)) = (verdict, pb::TxnRequest::decode(&bytes[..])) {
                prop_assert!(elements(&decoded) <= counted);
            }
        }

        #[test]
        fn noise_does_not_panic(bytes in any::<Vec<u8>>()) {
            let _ = (txn(&bytes), put_stream(&bytes));
        }
    }

    #[test]
    fn at_the_limit_and_over_it() {
        let puts = |count: usize| [0x0a, 0].repeat(count);
        put_stream(&puts(STREAM_PUTS_MAX)).unwrap();
        assert_eq!(put_stream(&puts(STREAM_PUTS_MAX + 1)), Err(Refusal::TooManyOps));
        txn(&[0x1a, 0].repeat(TXN_ELEMENTS_MAX)).unwrap();
        assert_eq!(txn(&[0x1a, 0].repeat(TXN_ELEMENTS_MAX + 1)), Err(Refusal::TooManyOps));
    }
}
