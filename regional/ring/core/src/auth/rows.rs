//! Users and roles: their changes, with one function for each of etcd's rules, and their encoding.

use bytes::Bytes;
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::{
    Auth, ROOT,
    permission::{self, Permission, PermissionKind},
};
use crate::{kv::request::KeyRange, limits, refusal::Refusal, table::Row};

/// Whether authentication is enabled, and the number of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub enabled: bool,
    pub revision: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: false, revision: 1 }
    }
}

/// One user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    /// The hash of its password; `None` for a user that authenticates with certificates only.
    pub password: Option<String>,
    /// Sorted, without duplicates.
    pub roles: Vec<String>,
}

impl User {
    pub fn has(&self, role: &str) -> bool {
        self.roles.binary_search_by(|mine| mine.as_str().cmp(role)).is_ok()
    }
}

/// One role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Role {
    /// Sorted by start key.
    pub permissions: Vec<Permission>,
}

/// The permission shown for `root`: all keys. The empty start is etcd's.
pub(super) fn everything() -> Permission {
    let range = KeyRange { start: Bytes::new(), end: Bytes::from_static(b"\0") };
    Permission { kind: PermissionKind::ReadWrite, range }
}

impl Auth {
    fn user(&self, name: &str) -> Result<User, Refusal> {
        self.users.get(&name.to_owned()).cloned().ok_or(Refusal::UserNotFound)
    }

    fn role(&self, name: &str) -> Result<Role, Refusal> {
        self.roles.get(&name.to_owned()).cloned().ok_or(Refusal::RoleNotFound)
    }

    pub(super) fn user_add(&mut self, name: &str, password: Option<&str>) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::UserEmpty);
        }
        if self.users.get(&name.to_owned()).is_some() {
            return Err(Refusal::UserAlreadyExists);
        }
        if self.users.len() >= limits::AUTH_ITEMS_MAX {
            return Err(Refusal::Full("users"));
        }
        let user = User { password: password.map(str::to_owned), roles: Vec::new() };
        self.users.insert(name.to_owned(), user);
        self.changed();
        Ok(())
    }

    pub(super) fn user_delete(&mut self, name: &str) -> Result<(), Refusal> {
        // AUTH-1
        if self.enabled() && name == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        self.users.remove(&name.to_owned()).ok_or(Refusal::UserNotFound)?;
        self.tokens.revoke_user(name);
        self.changed();
        Ok(())
    }

    pub(super) fn user_change_password(
        &mut self,
        name: &str,
        password: &str,
    ) -> Result<(), Refusal> {
        let mut user = self.user(name)?;
        // As in etcd, a user without a password keeps having none, and the change still counts.
        if user.password.is_some() {
            user.password = Some(password.to_owned());
        }
        self.users.insert(name.to_owned(), user);
        self.tokens.revoke_user(name);
        self.changed();
        Ok(())
    }

    pub(super) fn user_grant_role(&mut self, name: &str, role: &str) -> Result<(), Refusal> {
        let mut user = self.user(name)?;
        // The role `root` always exists.
        if role != ROOT {
            self.role(role)?;
        }
        // As in etcd, granting twice is neither an error nor a new revision.
        if let Err(place) = user.roles.binary_search_by(|mine| mine.as_str().cmp(role)) {
            user.roles.insert(place, role.to_owned());
            self.users.insert(name.to_owned(), user);
            self.changed();
        }
        Ok(())
    }

    pub(super) fn user_revoke_role(&mut self, name: &str, role: &str) -> Result<(), Refusal> {
        // AUTH-1
        if self.enabled() && name == ROOT && role == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        let mut user = self.user(name)?;
        if !user.has(role) {
            return Err(Refusal::RoleNotGranted);
        }
        user.roles.retain(|mine| mine != role);
        self.users.insert(name.to_owned(), user);
        self.changed();
        Ok(())
    }

    pub(super) fn role_add(&mut self, name: &str) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::RoleEmpty);
        }
        if self.roles.get(&name.to_owned()).is_some() {
            return Err(Refusal::RoleAlreadyExists);
        }
        if self.roles.len() >= limits::AUTH_ITEMS_MAX {
            return Err(Refusal::Full("roles"));
        }
        self.roles.insert(name.to_owned(), Role::default());
        self.changed();
        Ok(())
    }

    pub(super) fn role_delete(&mut self, name: &str) -> Result<(), Refusal> {
        // AUTH-1
        if self.enabled() && name == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        self.roles.remove(&name.to_owned()).ok_or(Refusal::RoleNotFound)?;
        let having = self.users.iter().filter(|(_, user)| user.has(name));
        let having: Vec<_> = having.map(|(user, row)| (user.clone(), row.clone())).collect();
        for (user, mut row) in having {
            row.roles.retain(|role| role != name);
            self.users.insert(user, row);
        }
        self.changed();
        Ok(())
    }

    pub(super) fn role_grant(
        &mut self,
        name: &str,
        permission: &Permission,
    ) -> Result<(), Refusal> {
        if !permission::is_valid(&permission.range) {
            return Err(Refusal::InvalidAuthMgmt);
        }
        let mut role = self.role(name)?;
        match role.permissions.iter().position(|mine| mine.range == permission.range) {
            Some(place) => role.permissions[place].kind = permission.kind,
            None if role.permissions.len() >= limits::ROLE_PERMISSIONS_MAX => {
                return Err(Refusal::Full("permissions of this role"));
            }
            None => {
                role.permissions.push(permission.clone());
                // As in etcd: equal keys stay in the order in which they were granted.
                role.permissions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            }
        }
        self.roles.insert(name.to_owned(), role);
        self.changed();
        Ok(())
    }

    pub(super) fn role_revoke(&mut self, name: &str, range: &KeyRange) -> Result<(), Refusal> {
        let mut role = self.role(name)?;
        let before = role.permissions.len();
        role.permissions.retain(|mine| mine.range != *range);
        if role.permissions.len() == before {
            return Err(Refusal::PermissionNotGranted);
        }
        self.roles.insert(name.to_owned(), role);
        self.changed();
        Ok(())
    }
}

