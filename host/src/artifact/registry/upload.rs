//! A blob from the store to a registry: only where it lacks it, streamed, and gone on with where it broke.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use reqwest::{Response, Url};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::authorization::Access;
use super::error::{Failure, RegistryError};
use super::http::{Client, Request, broken};
use super::pace::MIN_PROGRESS_BYTES;
use super::patience::Patience;
use super::report::{Layer, Report, What};
use super::{CONTENT_DIGEST, Moved, blocking, file_of};
use crate::artifact::blobs::Blobs;
use crate::artifact::oci::{Descriptor, Digest};
use crate::artifact::reference::Reference;

/// What is read from a file at once.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces between the disk and the socket.
const PIECES: usize = 8;
/// What one request takes where a blob must go in several.
const CHUNK_BYTES: u64 = 16 << 20;
/// The largest chunk that a registry may insist on.
const MAX_CHUNK_BYTES: u64 = 1 << 30;
/// How many times the bound of a stall a registry may take to check what it was sent.
const CHECKING: u32 = 10;
/// An attempt that moved so much is worth a full number of further ones.
const WORTHWHILE_BYTES: u64 = 4 << 20;

/// One blob on its way.
struct Upload<'a> {
    client: &'a Client,
    reference: &'a Reference,
    layer: &'a Layer,
    report: &'a Report,
    file: PathBuf,
    /// The registry, or what is before it, takes no blob in one piece.
    is_chunked: bool,
    chunk_bytes: u64,
    sent: u64,
    /// The most of the blob that the registry has said it has.
    kept: u64,
}

/// An upload that a registry has open.
struct Session {
    location: Url,
    /// How much of the blob it has.
    offset: u64,
}

/// Pushes a blob, unless the registry has it.
pub(super) async fn push(
    client: &Client,
    reference: &Reference,
    blob: &Descriptor,
    from: &Blobs,
    sources: &[String],
    report: &Report,
) -> Result<Moved, RegistryError> {
    let layer = Layer::of(blob);
    let pushed = async {
        let file = file_of(from, &layer).await?;
        let mut upload = Upload {
            client,
            reference,
            layer: &layer,
            report,
            file,
            is_chunked: false,
            chunk_bytes: CHUNK_BYTES,
            sent: 0,
            kept: 0,
        };
        upload.push(sources).await
    };
    let pushed = pushed.await;
    if pushed.is_err() {
        report.tell(&layer, What::Failed);
    }
    pushed
}

