//! Outbound HTTP: what a function may fetch, and what becomes of it where the other side is slow, huge or hostile.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tenon::config::Config;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::harness::{TestHost, app, eventually, function, request, run};

/// A server of the test's, and what it has seen.
struct Elsewhere {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// A connection while it is open.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> Open {
        seen.connections.fetch_add(1, Ordering::SeqCst);
        seen.open.fetch_add(1, Ordering::SeqCst);
        Open(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Elsewhere {
    /// Speaks HTTP, over TLS where it is given a certificate.
    async fn start(tls: Option<TlsAcceptor>) -> Elsewhere {
        Elsewhere::with(move |stream| {
            let tls = tls.clone();
            async move {
                match tls {
                    None => serve(stream, false).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            serve(stream, http2).await;
                        }
                    }
                }
            }
        })
        .await
    }

    /// Writes `answer` to whoever connects, and hangs up.
    async fn raw(answer: impl Into<Vec<u8>>) -> Elsewhere {
        let answer = Arc::new(answer.into());
        Elsewhere::with(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        })
        .await
    }

    async fn with<F>(handle: impl Fn(tokio::net::TcpStream) -> F + Send + Sync + 'static) -> Elsewhere
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (open, handled) = (Open::new(&counted), handle(stream));
                tokio::spawn(async move {
                    handled.await;
                    drop(open);
                });
            }
        });
        Elsewhere { address, seen }
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    async fn all_closed(&self) {
        eventually("connections are closed", async || self.seen.open.load(Ordering::SeqCst) == 0).await;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) {
    let stream = TokioIo::new(stream);
    let _ = match http2 {
        true => {
            server::http2::Builder::new(TokioExecutor::new())
                .serve_connection(stream, service_fn(answer))
                .await
        }
        false => server::http1::Builder::new().serve_connection(stream, service_fn(answer)).await,
    };
}

type AnswerBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// So many frames of 64 KiB.
struct Frames(usize);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'.'; 64 << 10])))))
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>>;

