//! TLS and HTTP/2: both versions on one port, certificates that change while the host runs, callers that stall.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tenon::config::{Config, TlsFiles};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::harness::{Answer, TestHost, UP, app, eventually, rest, run, tenon, until};
use crate::request::{STATIC, misbehave, p2};

/// Who issues certificates, and is trusted by callers.
struct Authority {
    /// Its own certificate.
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key in PEM.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Puts a new certificate into `folder`.
    fn renew(&self, folder: &Path) -> TlsFiles {
        let (certificate, key) = self.issue();
        let (certificate_at, key_at) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&certificate_at, certificate).unwrap();
        std::fs::write(&key_at, key).unwrap();
        TlsFiles { certificate: certificate_at, key: key_at, client_ca: None }
    }

    /// Shakes hands with a host, whom this authority must have issued a certificate.
    async fn call(&self, host: SocketAddr, version: &str) -> std::io::Result<TlsStream<TcpStream>> {
        self.call_as(None, host, version).await
    }

    async fn call_as(
        &self,
        caller: Option<(String, String)>,
        host: SocketAddr,
        version: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match caller {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = version.split_whitespace().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(host).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }
}

type AnyBody = BoxBody<Bytes, hyper::Error>;

/// A request with its whole URI, as HTTP/2 has it.
fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<AnyBody> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    let request = Request::builder().method(method).uri(format!("http://localhost{path}"));
    request.header("content-type", "text/plain").body(body).unwrap()
}

async fn whole(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

/// An HTTP/2 connection on `stream`.
async fn http2<S>(stream: S) -> http2::SendRequest<AnyBody>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 16).initial_connection_window_size(4 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut http2::SendRequest<AnyBody>, request: Request<AnyBody>) -> hyper::Result<Answer> {
    whole(sender.send_request(request).await?).await
}

/// One GET over HTTP/1.1 on `stream`.
async fn get1<S>(stream: S, path: &str) -> hyper::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = request(Method::GET, path, "");
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    whole(sender.send_request(request).await?).await
}

/// A body that is sent as it is said.
struct Said(mpsc::UnboundedReceiver<&'static str>);

impl Body for Said {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let said = self.0.poll_recv(context);
        said.map(|said| said.map(|said| Ok(Frame::data(Bytes::from_static(said.as_bytes())))))
    }
}

/// Settings with a certificate; the folder goes with it.
fn with(files: &TlsFiles) -> impl FnOnce(&mut Config) + use<> {
    let files = files.clone();
    move |config| config.listen.tls = Some(files)
}

async fn no_connection_is_left(host: &TestHost) {
    eventually("no connection is left", async || host.metric("tenon_connections").await == 0.0).await;
}

async fn no_instance_is_left(host: &TestHost) {
    eventually("no instance is left", async || host.metric("tenon_instances").await == 0.0).await;
}

#[test]
fn both_versions_are_spoken_inside_tls() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let setup = TestHost::of(app(&[STATIC.to_owned(), p2("")]));
        let host = setup.config(with(&authority.renew(folder.path()))).start().await;
        for version in ["h2", "h2 http/1.1"] {
            let mut sender = http2(authority.call(host.host.http, version).await.unwrap()).await;
            let headers = ask(&mut sender, request(Method::GET, "/p2/headers?a=b", "")).await.unwrap().text();
            assert!(headers.contains("spin-full-url: https://localhost/p2/headers?a=b\n"), "{headers}");
        }
        for version in ["http/1.1", ""] {
            let stream = authority.call(host.host.http, version).await.unwrap();
            assert_eq!(get1(stream, "/static").await.unwrap().text(), "still\n");
        }
        let refused = authority.call(host.host.http, "http/0.9").await.unwrap_err();
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
        let stranger = Authority::new().call(host.host.http, "h2").await.unwrap_err();
        assert!(stranger.to_string().contains("invalid peer certificate"), "{stranger}");
        host.operator("/ready").await.expect(200);
        no_connection_is_left(&host).await;
    });
}

