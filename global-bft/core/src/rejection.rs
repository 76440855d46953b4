//! Why a change or a block is refused, by the rule of `docs/spec/validity.md` it breaks.

use satrap_certify::{
    Address, BundleName, Digest, Label, PublicKey, Timestamp,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX},
};

use crate::room::{OPAQUE, REALM, Room};

/// A refused change (V1 to V19, V27, V28) or block (V20 to V26).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named in the message right above them")]
pub enum Rejection {
    /// V1
    #[error("change is signed for the realm with genesis {}", hex::encode(.0))]
    Realm(Digest),
    /// V2
    #[error("no class covers bundle `{0}`; ask an operator which prefixes this realm governs")]
    Class(BundleName),
    /// V3
    #[error(
        "{have} distinct principals approved, {needed} must; others approve a change that is in a file \
         (`publish --out FILE` saves it) with `satrap approve FILE --operator KEY`"
    )]
    Approvals { have: usize, needed: u32 },
    /// V3
    #[error(
        "no operator of this realm holds key {0}, which approved; `satrap approve` with another key \
         drops that approval"
    )]
    UnknownKey(PublicKey),
    /// V3
    #[error(
        "the approval by key {0} does not verify: it is of another change, or damaged; `satrap \
         approve` drops it"
    )]
    Approval(PublicKey),
    /// V4
    #[error(
        "`{bundle}` is at version {current}, the change expects {expected}; read the current \
         version, rebuild the change and sign it again"
    )]
    Version { bundle: BundleName, expected: u64, current: u64 },
    /// V5
    #[error("change of `{0}` changes nothing")]
    Empty(BundleName),
    /// V6
    #[error("change of `{0}` lists keys out of order or twice; its author's tool is broken")]
    Order(BundleName),
    /// V6
    #[error("change deletes key `{key}`, which `{bundle}` does not hold")]
    Missing { bundle: BundleName, key: String },
    /// V7
    #[error(
        "`{bundle}` would get root {}, the authors signed {}",
        hex::encode(computed),
        hex::encode(signed)
    )]
    Root { bundle: BundleName, computed: Digest, signed: Digest },
    /// V8
    #[error(
        "`{bundle}` would hold {entries} entries and {bytes} bytes; at most {BUNDLE_ENTRIES_MAX} \
         and {BUNDLE_BYTES_MAX} are allowed, keep large artifacts elsewhere and publish digests"
    )]
    BundleLimit { bundle: BundleName, entries: u64, bytes: u64 },
    /// V8
    #[error("the realm would hold {0}; at most {REALM} are allowed; retire bundles nothing uses")]
    RealmLimit(Room),
    /// V9
    #[error("`{bundle}` key `{key}` is not a trust root: {why}")]
    NotATrustRoot { bundle: BundleName, key: String, why: String },
    /// V10
    #[error(
        "`{0}` would keep none of its present trust roots; add the new ones first, remove the old \
         ones when nothing uses them any more"
    )]
    NoOverlap(BundleName),
    /// V11
    #[error(
        "governance is at version {current}, the change expects {expected}; read it again and sign \
         anew"
    )]
    GovernanceVersion { expected: u64, current: u64 },
    /// V12
    #[error("only {left} principals would be left, but some change needs {needed} approvals")]
    TooFewPrincipals { left: usize, needed: u32 },
    /// V13
    #[error("{what} {key} is not authorized, so it cannot be revoked")]
    NotAuthorized { what: &'static str, key: PublicKey },
    /// V14
    #[error("{what} {key} is already authorized, or is no usable Ed25519 key")]
    NotNew { what: &'static str, key: PublicKey },
    /// V15
    #[error("validators: {0}")]
    Validators(String),
    /// V16
    #[error(
        "the change moves voting power {moved} of {total}; at most a third may move at once, so \
         that followers can skip; split it into several changes"
    )]
    PowerMoved { moved: u64, total: u64 },
    /// V17
    #[error(
        "the history holds {size} directories, and bundles of this class may extend it to {max}; \
         this realm must be founded anew with a later release before they can change again"
    )]
    HistoryFull { size: u64, max: usize },
    /// V18
    #[error(
        "bundles of class `{class}` would hold {sums}; its quota is {quota}; retire bundles of the \
         class that nothing uses"
    )]
    ClassQuota { class: String, sums: Room, quota: Room },
    /// V18
    #[error(
        "bundles of opaque classes would hold {0}; at most {OPAQUE} are allowed, the rest is \
         reserved for trust roots; retire bundles nothing uses"
    )]
    Reserved(Room),
    /// V19
    #[error(
        "`{principal}` owns {owned} bundles of class `{class}`, {max} are allowed; let another \
         principal approve the creation, or retire bundles nothing uses"
    )]
    Owner { principal: Label, class: String, owned: usize, max: usize },
    /// V27
    #[error(
        "{have} of the approving principals may publish in class `{class}` at block time {time}, \
         {needed} must; submit the change again after {retry_at}, or collect approvals of others"
    )]
    Rate { class: String, have: usize, needed: usize, time: Timestamp, retry_at: Timestamp },
    /// V28
    #[error("`{0}` does not exist, so it cannot be retired")]
    NothingToRetire(BundleName),
    /// V20
    #[error("block is for height {offered}, the ledger is at {current}")]
    Height { offered: u64, current: u64 },
    /// V21
    #[error("block does not name the last decided block as its predecessor")]
    LastBlock,
    /// V22
    #[error("block time {offered} is not after the last block's {last}")]
    Time { offered: Timestamp, last: Timestamp },
    /// V23
    #[error("proposer {0} is not in the validator set")]
    Proposer(Address),
    /// V24
    #[error("block header has a wrong {0}; this validator derived another value")]
    Derived(&'static str),
    /// V25
    #[error(
        "changes exceed what one block may hold or cost: bytes, changes, approvals or tree nodes; \
         split the change"
    )]
    BlockLimit,
    /// V26
    #[error("decided block has no valid commit: {0}")]
    Commit(#[from] satrap_certify::Rejection),
}

impl Rejection {
    /// The rule's number in `docs/spec/validity.md`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Realm(_) => "V1",
            Self::Class(_) => "V2",
            Self::Approvals { .. } | Self::UnknownKey(_) | Self::Approval(_) => "V3",
            Self::Version { .. } => "V4",
            Self::Empty(_) => "V5",
            Self::Order(_) | Self::Missing { .. } => "V6",
            Self::Root { .. } => "V7",
            Self::BundleLimit { .. } | Self::RealmLimit(_) => "V8",
            Self::NotATrustRoot { .. } => "V9",
            Self::NoOverlap(_) => "V10",
            Self::GovernanceVersion { .. } => "V11",
            Self::TooFewPrincipals { .. } => "V12",
            Self::NotAuthorized { .. } => "V13",
            Self::NotNew { .. } => "V14",
            Self::Validators(_) => "V15",
            Self::PowerMoved { .. } => "V16",
            Self::HistoryFull { .. } => "V17",
            Self::ClassQuota { .. } | Self::Reserved(_) => "V18",
            Self::Owner { .. } => "V19",
            Self::Height { .. } => "V20",
            Self::LastBlock => "V21",
            Self::Time { .. } => "V22",
            Self::Proposer(_) => "V23",
            Self::Derived(_) => "V24",
            Self::BlockLimit => "V25",
            Self::Commit(_) => "V26",
            Self::Rate { .. } => "V27",
            Self::NothingToRetire(_) => "V28",
        }
    }
}
