//! Carries why a call failed from any server to any client: the one place that reads and writes the
//! details of a gRPC status.
//!
//! A status has a code and a text. Codes are too coarse to act on, and texts are for people. So every
//! server attaches a [`v1::Fault`], in the form of `google.rpc.Status` that gRPC libraries of all
//! languages read, and clients ask for [`Fault::of`]. For a status without details, as a proxy or the
//! client's own transport makes it, the kind follows from the code.
//!
//! # Invariants
//!
//! - **FAULT-1** A client shows no more of a status than [`TEXT_CHARS_MAX`] characters on one line, and a rule
//!   only if it has the form of one: the server may be hostile, and terminals obey control characters.
//! - **FAULT-2** Details above [`DETAILS_BYTES_MAX`] are not decoded.

use std::error::Error as _;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::v1::{self, FaultKind};

/// The longest details that are decoded, in bytes. Ours take less than 100 and the text.
pub const DETAILS_BYTES_MAX: usize = 4 * TEXT_CHARS_MAX + 512;
/// The longest text of a status that is sent or shown, in characters.
pub const TEXT_CHARS_MAX: usize = 1024;
/// The longest name of a rule, in bytes.
pub const RULE_BYTES_MAX: usize = 16;
/// A server's hint to come back later than this is a mistake or a lie.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

const FAULT_URL: &str = "type.googleapis.com/satrap.v1.Fault";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: FaultKind,
    rule: Option<String>,
    retry_after: Option<Duration>,
}

impl Fault {
    /// A fault of this kind that breaks no named rule.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        Self { kind, rule: None, retry_after: None }
    }

    /// A request that breaks `rule`.
    ///
    /// # Panics
    ///
    /// If `rule` has not the form of one; rules are constants.
    #[must_use]
    pub fn breaks(rule: &str) -> Self {
        assert!(is_rule(rule), "BUG: {rule:?} is no name of a rule");
        Self { rule: Some(rule.to_owned()), ..Self::new(FaultKind::Rejected) }
    }

    /// A request that expects a later state than this server holds, so it breaks `rule` here.
    ///
    /// # Panics
    ///
    /// As [`Fault::breaks`].
    #[must_use]
    pub fn behind(rule: &str) -> Self {
        Self { kind: FaultKind::Behind, ..Self::breaks(rule) }
    }

    /// A status that carries this fault, and `text` for people.
    #[must_use]
    pub fn status(&self, code: Code, text: impl Into<String>) -> Status {
        let text = text.into();
        let retry_after_ms = self.retry_after.map_or(0, |wait| {
            u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
        });
        let fault = v1::Fault {
            rule: self.rule.clone().unwrap_or_default(),
            kind: self.kind.into(),
            retry_after_ms,
        };
        let any = Any { type_url: FAULT_URL.to_owned(), value: fault.encode_to_vec() };
        // Clients in Go take code and text from here, not from the status itself.
        let message = text.clone();
        let details = RpcStatus { code: code as i32, message, details: vec![any] };
        Status::with_details(code, text, details.encode_to_vec().into())
    }

    /// Why the call failed that ended with `status`.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        carried(status).unwrap_or_else(|| Self::new(kind_of(status.code())))
    }

    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The rule that the request breaks, if the server named one.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// How long to wait before the same request may be accepted, if the server said so; at most
    /// [`RETRY_AFTER_MAX`].
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl Fault {
    /// Whether the server judged the request and refuses it.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        self.kind == FaultKind::Rejected
    }

    /// Whether the request expects a later state than the server holds, so that another server may accept it.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.kind == FaultKind::Behind
    }

    /// Whether the server refused without looking at the request.
    #[must_use]
    pub fn is_before_judging(&self) -> bool {
        matches!(self.kind, FaultKind::Denied | FaultKind::Limited)
    }
}

/// The request breaks `rule`: `INVALID_ARGUMENT`.
#[must_use]
pub fn breaks(rule: &str, why: impl Into<String>) -> Status {
    Fault::breaks(rule).status(Code::InvalidArgument, why)
}

