//! A blob from a registry into the store: checked on the way, and gone on with where it broke.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use reqwest::Response;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::authorization::Access;
use super::error::{Failure, RegistryError};
use super::http::{Client, Request, broken};
use super::pace::Pace;
use super::patience::Patience;
use super::report::{Layer, Report, What};
use super::{Moved, blocking};
use crate::artifact::blobs::{BlobError, Blobs, Incoming, Receiving};
use crate::artifact::oci::Descriptor;
use crate::artifact::reference::Reference;

/// An attempt that moved so much is worth a full number of further ones.
const WORTHWHILE_BYTES: u64 = 4 << 20;
/// Pieces between the socket and the disk; a piece is what the socket gave, some hundred KiB at most.
const PIECES: usize = 16;
const ADVICE: &str = "; what has come is kept, and the same command goes on from there";

/// One blob on its way.
struct Download<'a> {
    client: &'a Client,
    reference: &'a Reference,
    layer: &'a Layer,
    report: &'a Report,
    /// The registry gave another part than it was asked for: from now on it is asked for all.
    is_asked_whole: bool,
    /// Bytes that came over the network, also those that were there already.
    came: u64,
}

/// Fetches a blob, unless it is there.
pub(super) async fn fetch(
    client: &Client,
    reference: &Reference,
    blob: &Descriptor,
    into: &Blobs,
    report: &Report,
) -> Result<Moved, RegistryError> {
    let layer = Layer::of(blob);
    let mut download = Download { client, reference, layer: &layer, report, is_asked_whole: false, came: 0 };
    let fetched = download.fetch(into).await;
    if fetched.is_err() {
        report.tell(&layer, What::Failed);
    }
    fetched
}

impl Download<'_> {
    async fn fetch(&mut self, into: &Blobs) -> Result<Moved, RegistryError> {
        let mut is_first = true;
        loop {
            let (store, digest, size) = (into.clone(), self.layer.digest, self.layer.size);
            let mut incoming = match blocking(move || store.receive(&digest, size)).await? {
                Receiving::Whole(_) => {
                    self.report.tell(self.layer, What::Present);
                    return Ok(Moved { present: size, bytes: self.came, layers: usize::from(self.came > 0) });
                }
                Receiving::Part(incoming) => incoming,
            };
            let begun = incoming.received();
            self.report.tell(self.layer, What::Began(begun));
            incoming = self.receive(incoming).await?;
            match blocking(move || incoming.finish()).await {
                Ok(_) => {
                    self.report.tell(self.layer, What::Done);
                    return Ok(Moved { bytes: self.came, present: begun, layers: 1 });
                }
                // What was there before may be what is wrong, from whoever sent it then. It is gone now.
                Err(BlobError::Mismatch { .. }) if begun > 0 && is_first => is_first = false,
                Err(error) => return Err(self.wrong(error)),
            }
        }
    }

    /// Receives until all is there.
    async fn receive(&mut self, mut incoming: Incoming) -> Result<Incoming, RegistryError> {
        let mut patience = Patience::new(self.client).advising(ADVICE);
        let options = &self.client.options;
        let mut pace = Pace::new(options.stall(), options.grace, self.layer.size).having(incoming.received());
        while incoming.received() < self.layer.size {
            let (before, came) = (incoming.received(), self.came);
            let (back, outcome) = self.attempt(incoming, &mut pace).await;
            incoming = back?;
            let Err(failure) = outcome else { continue };
            // Only what is new counts: a registry that begins anew each time makes no progress.
            let is_new = incoming.received() - before;
            if is_new >= WORTHWHILE_BYTES && self.came - came >= WORTHWHILE_BYTES {
                patience.progressed();
            }
            let (layer, report) = (self.layer, self.report);
            let tell = |error: &RegistryError, wait| {
                report.tell(layer, What::Again { reason: error.to_string(), wait });
            };
            patience.after(failure, tell).await?;
        }
        Ok(incoming)
    }

    /// One request for what is missing. What came is written whatever the outcome.
    async fn attempt(
        &mut self,
        incoming: Incoming,
        pace: &mut Pace,
    ) -> (Result<Incoming, RegistryError>, Result<(), Failure>) {
        let offset = if self.is_asked_whole { 0 } else { incoming.received() };
        let mut response = match self.ask(offset).await {
            Ok(response) => response,
            Err(failure) => return (Ok(incoming), Err(failure)),
        };
        let have = incoming.received();
        let skip = match self.begin(&response, offset, have) {
            Ok(skip) => skip,
            Err(failure) => return (Ok(incoming), Err(failure)),
        };
        let mut writer = Writer::start(incoming);
        let outcome = self.copy(&mut response, skip, have, &mut writer, pace).await;
        match writer.end().await {
            (incoming, Ok(())) => (Ok(incoming), outcome),
            // The disk is why the copy ended, whatever the copy says.
            (_, Err(error)) => (Err(self.wrong(error)), outcome),
        }
    }

    /// Asks for the blob from `offset` on.
    async fn ask(&self, offset: u64) -> Result<Response, Failure> {
        let registry = self.reference.registry();
        let what = self.what();
        let url = self.client.url(self.reference, &format!("blobs/{}", self.layer.digest))?;
        // No compression on the way: offsets are those of the blob.
        let mut request = Request::new(Method::GET, url, &what).with(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.with(header::RANGE, format!("bytes={offset}-"));
        }
        let answer = self.client.send(&request, &Access::pull(self.reference)).await?;
        let status = answer.response.status();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(answer.response)
            }
            // Storage forgets its leave to read; the registry gives another.
            _ if answer.is_foreign && status.is_client_error() => Err(broken(
                registry,
                &what,
                &format!("the registry's storage answered with {}", status.as_u16()),
            )),
            StatusCode::NOT_FOUND => {
                let layer = self.layer.to_string();
                Err(RegistryError::NoLayer { layer, registry: registry.to_owned() }.into())
            }
            _ => Err(self.client.unexpected(answer.response, registry, &what).await),
        }
    }

    /// How many bytes of an answer to skip, because they are there already.
    fn begin(&mut self, response: &Response, offset: u64, have: u64) -> Result<u64, Failure> {
        let size = self.layer.size;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                match range.and_then(ContentRange::read) {
                    Some(range) if range.total.is_some_and(|total| total != size) => {
                        return Err(self.size(format!("{} bytes", range.total.unwrap_or_default())));
                    }
                    Some(range) if range.start == offset && offset > 0 && range.end < size => offset,
                    _ => return Err(self.another_part("it sent another part than it was asked for")),
                }
            }
            _ => return Err(self.another_part("it has nothing from there on")),
        };
        // A length is believed only where it contradicts the manifest: then there is nothing to wait for.
        if let Some(length) = response.content_length()
            && (start == 0 && length != size || start.saturating_add(length) > size)
        {
            return Err(self.size(format!("{} bytes", start.saturating_add(length))));
        }
        Ok(have - start)
    }

    fn another_part(&mut self, reason: &str) -> Failure {
        self.is_asked_whole = true;
        broken(self.reference.registry(), &self.what(), reason)
    }

    async fn copy(
        &mut self,
        response: &mut Response,
        mut skip: u64,
        mut have: u64,
        writer: &mut Writer,
        pace: &mut Pace,
    ) -> Result<(), Failure> {
        let (registry, what) = (self.reference.registry(), self.what());
        pace.restart();
        while let Some(mut piece) = pace.next(response, registry, &what).await? {
            self.came += piece.len() as u64;
            if skip > 0 {
                let old = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                skip -= piece.split_to(old).len() as u64;
            }
            if piece.is_empty() {
                continue;
            }
            if have + piece.len() as u64 > self.layer.size {
                return Err(self.size("more".to_owned()));
            }
            have += piece.len() as u64;
            let is_waiting = writer.is_behind();
            if writer.write(piece).await.is_err() {
                // Why, the writer says.
                return Ok(());
            }
            if is_waiting {
                pace.restart();
            }
            self.report.tell(self.layer, What::At(have));
        }
        match have == self.layer.size {
            true => Ok(()),
            // Whether it has no more, or was cut off where nobody could see: another attempt will tell.
            false => Err(match self.size(format!("{have} bytes")) {
                Failure::Fatal(error) => Failure::Passing(error, None),
                passing @ Failure::Passing(..) => passing,
            }),
        }
    }

    fn what(&self) -> String {
        format!("the transfer of {}", self.layer)
    }

    fn size(&self, actual: String) -> Failure {
        let (layer, registry) = (self.layer.to_string(), self.reference.registry().to_owned());
        RegistryError::Size { layer, registry, expected: self.layer.size, actual }.into()
    }

    fn wrong(&self, error: BlobError) -> RegistryError {
        let (layer, registry) = (self.layer.to_string(), self.reference.registry().to_owned());
        RegistryError::Layer { layer, registry, error }
    }
}

