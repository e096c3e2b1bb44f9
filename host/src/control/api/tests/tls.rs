//! The API over TLS, and a client that trusts an authority of its own.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::config::TlsFiles;
use crate::control::client::Trust;

#[tokio::test]
async fn a_host_with_a_certificate_is_asked_over_tls_alone() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = write("ca.pem", &params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    let issued = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = issued("localhost");
    let files = TlsFiles {
        certificate: write("cert.pem", &certificate),
        key: write("key.pem", &key),
        client_ca: Some(ca.clone()),
    };
    let host = host_with(|config| config.listen.tls = Some(files), WAITS).await;
    assert!(host.listening.is_tls);
    let (certificate, key) = issued("somebody");
    let own = write("own.pem", &format!("{certificate}{key}"));
    let token = Secret(READ.to_owned());
    let to: To = format!("https://localhost:{}", host.address().port()).parse().unwrap();
    let ask = async |trust: Trust| {
        let client = Client::trusting(&to, Some(&token), &trust).unwrap();
        client.status().await.map(|status| status.version)
    };
    let all = Trust { ca: Some(ca.clone()), certificate: Some(own.clone()) };
    assert_eq!(ask(all).await.unwrap(), "0.1.0");
    assert!(ask(Trust { ca: None, certificate: Some(own) }).await.is_err(), "nobody vouches for the host");
    assert!(ask(Trust { ca: Some(ca.clone()), certificate: None }).await.is_err(), "the host asks for one");
    let (status, answer) = host.ask("GET /v1/status", READ, "").await;
    assert!(status == 400 && answer.contains("https://"), "{answer}");
    host.local().status().await.unwrap();
    let broken = Trust { ca: Some(write("broken.pem", "no certificate")), certificate: None };
    let error = Client::trusting(&to, None, &broken).map(drop).unwrap_err().to_string();
    assert!(error.contains("broken.pem` cannot be read: "), "{error}");
}