/// The request breaks `rule` here because it expects a later state than this server holds:
/// `FAILED_PRECONDITION`.
#[must_use]
pub fn behind(rule: &str, why: impl Into<String>) -> Status {
    Fault::behind(rule).status(Code::FailedPrecondition, why)
}

/// The request is refused for a reason without a name, of the kind that `code` says.
#[must_use]
pub fn refused(code: Code, why: impl Into<String>) -> Status {
    Fault::new(kind_of(code)).status(code, why)
}

/// The caller may not make this request: `PERMISSION_DENIED`.
#[must_use]
pub fn denied(why: impl Into<String>) -> Status {
    Fault::new(FaultKind::Denied).status(Code::PermissionDenied, why)
}

/// A limit is reached or a budget spent, for `wait` if that is known: `RESOURCE_EXHAUSTED`.
#[must_use]
pub fn limited(why: impl Into<String>, wait: Option<Duration>) -> Status {
    let retry_after = wait;
    let fault = Fault { retry_after, ..Fault::new(FaultKind::Limited) };
    fault.status(Code::ResourceExhausted, why)
}

/// This server cannot serve the request now and did nothing: `UNAVAILABLE`.
#[must_use]
pub fn unavailable(why: impl Into<String>) -> Status {
    Fault::new(FaultKind::Unavailable).status(Code::Unavailable, why)
}

/// The request may have been carried out, and this server cannot say: `UNAVAILABLE`.
#[must_use]
pub fn undecided(why: impl Into<String>) -> Status {
    Fault::new(FaultKind::Undecided).status(Code::Unavailable, why)
}

/// This server is damaged: `INTERNAL`.
#[must_use]
pub fn internal(why: impl Into<String>) -> Status {
    Fault::new(FaultKind::Internal).status(Code::Internal, why)
}

/// The fault in the details of a status (FAULT-1, FAULT-2).
fn carried(status: &Status) -> Option<Fault> {
    let details = status.details();
    if details.is_empty() || details.len() > DETAILS_BYTES_MAX {
        return None;
    }
    let any = RpcStatus::decode(details).ok()?.details.into_iter();
    let any = any.into_iter().find(|any| any.type_url == FAULT_URL)?;
    let fault = v1::Fault::decode(&any.value[..]).ok()?;
    // A kind that this client does not know yet is what the code says.
    let kind = match fault.kind() {
        FaultKind::Unspecified => kind_of(status.code()),
        kind => kind,
    };
    let retry_after = (fault.retry_after_ms > 0)
        .then(|| Duration::from_millis(fault.retry_after_ms).min(RETRY_AFTER_MAX));
    Some(Fault { kind, rule: Some(fault.rule).filter(|rule| is_rule(rule)), retry_after })
}

/// The kind of a fault that has a code and no details.
fn kind_of(code: Code) -> FaultKind {
    match code {
        Code::Ok => FaultKind::Unspecified,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::Aborted
        | Code::NotFound
        | Code::OutOfRange => FaultKind::Rejected,
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => FaultKind::Denied,
        Code::ResourceExhausted => FaultKind::Limited,
        // A transport that breaks says this, too, and then the request may have arrived.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            FaultKind::Undecided
        }
        Code::Internal | Code::DataLoss => FaultKind::Internal,
    }
}

/// Letters, digits and dashes that begin with a capital letter and end in a digit: `V4`, `WIRE-1`.
fn is_rule(name: &str) -> bool {
    name.len() <= RULE_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.ends_with(|last: char| last.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-')
}

/// The text of a status for a user: the server's text on one line, or why there is none, then the
/// rule and the time to wait if the server names them.
#[must_use]
pub fn describe(status: &Status) -> String {
    let fault = Fault::of(status);
    let rule = fault.rule().map(|rule| format!(" ({rule})"));
    let wait = fault.wait().map(|wait| format!("; try again in {} ms", wait.as_millis()));
    text(status) + &rule.unwrap_or_default() + &wait.unwrap_or_default()
}

/// The text of a status on one line, or why there is none.
#[must_use]
pub fn text(status: &Status) -> String {
    let text = match (status.source(), status.message()) {
        (Some(cause), _) => causes(cause),
        (None, "") => no_reason(status.code()),
        (None, text) => text.to_owned(),
    };
    one_line(&text)
}

/// The text of a refusal without one.
#[must_use]
pub fn no_reason(code: Code) -> String {
    format!("the server answered {code:?} and gave no reason")
}

/// An error with all its causes: libraries show only their outermost layer, and some layers repeat the
/// one below.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let layer = error.to_string();
        if !text.ends_with(&layer) {
            text = format!("{text}: {layer}");
        }
        cause = error.source();
    }
    text
}

