//! Callers on connections that stay open, each of which checks its answers and notes which revision gave them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::question::Question;
use super::reference::scramble;

/// The header that the stories stick by, and the one that leads testers to the candidate.
pub(crate) const STICKY: &str = "x-user";
pub(crate) const TESTER: (&str, &str) = ("x-tester", "yes");

/// No answer takes this long.
const LONGEST: Duration = Duration::from_secs(20);
/// How long a connection may wait for its next call.
const IDLE: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes.
const BUFFER: usize = 64 << 10;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A user with this number.
    User(u32),
    /// Somebody whom nothing tells from others.
    Anybody,
    /// Somebody who asks for the candidate.
    Tester,
}

/// One call, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) caller: Caller,
    /// Just before the first byte was sent, and just after the last one came.
    pub(crate) sent: Instant,
    pub(crate) ended: Instant,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// The right answer, of the revision with this number and this label of its own.
    Right { revision: u64, label: u32 },
    /// Another answer, or an error, of the revision with this number; without one where nobody says whose it is.
    Wrong { revision: Option<u64>, status: u16, why: Box<str> },
    /// There is no such function.
    Absent,
    /// No answer.
    Broken { why: Box<str> },
}

/// When a caller sends its next call, where the last one was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    AtOnce,
    /// After a pause.
    After(Duration),
    /// Turns of so long at once and so long not at all.
    Bursts(Duration, Duration),
}

/// What the callers do.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) address: SocketAddr,
    /// Where the function is: each caller keeps to one of these.
    pub(crate) paths: Vec<String>,
    pub(crate) questions: Arc<[Question]>,
    pub(crate) callers: usize,
    /// Users that the calls come from, in turn with nobody in particular and testers.
    pub(crate) users: u32,
    pub(crate) pace: Pace,
}

/// Callers that are under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicU64>,
    callers: JoinSet<Vec<Seen>>,
}

impl Load {
    pub(crate) fn start(calls: &Calls) -> Load {
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut callers = JoinSet::new();
        for index in 0..calls.callers {
            let (calls, stop, ended) = (calls.clone(), Arc::clone(&stop), Arc::clone(&ended));
            callers.spawn(async move { caller(&calls, index, &stop, &ended).await });
        }
        Load { stop, ended, callers }
    }

