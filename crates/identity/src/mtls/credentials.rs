//! The credentials of this process: its certificate and key, and the CAs that it trusts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use crate::{
    pki::{self, PkiError, Role, SpiffeId, TrustAnchors, Validity},
    signer::{Signer, SoftSigner},
};
use satrap_runtime::{Fault, TaskGroup, Unusable, clock, files};

/// A PEM leaf or key of ours has under 2 KiB.
const LEAF_FILE_BYTES_MAX: u64 = 16 * 1024;
/// Room for the 1024 anchors that are allowed.
const TRUST_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the credentials of a process live.
#[derive(Clone, Debug)]
pub struct CredentialFiles {
    /// The leaf, PEM.
    pub certificate: PathBuf,
    /// Its PKCS#8 key, PEM, mode 0600.
    pub key: PathBuf,
    /// The trusted CAs, PEM.
    pub trust: PathBuf,
}

/// Why credentials cannot be used. The operator's to fix; each message says how.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read, or others can read the key.
    #[error("cannot read {what}: {error}")]
    File {
        /// The setting that names the file.
        key: &'static str,
        /// The role and path of the file.
        what: String,
        /// From the file system.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what}: {error}")]
    Content {
        /// The setting that names the file.
        key: &'static str,
        /// The role and path of the file.
        what: String,
        /// The fault.
        error: PkiError,
    },
    /// Certificate and key are of different leaves; a half-finished rotation looks like this.
    #[error("{key} does not hold the key of {certificate}; install both from the same leaf")]
    KeyMismatch {
        /// The certificate file.
        certificate: String,
        /// The key file.
        key: String,
    },
    /// The certificate was replaced with one of another name.
    #[error(
        "the certificate {certificate} is for {found}, this process started as {expected}; install \
         the certificate of {expected}, or start the process again"
    )]
    OtherName {
        /// The certificate file.
        certificate: String,
        /// The name that it proves.
        found: Box<SpiffeId>,
        /// The name that this process started with.
        expected: Box<SpiffeId>,
    },
}

/// One consistent set of credentials.
pub struct Identity {
    /// The name of this process.
    pub id: SpiffeId,
    /// The certificate that proves it.
    pub leaf_der: Arc<[u8]>,
    /// Signs outside TLS with the key in that certificate.
    pub signer: Arc<dyn Signer>,
    /// The CAs that this process trusts.
    pub trust: TrustAnchors,
    /// When the certificate expires, in Unix seconds.
    pub not_after_s: i64,
    pub(super) certified_key: Arc<CertifiedKey>,
}

/// The credentials of a process, replaceable while it runs. Clones share them.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    files: CredentialFiles,
    current: ArcSwap<Identity>,
}

impl Credentials {
    /// Loads credentials from disk.
    ///
    /// An expired leaf is accepted with a warning: peers will refuse it, but an edge must still
    /// start and run what it last verified.
    ///
    /// # Errors
    ///
    /// [`CredentialError`]
    pub fn load(files: CredentialFiles) -> Result<Self, CredentialError> {
        let current = ArcSwap::from_pointee(Identity::load(&files)?);
        Ok(Self(Arc::new(Inner { files, current })))
    }

    /// Reads the files again (MTLS-5). They must prove the name that this process started with.
    ///
    /// # Errors
    ///
    /// [`CredentialError`], after which the previous credentials stay in use.
    pub fn reload(&self) -> Result<(), CredentialError> {
        let fresh = Identity::load(&self.0.files)?;
        let started_as = &self.current().id;
        if fresh.id != *started_as {
            return Err(CredentialError::OtherName {
                certificate: self.0.files.certificate.display().to_string(),
                found: Box::new(fresh.id),
                expected: Box::new(started_as.clone()),
            });
        }
        self.0.current.store(Arc::new(fresh));
        Ok(())
    }

    /// Reads the files again every minute and on SIGHUP, until `group` stops.
    pub fn keep_fresh(&self, group: &TaskGroup) {
        let credentials = self.clone();
        group.keep_fresh("credentials", move || credentials.reload());
    }