/// How many requests wait, and the most that ever did: of one test alone.
static WAITING: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// As the path says.
async fn answer(request: Request<Incoming>) -> Result<Response<AnswerBody>, std::convert::Infallible> {
    let whole = |text: String| Full::new(Bytes::from(text)).boxed_unsync();
    let path = request.uri().path().to_owned();
    let body = match path.as_str() {
        "/version" => {
            let version = if request.version() == Version::HTTP_2 { "2" } else { "1.1" };
            whole(format!(
                "{version} {}",
                request.uri().authority().map_or("-", |authority| authority.as_str())
            ))
        }
        "/host" => whole(format!("{:?}", request.headers().get("host"))),
        "/echo" => {
            whole(String::from_utf8_lossy(&request.into_body().collect().await.unwrap().to_bytes()).into())
        }
        "/silent" => std::future::pending().await,
        "/wait" => {
            let waiting = WAITING[0].fetch_add(1, Ordering::SeqCst) + 1;
            WAITING[1].fetch_max(waiting, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            WAITING[0].fetch_sub(1, Ordering::SeqCst);
            whole("waited".to_owned())
        }
        "/pause" => Stuck(Some(Bytes::from_static(b"some"))).boxed_unsync(),
        "/huge" => Frames(1024).boxed_unsync(),
        "/endless" => Frames(usize::MAX).boxed_unsync(),
        "/redirect" => {
            let moved = Response::builder().status(302).header("location", "http://169.254.169.254/");
            return Ok(moved.body(whole(String::new())).unwrap());
        }
        _ => whole("hello".to_owned()),
    };
    Ok(Response::new(body))
}

/// A body that never ends after its first frame.
struct Stuck(Option<Bytes>);

impl hyper::body::Body for Stuck {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// A host with a function of each generation that may send requests to these hosts.
async fn host(allowed: &[String], config: impl FnOnce(&mut Config)) -> TestHost {
    let hosts = format!("allowed_outbound_hosts = {allowed:?}\ntool.tenon.limits.deadline_ms = 5000\n");
    let parts = [function("/p2/...", "p2", "http_p2", &hosts), function("/p3/...", "p3", "http_p3", &hosts)];
    TestHost::of(app(&parts)).config(config).start().await
}

/// The operator opens this machine, by IPv4.
fn open(config: &mut Config) {
    config.outbound.allow = vec!["127.0.0.1/32".parse().unwrap()];
}

/// Whether a function was told of this error. Of those of a body under way, a guest of wasi:http 0.2 sees only the words.
fn names(told: &str, error: &str) -> bool {
    let words = match error {
        "ConnectionReadTimeout" => "connection read timeout",
        "HttpResponseIncomplete" => "incomplete HTTP response",
        "HttpProtocolError" => "HTTP protocol error",
        _ => error,
    };
    told.contains(error) || told.contains(words)
}

async fn get(host: &TestHost, path: &str) -> String {
    host.get(path).await.expect(200).text()
}

#[test]
fn a_function_fetches_what_its_author_names_and_the_operator_opens() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let by_name = format!("http://localhost:{}", elsewhere.port());
        let host = host(&[elsewhere.url(""), by_name.clone()], open).await;
        for function in ["p2", "p3"] {
            let fetch = async |url: &str| get(&host, &format!("/{function}/fetch?{url}")).await;
            assert_eq!(fetch(&elsewhere.url("/hello")).await, "200 hello");
            assert_eq!(fetch(&format!("{by_name}/hello")).await, "200 hello");
            assert_eq!(
                fetch(&elsewhere.url("/host")).await,
                format!("200 Some({:?})", elsewhere.address.to_string())
            );
            // Where it leads is for the function to decide, and is judged anew.
            assert_eq!(fetch(&elsewhere.url("/redirect")).await, "302 ");
            let body = "x".repeat(300_000);
            let forward = format!("/{function}/forward?{}", elsewhere.url("/echo"));
            let answer = host.send(request(Method::POST, &forward, &[], body.clone())).await.expect(200);
            assert_eq!(answer.text(), format!("200 {body}"));
        }
        elsewhere.all_closed().await;
    });
}

#[test]
fn what_the_author_does_not_name_is_denied() {
    run(async {
        let (named, other) = (Elsewhere::start(None).await, Elsewhere::start(None).await);
        let host = host(&[named.url("")], open).await;
        let urls = [
            other.url("/hello"),
            format!("https://{}/hello", named.address),
            format!("http://localhost:{}/hello", named.port()),
            "http://169.254.169.254/latest/meta-data".to_owned(),
            "http://self.alt/p2/hello".to_owned(),
        ];
        for (function, url) in
            ["p2", "p3"].into_iter().flat_map(|function| urls.iter().map(move |url| (function, url)))
        {
            let answer = get(&host, &format!("/{function}/fetch?{url}")).await;
            assert!(answer.contains("HttpRequestDenied"), "{function} {url}: {answer}");
        }
        for url in ["http://user@127.0.0.1/", "http://2130706433/"] {
            let answer = get(&host, &format!("/p2/fetch?{url}")).await;
            assert!(answer.contains("HttpRequestUriInvalid"), "{url}: {answer}");
        }
        assert_eq!((named.connections(), other.connections()), (0, 0));
    });
}

#[test]
fn a_name_that_leads_to_a_private_address_is_of_no_use_unless_the_operator_opens_it() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let urls = [format!("http://localhost:{}", elsewhere.port()), elsewhere.url("")];
        let closed = host(&urls, |_| {}).await;
        let denied = host(&urls, |config| {
            config.outbound.allow_private = true;
            config.outbound.deny = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        })
        .await;
        for (host, url) in
            [&closed, &denied].into_iter().flat_map(|host| urls.iter().map(move |url| (host, url)))
        {
            for function in ["p2", "p3"] {
                let answer = get(host, &format!("/{function}/fetch?{url}/hello")).await;
                assert!(answer.contains("DestinationIpProhibited"), "{function} {url}: {answer}");
            }
        }
        assert_eq!(elsewhere.connections(), 0);
        let private = host(&urls, |config| config.outbound.allow_private = true).await;
        assert_eq!(get(&private, &format!("/p2/fetch?{}/hello", urls[1])).await, "200 hello");
    });
}

