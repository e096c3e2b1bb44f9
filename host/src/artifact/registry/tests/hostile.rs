//! A registry in the test's process, which does as the protocol has it until a test has it do otherwise. It speaks
//! HTTP by hand, since no library would send what is wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::artifact::oci::{Digest, ImageManifest};
use crate::artifact::reference::Reference;

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// How often this method and path were asked before.
    pub(super) times: usize,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(super) fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    pub(super) fn is_manifest(&self) -> bool {
        self.method == "GET" && self.path.contains("/manifests/")
    }
}

/// An answer, byte for byte, and what follows it.
pub(super) struct Reply {
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    after: After,
}

enum After {
    /// The connection serves further requests.
    More,
    Close,
    /// Nothing is sent at all.
    Lost,
    /// Neither more nor an end.
    Stall,
    /// The body in pieces of so many bytes, with this pause after each.
    Trickle(usize, Duration),
    /// The body again and again.
    Endless,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: status.to_string(), headers: Vec::new(), body: body.into(), after: After::More }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Ends the connection without an answer.
    pub(super) fn lost() -> Reply {
        Reply { after: After::Lost, ..Reply::new(500, "") }
    }

    /// Ends the connection in the middle: after so many bytes of a body that was announced whole.
    pub(super) fn cut(mut self, bytes: usize) -> Reply {
        let length = self.body.len();
        self.body.truncate(bytes);
        self.after = After::Close;
        self.header("content-length", length)
    }

    /// As `cut`, but the connection stays open.
    pub(super) fn stall(self, bytes: usize) -> Reply {
        let mut reply = self.cut(bytes);
        reply.after = After::Stall;
        reply
    }

    /// Says no length, so that the end of the connection is the end of the body.
    pub(super) fn unannounced(mut self) -> Reply {
        self.after = After::Close;
        self.header("connection", "close")
    }

    /// Sends the body in pieces of so many bytes, with this pause after each.
    pub(super) fn trickle(mut self, bytes: usize, pause: Duration) -> Reply {
        self.after = After::Trickle(bytes, pause);
        self
    }

    /// Repeats the body for ever.
    pub(super) fn endless(mut self) -> Reply {
        self.after = After::Endless;
        self.header("connection", "close")
    }
}

type Handler = dyn Fn(&Asked, &Shelf) -> Option<Reply> + Send + Sync;

/// What a registry has.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(super) manifests: Mutex<HashMap<String, Vec<u8>>>,
    pub(super) uploads: Mutex<HashMap<usize, Vec<u8>>>,
}

pub(super) struct Server {
    pub(super) address: String,
    pub(super) shelf: Arc<Shelf>,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves, doing first as `handler` has it.
    pub(super) async fn start(
        handler: impl Fn(&Asked, &Shelf) -> Option<Reply> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shelf, asked) = (Arc::new(Shelf::default()), Arc::new(Mutex::new(Vec::new())));
        let handler: Arc<Handler> = Arc::new(handler);
        let serving = (Arc::clone(&shelf), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            // Its connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (shelf, asked) = (Arc::clone(&serving.0), Arc::clone(&serving.1));
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let _ = connection(stream, &*handler, &shelf, &asked).await;
                });
            }
        });
        Server { address, shelf, asked, task }
    }

    /// One that does as the protocol has it.
    pub(super) async fn honest() -> Server {
        Server::start(|_, _| None).await
    }

    /// Puts an artifact under the tag `latest`.
    pub(super) fn put(&self, manifest: &ImageManifest, blobs: &[&[u8]]) -> Digest {
        let bytes = manifest.bytes();
        let digest = Digest::of(&bytes);
        let mut kept = self.shelf.blobs.lock().unwrap();
        kept.extend(blobs.iter().chain(&[b"{}".as_slice()]).map(|blob| (Digest::of(blob), blob.to_vec())));
        let mut manifests = self.shelf.manifests.lock().unwrap();
        manifests.insert("latest".to_owned(), bytes.clone());
        manifests.insert(digest.to_string(), bytes);
        digest
    }

    pub(super) fn reference(&self, tag: &str) -> Reference {
        format!("{}/acme/digits:{tag}", self.address).parse().unwrap()
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The values of a header in the requests for blobs.
    pub(super) fn of_blobs(&self, digest: &Digest, header: &str) -> Vec<String> {
        let asked = self.asked();
        let blobs = asked.iter().filter(|asked| asked.is_blob() && asked.path.contains(&digest.to_string()));
        blobs.map(|asked| asked.header(header).to_owned()).collect()
    }
}

