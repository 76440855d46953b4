//! Decides whether a message is safe to decode.
//!
//! In protobuf an element of a list may take two bytes in the encoded message and hundreds in memory, so a
//! request within its size limit could cost a hundred times that, before any check of its content. The
//! elements of a `TxnRequest` and of a `PutStreamRequest` are therefore counted in the encoded message before
//! it is decoded.
//!
//! # Invariants
//!
//! - **PRESCAN-1** A message that passes decodes into at most the counted number of elements, and nests at most
//!   [`TXN_DEPTH_MAX`] transactions.
//! - **PRESCAN-2** A malformed message passes: the decoder refuses it, with an error of its own.

use satrap_ring_core::Refusal;
use tonic::Status;

use crate::limits::{STREAM_PUTS_MAX, TXN_DEPTH_MAX, TXN_ELEMENTS_MAX};

/// Field numbers of `TxnRequest`.
const COMPARE: u64 = 1;
const SUCCESS: u64 = 2;
const FAILURE: u64 = 3;
/// Field number of a nested transaction in `RequestOp`.
const REQUEST_TXN: u64 = 4;
/// Field number of the list in `PutStreamRequest`.
const PUTS: u64 = 1;

/// Checks that a `TxnRequest` has few enough elements to be decoded.
///
/// # Errors
///
/// [`Refusal::TooManyOps`].
pub fn txn(message: &[u8]) -> Result<(), Refusal> {
    let mut elements = 0;
    count_txn(message, &mut elements, TXN_DEPTH_MAX)
}

/// Checks that a `PutStreamRequest` has few enough puts to be decoded.
///
/// # Errors
///
/// `InvalidArgument`, with the limit.
pub fn put_stream(message: &[u8]) -> Result<(), Status> {
    match Fields(message).filter(|(number, _)| *number == PUTS).count() {
        0..=STREAM_PUTS_MAX => Ok(()),
        _ => Err(Status::invalid_argument(format!(
            "satrap: too many puts in one message, expected at most {STREAM_PUTS_MAX}; \
             send several messages"
        ))),
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

/// The length-delimited fields of a message, until the first malformed field (PRESCAN-2).
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
                // The start and the end of a group. The decoder skips groups, so counting their fields as
                // fields of the message counts too many elements, never too few (PRESCAN-1).
                3 | 4 => {}
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
    use prost::encoding::{WireType, encode_key, encode_varint};
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

    /// A field with this number and content.
    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_key(number as u32, WireType::LengthDelimited, &mut bytes);
        encode_varint(content.len() as u64, &mut bytes);
        [bytes, content.to_vec()].concat()
    }

    /// An unknown field of wire types 3 and 4, which the decoder skips with all that is in it.
    fn group((number, content): (u32, Vec<Vec<u8>>)) -> Vec<u8> {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        encode_key(number, WireType::StartGroup, &mut start);
        encode_key(number, WireType::EndGroup, &mut end);
        [start, content.concat(), end].concat()
    }

    fn any_group() -> impl Strategy<Value = Vec<u8>> {
        fn of(content: impl Strategy<Value = Vec<u8>> + 'static) -> impl Strategy<Value = Vec<u8>> {
            (9_u32..20_000, prop::collection::vec(content, 0..3)).prop_map(group)
        }
        let content = prop_oneof![
            Just(vec![0x08, 0x96, 0x01]),
            Just(vec![0x0d, 1, 2, 3, 4]),
            Just(field(COMPARE, &[])),
            Just(field(REQUEST_TXN, &field(SUCCESS, &[]))),
        ];
        of(content.prop_recursive(3, 8, 3, of))
    }

    /// The encoded transaction, with `unknown` fields in it, in its operations and in the transactions inside it.
    fn encode(txn: &pb::TxnRequest, unknown: &[u8]) -> Vec<u8> {
        let op = |op: &pb::RequestOp| match &op.request {
            Some(Op::RequestTxn(txn)) => field(REQUEST_TXN, &encode(txn, unknown)),
            _ => op.encode_to_vec(),
        };
        let op = |number| move |of: &pb::RequestOp| field(number, &[unknown, &op(of)].concat());
        let compares = txn.compare.iter().map(|of| field(COMPARE, &of.encode_to_vec()));
        let (success, failure) =
            (txn.success.iter().map(op(SUCCESS)), txn.failure.iter().map(op(FAILURE)));
        let fields: Vec<u8> = compares.chain(success).chain(failure).flatten().collect();
        [unknown, &fields].concat()
    }

    proptest! {
        /// PRESCAN-1: what is counted is what the decoder makes.
        #[test]
        fn a_transaction_has_as_many_elements_as_were_counted(txn in any_txn()) {
            let mut counted = 0;
            count_txn(&txn.encode_to_vec(), &mut counted, TXN_DEPTH_MAX).unwrap();
            prop_assert_eq!(counted, elements(&txn));
        }

        /// PRESCAN-1 for unknown fields.
        #[test]
        fn groups_hide_no_element(txn in any_txn(), group in any_group()) {
            let bytes = encode(&txn, &group);
            let mut counted = 0;
            count_txn(&bytes, &mut counted, TXN_DEPTH_MAX).unwrap();
            prop_assert!(counted >= elements(&txn));
            prop_assert_eq!(pb::TxnRequest::decode(&bytes[..]), Ok(txn));
        }

        /// PRESCAN-1 for altered bytes: a message that decodes has at most the counted number of elements.
        /// PRESCAN-2: no panic.
        #[test]
        fn altered_bytes_hide_no_element(
            txn in any_txn(),
            group in any_group(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&txn, &group);
            for (index, byte) in changes {
                if !bytes.is_empty() {
                    let index = index.index(bytes.len());
                    bytes[index] = byte;
                }
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut counted = 0;
            let outcome = count_txn(&bytes, &mut counted, TXN_DEPTH_MAX);
            if let (Ok(()), Ok(decoded)) = (outcome, pb::TxnRequest::decode(&bytes[..])) {
                prop_assert!(elements(&decoded) <= counted);
            }
        }

        #[test]
        fn random_bytes_do_not_panic(bytes in any::<Vec<u8>>()) {
            let _ = (txn(&bytes), put_stream(&bytes));
        }
    }

    #[test]
    fn at_the_limit_and_over_it() {
        let puts = |count: usize| field(PUTS, &[]).repeat(count);
        put_stream(&puts(STREAM_PUTS_MAX)).unwrap();
        let refused = put_stream(&puts(STREAM_PUTS_MAX + 1)).unwrap_err();
        assert_eq!(
            refused.message(),
            "satrap: too many puts in one message, expected at most 4096; send several messages"
        );
        let ops = |count: usize| field(FAILURE, &[]).repeat(count);
        txn(&ops(TXN_ELEMENTS_MAX)).unwrap();
        assert_eq!(txn(&ops(TXN_ELEMENTS_MAX + 1)), Err(Refusal::TooManyOps));
    }

    /// Regression: an empty group ended the count, but not the decoding.
    #[test]
    fn elements_after_a_group_are_counted() {
        let after_group = |list: &[u8]| [&group((15, vec![])), list].concat();
        put_stream(&after_group(&field(PUTS, &[]).repeat(STREAM_PUTS_MAX + 1))).unwrap_err();
        let ops = field(FAILURE, &[]).repeat(TXN_ELEMENTS_MAX + 1);
        assert_eq!(txn(&after_group(&ops)), Err(Refusal::TooManyOps));
        let op = after_group(&field(REQUEST_TXN, &after_group(&ops)));
        assert_eq!(txn(&field(SUCCESS, &op)), Err(Refusal::TooManyOps));
    }
}
