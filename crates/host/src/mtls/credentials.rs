//! Holds what this process proves its name with, and whom it believes.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use crate::pki::{self, PkiError, SpiffeId, TrustAnchors, Validity};
use crate::{Fault, TaskGroup, Unusable, clock, files};

/// A PEM leaf or key of ours has under 2 KiB.
const LEAF_FILE_BYTES_MAX: u64 = 16 * 1024;
/// Room for the 1024 anchors that are allowed.
const TRUST_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How soon a rotated certificate is used.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

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
        /// What is wrong.
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
}

/// One consistent set of credentials.
pub struct Identity {
    /// The name of this process.
    pub id: SpiffeId,
    /// The certificate that proves it.
    pub leaf_der: Arc<[u8]>,
    /// The key in that certificate, for signing outside TLS.
    pub signing_key: SigningKey,
    /// Whom this process believes.
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

    /// Reads the files again (M5).
    ///
    /// # Errors
    ///
    /// [`CredentialError`], after which the previous credentials stay in use.
    pub fn reload(&self) -> Result<(), CredentialError> {
        self.0.current.store(Arc::new(Identity::load(&self.0.files)?));
        Ok(())
    }

    /// Reads the files again every minute and on SIGHUP, until `group` stops: certificates live
    /// shorter than processes.
    pub fn keep_fresh(&self, group: &TaskGroup) {
        let (credentials, mut asked) = (self.clone(), group.reloads());
        let stop = group.shutdown().requested();
        group.spawn("credentials", async move {
            tokio::pin!(stop);
            loop {
                tokio::select! {
                    () = &mut stop => return Ok::<_, Infallible>(()),
                    () = tokio::time::sleep(RELOAD_INTERVAL) => {}
                    // The group holds the sender for as long as this task runs.
                    _ = asked.changed() => {}
                }
                if let Err(error) = credentials.reload() {
                    tracing::error!(%error, "kept the old credentials");
                }
            }
        });
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
            signing_key,
            trust,
            not_after_s: validity.not_after_s,
            certified_key: Arc::new(CertifiedKey::new(vec![leaf], key)),
        })
    }
}
