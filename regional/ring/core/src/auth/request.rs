//! Requests that change the auth store through the log, and their encoding.

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::{permission::Permission, token::TokenDigest};
use crate::{kv::request::KeyRange, limits};

/// Changes the auth store. Listing and reading are reads, see [`super::Auth`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields repeat the names of etcd's messages")]
pub enum AuthRequest {
    /// Enables authentication.
    Enable,
    /// Disables authentication and ends all tokens.
    Disable,
    /// Grants a token to a user whose password the API has checked.
    Authenticate {
        user: String,
        /// Digest of the token that the API drew, and returns to the client once this is applied.
        token: TokenDigest,
        /// Seconds of ring time that the token is valid.
        ttl_s: u64,
        /// `Auth::revision` when the API checked; if it changed since, the API must check again.
        checked_revision: u64,
    },
    /// Adds a user.
    UserAdd {
        name: String,
        /// The hash of its password; `None` for a user that authenticates with certificates only.
        password: Option<String>,
    },
    /// Removes a user and ends its tokens.
    UserDelete { name: String },
    /// Sets the hash of a password and ends the user's tokens.
    UserChangePassword { name: String, password: String },
    /// Grants a role to a user.
    UserGrantRole { user: String, role: String },
    /// Revokes a role from a user.
    UserRevokeRole { name: String, role: String },
    /// Adds a role without permissions.
    RoleAdd { name: String },
    /// Removes a role, also from its users.
    RoleDelete { role: String },
    /// Adds or replaces a permission; the message of a client may lack it.
    RoleGrantPermission { name: String, permission: Option<Permission> },
    /// Removes a permission.
    RoleRevokePermission { role: String, range: KeyRange },
}

impl AuthRequest {
    /// Whether only an administrator may make this request, as in etcd: all but a token for the
    /// caller itself.
    pub(crate) fn needs_admin(&self) -> bool {
        !matches!(self, Self::Authenticate { .. })
    }
}

fn text(w: &mut Writer, texts: &[&str]) {
    texts.iter().for_each(|text| w.bytes(text.as_bytes()));
}

fn name(r: &mut Reader<'_>) -> Result<String, DecodeError> {
    Ok(r.text(limits::NAME_BYTES_MAX)?.to_owned())
}

fn password(r: &mut Reader<'_>) -> Result<String, DecodeError> {
    Ok(r.text(limits::PASSWORD_HASH_BYTES_MAX)?.to_owned())
}

impl Canonical for AuthRequest {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Enable => w.u8(0),
            Self::Disable => w.u8(1),
            Self::Authenticate { user, token, ttl_s, checked_revision } => {
                w.u8(2);
                text(w, &[user]);
                w.array(&token.0);
                w.u64(*ttl_s);
                w.u64(*checked_revision);
            }
            Self::UserAdd { name, password } => {
                w.u8(if password.is_some() { 3 } else { 4 });
                text(w, &[name]);
                text(w, password.as_deref().as_slice());
            }
            Self::UserDelete { name } => {
                w.u8(5);
                text(w, &[name]);
            }
            Self::UserChangePassword { name, password } => {
                w.u8(6);
                text(w, &[name, password]);
            }
            Self::UserGrantRole { user, role } => {
                w.u8(7);
                text(w, &[user, role]);
            }
            Self::UserRevokeRole { name, role } => {
                w.u8(8);
                text(w, &[name, role]);
            }
            Self::RoleAdd { name } => {
                w.u8(9);
                text(w, &[name]);
            }
            Self::RoleDelete { role } => {
                w.u8(10);
                text(w, &[role]);
            }
            Self::RoleGrantPermission { name, permission } => {
                w.u8(11);
                text(w, &[name]);
                w.option(permission.as_ref());
            }
            Self::RoleRevokePermission { role, range } => {
                w.u8(12);
                text(w, &[role]);
                range.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            0 => Self::Enable,
            1 => Self::Disable,
            2 => Self::Authenticate {
                user: name(r)?,
                token: TokenDigest(r.array()?),
                ttl_s: r.u64()?,
                checked_revision: r.u64()?,
            },
            3 => Self::UserAdd { name: name(r)?, password: Some(password(r)?) },
            4 => Self::UserAdd { name: name(r)?, password: None },
            5 => Self::UserDelete { name: name(r)? },
            6 => Self::UserChangePassword { name: name(r)?, password: password(r)? },
            7 => Self::UserGrantRole { user: name(r)?, role: name(r)? },
            8 => Self::UserRevokeRole { name: name(r)?, role: name(r)? },
            9 => Self::RoleAdd { name: name(r)? },
            10 => Self::RoleDelete { role: name(r)? },
            11 => Self::RoleGrantPermission { name: name(r)?, permission: r.option()? },
            12 => Self::RoleRevokePermission { role: name(r)?, range: KeyRange::decode(r)? },
            _ => return Err(DecodeError::Invalid("auth request")),
        })
    }
}
