//! Authentication and authorization: users, roles, permissions and tokens, as in etcd.
//!
//! As in etcd: users have roles, roles have permissions on key ranges, `root` may do everything,
//! and nothing is checked until authentication is enabled. The state checks a request when it
//! applies or reads it, against the revision of the auth store that the API saw. If the store has
//! changed since, the state refuses the request instead of applying rules that the API did not see
//! ([`Refusal::AuthOldRevision`]; clients try again).
//!
//! # Invariants
//!
//! - **AUTH-1** While authentication is enabled, the user `root` exists and has the role `root`.
//! - **AUTH-2** A change of a user's password, its removal, and disabling authentication end its tokens
//!   at once and on every member.
//! - **AUTH-3** Each event of a watch is checked against what its user may read *then*
//!   ([`Auth::watch_allowed`]); a revoked permission stops the watch (GHSA-xg4h-6gfc-h4m8).
//!
//! # Deliberately absent
//!
//! Passwords: the API hashes new ones and checks presented ones against [`Auth::password_hash`].
//! Certificates: the API puts the common name into the [`Caller`].

mod check;
mod permission;
mod request;
mod rows;
mod token;

use std::collections::BTreeMap;

pub use check::Holdings;
use permission::{Access, Allowed};
pub use permission::{Permission, PermissionKind};
pub use request::AuthRequest;
pub(crate) use rows::{Role, Settings, User};
pub use token::TokenDigest;
use token::Tokens;

use crate::{
    caller::Caller,
    limits,
    refusal::Refusal,
    table::{Paged, Table},
    time::RingTime,
};

/// The name of the user and of the role that may do everything.
pub const ROOT: &str = "root";

/// Users, roles and tokens.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    settings: Table<Settings>,
    users: Table<User>,
    roles: Table<Role>,
    tokens: Tokens,
    /// Derived: the union of the permissions of each user's roles.
    allowed: BTreeMap<String, Allowed>,
}

impl Auth {
    fn settings(&self) -> Settings {
        self.settings.get(&()).copied().unwrap_or_default()
    }

