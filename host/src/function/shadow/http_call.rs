//! Calls of HTTP functions: bodies are copied as they go by, within a bound.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, request, response};
use http_body_util::{BodyExt, Full};

use super::{CALL, Held, Pending, Shadowed, Side, Slot};
use crate::instance::http::{IsHttps, RequestBody, ResponseBody};
use crate::instance::{Answered, CallError, Deadline};
use crate::rollout::shadow::LeftOut;
use crate::rollout::shadow::capture;
use crate::rollout::shadow::compare::Answer;

/// A call that can be made again.
pub(super) struct Question {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    is_https: bool,
    body: Bytes,
}

/// A live call of an HTTP function that is under way, and is then to be given to the candidate.
pub struct Asked {
    shadowed: Arc<Shadowed>,
    lot: u64,
    question: Question,
    bytes: usize,
    body: Arc<Mutex<Copied>>,
}

/// A body as far as it has gone by.
struct Copied {
    parts: Vec<Bytes>,
    /// Short parts, after the others.
    tail: BytesMut,
    /// The most bytes, those so far, and the room for them.
    most: usize,
    bytes: usize,
    held: Held,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Coming,
    Whole,
    TooLong,
    NoRoom,
}

/// Shorter parts are copied, since they may hold on to far more; longer ones are handles.
const SHORT: usize = 16 << 10;

impl Copied {
    fn new(most: usize, held: Held) -> Copied {
        Copied { parts: Vec::new(), tail: BytesMut::new(), most, bytes: 0, held, state: State::Coming }
    }

    fn add(&mut self, part: &Bytes) {
        if self.state != State::Coming || part.is_empty() {
            return;
        }
        let bytes = self.bytes + part.len();
        if bytes > self.most {
            return self.give_up(State::TooLong);
        }
        if self.held.hold(bytes).is_none() {
            return self.give_up(State::NoRoom);
        }
        self.bytes = bytes;
        if part.len() <= SHORT {
            self.tail.extend_from_slice(part);
            return;
        }
        self.end_tail();
        self.parts.push(part.clone());
    }

    fn give_up(&mut self, state: State) {
        (self.parts, self.tail) = (Vec::new(), BytesMut::new());
        self.held.pages = None;
        self.state = state;
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(std::mem::take(&mut self.tail).freeze());
        }
    }

    fn end(&mut self) {
        if self.state == State::Coming {
            self.state = State::Whole;
        }
    }

    fn take(&mut self) -> Bytes {
        self.end_tail();
        let mut parts = std::mem::take(&mut self.parts);
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        whole.freeze()
    }
}

/// The body of a request on its way to a guest, copied as it goes by.
pub struct RequestCopy(Arc<Mutex<Copied>>);

impl RequestCopy {
    pub fn part(&self, part: &Bytes) {
        lock(&self.0).add(part);
    }

    pub fn end(&self) {
        lock(&self.0).end();
    }
}

fn lock(copied: &Mutex<Copied>) -> MutexGuard<'_, Copied> {
    copied.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Whether this call is to be given to the candidate as well: then with the request's head as the guest gets it.
    /// `length` is what is known of its body.
    pub fn ask_http(&self, head: &request::Parts, length: u64) -> Option<Asked> {
        let (shadowed, lot) = self.drawn()?;
        let most = shadowed.most_of_body();
        if length > most as u64 {
            shadowed.leave_out(LeftOut::TooLarge);
            return None;
        }
        let headers = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
        let bytes = CALL + head.uri.path().len() + headers.sum::<usize>();
        let question = Question {
            method: head.method.clone(),
            uri: head.uri.clone(),
            headers: head.headers.clone(),
            is_https: head.extensions.get::<IsHttps>().is_some(),
            body: Bytes::new(),
        };
        let body = Arc::new(Mutex::new(Copied::new(most, Held::new(&shadowed.bytes))));
        Some(Asked { shadowed, lot, question, bytes, body })
    }
}

impl Shadowed {
    fn most_of_body(&self) -> usize {
        usize::try_from(self.recorder.settings().max_body_kib << 10).unwrap_or(usize::MAX)
    }
}

impl Asked {
    pub fn body(&self) -> RequestCopy {
        RequestCopy(Arc::clone(&self.body))
    }

    /// The call failed.
    pub fn failed(self) {
        self.shadowed.leave_out(LeftOut::StableFailed);
    }

    /// The head of what the caller is answered; the body is to follow.
    pub fn answered(self, head: &response::Parts) -> Option<AnswerCopy> {
        let status = head.status.as_u16();
        if head.status.is_server_error() {
            self.failed();
            return None;
        }
        let body = Copied::new(self.shadowed.most_of_body(), Held::new(&self.shadowed.bytes));
        let media_type = media_type(&head.headers);
        Some(AnswerCopy { asked: self, status, media_type, body })
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    String::from_utf8_lossy(&value[..value.len().min(256)]).into_owned()
}

/// An answer on its way to a caller, copied as it goes by.
pub struct AnswerCopy {
    asked: Asked,
    status: u16,
    media_type: String,
    body: Copied,
}

impl AnswerCopy {
    pub fn part(&mut self, part: &Bytes) {
        self.body.add(part);
    }

