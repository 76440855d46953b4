//! The encoding of an entry, byte by byte as `docs/spec/encoding.md` has it: members of two builds
//! must read it alike, and logs on disks are read again.

use std::sync::Arc;

use satrap_merkle::codec::Canonical;
use satrap_ring_core::{
    Batch, Caller, Command, Proposal, Request, RingTime, kv::request::PutRequest,
};

#[test]
fn a_batch_has_the_documented_bytes() {
    let put = Proposal {
        caller: Caller { user: Some(Arc::from("ann")), auth_revision: 7 },
        request: Request::Put(PutRequest { lease: -2, prev_kv: true, ..PutRequest::of("k", "on") }),
    };
    let renew =
        Proposal { caller: Caller::default(), request: Request::LeaseRenew { id: 0x0102_0304 } };
    // A minute and a half of replicated time.
    let batch = Batch { time: RingTime(90_000), proposals: vec![put, renew] };
    let parts: [&[u8]; 15] = [
        b"\x01",                             // a batch
        b"\0\0\0\0\0\x01\x5f\x90",           // milliseconds
        b"\0\0\0\x02",                       // proposals
        b"\x01",                             // a user follows
        b"\0\0\0\x03ann",                    // the user
        b"\0\0\0\0\0\0\0\x07",               // the revision of the permissions
        b"\0",                               // put
        b"\0\0\0\x01k",                      // key
        b"\0\0\0\x02on",                     // value
        b"\xff\xff\xff\xff\xff\xff\xff\xfe", // lease
        b"\x01",                             // flags: the previous value is wanted
        b"\0",                               // no user
        b"\0\0\0\0\0\0\0\0",                 // checked against no permissions
        b"\x0a",                             // lease renew
        b"\0\0\0\0\x01\x02\x03\x04",         // lease
    ];
    let bytes = parts.concat();
    assert_eq!([&[1], &batch.to_canonical()[..]].concat(), bytes);
    let proposals: Vec<_> = batch.proposals.iter().flat_map(Canonical::to_canonical).collect();
    assert_eq!(Command::encode_batch(batch.time, 2, &proposals), bytes);
    assert_eq!(Batch::from_canonical(&bytes[1..]), Ok(batch));
}
