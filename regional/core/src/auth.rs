//! Who may do what with which keys.
//!
//! As in etcd: users have roles, roles have permissions on key ranges, `root` may do everything,
//! and nothing is checked until authentication is enabled. Every decision is made where the request
//! takes effect, at apply or at the read, with the revision of the auth store that the rim saw. If
//! the store has changed since, the request is refused rather than judged by rules its caller did
//! not know ([`Refusal::AuthOldRevision`]; clients try again).
//!
//! # Invariants
//!
//! - **A1** While authentication is enabled, the user `root` exists and has the role `root`.
//! - **A2** A change of a user's password, its removal, and disabling authentication end its tokens
//!   at once and on every member.
//! - **A3** A watch is judged at every event by what its user may read *then*
//!   ([`Auth::watch_allowed`]); a permission taken away stops it (GHSA-xg4h-6gfc-h4m8).
//!
//! # Deliberately absent
//!
//! Passwords: the rim hashes what is set and checks what is presented, against
//! [`Auth::password_hash`]. Certificates: the rim puts a common name into the [`Caller`].

mod check;
mod permission;
mod request;
mod rows;
mod token;

use std::collections::BTreeMap;

use permission::{Access, Allowed};
pub use permission::{Permission, PermissionKind};
pub use request::AuthRequest;
pub(crate) use rows::{Role, Settings, User};
pub use token::TokenDigest;
use token::Tokens;

use crate::{
    keyspace::{Caller, RingTime},
    limits,
    refusal::Refusal,
    table::{Paged, Table},
};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// Users, roles and tokens.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    settings: Table<Settings>,
    users: Table<User>,
    roles: Table<Role>,
    tokens: Tokens,
    /// Derived: what each user's roles allow together.
    allowed: BTreeMap<String, Allowed>,
}

impl Auth {
    fn settings(&self) -> Settings {
        self.settings.get(&()).copied().unwrap_or_default()
    }

    /// Whether permissions count.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.settings().enabled
    }

    /// Counts changes of users, roles and permissions; 1 before the first, as in etcd.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.settings().revision
    }

    /// Names of all users, in order. Ask [`Auth::check_admin`] first.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(|(name, _)| name.as_str())
    }

    /// Names of all roles, in order. Ask [`Auth::check_admin`] first.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|(name, _)| name.as_str())
    }

    /// The roles of a user, in order; everyone may ask about themselves.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserNotFound`], or what keeps `caller` from asking.
    pub fn user_roles(&self, caller: &Caller, name: &str) -> Result<&[String], Refusal> {
        let own = caller.user.as_deref() == Some(name);
        self.check_admin(caller).or_else(|refusal| if own { Ok(()) } else { Err(refusal) })?;
        let user = self.users.get(&name.to_owned()).ok_or(Refusal::UserNotFound)?;
        Ok(&user.roles)
    }

    /// The permissions of a role, in order of key; everyone may ask about roles they have.
    ///
    /// # Errors
    ///
    /// [`Refusal::RoleNotFound`], or what keeps `caller` from asking.
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

    /// What the rim must compare a presented password with, and the revision that
    /// [`AuthRequest::Authenticate`] must name.
    ///
    /// # Errors
    ///
    /// [`Refusal::AuthNotEnabled`], [`Refusal::AuthFailed`] for somebody unknown, and
    /// [`Refusal::NoPasswordUser`] for a user who comes with certificates only.
    pub fn password_hash(&self, user: &str) -> Result<(&str, u64), Refusal> {
        if !self.enabled() {
            return Err(Refusal::AuthNotEnabled);
        }
        let user = self.users.get(&user.to_owned()).ok_or(Refusal::AuthFailed)?;
        let hash = user.password.as_deref().ok_or(Refusal::NoPasswordUser)?;
        Ok((hash, self.revision()))
    }

    /// Who presents this token at `now`.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidAuthToken`] if it was never given, is past its time or was revoked. While
    /// authentication is disabled everybody is nobody, as in etcd.
    pub fn caller_of_token(&self, token: &str, now: RingTime) -> Result<Caller, Refusal> {
        if !self.enabled() {
            return Ok(Caller::default());
        }
        let user = self.tokens.user(&TokenDigest::of(token), now);
        user.map(|user| self.caller_of_user(user)).ok_or(Refusal::InvalidAuthToken)
    }

    /// Who presents a certificate with this common name.
    #[must_use]
    pub fn caller_of_user(&self, name: &str) -> Caller {
        Caller { user: Some(name.into()), auth_revision: self.revision() }
    }

    /// Applies one request whose caller was checked.
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
        // A1
        let root = self.users.get(&ROOT.to_owned()).ok_or(Refusal::RootUserNotExist)?;
        if !root.has(ROOT) {
            return Err(Refusal::RootRoleNotExist);
        }
        // As in etcd, enabling is no new revision and disabling is one.
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

    /// Something that decides about permissions changed.
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

    /// Forgets tokens whose time is over.
    pub(crate) fn expire(&mut self, now: RingTime) {
        self.tokens.expire(now);
    }

    /// Rebuilds what is derived.
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