#[test]
fn an_app_cannot_send_requests_to_itself() {
    run(async {
        for own in ["http://self", "http://back.spin.internal"] {
            let hosts = format!("allowed_outbound_hosts = [{own:?}]\n");
            let manifest = app(&[function("/p2/...", "p2", "http_p2", &hosts)]);
            let error = TestHost::of(manifest).try_start().await.err().unwrap();
            assert!(error.contains(own) && error.contains("to itself"), "{error}");
        }
    });
}

#[test]
fn who_answers_slowly_is_not_waited_for_without_an_end() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let host = host(&[elsewhere.url("")], |config| {
            open(config);
            config.outbound.first_byte_ms = 200;
            config.outbound.between_bytes_ms = 200;
        })
        .await;
        for function in ["p2", "p3"] {
            let silent = get(&host, &format!("/{function}/fetch?{}", elsewhere.url("/silent"))).await;
            assert!(silent.contains("ConnectionReadTimeout"), "{function}: {silent}");
            let paused = get(&host, &format!("/{function}/fetch?{}", elsewhere.url("/pause"))).await;
            assert!(
                paused.starts_with("200") && names(&paused, "ConnectionReadTimeout"),
                "{function}: {paused}"
            );
        }
        elsewhere.all_closed().await;
    });
}

#[test]
fn the_deadline_of_the_call_ends_its_requests() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let hosts = format!(
            "allowed_outbound_hosts = [{:?}]\ntool.tenon.limits.deadline_ms = 700\n",
            elsewhere.url("")
        );
        let parts =
            [function("/p2/...", "p2", "http_p2", &hosts), function("/p3/...", "p3", "http_p3", &hosts)];
        let host = TestHost::of(app(&parts)).config(open).start().await;
        for path in ["/p2/fetch?", "/p2/count?", "/p3/fetch?"] {
            for what in ["/silent", "/pause"] {
                let url = elsewhere.url(what);
                host.get(&format!("{path}{url}")).await.problem(504, "deadline-exceeded");
            }
        }
        host.get(&format!("/p2/count?{}", elsewhere.url("/endless"))).await.problem(504, "deadline-exceeded");
        elsewhere.all_closed().await;
    });
}

#[test]
fn an_answer_of_any_length_passes_without_being_held() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let hosts = format!(
            "allowed_outbound_hosts = [{:?}]\ntool.tenon.limits.memory_mib = 16\n",
            elsewhere.url("")
        );
        let manifest = app(&[function("/p2/...", "p2", "http_p2", &hosts)]);
        let host = TestHost::of(manifest).config(open).start().await;
        let counted = get(&host, &format!("/p2/count?{}", elsewhere.url("/huge"))).await;
        assert_eq!(counted, format!("200 {} bytes", 64 << 20));
        elsewhere.all_closed().await;
    });
}

#[test]
fn requests_have_places() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let host = host(&[elsewhere.url("")], |config| {
            open(config);
            config.outbound.instance_concurrency = 2;
            config.outbound.concurrency = 3;
            config.outbound.connect_ms = 1500;
        })
        .await;
        let many = get(&host, &format!("/p2/many?{}", elsewhere.url("/wait"))).await;
        assert_eq!(many, "200 waited\n".repeat(8));
        let most = WAITING[1].load(Ordering::SeqCst);
        assert!(most <= 2, "{most} at once");
        // Who keeps what it has waits in vain, and keeps nobody else out.
        let path = format!("/p2/hold?{}", elsewhere.url("/pause"));
        let (held, other) = tokio::join!(get(&host, &path), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            get(&host, &format!("/p3/fetch?{}", elsewhere.url("/hello"))).await
        });
        assert_eq!(held.matches("200").count(), 2, "{held}");
        assert!(held.contains("ConnectionLimitReached"), "{held}");
        assert_eq!(other, "200 hello");
        elsewhere.all_closed().await;
    });
}

