//! Decides what is a name: the SPIFFE ids of one chain, and the scopes that CAs may sign.
//!
//! Names end up in paths, log lines and access rules, so the grammar is narrow: a label is 1 to 63
//! bytes of `a-z`, `0-9`, `-`, `_` and `.`, and starts with a letter or digit. That rules out `..`,
//! percent-encoding, upper case and every other way to write one name twice.

use std::fmt;
use std::str::FromStr;

use super::PkiError;

const LABEL_BYTES_MAX: usize = 63;
/// Scheme, five labels and separators; checked before anything is copied.
const ID_BYTES_MAX: usize = 256;
const SCHEME: &str = "spiffe://";

/// The role of the bearer of a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Signs checkpoints.
    Validator {
        /// Its name.
        name: String,
    },
    /// One server of a region's ring.
    Member {
        /// Its region.
        region: String,
        /// Its name.
        name: String,
    },
    /// Runs beside a workload.
    Edge {
        /// Its region.
        region: String,
        /// Its name.
        name: String,
    },
    /// A person or pipeline that proposes changes.
    Operator {
        /// Its name.
        name: String,
    },
}

/// A validated name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    chain: String,
    role: Role,
}

/// The names that one CA may sign.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every validator of a chain.
    Validators {
        /// The chain.
        chain: String,
    },
    /// Every member and edge of one region.
    Region {
        /// The chain.
        chain: String,
        /// The region.
        region: String,
    },
    /// Every operator of a chain.
    Operators {
        /// The chain.
        chain: String,
    },
}

impl SpiffeId {
    /// The name of `role` on `chain`.
    ///
    /// # Errors
    ///
    /// [`PkiError::Name`] if a label is outside the grammar.
    pub fn new(chain: impl Into<String>, role: Role) -> Result<Self, PkiError> {
        let id = Self { chain: chain.into(), role };
        let labels: &[&str] = match &id.role {
            Role::Validator { name } | Role::Operator { name } => &[&id.chain, name],
            Role::Member { region, name } | Role::Edge { region, name } => {
                &[&id.chain, region, name]
            }
        };
        check_labels(labels).map_err(|why| PkiError::Name { text: id.to_string(), why })?;
        Ok(id)
    }

    /// The chain that this name belongs to.
    #[must_use]
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The role of the bearer.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The last label: the name within its region or role.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.role {
            Role::Validator { name }
            | Role::Operator { name }
            | Role::Member { name, .. }
            | Role::Edge { name, .. } => name,
        }
    }

    /// The region, for members and edges.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        match &self.role {
            Role::Member { region, .. } | Role::Edge { region, .. } => Some(region),
            Role::Validator { .. } | Role::Operator { .. } => None,
        }
    }

    /// The scope whose CA may sign this name.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let chain = self.chain.clone();
        match &self.role {
            Role::Validator { .. } => Scope::Validators { chain },
            Role::Member { region, .. } | Role::Edge { region, .. } => {
                Scope::Region { chain, region: region.clone() }
            }
            Role::Operator { .. } => Scope::Operators { chain },
        }
    }
}

impl Scope {
    /// The chain whose names this scope covers.
    #[must_use]
    pub fn chain(&self) -> &str {
        match self {
            Self::Validators { chain } | Self::Region { chain, .. } | Self::Operators { chain } => {
                chain
            }
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = &self.chain;
        match &self.role {
            Role::Validator { name } => write!(f, "{SCHEME}{chain}/validator/{name}"),
            Role::Member { region, name } => {
                write!(f, "{SCHEME}{chain}/region/{region}/member/{name}")
            }
            Role::Edge { region, name } => write!(f, "{SCHEME}{chain}/region/{region}/edge/{name}"),
            Role::Operator { name } => write!(f, "{SCHEME}{chain}/operator/{name}"),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Validators { chain } => write!(f, "{SCHEME}{chain}/validator"),
            Self::Region { chain, region } => write!(f, "{SCHEME}{chain}/region/{region}"),
            Self::Operators { chain } => write!(f, "{SCHEME}{chain}/operator"),
        }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let (chain, path) = split(text)?;
        let role = match path.as_slice() {
            ["validator", name] => Role::Validator { name: (*name).to_owned() },
            ["region", region, "member", name] => {
                Role::Member { region: (*region).to_owned(), name: (*name).to_owned() }
            }
            ["region", region, "edge", name] => {
                Role::Edge { region: (*region).to_owned(), name: (*name).to_owned() }
            }
            ["operator", name] => Role::Operator { name: (*name).to_owned() },
            _ => return Err(refuse(text, "the path names no known role")),
        };
        Self::new(chain, role)
    }
}

impl FromStr for Scope {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let (chain, path) = split(text)?;
        let chain = chain.to_owned();
        let (scope, label) = match path.as_slice() {
            ["validator"] => (Self::Validators { chain }, None),
            ["region", region] => {
                (Self::Region { chain, region: (*region).to_owned() }, Some(*region))
            }
            ["operator"] => (Self::Operators { chain }, None),
            _ => return Err(refuse(text, "the path names no scope")),
        };
        check_labels(&[scope.chain(), label.unwrap_or(scope.chain())])
            .map_err(|why| refuse(text, why))?;
        Ok(scope)
    }
}

