//! One validator of the global quorum.