impl Upload<'_> {
    async fn push(&mut self, sources: &[String]) -> Result<Moved, RegistryError> {
        let (path, size) = (self.file.clone(), self.layer.size);
        let actual =
            blocking(move || std::fs::metadata(path)).await.map_err(|error| self.unread(error))?.len();
        if actual != size {
            let error = io::Error::other(format!("it has {actual} bytes, and {size} in the manifest"));
            return Err(self.unread(error));
        }
        let present = Moved { present: size, ..Moved::default() };
        let mut patience = Patience::new(self.client);
        loop {
            match self.is_there().await {
                Ok(true) => {
                    self.report.tell(self.layer, What::Present);
                    return Ok(present);
                }
                Ok(false) => break,
                Err(failure) => patience.after(failure, |_, _| {}).await?,
            }
        }
        for source in sources {
            // Any failure to mount is no more than a blob to be sent.
            if self.mount(source).await.unwrap_or(false) {
                self.report.tell(self.layer, What::Mounted);
                return Ok(present);
            }
        }
        self.send().await?;
        self.report.tell(self.layer, What::Done);
        Ok(Moved { bytes: self.sent, present: 0, layers: 1 })
    }

    /// Sends the blob until the registry has it.
    async fn send(&mut self) -> Result<(), RegistryError> {
        self.report.tell(self.layer, What::Began(0));
        let mut patience = Patience::new(self.client);
        let mut open = None;
        loop {
            let kept = self.kept;
            let Err(failure) = self.attempt(&mut open).await else { return Ok(()) };
            // What was sent counts only where the registry kept it.
            if self.kept - kept >= WORTHWHILE_BYTES {
                patience.progressed();
            }
            let (layer, report) = (self.layer, self.report);
            let tell = |error: &RegistryError, wait| {
                report.tell(layer, What::Again { reason: error.to_string(), wait });
            };
            patience.after(failure, tell).await?;
        }
    }

    /// One attempt, in the session that is open or in a new one. What it leaves open, the next may go on with.
    async fn attempt(&mut self, open: &mut Option<Session>) -> Result<(), Failure> {
        let resumed = match open.take() {
            Some(session) => self.resumed(&session).await,
            None => None,
        };
        let session = match resumed {
            Some(session) => session,
            None => match self.begin().await? {
                Some(session) => session,
                None => return Ok(()),
            },
        };
        let (location, offset) = (session.location.clone(), session.offset);
        self.kept = self.kept.max(offset);
        *open = Some(session);
        let taken = match offset > 0 || self.is_chunked {
            true => self.send_chunks(location, offset, open).await?,
            false => self.send_whole(location).await?,
        };
        if !taken {
            // Another way is no new attempt: the registry said what it does not take.
            self.is_chunked = true;
            let session = self.begin().await?;
            let Some(session) = session else { return Ok(()) };
            let location = session.location.clone();
            *open = Some(session);
            self.send_chunks(location, 0, open).await?;
        }
        Ok(())
    }

    async fn is_there(&self) -> Result<bool, Failure> {
        let what = self.what();
        let url = self.client.url(self.reference, &format!("blobs/{}", self.layer.digest))?;
        let request = Request::new(Method::HEAD, url, &what);
        let answer = self.client.send(&request, &Access::push(self.reference)).await?;
        match answer.response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // Its storage may be out of order; that is found out by sending.
            _ if answer.is_foreign => Ok(false),
            _ => Err(self.unexpected(answer.response).await),
        }
    }

    /// Has the registry take the blob from another of its repositories. Answers whether it did.
    async fn mount(&self, source: &str) -> Result<bool, Failure> {
        let what = self.what();
        let mut url = self.client.url(self.reference, "blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", &self.layer.digest.to_string())
            .append_pair("from", source);
        let access = Access { sources: vec![source.to_owned()], ..Access::push(self.reference) };
        let answer = self.client.send(&Request::new(Method::POST, url, &what), &access).await?;
        if answer.response.status() == StatusCode::ACCEPTED {
            // It opened an upload instead, which would stay open for days.
            if let Ok(location) = self.location(&answer.response, &what) {
                let cancel = Request::new(Method::DELETE, location, &what);
                let _ = self.client.send(&cancel, &Access::push(self.reference)).await;
            }
        }
        Ok(answer.response.status() == StatusCode::CREATED)
    }

    /// Opens an upload. Nothing where the registry finds that it has the blob.
    async fn begin(&mut self) -> Result<Option<Session>, Failure> {
        let what = self.what();
        let url = self.client.url(self.reference, "blobs/uploads/")?;
        let request = Request::new(Method::POST, url, &what);
        let answer = self.client.send(&request, &Access::push(self.reference)).await?;
        match answer.response.status() {
            StatusCode::ACCEPTED => {
                let least = answer.response.headers().get("oci-chunk-min-length");
                let least = least.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(CHUNK_BYTES);
                self.chunk_bytes = least.clamp(CHUNK_BYTES, MAX_CHUNK_BYTES);
                let location = self.location(&answer.response, &what)?;
                Ok(Some(Session { location, offset: 0 }))
            }
            StatusCode::CREATED => Ok(None),
            _ => Err(self.unexpected(answer.response).await),
        }
    }

    /// What a registry has of an upload that broke. Nothing where it does not say, or has nothing.
    async fn resumed(&self, session: &Session) -> Option<Session> {
        let what = self.what();
        let request = Request::new(Method::GET, session.location.clone(), &what);
        let answer = self.client.send(&request, &Access::push(self.reference)).await.ok()?;
        if answer.response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let offset = received(&answer.response)?;
        let location = self.location(&answer.response, &what).unwrap_or_else(|_| session.location.clone());
        (offset > 0 && offset <= self.layer.size).then_some(Session { location, offset })
    }

    /// Sends the blob in one request. Answers whether the registry takes blobs so.
    async fn send_whole(&mut self, location: Url) -> Result<bool, Failure> {
        let url = finishing(location, &self.layer.digest);
        let response = self.stream(Method::PUT, url, 0, self.layer.size, None).await?;
        // Too large for a proxy, or a way that is not there.
        if matches!(response.status().as_u16(), 405 | 411 | 413 | 501) {
            return Ok(false);
        }
        self.finished(response).await?;
        Ok(true)
    }

    /// Sends the blob from `offset` on in several requests. What `open` says then is where the next attempt begins.
    async fn send_chunks(
        &mut self,
        mut location: Url,
        mut offset: u64,
        open: &mut Option<Session>,
    ) -> Result<bool, Failure> {
        while offset < self.layer.size {
            let length = self.chunk_bytes.min(self.layer.size - offset);
            let range = format!("{offset}-{}", offset + length - 1);
            let response = self.stream(Method::PATCH, location.clone(), offset, length, Some(range)).await?;
            match response.status() {
                StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {}
                // It has another idea of what it has; a new upload settles that.
                StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND => {
                    *open = None;
                    let reason = format!("the registry lost the upload ({})", response.status().as_u16());
                    return Err(broken(self.reference.registry(), &self.what(), &reason));
                }
                _ => return Err(self.unexpected(response).await),
            }
            location = self.location(&response, &self.what())?;
            // `0-0` may also mean one byte.
            let has = received(&response).filter(|has| *has > 0 || length > 1).unwrap_or(offset + length);
            if has <= offset || has > offset + length {
                *open = None;
                return Err(broken(
                    self.reference.registry(),
                    &self.what(),
                    "the registry took another part",
                ));
            }
            offset = has;
            self.kept = self.kept.max(offset);
            *open = Some(Session { location: location.clone(), offset });
        }
        let what = self.what();
        let url = finishing(location, &self.layer.digest);
        let request = Request::new(Method::PUT, url, &what);
        let answer = self.client.send(&request, &Access::push(self.reference)).await?;
        self.finished(answer.response).await?;
        Ok(true)
    }

    /// Looks at the answer to the end of an upload.
    async fn finished(&self, response: Response) -> Result<(), Failure> {
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            let reason = "the registry does not know the upload any more";
            return Err(broken(self.reference.registry(), &self.what(), reason));
        }
        if !status.is_success() {
            return Err(self.unexpected(response).await);
        }
        let said = response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        match said.and_then(|said| said.parse::<Digest>().ok()) {
            Some(said) if said != self.layer.digest => {
                let (registry, status) = (self.reference.registry().to_owned(), status.as_u16());
                let message = format!(": it took it for {said}");
                Err(RegistryError::Status { registry, what: self.what(), status, message }.into())
            }
            _ => Ok(()),
        }
    }

    /// Sends part of the file as the body of a request, and watches that it is taken.
    async fn stream(
        &mut self,
        method: Method,
        url: Url,
        offset: u64,
        length: u64,
        range: Option<String>,
    ) -> Result<Response, Failure> {
        let access = Access::push(self.reference);
        let is_own = self.client.is_own(&access.reference, &url);
        let taken = Arc::new(AtomicU64::new(0));
        let body = FileBody::open(&self.file, offset, length, Arc::clone(&taken));
        let mut request = self
            .client
            .http(&url)
            .request(method, url)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap(body));
        if let Some(range) = range {
            request = request.header(header::CONTENT_RANGE, range);
        }
        // An upload may lead to another host; what the registry is shown stays here then.
        if is_own && let Some(grant) = self.client.granted(&access).await {
            request = grant.apply(request);
        }
        let answered = self.watch(request.send(), &taken, offset, length).await;
        self.sent += taken.load(Ordering::Relaxed);
        let response = answered?;
        let registry = self.reference.registry();
        if response.status() == StatusCode::UNAUTHORIZED {
            // The token ran out meanwhile; the request that comes before the next attempt gets another.
            return Err(broken(registry, &self.what(), "its leave to push ran out"));
        }
        if response.status() == StatusCode::FORBIDDEN && is_own {
            return Err(self.client.refused(response, &access, &self.what()).await);
        }
        self.client.check_passing(&response, registry, &self.what())?;
        Ok(response)
    }

    /// Waits for an answer as long as the body is taken, and for a while after that.
    async fn watch(
        &self,
        answer: impl Future<Output = reqwest::Result<Response>>,
        taken: &AtomicU64,
        offset: u64,
        length: u64,
    ) -> Result<Response, Failure> {
        let stall = self.client.options.stall();
        let tick = (stall / 10).clamp(Duration::from_millis(10), Duration::from_millis(200));
        let (mut seen, mut shown, mut until) = (0, 0, Instant::now() + stall);
        let mut answer = std::pin::pin!(answer);
        loop {
            tokio::select! {
                answered = &mut answer => {
                    let (registry, what) = (self.reference.registry(), self.what());
                    return answered.map_err(|error| self.client.unsent(error, registry, &what));
                }
                () = tokio::time::sleep(tick) => {}
            }
            let now = taken.load(Ordering::Relaxed);
            if now != shown {
                shown = now;
                self.report.tell(self.layer, What::At(offset + now));
            }
            if now >= seen + MIN_PROGRESS_BYTES || (now == length && seen != length) {
                seen = now;
                let times = if now == length { CHECKING } else { 1 };
                until = Instant::now() + stall * times;
            }
            if Instant::now() > until {
                let reason = match now == length {
                    true => format!("no answer within {} s", (stall * CHECKING).as_secs_f32()),
                    false => format!("next to nothing was taken for {} s", stall.as_secs_f32()),
                };
                return Err(broken(self.reference.registry(), &self.what(), &reason));
            }
        }
    }

    /// Where an answer says that the upload goes on.
    fn location(&self, response: &Response, what: &str) -> Result<Url, Failure> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|location| response.url().join(location).ok());
        let is_plain = self.client.is_plain(self.reference);
        let location = location.filter(|url| url.scheme() == "https" || (is_plain && url.scheme() == "http"));
        let failed = || RegistryError::NotARegistry {
            host: response.url().host_str().unwrap_or_default().to_owned(),
            registry: self.reference.registry().to_owned(),
            what: what.to_owned(),
            found: "no address where the upload goes on".to_owned(),
        };
        Ok(location.ok_or_else(failed)?)
    }

    async fn unexpected(&self, response: Response) -> Failure {
        self.client.unexpected(response, self.reference.registry(), &self.what()).await
    }

    fn what(&self) -> String {
        format!("the push of {}", self.layer)
    }

    fn unread(&self, error: io::Error) -> RegistryError {
        RegistryError::File { layer: self.layer.to_string(), error }
    }
}

