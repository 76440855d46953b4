//! The status report of an edge, signed with its identity key.
//!
//! A region that relays a report may lie, so the report carries the edge's own certificate and
//! signature, and each program that counts reports verifies both. The signature covers the realm and a
//! time, so an old report cannot pass for a new one.

use ed25519_dalek::SigningKey;
use satrap_merkle::{
    Digest,
    codec::{Canonical, DecodeError, Reader, Writer},
};

use crate::{
    keys::{PublicKey, SignatureBytes, sign},
    limits::{CERTIFICATE_BYTES_MAX, LABEL_BYTES_MAX, REPORT_REFUSALS_MAX, REPORT_VERSIONS_MAX},
    names::{BundleName, Label},
    rejection::Rejection,
    timestamp::Timestamp,
};

/// The state of one edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The edge's realm.
    pub genesis_hash: Digest,
    /// Its region.
    pub region: Label,
    /// Its name there.
    pub edge: Label,
    /// Its clock.
    pub time: Timestamp,
    /// When its process started, by the same clock. Two processes that overlap have one identity.
    pub started: Timestamp,
    /// The height of the newest checkpoint that it verified.
    pub height: u64,
    /// The certified time of `height`.
    pub certified_time: Timestamp,
    /// The bundles that its workload runs, by name, version and root; at most [`REPORT_VERSIONS_MAX`].
    pub running: Vec<(BundleName, u64, Digest)>,
    /// Versions that failed here, by a hook that refused them or for what they hold; as many.
    pub failed: Vec<(BundleName, u64, Digest)>,
    /// How often it refused an offer since it started, by rule.
    pub refusals: Vec<(String, u64)>,
}

/// A report with the proof of who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReport {
    /// The claim.
    pub report: Report,
    /// The edge's leaf certificate (DER), which names it and holds the key.
    pub certificate: Vec<u8>,
    /// Over [`Report::signed_bytes`], by the certificate's key.
    pub signature: SignatureBytes,
}

impl Report {
    /// The bytes that the edge signs.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut w = Writer::tagged("satrap/report/v1");
        self.encode(&mut w);
        w.finish()
    }

    /// Signs the report with the key of `certificate`.
    #[must_use]
    pub fn sign(self, key: &SigningKey, certificate: Vec<u8>) -> SignedReport {
        let signature = sign(key, &self.signed_bytes());
        SignedReport { report: self, certificate, signature }
    }

    /// Checks that the report can have been made by `latest`, the time here plus the permitted drift
    /// of clocks. The newest report of an edge counts, so one of the future would never be replaced.
    ///
    /// # Errors
    ///
    /// [`Rejection::ReportFuture`] and [`Rejection::ReportStart`].
    pub fn check_time(&self, latest: Timestamp) -> Result<(), Rejection> {
        let Self { time, started, .. } = *self;
        if time > latest {
            return Err(Rejection::ReportFuture { time, latest });
        }
        if started > time {
            return Err(Rejection::ReportStart { time, started });
        }
        Ok(())
    }
}

impl SignedReport {
    /// Checks the signature under `public`, the key of the certificate (which the caller has
    /// verified and matched with the report's region and edge name), and the times as
    /// [`Report::check_time`] does.
    ///
    /// # Errors
    ///
    /// [`Rejection::Report`], and those of [`Report::check_time`].
    pub fn verify(
        &self,
        genesis_hash: &Digest,
        public: &PublicKey,
        latest: Timestamp,
    ) -> Result<&Report, Rejection> {
        if self.report.genesis_hash != *genesis_hash {
            return Err(Rejection::Report("made for another realm"));
        }
        if !public.verifies(&self.report.signed_bytes(), &self.signature) {
            return Err(Rejection::Report("signature does not verify under its certificate"));
        }
        self.report.check_time(latest)?;
        Ok(&self.report)
    }
}

impl Canonical for Report {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.genesis_hash);
        self.region.encode(w);
        self.edge.encode(w);
        self.time.encode(w);
        self.started.encode(w);
        w.u64(self.height);
        self.certified_time.encode(w);
        for versions in [&self.running, &self.failed] {
            w.count(versions.len());
            for (name, version, root) in versions {
                name.encode(w);
                w.u64(*version);
                w.array(root);
            }
        }
        w.count(self.refusals.len());
        for (rule, count) in &self.refusals {
            w.bytes(rule.as_bytes());
            w.u64(*count);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let genesis_hash = r.array()?;
        let (region, edge) = (Label::decode(r)?, Label::decode(r)?);
        let (time, started) = (Timestamp::decode(r)?, Timestamp::decode(r)?);
        let (height, certified_time) = (r.u64()?, Timestamp::decode(r)?);
        let [mut running, mut failed] = [Vec::new(), Vec::new()];
        for versions in [&mut running, &mut failed] {
            for _ in 0..r.count(REPORT_VERSIONS_MAX)? {
                versions.push((BundleName::decode(r)?, r.u64()?, r.array()?));
            }
        }
        let mut refusals = Vec::new();
        for _ in 0..r.count(REPORT_REFUSALS_MAX)? {
            refusals.push((r.text(LABEL_BYTES_MAX)?.to_owned(), r.u64()?));
        }
        Ok(Self {
            genesis_hash,
            region,
            edge,
            time,
            started,
            height,
            certified_time,
            running,
            failed,
            refusals,
        })
    }
}

impl Canonical for SignedReport {
    fn encode(&self, w: &mut Writer) {
        self.report.encode(w);
        w.bytes(&self.certificate);
        w.array(&self.signature);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            report: Report::decode(r)?,
            certificate: r.bytes(CERTIFICATE_BYTES_MAX)?.to_vec(),
            signature: r.array()?,
        })
    }
}
