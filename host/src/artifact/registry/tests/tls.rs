//! TLS where it should be, and plain HTTP where it should not.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

/// A server with a certificate for `localhost`, which answers each request with a manifest; and its authority, in PEM.
async fn tls_server() -> (String, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names = ["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                stream.read_buf(&mut Vec::new()).await?;
                stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n{}").await?;
                stream.shutdown().await
            });
        }
    });
    (address, pem)
}

#[tokio::test]
async fn an_authority_of_the_operators_is_trusted() {
    let (address, pem) = tls_server().await;
    let reference: Reference = format!("{address}/a:b").parse().unwrap();
    let mut bench = Bench::new();
    bench.options.plain_http = false;
    let error = bench.registry().manifest(&reference).await.unwrap_err();
    assert_says(&error, &["the certificate of `localhost` is not trusted", "`registry.ca`"]);
    let path = bench.folder.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    bench.options.settings.ca = Some(path);
    assert_eq!(bench.registry().manifest(&reference).await.unwrap().1, b"{}");
}

#[tokio::test]
async fn plain_http_is_spoken_only_where_it_is_asked_for() {
    let server = Server::honest().await;
    let layer = noise(10, 1);
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let mut bench = Bench::new();
    bench.options.plain_http = false;
    let error = bench.pull(&server).await.unwrap_err();
    assert_says(&error, &["answers without TLS", "`--plain-http`", "`registry.insecure`"]);
    assert!(server.asked().is_empty());
    bench.options.settings.insecure = vec!["localhost:1".to_owned(), server.address.clone()];
    bench.pull(&server).await.unwrap();
    let go = Server::start(|_, _| Some(Reply::new(400, "Client sent an HTTP request to an HTTPS server.\n")))
        .await;
    let error = Bench::new().pull(&go).await.unwrap_err();
    assert_says(&error, &["speaks TLS, not plain HTTP", "leave out `--plain-http`"]);
}

#[test]
fn authorities_that_are_none_are_named() {
    let mut bench = Bench::new();
    let path = bench.folder.path().join("ca.pem");
    bench.options.settings.ca = Some(path.clone());
    let error = |bench: &Bench| Registry::new(bench.options.clone()).unwrap_err();
    assert_says(error(&bench), &["`registry.ca` = `", "No such file"]);
    std::fs::write(&path, "no certificate").unwrap();
    assert_says(error(&bench), &["there is no certificate in it"]);
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert_says(error(&bench), &["`registry.ca` = `"]);
}