    /// How many calls have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until so many more calls were begun and ended.
    ///
    /// # Errors
    /// Where they do not end.
    pub(crate) async fn more(&self, calls: u64) -> anyhow::Result<()> {
        // Those that are under way now began before.
        let target = self.ended() + calls + self.callers.len() as u64;
        let started = Instant::now();
        while self.ended() < target {
            ensure!(started.elapsed() < LONGEST * 3, "{calls} calls do not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits for the calls that are under way, and answers all that was seen.
    pub(crate) async fn finish(mut self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        while let Some(mine) = self.callers.join_next().await {
            seen.extend(mine.unwrap_or_default());
        }
        seen
    }
}

async fn caller(calls: &Calls, index: usize, stop: &AtomicBool, ended: &AtomicU64) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut connection = Connection::new(calls.address);
    let path = &calls.paths[index % calls.paths.len()];
    let mut state = scramble(index as u64);
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        state = scramble(state);
        let question = &calls.questions[(state >> 8) as usize % calls.questions.len()];
        let who = match state % 16 {
            0 => Caller::Tester,
            1..=5 => Caller::Anybody,
            _ => Caller::User((state >> 40) as u32 % calls.users.max(1)),
        };
        let one = ask(&mut connection, path, who, question).await;
        let broken = matches!(one.what, What::Broken { .. });
        seen.push(one);
        ended.fetch_add(1, Ordering::Relaxed);
        let pause = match calls.pace {
            // Who finds nobody does not try again at once.
            _ if broken => Duration::from_millis(10),
            Pace::AtOnce => continue,
            Pace::After(pause) => pause,
            Pace::Bursts(on, off) => {
                let time = started.elapsed().as_nanos() % (on + off).as_nanos();
                match time < on.as_nanos() {
                    true => continue,
                    false => off,
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
    seen
}

/// Asks once, and checks the answer.
pub(crate) async fn ask(
    connection: &mut Connection,
    path: &str,
    caller: Caller,
    question: &Question,
) -> Seen {
    let header = match caller {
        Caller::User(user) => format!("{STICKY}: {user}\r\n"),
        Caller::Anybody => String::new(),
        Caller::Tester => format!("{}: {}\r\n", TESTER.0, TESTER.1),
    };
    let body = &question.body;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: proof\r\ncontent-type: application/json\r\n{header}\
         content-length: {length}\r\n\r\n{body}"
    );
    let sent = Instant::now();
    let answer = tokio::time::timeout(LONGEST, connection.exchange(request.as_bytes())).await;
    let ended = Instant::now();
    let what = match answer {
        Err(_) => What::Broken { why: format!("no answer within {LONGEST:?}").into() },
        Ok(Err(error)) => What::Broken { why: format!("{error:#}").into() },
        Ok(Ok(answer)) => judge(&answer, question),
    };
    if matches!(what, What::Broken { .. }) {
        connection.close();
    }
    Seen { caller, sent, ended, what }
}

fn judge(answer: &Answered, question: &Question) -> What {
    let &Answered { status, revision, .. } = answer;
    let wrong = |why: String| What::Wrong { revision, status, why: why.into() };
    match status {
        200 => match (question.check(&answer.body, revision), revision) {
            (Ok(label), Some(revision)) => What::Right { revision, label },
            (Ok(_), None) => wrong("no header names the revision".to_owned()),
            (Err(error), _) => wrong(format!("{error:#}")),
        },
        404 => What::Absent,
        // A host says so until it was first deployed to.
        503 if text(&answer.body).contains("nothing is served yet") => What::Absent,
        _ => wrong(text(&answer.body)),
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// One answer, as far as it is looked at.
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) revision: Option<u64>,
    pub(crate) body: Vec<u8>,
}

/// A connection that is made when it is needed.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    used: Instant,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Connection {
        Connection { address, stream: None, used: Instant::now(), buffer: vec![0; BUFFER] }
    }

    fn close(&mut self) {
        self.stream = None;
    }

    /// Sends a request as it is, and reads the answer.
    ///
    /// # Errors
    /// Where the connection breaks, or the answer is not one of HTTP/1.1 with a length.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answered> {
        // One that is idle may be closed just as it is used again, and nobody could tell whether the call was heard.
        let mut stream = match self.stream.take() {
            Some(stream) if self.used.elapsed() < IDLE => stream,
            _ => {
                let stream = TcpStream::connect(self.address).await.context("cannot connect")?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        stream.write_all(request).await.context("cannot send")?;
        let mut filled = 0;
        let head = loop {
            ensure!(filled < self.buffer.len(), "the answer is too long");
            let read = stream.read(&mut self.buffer[filled..]).await.context("cannot read")?;
            ensure!(read > 0, "the connection was closed after {filled} bytes");
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head]).context("the head is not text")?;
        let text = text.to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let Some(length) = header("content-length:") else { bail!("an answer without a length: {text}") };
        let total = head + length.parse::<usize>().context("no length")?;
        ensure!(total <= self.buffer.len(), "the answer is too long");
        while filled < total {
            let read = stream.read(&mut self.buffer[filled..]).await.context("cannot read")?;
            ensure!(read > 0, "the connection was closed in a body");
            filled += read;
        }
        ensure!(filled == total, "there is more than one answer");
        let revision = header("x-tenon-revision:").map(str::parse).transpose();
        let revision = revision.context("the revision's header is no number")?;
        let answered = Answered { status, revision, body: self.buffer[head..total].to_vec() };
        if header("connection:") != Some("close") {
            (self.stream, self.used) = (Some(stream), Instant::now());
        }
        Ok(answered)
    }
}
