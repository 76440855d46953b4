//! The sources of a region: the servers that it may follow, the identity that each must prove, and
//! the number that it follows at a time.
//!
//! A region verifies every update, so any server of the sync protocol can be a source. Of `3f + 1`
//! validators, `f` may hold a checkpoint back, so a region follows `f + 1` of them at a time. A member
//! of another region only relays updates; the region leaves it for the next one when its updates get
//! old.

use satrap_identity::{
    mtls::PeerRule,
    pki::{PkiError, Role, SpiffeId},
};

use crate::config::Endpoint;

/// One server that may be followed.
#[derive(Clone, Debug)]
pub struct Source {
    id: SpiffeId,
    url: String,
}

impl Source {
    /// The server at `url`, which must prove the identity of `role` in the realm `chain`.
    ///
    /// # Errors
    ///
    /// [`PkiError`] if a name in `role` is malformed.
    pub fn new(chain: &str, role: Role, url: &str) -> Result<Self, PkiError> {
        Ok(Self { id: SpiffeId::new(chain, role)?, url: url.to_owned() })
    }

    /// The validator at `endpoint`.
    ///
    /// # Errors
    ///
    /// As [`Source::new`].
    pub fn validator(chain: &str, endpoint: &Endpoint) -> Result<Self, PkiError> {
        Self::new(chain, Role::Validator { name: endpoint.name.to_string() }, &endpoint.url)
    }

    /// The identity that the source must prove.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// `https://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The rule that accepts only this server.
    #[must_use]
    pub fn rule(&self) -> PeerRule {
        PeerRule::Exactly(self.id.clone())
    }
}

/// All servers that one member may follow.
#[derive(Clone, Debug, Default)]
pub struct SourceSet {
    sources: Vec<Source>,
    at_once: usize,
}

impl SourceSet {
    /// The validators at `endpoints`. The number followed at a time is one more than may be faulty.
    ///
    /// # Errors
    ///
    /// As [`Source::new`].
    pub fn validators(chain: &str, endpoints: &[Endpoint]) -> Result<Self, PkiError> {
        let sources = endpoints.iter().map(|endpoint| Source::validator(chain, endpoint));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let at_once = sources.len().saturating_sub(1) / 3 + 1;
        Ok(Self { sources, at_once })
    }

    /// Members of other regions, followed one at a time.
    #[must_use]
    pub fn relays(sources: Vec<Source>) -> Self {
        Self { sources, at_once: 1 }
    }

    /// The servers.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The number of servers to follow at a time.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.at_once
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::realm::label;

    #[test]
    fn one_validator_more_than_may_be_faulty_is_followed() {
        let at_once = |count: usize| {
            let endpoint = |n| Endpoint { name: label(&format!("v{n}")), url: String::new() };
            let endpoints: Vec<_> = (0..count).map(endpoint).collect();
            SourceSet::validators("c", &endpoints).unwrap().at_once()
        };
        assert_eq!([1, 3, 4, 6, 7, 10].map(at_once), [1, 1, 2, 2, 3, 4]);
    }
}