    /// Checks that the certificate proves `role` in realm `chain`, as the configuration says.
    ///
    /// # Errors
    ///
    /// [`Unusable`] names the setting, the certificate file and both names.
    pub fn check_name(&self, chain: &str, role: Role) -> Result<(), Unusable> {
        let expected = SpiffeId::new(chain, role)
            .map_err(|error| Unusable::new("name", Fault::Setting, error, "use another name"))?;
        let (file, found) = (self.0.files.certificate.display(), &self.current().id);
        if *found == expected {
            return Ok(());
        }
        let why =
            format!("the certificate {file} is for {found}, this configuration for {expected}");
        let settings = match expected.region() {
            Some(_) => "`region`, `name` and `genesis`",
            None => "`name` and `genesis`",
        };
        let remedy = format!("install the certificate of {expected}, or correct {settings}");
        Err(Unusable::new("tls.cert", Fault::Setting, why, remedy))
    }

    /// The credentials of this moment.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.0.current.load_full()
    }
}

/// A file of credentials, for errors.
struct Source {
    key: &'static str,
    what: String,
}

impl Source {
    fn new(key: &'static str, role: &str, path: &Path) -> Self {
        Self { key, what: format!("the {role} {}", path.display()) }
    }

    fn unreadable(&self, error: io::Error) -> CredentialError {
        CredentialError::File { key: self.key, what: self.what.clone(), error }
    }

    fn unusable(&self, error: PkiError) -> CredentialError {
        CredentialError::Content { key: self.key, what: self.what.clone(), error }
    }
}

impl From<CredentialError> for Unusable {
    fn from(error: CredentialError) -> Self {
        let (key, fault, remedy) = match &error {
            CredentialError::File { key, error, .. } => {
                let fault = match error.kind() {
                    io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::FileTooLarge => Fault::Setting,
                    _ => Fault::Machine,
                };
                (*key, fault, "check the path, and that the user of this process may read it")
            }
            CredentialError::Content { key, .. } => {
                (*key, Fault::Setting, "install the file that was issued to this process")
            }
            CredentialError::KeyMismatch { .. } => {
                ("tls.key", Fault::Setting, "a renewal replaces both files")
            }
            CredentialError::OtherName { .. } => {
                ("tls.cert", Fault::Setting, "a renewal keeps the name")
            }
        };
        Self::new(key, fault, &error, remedy)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.current().id)
    }
}

impl Identity {
    fn load(files: &CredentialFiles) -> Result<Self, CredentialError> {
        let certificate = Source::new("tls.cert", "certificate", &files.certificate);
        let pem = files::read(&files.certificate, LEAF_FILE_BYTES_MAX)
            .map_err(|error| certificate.unreadable(error))?;
        let leaf = pki::certificate_der(&pem).map_err(|error| certificate.unusable(error))?;

        let key = Source::new("tls.key", "key", &files.key);
        let pem = files::read_secret(&files.key, LEAF_FILE_BYTES_MAX)
            .map_err(|error| key.unreadable(error))?;
        let signing_key = pki::signing_key(&pem).map_err(|error| key.unusable(error))?;

        let source = Source::new("tls.trust", "trust file", &files.trust);
        let trust_pem = files::read(&files.trust, TRUST_FILE_BYTES_MAX)
            .map_err(|error| source.unreadable(error))?;
        let trust = TrustAnchors::from_pem(&trust_pem).map_err(|error| source.unusable(error))?;

        // A trust file without our own CA would cut us off from every peer that has the same one.
        // Judged at a moment when the leaf is valid: its age is the peers' to judge.
        let validity = Validity::from_der(&leaf).map_err(|error| certificate.unusable(error))?;
        let now_ns = clock::now();
        let judged_ns = validity.clamp(now_ns);
        let own = trust.verify(&leaf, judged_ns).map_err(|error| match error {
            PkiError::Malformed(_) | PkiError::Name { .. } => certificate.unusable(error),
            _ => source.unusable(error),
        })?;
        if own.public_key != signing_key.verifying_key().to_bytes() {
            let key = files.key.display().to_string();
            let certificate = files.certificate.display().to_string();
            return Err(CredentialError::KeyMismatch { certificate, key });
        }
        if judged_ns != now_ns {
            tracing::warn!(id = %own.id, "this certificate is not valid now; peers will refuse it");
        }
        let key_der = PrivatePkcs8KeyDer::from_pem_slice(&pem).expect("parsed once already");
        let key = any_eddsa_type(&key_der).expect("an Ed25519 key, parsed once already");
        Ok(Self {
            id: SpiffeId::clone(&own.id),
            leaf_der: own.leaf_der,
            signer: SoftSigner::new(signing_key).shared(),
            trust,
            not_after_s: validity.not_after_s,
            certified_key: Arc::new(CertifiedKey::new(vec![leaf], key)),
        })
    }
}
