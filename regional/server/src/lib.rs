//! One member of a regional Raft ring.
