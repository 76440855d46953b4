//! The user in whose name a request is made.

use std::sync::Arc;

/// The caller of a request, as authenticated by the API.
///
/// The default is an anonymous caller: accepted while authentication is off, refused after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user of the token, or the common name of the certificate.
    pub user: Option<Arc<str>>,
    /// `Auth::revision` when the API authenticated the user; zero if there is no user.
    pub auth_revision: u64,
}