#[test]
fn answers_that_are_none_fail_by_name() {
    run(async {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(300 << 10));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(1000));
        let cases: [(Vec<u8>, &[&str]); 6] = [
            (long.into(), &["HttpResponseHeaderSectionSize"]),
            (many.into(), &["HttpResponseHeaderSectionSize"]),
            (b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), &["HttpProtocolError"]),
            (b"".to_vec(), &["ConnectionTerminated"]),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec(),
                &["200", "HttpResponseIncomplete"],
            ),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
                &["200", "HttpProtocolError"],
            ),
        ];
        for (answer, expected) in cases {
            let elsewhere = Elsewhere::raw(answer.clone()).await;
            let host = host(&[elsewhere.url("")], open).await;
            for function in ["p2", "p3"] {
                let told = get(&host, &format!("/{function}/fetch?{}", elsewhere.url("/"))).await;
                let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
                assert!(expected.iter().all(|part| names(&told, part)), "{function} {shown:?}: {told}");
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let host = host(std::slice::from_ref(&url), open).await;
        assert!(get(&host, &format!("/p2/fetch?{url}/")).await.contains("ConnectionRefused"));
    });
}

/// An authority in `folder`, and a server's TLS for `localhost` that speaks these protocols.
fn tls(folder: &Path, protocols: &[&[u8]]) -> TlsAcceptor {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), params.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[test]
fn tls_is_spoken_with_those_whose_certificate_is_trusted() {
    run(async {
        for (protocols, version) in
            [(&[b"h2".as_slice(), b"http/1.1"][..], "2"), (&[b"http/1.1"], "1.1"), (&[], "1.1")]
        {
            let folder = tempfile::tempdir().unwrap();
            let elsewhere = Elsewhere::start(Some(tls(folder.path(), protocols))).await;
            let (name, port) = (format!("https://localhost:{}", elsewhere.port()), elsewhere.port());
            let number = format!("https://127.0.0.1:{port}");
            let allowed = [name.clone(), number.clone()];
            let trusting = host(&allowed, |config| {
                open(config);
                config.outbound.ca = Some(folder.path().join("ca.pem"));
            })
            .await;
            for function in ["p2", "p3"] {
                let told = get(&trusting, &format!("/{function}/fetch?{name}/version")).await;
                let authority = if version == "2" { format!("localhost:{port}") } else { "-".to_owned() };
                assert_eq!(told, format!("200 {version} {authority}"));
                let body = "x".repeat(300_000);
                let forward = format!("/{function}/forward?{name}/echo");
                let answer =
                    trusting.send(request(Method::POST, &forward, &[], body.clone())).await.expect(200);
                assert_eq!(answer.text(), format!("200 {body}"));
                let told = get(&trusting, &format!("/{function}/fetch?{number}/version")).await;
                assert!(told.contains("TlsCertificateError"), "the certificate is for another name: {told}");
            }
            let strange = host(&allowed, open).await;
            let told = get(&strange, &format!("/p2/fetch?{name}/version")).await;
            assert!(told.contains("TlsCertificateError"), "{told}");
            elsewhere.all_closed().await;
        }
    });
}

#[test]
fn one_who_does_not_speak_tls_is_told_apart() {
    run(async {
        let elsewhere = Elsewhere::start(None).await;
        let url = format!("https://{}", elsewhere.address);
        let host = host(std::slice::from_ref(&url), open).await;
        assert!(get(&host, &format!("/p2/fetch?{url}/")).await.contains("TlsProtocolError"));
    });
}