    /// Whether authentication is enabled.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.settings().enabled
    }

    /// The number of changes of users, roles and permissions; 1 before the first, as in etcd.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.settings().revision
    }

    /// Names of all users, in order. Call [`Auth::check_admin`] first.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(|(name, _)| name.as_str())
    }

    /// Names of all roles, in order. Call [`Auth::check_admin`] first.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|(name, _)| name.as_str())
    }

    /// The roles of a user, in order; every user may ask about itself.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserNotFound`], or the permission that `caller` lacks.
    pub fn user_roles(&self, caller: &Caller, name: &str) -> Result<&[String], Refusal> {
        let own = caller.user.as_deref() == Some(name);
        self.check_admin(caller).or_else(|refusal| if own { Ok(()) } else { Err(refusal) })?;
        let user = self.users.get(&name.to_owned()).ok_or(Refusal::UserNotFound)?;
        Ok(&user.roles)
    }

    /// The permissions of a role, in order of key; every user may ask about roles that it has.
    ///
    /// # Errors
    ///
    /// [`Refusal::RoleNotFound`], or the permission that `caller` lacks.
    pub fn role_permissions(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Vec<Permission>, Refusal> {
        let user = caller.user.as_deref().and_then(|user| self.users.get(&user.to_owned()));
        let own = user.is_some_and(|user| user.has(name));
        self.check_admin(caller).or_else(|refusal| if own { Ok(()) } else { Err(refusal) })?;
        let role = self.roles.get(&name.to_owned()).ok_or(Refusal::RoleNotFound)?;
        Ok(if name == ROOT { vec![rows::everything()] } else { role.permissions.clone() })
    }

    /// The hash that the API must compare a presented password with, and the revision that
    /// [`AuthRequest::Authenticate`] must name.
    ///
    /// # Errors
    ///
    /// [`Refusal::AuthNotEnabled`], [`Refusal::AuthFailed`] for an unknown user, and
    /// [`Refusal::NoPasswordUser`] for a user that authenticates with certificates only.
    pub fn password_hash(&self, user: &str) -> Result<(&str, u64), Refusal> {
        if !self.enabled() {
            return Err(Refusal::AuthNotEnabled);
        }
        let user = self.users.get(&user.to_owned()).ok_or(Refusal::AuthFailed)?;
        let hash = user.password.as_deref().ok_or(Refusal::NoPasswordUser)?;
        Ok((hash, self.revision()))
    }

    /// The caller that presents this token at `now`.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidAuthToken`] if the token is unknown, expired or revoked. While
    /// authentication is disabled, every caller is anonymous, as in etcd.
    pub fn caller_of_token(&self, token: &str, now: RingTime) -> Result<Caller, Refusal> {
        if !self.enabled() {
            return Ok(Caller::default());
        }
        let user = self.tokens.user(&TokenDigest::of(token), now);
        user.map(|user| self.caller_of_user(user)).ok_or(Refusal::InvalidAuthToken)
    }

    /// The caller that presents a certificate with this common name.
    #[must_use]
    pub fn caller_of_user(&self, name: &str) -> Caller {
        Caller { user: Some(name.into()), auth_revision: self.revision() }
    }

    /// Applies one request whose caller has been checked.
    pub(crate) fn apply(&mut self, request: &AuthRequest, now: RingTime) -> Result<(), Refusal> {
        match request {
            AuthRequest::Enable => self.enable(),
            AuthRequest::Disable => {
                self.disable();
                Ok(())
            }
            AuthRequest::Authenticate { user, token, ttl_s, checked_revision } => {
                self.password_hash(user).map_err(|refusal| match refusal {
                    Refusal::NoPasswordUser => Refusal::AuthFailed,
                    other => other,
                })?;
                if *checked_revision != self.revision() {
                    return Err(Refusal::AuthOldRevision);
                }
                let ttl_ms = ttl_s.clamp(&1, &limits::TOKEN_TTL_S_MAX) * 1_000;
                self.tokens.grant(*token, user.clone(), now.after(ttl_ms));
                Ok(())
            }
            AuthRequest::UserAdd { name, password } => self.user_add(name, password.as_deref()),
            AuthRequest::UserDelete { name } => self.user_delete(name),
            AuthRequest::UserChangePassword { name, password } => {
                self.user_change_password(name, password)
            }
            AuthRequest::UserGrantRole { user, role } => self.user_grant_role(user, role),
            AuthRequest::UserRevokeRole { name, role } => self.user_revoke_role(name, role),
            AuthRequest::RoleAdd { name } => self.role_add(name),
            AuthRequest::RoleDelete { role } => self.role_delete(role),
            AuthRequest::RoleGrantPermission { name, permission } => {
                let permission = permission.as_ref().ok_or(Refusal::PermissionNotGiven)?;
                self.role_grant(name, permission)
            }
            AuthRequest::RoleRevokePermission { role, range } => self.role_revoke(role, range),
        }
    }

    fn enable(&mut self) -> Result<(), Refusal> {
        if self.enabled() {
            return Ok(());
        }
        // AUTH-1
        let root = self.users.get(&ROOT.to_owned()).ok_or(Refusal::RootUserNotExist)?;
        if !root.has(ROOT) {
            return Err(Refusal::RootRoleNotExist);
        }
        // As in etcd, enabling does not increase the revision and disabling does.
        self.settings.insert((), Settings { enabled: true, ..self.settings() });
        self.refresh();
        Ok(())
    }

    fn disable(&mut self) {
        if self.enabled() {
            self.settings.insert((), Settings { enabled: false, ..self.settings() });
            self.tokens.clear();
            self.changed();
        }
    }

    /// Records a change of users, roles or permissions.
    fn changed(&mut self) {
        let Settings { enabled, revision } = self.settings();
        self.settings.insert((), Settings { enabled, revision: revision + 1 });
        self.refresh();
    }

    fn refresh(&mut self) {
        let allowed = |user: &User| {
            let roles = user.roles.iter().filter_map(|role| self.roles.get(role));
            Allowed::of(roles.flat_map(|role| &role.permissions))
        };
        self.allowed =
            self.users.iter().map(|(name, user)| (name.clone(), allowed(user))).collect();
    }

    /// Removes expired tokens.
    pub(crate) fn expire(&mut self, now: RingTime) {
        self.tokens.expire(now);
    }

    /// Rebuilds the derived fields.
    pub(crate) fn rebuild(&mut self) {
        self.tokens.rebuild();
        self.refresh();
    }

    pub(crate) fn tables(&self) -> [&dyn Paged; 4] {
        [&self.settings, &self.users, &self.roles, &self.tokens.rows]
    }

    pub(crate) fn tables_mut(&mut self) -> [&mut dyn Paged; 4] {
        [&mut self.settings, &mut self.users, &mut self.roles, &mut self.tokens.rows]
    }
}