async fn connection(
    mut stream: TcpStream,
    handler: &Handler,
    shelf: &Shelf,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(mut asked) = read(&mut stream, &mut buffer).await? {
        {
            let mut log = log.lock().unwrap();
            let same = |before: &&Asked| before.method == asked.method && before.path == asked.path;
            asked.times = log.iter().filter(same).count();
            log.push(asked.clone());
        }
        let reply = handler(&asked, shelf).unwrap_or_else(|| shelf.answer(&asked));
        if matches!(reply.after, After::Lost) {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        let has = |wanted: &str| reply.headers.iter().any(|(name, _)| name == wanted);
        if !has("content-length") && !has("connection") && reply.status != "204" {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        if let After::Trickle(bytes, pause) = reply.after {
            for piece in reply.body.chunks(bytes) {
                stream.write_all(piece).await?;
                tokio::time::sleep(pause).await;
            }
        } else if asked.method != "HEAD" {
            stream.write_all(&reply.body).await?;
        }
        match reply.after {
            After::More | After::Trickle(..) => {}
            After::Close | After::Lost => return Ok(()),
            After::Stall => std::future::pending().await,
            After::Endless => loop {
                stream.write_all(&reply.body).await?;
                tokio::task::yield_now().await;
            },
        }
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if buffer.first() == Some(&0x16) {
            // The beginning of TLS: answered as servers without it do.
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nnot TLS").await?;
            return Ok(None);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = buffer.drain(..length).collect();
    Ok(Some(Asked { method, path, headers, body, times: 0 }))
}

impl Shelf {
    fn answer(&self, asked: &Asked) -> Reply {
        let not_found = || Reply::new(404, r#"{"errors": [{"code": "UNKNOWN", "message": "not known"}]}"#);
        let path = asked.path.split('?').next().unwrap();
        let last = path.rsplit('/').next().unwrap();
        match (asked.method.as_str(), path) {
            ("GET" | "HEAD", _) if path.contains("/manifests/") => {
                match self.manifests.lock().unwrap().get(last) {
                    Some(bytes) => Reply::new(200, bytes.clone())
                        .header("docker-content-digest", Digest::of(bytes))
                        .header("content-type", "application/vnd.oci.image.manifest.v1+json"),
                    None => not_found(),
                }
            }
            ("PUT", _) if path.contains("/manifests/") => {
                let digest = Digest::of(&asked.body);
                self.manifests.lock().unwrap().insert(last.to_owned(), asked.body.clone());
                Reply::new(201, "").header("docker-content-digest", digest)
            }
            ("GET", _) if path.ends_with("/tags/list") => {
                let manifests = self.manifests.lock().unwrap();
                let mut tags: Vec<_> = manifests.keys().filter(|tag| !tag.contains(':')).collect();
                tags.sort();
                Reply::new(200, serde_json::json!({ "name": "acme/digits", "tags": tags }).to_string())
            }
            _ if path.contains("/blobs/uploads/") => self.upload(asked, last),
            ("GET" | "HEAD", _) if path.contains("/blobs/") => {
                let blobs = self.blobs.lock().unwrap();
                match last.parse().ok().and_then(|digest: Digest| blobs.get(&digest)) {
                    Some(bytes) => part(bytes, asked.header("range")),
                    None => not_found(),
                }
            }
            _ => not_found(),
        }
    }

    fn upload(&self, asked: &Asked, last: &str) -> Reply {
        let mut uploads = self.uploads.lock().unwrap();
        if asked.method == "POST" {
            let number = uploads.len() + 1;
            uploads.insert(number, Vec::new());
            return Reply::new(202, "").header("location", format!("{}{number}", asked.path));
        }
        let Some(upload) = last.parse().ok().and_then(|number| uploads.get_mut(&number)) else {
            return Reply::new(404, "");
        };
        upload.extend_from_slice(&asked.body);
        let path = asked.path.split('?').next().unwrap();
        let range = format!("0-{}", upload.len().max(1) - 1);
        match asked.method.as_str() {
            "GET" => Reply::new(204, "").header("range", range).header("location", path),
            "PATCH" => Reply::new(202, "").header("range", range).header("location", path),
            _ => {
                let digest = Digest::of(upload);
                if !asked.path.ends_with(&digest.to_string().replace(':', "%3A")) {
                    return Reply::new(400, r#"{"errors": [{"code": "DIGEST_INVALID"}]}"#);
                }
                self.blobs.lock().unwrap().insert(digest, std::mem::take(upload));
                Reply::new(201, "").header("docker-content-digest", digest)
            }
        }
    }
}

/// A blob, or the part of it from where a range begins.
pub(super) fn part(bytes: &[u8], range: &str) -> Reply {
    match range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')) {
        Some(start) => {
            let start: usize = start.parse().unwrap();
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[start..]).header("content-range", range)
        }
        None => Reply::new(200, bytes),
    }
}

/// Until something is so, within a bound.
pub(super) async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it should be so by now");
}