fn split(text: &str) -> Result<(&str, Vec<&str>), PkiError> {
    if text.len() > ID_BYTES_MAX {
        return Err(refuse("(too long to print)", "it is longer than 256 bytes"));
    }
    let rest = text.strip_prefix(SCHEME).ok_or_else(|| refuse(text, "the scheme is missing"))?;
    let mut parts = rest.split('/');
    let chain = parts.next().expect("split yields at least one part");
    Ok((chain, parts.collect()))
}

fn refuse(text: &str, why: &'static str) -> PkiError {
    PkiError::Name { text: text.to_owned(), why }
}

fn check_labels(labels: &[&str]) -> Result<(), &'static str> {
    for label in labels {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        match label.as_bytes() {
            [] => return Err("a label is empty"),
            bytes if bytes.len() > LABEL_BYTES_MAX => return Err("a label exceeds 63 bytes"),
            [first, ..] if !plain(*first) => return Err("a label must start with a-z or 0-9"),
            bytes if !bytes.iter().all(|b| plain(*b) || b"-_.".contains(b)) => {
                return Err("a label may hold only a-z, 0-9, '-', '_' and '.'");
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_lie_under_their_scope() {
        for (text, scope) in [
            ("spiffe://c-1/validator/v1", "spiffe://c-1/validator"),
            ("spiffe://c-1/region/eu/member/m_1", "spiffe://c-1/region/eu"),
            ("spiffe://c-1/region/eu/edge/e.1", "spiffe://c-1/region/eu"),
            ("spiffe://c-1/operator/alice", "spiffe://c-1/operator"),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(id.scope().to_string(), scope);
            assert_eq!(scope.parse::<Scope>().unwrap(), id.scope());
        }
    }

    #[test]
    fn nothing_has_two_spellings() {
        for text in [
            "",
            "spiffe://",
            "SPIFFE://c/validator/v",
            "https://c/validator/v",
            "spiffe:///validator/v",
            "spiffe://c/validator/",
            "spiffe://c/validator/v/",
            "spiffe://c//validator/v",
            "spiffe://c/validator/V",
            "spiffe://c/validator/..",
            "spiffe://c/validator/.v",
            "spiffe://c/validator/v%31",
            "spiffe://c/validator/v?x",
            "spiffe://c:1/validator/v",
            "spiffe://u@c/validator/v",
            "spiffe://c/region/r/member/m/edge/e",
            "spiffe://c/region/r/m",
            "spiffe://c/validator/v\u{e9}",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
        for text in ["spiffe://c/region", "spiffe://c/region/", "spiffe://c/region/r/edge"] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn labels_at_the_limit_and_over_it() {
        let named = |bytes| SpiffeId::new("c", Role::Operator { name: "n".repeat(bytes) });
        assert!(named(63).is_ok());
        assert!(named(64).is_err());
        let long = "l".repeat(63);
        let id = SpiffeId::new(&*long, Role::Member { region: long.clone(), name: long.clone() });
        let text = id.unwrap().to_string();
        assert!(text.len() <= ID_BYTES_MAX);
        assert!(text.parse::<SpiffeId>().is_ok());
        let flood = format!("spiffe://{}", "a/".repeat(1 << 20));
        assert!(flood.parse::<SpiffeId>().unwrap_err().to_string().len() < 300);
    }
}