fn encode_name(name: &str, w: &mut Writer) {
    w.bytes(name.as_bytes());
}

fn decode_name(r: &mut Reader<'_>) -> Result<String, DecodeError> {
    Ok(r.text(limits::NAME_BYTES_MAX)?.to_owned())
}

impl Canonical for Settings {
    fn encode(&self, w: &mut Writer) {
        w.u8(u8::from(self.enabled));
        w.u64(self.revision);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let enabled = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Invalid("auth settings")),
        };
        Ok(Self { enabled, revision: r.u64()? })
    }
}

impl Row for Settings {
    type Key = ();
    const NAME: &'static str = "auth/settings";
    const PAGE_ROWS_MAX: usize = 1;

    fn encode_key((): &(), _: &mut Writer) {}

    fn decode_key(_: &mut Reader<'_>) -> Result<(), DecodeError> {
        Ok(())
    }
}

impl Canonical for User {
    fn encode(&self, w: &mut Writer) {
        w.u8(u8::from(self.password.is_some()));
        if let Some(password) = &self.password {
            w.bytes(password.as_bytes());
        }
        w.count(self.roles.len());
        self.roles.iter().for_each(|role| encode_name(role, w));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let password = match r.u8()? {
            0 => None,
            1 => Some(r.text(limits::PASSWORD_HASH_BYTES_MAX)?.to_owned()),
            _ => return Err(DecodeError::Invalid("user")),
        };
        let n = r.count(limits::AUTH_ITEMS_MAX)?;
        let roles = (0..n).map(|_| decode_name(r)).collect::<Result<Vec<_>, _>>()?;
        if !roles.is_sorted_by(|a, b| a < b) {
            return Err(DecodeError::Invalid("user: roles out of order"));
        }
        Ok(Self { password, roles })
    }
}

impl Row for User {
    type Key = String;
    const NAME: &'static str = "auth/users";
    const PAGE_ROWS_MAX: usize = limits::AUTH_ITEMS_MAX;

    fn encode_key(key: &String, w: &mut Writer) {
        encode_name(key, w);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<String, DecodeError> {
        decode_name(r)
    }
}

impl Canonical for Role {
    fn encode(&self, w: &mut Writer) {
        w.list(&self.permissions);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let permissions: Vec<Permission> = r.list(limits::ROLE_PERMISSIONS_MAX)?;
        if !permissions.is_sorted_by(|a, b| a.range.start <= b.range.start) {
            return Err(DecodeError::Invalid("role: permissions out of order"));
        }
        let mut ranges: Vec<_> =
            permissions.iter().map(|p| (&p.range.start, &p.range.end)).collect();
        ranges.sort();
        if ranges.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(DecodeError::Invalid("role: two permissions for one range"));
        }
        Ok(Self { permissions })
    }
}

impl Row for Role {
    type Key = String;
    const NAME: &'static str = "auth/roles";
    const PAGE_ROWS_MAX: usize = limits::AUTH_ITEMS_MAX;

    fn encode_key(key: &String, w: &mut Writer) {
        encode_name(key, w);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<String, DecodeError> {
        decode_name(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::permission::PermissionKind;

    /// E1: a set has one encoding.
    #[test]
    fn sets_out_of_order_or_with_repetitions_are_refused() {
        let permission = |start: &'static str, end: &'static str| Permission {
            kind: PermissionKind::Read,
            range: KeyRange { start: start.into(), end: end.into() },
        };
        let role = |permissions: &[Permission]| {
            let role = Role { permissions: permissions.to_vec() };
            Role::from_canonical(&role.to_canonical()).is_ok_and(|decoded| decoded == role)
        };
        let [a, ab, b] = [permission("a", ""), permission("a", "b"), permission("b", "")];
        assert!(role(&[a.clone(), ab.clone(), b.clone()]));
        assert!(role(&[ab.clone(), a.clone(), b.clone()]), "as granted");
        assert!(!role(&[b.clone(), a.clone()]));
        assert!(!role(&[a.clone(), ab, a]));
        let user = |roles: &[&str]| {
            let roles = roles.iter().map(ToString::to_string).collect();
            let user = User { password: None, roles };
            User::from_canonical(&user.to_canonical()).is_ok_and(|decoded| decoded == user)
        };
        assert!(user(&["a", "b"]));
        assert!(!user(&["b", "a"]));
        assert!(!user(&["a", "a"]));
    }
}