#[test]
fn a_renewed_certificate_is_for_new_connections() {
    run(async {
        let (former, latter, folder) = (Authority::new(), Authority::new(), tempfile::tempdir().unwrap());
        let setup = TestHost::of(app(&[STATIC.to_owned()]));
        let host = setup.config(with(&former.renew(folder.path()))).start().await;
        let mut kept = http2(former.call(host.host.http, "h2").await.unwrap()).await;
        ask(&mut kept, request(Method::GET, "/static", "")).await.unwrap().expect(200);
        latter.renew(folder.path());
        let renewed = async || latter.call(host.host.http, "h2").await.is_ok();
        eventually("the new certificate is shown", renewed).await;
        assert!(former.call(host.host.http, "h2").await.is_err());
        ask(&mut kept, request(Method::GET, "/static", "")).await.unwrap().expect(200);
    });
}

#[test]
fn a_certificate_that_cannot_be_read_changes_nothing() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let files = authority.renew(folder.path());
        std::fs::write(folder.path().join("spin.toml"), app(&[STATIC.to_owned()])).unwrap();
        let settings = "[listen]\nadmin = \"off\"\ntls = { certificate = \"cert.pem\", key = \"key.pem\" }\n";
        let mut process = tenon(folder.path(), settings, &UP).spawn().unwrap();
        let mut says = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut address = None;
        while let Some(line) = says.next_line().await.unwrap() {
            if let Some((_, serving)) = line.split_once("Serving https://") {
                let serving: SocketAddr = serving.trim().parse().unwrap();
                address = Some(serving);
                std::fs::write(&files.key, "no key").unwrap();
            }
            if line.contains("the former TLS certificate stays in use") {
                assert!(line.contains("key.pem` holds no PEM text"), "{line}");
                break;
            }
        }
        let address = address.expect("the host serves");
        let stream = authority.call(address, "http/1.1").await.unwrap();
        get1(stream, "/static").await.unwrap().expect(200);
        let renewed = Authority::new();
        renewed.renew(folder.path());
        eventually("it is mended", async || renewed.call(address, "").await.is_ok()).await;
    });
}

#[test]
fn a_host_without_its_certificate_does_not_start() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let files = authority.renew(folder.path());
        let check = async |files: TlsFiles, expected: &str| {
            let started = TestHost::of(app(&[STATIC.to_owned()])).config(with(&files)).try_start().await;
            let error = started.err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        check(TlsFiles { key: folder.path().join("none"), ..files.clone() }, "none` cannot be read").await;
        std::fs::write(&files.key, authority.issue().1).unwrap();
        check(files.clone(), "does not belong to the key in `").await;
    });
}

#[test]
fn callers_may_have_to_show_a_certificate() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let issuer = folder.path().join("ca.pem");
        let files = TlsFiles { client_ca: Some(issuer.clone()), ..authority.renew(folder.path()) };
        let callers = Authority::new();
        std::fs::write(&issuer, &callers.pem).unwrap();
        let host = TestHost::of(app(&[STATIC.to_owned()])).config(with(&files)).start().await;
        let address = host.host.http;
        let known = authority.call_as(Some(callers.issue()), address, "http/1.1").await.unwrap();
        get1(known, "/static").await.unwrap().expect(200);
        for unknown in [None, Some(authority.issue())] {
            // In TLS 1.3 the caller has shaken hands before it is refused.
            let called = authority.call_as(unknown, address, "http/1.1").await;
            if let Ok(stream) = called {
                assert!(get1(stream, "/static").await.is_err());
            }
        }
        no_connection_is_left(&host).await;
    });
}