/// The address that ends an upload.
fn finishing(mut location: Url, digest: &Digest) -> Url {
    location.query_pairs_mut().append_pair("digest", &digest.to_string());
    location
}

/// How many bytes a registry says that it has of an upload: `Range: 0-9` are ten, of which `0-0` may be none.
fn received(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    let (start, end) = range.trim().trim_start_matches("bytes=").split_once('-')?;
    match (start, end.parse::<u64>().ok()?) {
        ("0", 0) => Some(0),
        ("0", end) => end.checked_add(1),
        _ => None,
    }
}

/// Part of a file as the body of a request. It is read on a thread that may block, a few pieces ahead.
pub(crate) struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
    taken: Arc<AtomicU64>,
}

impl FileBody {
    pub(crate) fn open(path: &Path, offset: u64, length: u64, taken: Arc<AtomicU64>) -> FileBody {
        let (send, pieces) = mpsc::channel(PIECES);
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read(&path, offset, length, &send) {
                // Where nobody listens any more, nobody wants to know.
                let _ = send.blocking_send(Err(error));
            }
        });
        FileBody { pieces, left: length, taken }
    }
}

fn read(path: &Path, offset: u64, length: u64, send: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut piece = vec![0; wanted];
        file.read_exact(&mut piece)?;
        left -= wanted as u64;
        if send.blocking_send(Ok(piece.into())).is_err() {
            break;
        }
    }
    Ok(())
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let Ok(piece) = &piece {
                self.left = self.left.saturating_sub(piece.len() as u64);
                self.taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
