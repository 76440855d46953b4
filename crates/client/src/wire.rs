//! A connection to one member, or a choice among members, that carries requests.

use http::{Request, Response};
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Wire = BoxCloneSyncService<Request<Body>, Response<Body>, WireError>;

/// Why a request could not be carried. A type of its own, because futures that hold a bare boxed
/// error are not known to be `Send` where they are spawned.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WireError(#[source] pub(crate) BoxError);