#[test]
fn who_speaks_no_tls_is_told_so() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let setup = TestHost::of(app(&[STATIC.to_owned()]));
        let host = setup.config(with(&authority.renew(folder.path()))).start().await;
        for plain in ["GET /static HTTP/1.1\r\nhost: t\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let text = host.raw(plain).await;
            assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("https://"), "{text}");
        }
        for junk in [&b"\0\x01\x02"[..], b"\x16\x03\x01\x00\x05hello, and far more of it", b"\x16"] {
            let mut stream = host.connect().await;
            stream.write_all(junk).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(!rest(&mut stream).await.contains("still"));
        }
        no_connection_is_left(&host).await;
        let stream = authority.call(host.host.http, "").await.unwrap();
        get1(stream, "/static").await.unwrap().expect(200);
    });
}

#[test]
fn who_does_not_begin_inside_tls_is_cut() {
    run(async {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let setup = TestHost::of(app(&[STATIC.to_owned()])).config(with(&authority.renew(folder.path())));
        let host = setup.config(|config| config.limits.header_read_ms = 100).start().await;
        for silent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
            let mut stream = host.connect().await;
            stream.write_all(silent).await.unwrap();
            assert_eq!(rest(&mut stream).await, "");
        }
        for version in ["h2", "http/1.1"] {
            let mut stream = authority.call(host.host.http, version).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        no_connection_is_left(&host).await;
    });
}

#[test]
fn refusals_do_not_end_a_connection_over_http2() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned()])).start().await;
        let stream = host.connect().await;
        stream.set_nodelay(true).unwrap();
        let mut sender = http2(stream).await;
        for n in 0..2000 {
            let path = ["/nowhere", "/v2/models/nobody/infer", "/v2/health/live"][n % 3];
            let answer = ask(&mut sender, request(Method::POST, path, "x".repeat(4000))).await.unwrap();
            answer.expect(if n % 3 == 2 { 405 } else { 404 });
        }
        assert_eq!(host.metric("tenon_connections").await, 1.0);
    });
}

#[test]
fn http2_needs_no_tls_and_no_upgrade() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned(), p2("")])).start().await;
        let mut sender = http2(host.connect().await).await;
        let never = tokio::spawn({
            let mut sender = sender.clone();
            async move { ask(&mut sender, request(Method::GET, "/p2/never", "")).await }
        });
        eventually("it runs", async || host.metric("tenon_instances").await == 1.0).await;
        let headers = ask(&mut sender, request(Method::GET, "/p2/headers", "")).await.unwrap().text();
        assert!(headers.contains("spin-full-url: http://localhost/p2/headers\n"), "{headers}");
        let echoes = (0..100).map(|n: usize| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let body = format!("{n} ").repeat(1 + n * 100);
                let answer = ask(&mut sender, request(Method::POST, "/p2/echo", body.clone())).await.unwrap();
                assert_eq!(answer.expect(200).text(), body);
            })
        });
        for echo in echoes.collect::<Vec<_>>() {
            echo.await.unwrap();
        }
        assert_eq!(host.metric("tenon_connections").await, 1.0);
        // A caller that takes one request back leaves the others alone.
        never.abort();
        no_instance_is_left(&host).await;
        let labels = r#"tenon_request_errors_total{function="app/p2",error="cancelled"}"#;
        eventually("it is counted", async || host.metric(labels).await == 1.0).await;
        let large = ask(&mut sender, request(Method::GET, "/p2/big?3", "")).await.unwrap().expect(200);
        assert_eq!(large.body.len(), 3 << 20);
        let head = ask(&mut sender, request(Method::HEAD, "/static", "")).await.unwrap().expect(200);
        assert!(head.body.is_empty());
    });
}

#[test]
fn limits_of_bodies_hold_for_each_request_alone() {
    run(async {
        let limit = "tool.tenon.limits.request_body_mib = 1";
        let setup = TestHost::of(app(&[STATIC.to_owned(), misbehave(limit), p2(limit)]));
        let host = setup.config(|config| config.limits.body_read_ms = 500).start().await;
        let mut sender = http2(host.connect().await).await;
        let long = vec![b'x'; (1 << 20) + 1];
        let refused = ask(&mut sender, request(Method::POST, "/misbehave", long)).await.unwrap();
        refused.problem(413, "too-large");
        let (say, said) = mpsc::unbounded_channel();
        say.send("print:x").unwrap();
        let slow = request(Method::POST, "/misbehave", "").map(|_| Said(said).boxed());
        ask(&mut sender, slow).await.unwrap().problem(408, "slow-body");
        drop(say);
        ask(&mut sender, request(Method::GET, "/static", "")).await.unwrap().expect(200);
        assert_eq!(host.metric("tenon_connections").await, 1.0);
        assert_eq!(host.log("misbehave", "stdout"), "");
    });
}

