//! A certificate, its key and the issuers of callers, read from PEM files; and what may be wrong with them.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{PemObject as _, SectionKind};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};

use super::H2;
use crate::config::TlsFiles;

/// The most bytes of one file.
const MAX_BYTES: u64 = 1 << 20;

/// What is spoken inside TLS beside HTTP/2, as ALPN names it.
const HTTP1: &[u8] = b"http/1.1";

pub(super) const DAY_S: u64 = 24 * 60 * 60;

/// What handshakes need, ready for use.
pub(super) struct Current {
    pub(super) config: Arc<ServerConfig>,
    /// When the certificate expires, since the Unix epoch.
    pub(super) not_after: Duration,
}

/// Why a certificate or its key cannot be used.
#[derive(Debug, Error)]
#[error("`{}` {wrong}", path.display())]
pub struct TlsError {
    pub path: PathBuf,
    pub wrong: Wrong,
}

/// What is wrong with a file, as the end of a sentence that begins with its name.
#[derive(Debug, Error)]
pub enum Wrong {
    #[error("cannot be read: {0}; check its path in `[listen.tls]`, and that the host may read it")]
    Unreadable(io::Error),
    #[error("is not a file; give the path of a PEM file in `[listen.tls]`")]
    NoFile,
    #[error("is longer than 1 MiB, the most that is read; it must hold certificates or a key alone")]
    TooLong,
    #[error("is empty; write the PEM text into it")]
    Empty,
    #[error("holds no PEM text; {0}")]
    NoPem(&'static str),
    #[error("is damaged: {0}; write it anew from where it was issued")]
    Damaged(String),
    #[error("holds no certificate but a private key; are the two exchanged in `[listen.tls]`?")]
    KeyForCertificate,
    #[error("holds no private key but a certificate; are the two exchanged in `[listen.tls]`?")]
    CertificateForKey,
    #[error("holds no certificate; it must have a section that starts with `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    #[error("holds no private key; it must have a section such as `-----BEGIN PRIVATE KEY-----`")]
    NoKey,
    #[error(
        "holds a key behind a passphrase, which nobody is there to give; write it without one, as `openssl pkey -in \
         KEY -out NEW` does, where only the host may read it"
    )]
    Encrypted,
    #[error(
        "holds a key that cannot be used: {0}; give one of RSA with 2048 to 8192 bits, ECDSA on P-256 or P-384, or \
         Ed25519"
    )]
    Key(String),
    #[error("holds as number {number} a certificate that cannot be used: {reason}; have it issued anew")]
    Certificate { number: usize, reason: String },
    #[error("does not belong to the key in `{}`; give the key that it was issued for", .0.display())]
    OtherKey(PathBuf),
    #[error(
        "does not begin with the certificate of the key, which is number {0} in it; put that one first, then the one \
         that issued it, and so on"
    )]
    Order(usize),
    #[error("holds a certificate that expired {0} ago; put a renewed one in its place")]
    Expired(String),
    #[error("holds a certificate that is valid only in {0}; check the clock of this machine, or wait")]
    NotYet(String),
    #[error(
        "cannot serve to tell callers by their certificates: {0}; give the certificates of their issuers"
    )]
    ClientCa(String),
}

impl Wrong {
    fn at(self, path: &Path) -> TlsError {
        TlsError { path: path.to_owned(), wrong: self }
    }
}

/// # Errors
/// Where the files are not in order.
pub(super) fn load(files: &TlsFiles) -> Result<Current, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| Wrong::Key(reason(error)).at(&files.key))?;
    let not_after = check(&chain, &*key, &files.key).map_err(|wrong| wrong.at(&files.certificate))?;
    if let Some(number) = loose_end(&chain) {
        tracing::warn!(
            "`{}` holds as number {number} a certificate that did not issue the one before it; some callers may not \
             trust the host: leave it out, or put it in its place",
            files.certificate.display()
        );
    }
    let verifier = client_verifier(files.client_ca.as_deref(), &provider)?;
    let certified = CertifiedKey::new(chain, key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    Ok(Current { config: Arc::new(config), not_after })
}

