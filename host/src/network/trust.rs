//! Whose certificates are trusted where a function connects with TLS: the system's authorities, and the operator's own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, ClientConfig, Error as RustlsError, RootCertStore};

use super::Destination;

/// What is spoken over TLS, as ALPN names it, in the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The authorities, read when they are first needed.
#[derive(Default)]
pub struct Trust {
    /// Certificates of authorities beside the system's, in PEM.
    own: Option<PathBuf>,
    connector: OnceCell<TlsConnector>,
}

/// Why there is no connection over TLS.
#[derive(Debug, Error)]
pub enum TrustError {
    #[error("the certificates in `{path}` (`outbound.ca` in host.toml) cannot be used: {reason}")]
    Own { path: PathBuf, reason: String },
    #[error(
        "this system has no certificates of authorities; install them, or name a file with `outbound.ca` in host.toml"
    )]
    NoAuthorities,
    #[error("the certificate is not trusted: {0}")]
    Certificate(RustlsError),
    #[error("the other side ended it with the alert `{0:?}`")]
    Alert(AlertDescription),
    #[error("{0}")]
    Protocol(io::Error),
    #[error("it took too long")]
    Timeout,
}

impl Trust {
    pub fn new(own: Option<PathBuf>) -> Trust {
        Trust { own, connector: OnceCell::new() }
    }

    /// Speaks TLS on a connection to `destination`, whose certificate must be for that name or address.
    ///
    /// # Errors
    /// Where the certificate is not trusted, or it does not come to that until `until`.
    pub async fn connect(
        &self,
        stream: TcpStream,
        destination: &Destination,
        until: Instant,
    ) -> Result<TlsStream<TcpStream>, TrustError> {
        let connector = self.connector.get_or_try_init(|| self.read()).await?;
        let name = match destination {
            Destination::Address(address) => ServerName::IpAddress((*address).into()),
            Destination::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| TrustError::Protocol(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
            Destination::Own => return Err(TrustError::Protocol(io::ErrorKind::InvalidInput.into())),
        };
        let shaken =
            timeout_at(until, connector.connect(name, stream)).await.map_err(|_| TrustError::Timeout)?;
        shaken.map_err(told_apart)
    }

    async fn read(&self) -> Result<TlsConnector, TrustError> {
        let own = self.own.clone();
        let read = tokio::task::spawn_blocking(move || authorities(own.as_deref())).await;
        let roots = read.map_err(|panic| TrustError::Protocol(io::Error::other(panic)))??;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError::Protocol(io::Error::other(error)))?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn authorities(own: Option<&Path>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate of the system's authorities cannot be read");
    }
    // Old stores hold what no program can use any more.
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = own {
        let refused = |reason: String| TrustError::Own { path: path.to_owned(), reason };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?;
        let mut any = false;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| refused(error.to_string()))?;
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            any = true;
        }
        if !any {
            return Err(refused("it has none".to_owned()));
        }
    }
    if roots.is_empty() { Err(TrustError::NoAuthorities) } else { Ok(roots) }
}

fn told_apart(error: io::Error) -> TrustError {
    match error.get_ref().and_then(|source| source.downcast_ref::<RustlsError>()) {
        Some(RustlsError::AlertReceived(alert)) => TrustError::Alert(*alert),
        Some(
            wrong @ (RustlsError::InvalidCertificate(_)
            | RustlsError::NoCertificatesPresented
            | RustlsError::UnsupportedNameType
            | RustlsError::InvalidCertRevocationList(_)),
        ) => TrustError::Certificate(wrong.clone()),
        _ => TrustError::Protocol(error),
    }
}