/// `bytes 5-9/10` or `bytes 5-9/*`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    /// The last byte.
    end: u64,
    total: Option<u64>,
}

impl ContentRange {
    fn read(text: &str) -> Option<ContentRange> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = range.split_once('-')?;
        let total = if total == "*" { None } else { Some(total.parse().ok()?) };
        let (start, end) = (start.parse().ok()?, end.parse().ok()?);
        (start <= end).then_some(ContentRange { start, end, total })
    }
}

/// Writes and hashes what comes, on a thread that may block.
struct Writer {
    pieces: mpsc::Sender<Bytes>,
    task: JoinHandle<(Incoming, Result<(), BlobError>)>,
}

impl Writer {
    fn start(mut incoming: Incoming) -> Writer {
        let (pieces, mut come) = mpsc::channel::<Bytes>(PIECES);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(piece) = come.blocking_recv() {
                if let Err(error) = incoming.write(&piece) {
                    return (incoming, Err(error));
                }
            }
            (incoming, Ok(()))
        });
        Writer { pieces, task }
    }

    /// Whether the disk is slower than the network.
    fn is_behind(&self) -> bool {
        self.pieces.capacity() == 0
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), ()> {
        self.pieces.send(piece).await.map_err(|_| ())
    }

    /// Waits until all is written.
    async fn end(self) -> (Incoming, Result<(), BlobError>) {
        drop(self.pieces);
        match self.task.await {
            Ok(ended) => ended,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let check = |text: &str, expected: Option<(u64, u64, Option<u64>)>| {
            let expected = expected.map(|(start, end, total)| ContentRange { start, end, total });
            assert_eq!(ContentRange::read(text), expected, "{text}");
        };
        check("bytes 5-9/10", Some((5, 9, Some(10))));
        check("bytes 5-9/*", Some((5, 9, None)));
        for text in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 9-5/10",
            "bytes -5/10",
            "bytes 5-/10",
            "bytes 5-9",
            "bytes 5-9/x",
        ] {
            check(text, None);
        }
        check("bytes 5-99999999999999999999/10", None);
    }
}