/// Whether a chain can be served with a key, and until when, since the Unix epoch.
fn check(chain: &[CertificateDer<'_>], key: &dyn SigningKey, key_path: &Path) -> Result<Duration, Wrong> {
    let own = key.public_key().map(|public_key| {
        chain.iter().position(|certificate| {
            let parsed = EndEntityCert::try_from(certificate);
            parsed.is_ok_and(|parsed| parsed.subject_public_key_info() == public_key)
        })
    });
    match own {
        Some(Some(index @ 1..)) => return Err(Wrong::Order(index + 1)),
        // Where it cannot be read it is nobody's, and what is wrong with it says more.
        Some(None) => validity(&chain[0]).and(Err(Wrong::OtherKey(key_path.to_owned())))?,
        Some(Some(0)) | None => {}
    }
    let (not_before, not_after) = validity(&chain[0])?;
    let now = since_epoch();
    if now < not_before {
        return Err(Wrong::NotYet(roughly(not_before - now)));
    }
    if now > not_after {
        return Err(Wrong::Expired(roughly(now - not_after)));
    }
    Ok(not_after)
}

/// Who may call: everyone, or who has a certificate of one of these issuers.
fn client_verifier(
    path: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(path) = path else { return Ok(WebPkiClientVerifier::no_client_auth()) };
    let mut issuers = RootCertStore::empty();
    for (index, issuer) in certificates(path)?.into_iter().enumerate() {
        let refuse = |error| Wrong::Certificate { number: index + 1, reason: reason(error) };
        issuers.add(issuer).map_err(|error| refuse(error).at(path))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(issuers), Arc::clone(provider))
        .build()
        .map_err(|error| Wrong::ClientCa(error.to_string()).at(path))
}

fn reason(error: rustls::Error) -> String {
    match error {
        // Its name for these says nothing to whoever reads on.
        rustls::Error::General(reason) => reason,
        error => error.to_string(),
    }
}

/// The certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let sections =
        sections(path, "convert one in binary form with `openssl x509 -inform der -in FILE -out NEW`")?;
    let has_key = sections.iter().any(|(kind, _)| is_key(*kind));
    let found = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Certificate);
    let found: Vec<_> = found.map(|(_, der)| CertificateDer::from(der)).collect();
    match found.is_empty() {
        false => Ok(found),
        true if has_key => Err(Wrong::KeyForCertificate.at(path)),
        true => Err(Wrong::NoCertificate.at(path)),
    }
}

/// The first private key of a file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let sections =
        sections(path, "convert one in binary form with `openssl pkey -inform der -in FILE -out NEW`")?;
    let has_certificate = sections.iter().any(|(kind, _)| *kind == SectionKind::Certificate);
    let key = sections.into_iter().find_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    key.ok_or_else(|| if has_certificate { Wrong::CertificateForKey } else { Wrong::NoKey }.at(path))
}

fn is_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// Every PEM section of a file that is of a known kind.
fn sections(path: &Path, advice: &'static str) -> Result<Vec<(SectionKind, Vec<u8>)>, TlsError> {
    let bytes = content(path).map_err(|wrong| wrong.at(path))?;
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    if bytes.trim_ascii().is_empty() {
        return Err(Wrong::Empty.at(path));
    }
    if !has("-----BEGIN ") {
        return Err(Wrong::NoPem(advice).at(path));
    }
    // In both forms of PEM that have it: as the name of the section, and as a header in it.
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(Wrong::Encrypted.at(path));
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| Wrong::Damaged(error.to_string()).at(path))
}

fn content(path: &Path) -> Result<Vec<u8>, Wrong> {
    // Asked before it is opened: to open a pipe would wait for a writer.
    if !path.metadata().map_err(Wrong::Unreadable)?.is_file() {
        return Err(Wrong::NoFile);
    }
    let file = std::fs::File::open(path).map_err(Wrong::Unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Wrong::Unreadable)?;
    if bytes.len() as u64 > MAX_BYTES { Err(Wrong::TooLong) } else { Ok(bytes) }
}

/// From when to when a certificate is valid, since the Unix epoch. webpki tells where it is asked about a time outside.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<(Duration, Duration), Wrong> {
    let reason = |reason: webpki::Error| Wrong::Certificate { number: 1, reason: reason.to_string() };
    let parsed = EndEntityCert::try_from(certificate).map_err(reason)?;
    let verified = |seconds: u64| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        parsed.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err()
    };
    let of = |time: UnixTime| Duration::from_secs(time.as_secs());
    let not_before = match verified(0) {
        Some(webpki::Error::CertNotValidYet { not_before, .. }) => of(not_before),
        Some(error @ (webpki::Error::InvalidCertValidity | webpki::Error::BadDerTime)) => {
            return Err(reason(error));
        }
        _ => Duration::ZERO,
    };
    match verified(u64::MAX) {
        Some(webpki::Error::CertExpired { not_after, .. }) => Ok((not_before, of(not_after))),
        Some(error) => Err(reason(error)),
        None => Ok((not_before, Duration::MAX)),
    }
}

/// The number of the first certificate that did not issue the one before it.
pub(super) fn loose_end(chain: &[CertificateDer<'_>]) -> Option<usize> {
    let links = chain.windows(2).position(|pair| {
        // What webpki cannot read, such as roots of the first version, is not judged.
        match (EndEntityCert::try_from(&pair[0]), EndEntityCert::try_from(&pair[1])) {
            (Ok(issued), Ok(issuer)) => issued.issuer() != issuer.subject(),
            _ => false,
        }
    });
    links.map(|index| index + 2)
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A time as a person would put it.
pub(super) fn roughly(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / DAY_S, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