#[test]
fn an_answer_that_nobody_takes_is_given_up_alone() {
    run(async {
        let setup = TestHost::of(app(&[STATIC.to_owned(), p2("")]));
        let host = setup.config(|config| config.limits.body_read_ms = 100).start().await;
        let mut sender = http2(host.connect().await).await;
        let untaken = sender.send_request(request(Method::GET, "/p2/big?15", "")).await.unwrap();
        no_instance_is_left(&host).await;
        assert!(whole(untaken).await.is_err());
        ask(&mut sender, request(Method::GET, "/static", "")).await.unwrap().expect(200);
        assert_eq!(host.metric("tenon_connections").await, 1.0);
    });
}

#[test]
fn an_idle_connection_does_not_stay() {
    run(async {
        let setup = TestHost::of(app(&[STATIC.to_owned(), p2("")]));
        let change = |config: &mut Config| (config.limits.header_read_ms, config.limits.idle_ms) = (500, 100);
        let host = setup.config(change).start().await;
        let mut sender = http2(host.connect().await).await;
        ask(&mut sender, request(Method::GET, "/static", "")).await.unwrap().expect(200);
        no_connection_is_left(&host).await;
        // Of HTTP/2 the settings alone, or not even all of what begins it.
        for begun in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "PRI * HTTP"] {
            host.raw(begun).await;
        }
        no_connection_is_left(&host).await;
    });
}

#[test]
fn a_drain_finishes_what_runs_over_http2() {
    run(async {
        let host = TestHost::of(app(&[STATIC.to_owned(), p2("")])).start().await;
        let address = host.host.http;
        let (mut busy, mut idle) = (http2(host.connect().await).await, http2(host.connect().await).await);
        ask(&mut idle, request(Method::GET, "/static", "")).await.unwrap().expect(200);
        let (say, said) = mpsc::unbounded_channel();
        say.send("hi ").unwrap();
        let echo = request(Method::POST, "/p2/echo", "").map(|_| Said(said).boxed());
        let answering = busy.send_request(echo).await.unwrap();
        let mut http1 = host.connect().await;
        let head = "POST /p2/echo HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nhi";
        http1.write_all(head.as_bytes()).await.unwrap();
        until(&mut http1, |text| text.contains("hi")).await;
        let stopped = tokio::spawn(host.stop());
        let refuses = async || TcpStream::connect(address).await.is_err();
        eventually("no connection is taken", refuses).await;
        eventually("who is idle is sent away", async || idle.is_closed()).await;
        assert!(!stopped.is_finished());
        say.send("there").unwrap();
        drop(say);
        assert_eq!(whole(answering).await.unwrap().text(), "hi there");
        http1.write_all(b"!!").await.unwrap();
        assert!(rest(&mut http1).await.contains("!!"));
        assert!(stopped.await.unwrap(), "all of it had ended");
    });
}

#[test]
fn a_drain_does_not_wait_for_who_does_not_hear() {
    run(async {
        let setup = TestHost::of(app(&[STATIC.to_owned()]));
        let host = setup.config(|config| config.limits.header_read_ms = 200).start().await;
        let mut deaf = host.connect().await;
        let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        deaf.write_all(begin).await.unwrap();
        eventually("it is accepted", async || host.metric("tenon_connections").await == 1.0).await;
        let stopped = tokio::time::timeout(Duration::from_secs(10), host.stop()).await;
        assert!(stopped.expect("it is cut"), "all of it had ended");
    });
}