fn one_line(text: &str) -> String {
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(TEXT_CHARS_MAX).map(printable).collect();
    if chars.next().is_some() { shown + "..." } else { shown }
}

/// Terminals obey control characters, and marks of direction make text read as another.
fn printable(c: char) -> char {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// grpc-go, and so etcdctl, shows code and text of the details.
    #[test]
    fn details_repeat_code_and_text() {
        let status = breaks("V4", "stale");
        let details = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((details.code, &*details.message), (Code::InvalidArgument as i32, "stale"));
    }

    #[test]
    fn a_fault_arrives_as_it_was_sent() {
        let status = breaks("V4", "stale");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "stale"));
        let fault = Fault::of(&status);
        assert_eq!((fault.kind(), fault.rule()), (FaultKind::Rejected, Some("V4")));
        assert_eq!(describe(&status), "stale (V4)");
        let spent = limited("the budget is spent", Some(Duration::from_micros(1_500)));
        assert_eq!(Fault::of(&spent).wait(), Some(Duration::from_millis(2)), "rounded up");
        assert_eq!(describe(&spent), "the budget is spent; try again in 2 ms");
    }

    #[test]
    fn a_status_without_details_says_what_its_code_says() {
        for (code, kind) in [
            (Code::InvalidArgument, FaultKind::Rejected),
            (Code::PermissionDenied, FaultKind::Denied),
            (Code::ResourceExhausted, FaultKind::Limited),
            (Code::Unavailable, FaultKind::Undecided),
            (Code::DataLoss, FaultKind::Internal),
        ] {
            let fault = Fault::of(&Status::new(code, "V4: a text is no place for a rule"));
            assert_eq!(fault, Fault::new(kind), "{code:?}");
        }
    }

    #[test]
    fn a_hostile_server_writes_nothing_on_the_screen() {
        let rpc = |value: v1::Fault, padding: usize| {
            let any = Any { type_url: FAULT_URL.to_owned(), value: value.encode_to_vec() };
            let details = RpcStatus { code: 3, message: "x".repeat(padding), details: vec![any] };
            let details = details.encode_to_vec().into();
            Status::with_details(Code::InvalidArgument, "\u{1b}[2J\nok\u{202e}", details)
        };
        let fault = |rule: &str| v1::Fault {
            rule: rule.to_owned(),
            kind: FaultKind::Limited.into(),
            retry_after_ms: u64::MAX,
        };
        let taken = rpc(fault("C10"), 0);
        assert_eq!(Fault::of(&taken).rule(), Some("C10"));
        assert_eq!(Fault::of(&taken).wait(), Some(RETRY_AFTER_MAX));
        assert_eq!(describe(&taken), " [2J ok  (C10); try again in 86400000 ms");
        for rule in ["\u{1b}[2J1", "V4 and more 1", "v4", "V", "4", &"V1".repeat(9)] {
            assert_eq!(Fault::of(&rpc(fault(rule), 0)).rule(), None, "{rule:?}");
        }
        let long = Fault::of(&rpc(fault("V4"), DETAILS_BYTES_MAX));
        assert_eq!(long, Fault::new(FaultKind::Rejected), "too long to be decoded");
        let garbage = Status::with_details(Code::Aborted, "", vec![0xff; 64].into());
        assert_eq!(Fault::of(&garbage), Fault::new(FaultKind::Rejected));
        let shown = describe(&Status::aborted("y".repeat(TEXT_CHARS_MAX + 1)));
        assert_eq!(shown.len(), TEXT_CHARS_MAX + 3);
    }
}