    /// The caller has been given all of it: the candidate gets the call.
    pub fn end(mut self) {
        self.body.end();
        let Asked { shadowed, lot, mut question, bytes, body } = self.asked;
        let mut asked = lock(&body);
        let state = if self.body.state == State::Whole { asked.state } else { self.body.state };
        match state {
            State::Whole => {}
            State::Coming => return shadowed.leave_out(LeftOut::BodyNotRead),
            State::TooLong => return shadowed.leave_out(LeftOut::TooLarge),
            State::NoRoom => return shadowed.leave_out(LeftOut::QueueFull),
        }
        question.body = asked.take();
        self.body.held.join(&mut asked.held);
        drop(asked);
        let answer = self.body.take();
        let bytes = bytes + question.body.len() + answer.len();
        let id = question.headers.get(REQUEST_ID).cloned();
        let expected = Answer::Http { status: self.status, media_type: self.media_type, body: answer };
        let held = self.body.held;
        let pending = shadowed.pending(super::Question::Http(question), expected, bytes, held, lot);
        identified(pending, id);
    }
}

/// The header that guests get the id of a request in.
const REQUEST_ID: &str = "x-request-id";

fn identified(pending: Option<Pending>, id: Option<HeaderValue>) {
    if let (Some(pending), Some(id)) = (pending, id) {
        pending.identify(id);
    }
}

impl Question {
    /// Makes the call, and reads at most `most` bytes of the answer's body, and a little more.
    pub(super) async fn ask(&self, side: &Side, deadline: Deadline, most: usize) -> Answered<Answer> {
        let body = Full::new(self.body.clone()).map_err(|never| match never {}).boxed_unsync();
        let mut request: Request<RequestBody> = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if self.is_https {
            request.extensions_mut().insert(IsHttps);
        }
        let read = |response: http::Response<ResponseBody>| async move {
            let (head, body) = response.into_parts();
            let body = collect(body, most).await.map_err(CallError::BadReply)?;
            let (status, media_type) = (head.status.as_u16(), media_type(&head.headers));
            Ok(Answer::Http { status, media_type, body })
        };
        let (answered, meter) = side.program.answer(request, deadline, read).await;
        (answered.flatten(), meter.read())
    }

    pub(super) fn shown(&self) -> capture::Asked<'_> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let media_type = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        capture::Asked::Http {
            method: self.method.as_str(),
            path,
            media_type: media_type.unwrap_or_default(),
            body: &self.body,
        }
    }
}

async fn collect(body: ResponseBody, most: usize) -> Result<Bytes, String> {
    let mut body = Pin::from(Box::new(body));
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its answer broke off: {error}"))?;
        let Some(data) = frame.data_ref() else { continue };
        whole.extend_from_slice(&data[..data.len().min(most + 1 - whole.len())]);
        if whole.len() > most {
            // Longer than any that it is compared with.
            break;
        }
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn bodies_are_copied_within_the_bound() {
        let room = Arc::new(Semaphore::new(24));
        let new = |most: usize| Copied::new(most, Held::new(&room));
        let mut copied = new(100_000);
        for _ in 0..10 {
            copied.add(&Bytes::from_static(b"0123456789"));
        }
        assert_eq!((copied.parts.len(), copied.tail.len()), (0, 100), "short parts make one");
        let long = Bytes::from(vec![7; SHORT + 1]);
        copied.add(&long);
        assert_eq!(copied.parts[1].as_ptr(), long.as_ptr(), "a long part is a handle");
        copied.end();
        let whole = copied.take();
        assert_eq!((whole.len(), &whole[..12]), (100 + SHORT + 1, &b"012345678901"[..]));
        drop(copied);
        assert_eq!(room.available_permits(), 24);
        let mut copied = new(100_000);
        copied.add(&Bytes::from(vec![7; 20 * 4096]));
        let mut other = new(100_000);
        other.add(&Bytes::from(vec![7; 5 * 4096]));
        assert!(other.state == State::NoRoom && room.available_permits() == 4, "no room for both");
        drop((copied, other));
        let mut copied = new(10);
        copied.add(&Bytes::from_static(b"0123456789"));
        copied.add(&Bytes::from_static(b"0"));
        copied.add(&Bytes::from_static(b"1"));
        copied.end();
        assert!(copied.state == State::TooLong && copied.parts.is_empty() && copied.tail.is_empty());
    }
}
