//! Stores in Redis: three keys of the server for each store of each app, changed by scripts, which nothing interrupts.
//!
//! For a store that is `tenon:{app:<app>/<store>}`, a hash `...:values` has its values, a sorted set `...:keys` has
//! its keys in order, and `...:bytes` counts what it holds. Deleting the three empties it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, Value};
use tokio::sync::Mutex;

use super::{ENTRY_BYTES, StoreError, Told};

mod scripts;

/// How long it may take to connect, and to be answered.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);

/// How long a server that could not be reached is not tried again.
const REST: Duration = Duration::from_millis(250);

/// A connection unused for longer may have been closed by the server.
const IDLE: Duration = Duration::from_secs(5);

/// One server, and the connection to it that all its stores share.
pub(super) struct Server {
    url: String,
    link: Mutex<Link>,
    told: Told,
}

#[derive(Default)]
struct Link {
    connection: Option<MultiplexedConnection>,
    used: Option<Instant>,
    /// When connecting failed last.
    failed: Option<Instant>,
}

/// The keys of one store of one app.
#[derive(Clone)]
pub(super) struct Keys {
    server: Arc<Server>,
    values: Arc<str>,
    keys: Arc<str>,
    bytes: Arc<str>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("values", &self.values).finish_non_exhaustive()
    }
}

/// Whether a command may be sent once more where it is not known whether it was done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Yes,
    No,
}

impl Server {
    pub(super) fn new(url: &str) -> Server {
        Server { url: url.to_owned(), link: Mutex::default(), told: Told::default() }
    }

    /// The answer to a command, which is sent once more over a new connection where the old one has broken.
    async fn ask(&self, command: &Cmd, repeat: Repeat) -> Result<Value, StoreError> {
        let mut connection = self.connection(repeat == Repeat::No).await?;
        let error = match connection.send_packed_command(command).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !broken(&error) {
            return Err(self.failed(&error));
        }
        self.disconnect(&error).await;
        if repeat == Repeat::No || error.is_timeout() {
            return Err(self.failed(&error));
        }
        let mut connection = self.connection(false).await?;
        match connection.send_packed_command(command).await {
            Ok(value) => Ok(value),
            Err(error) => {
                if broken(&error) {
                    self.disconnect(&error).await;
                }
                Err(self.failed(&error))
            }
        }
    }

    /// The connection, made where there is none. `tried`: one that was idle is tried out first.
    async fn connection(&self, tried: bool) -> Result<MultiplexedConnection, StoreError> {
        let mut link = self.link.lock().await;
        let idle = link.used.is_none_or(|used| used.elapsed() > IDLE);
        link.used = Some(Instant::now());
        if let Some(connection) = &mut link.connection {
            if !tried || !idle || connection.send_packed_command(&redis::cmd("PING")).await.is_ok() {
                return Ok(connection.clone());
            }
            link.connection = None;
        }
        // All that have waited here meanwhile hear the same, and do not try one after the other.
        if link.failed.is_some_and(|failed| failed.elapsed() < REST) {
            return Err(StoreError::Unavailable);
        }
        match connect(&self.url).await {
            Ok(connection) => {
                link.failed = None;
                Ok(link.connection.insert(connection).clone())
            }
            Err(error) => {
                link.failed = Some(Instant::now());
                drop(link);
                Err(self.failed(&error))
            }
        }
    }

    async fn disconnect(&self, error: &RedisError) {
        tracing::debug!(server = self.shown(), %error, "the connection to a key-value store has broken");
        self.link.lock().await.connection = None;
    }

    fn failed(&self, error: &RedisError) -> StoreError {
        if self.told.is_due() {
            tracing::warn!(server = self.shown(), %error, "a key-value store in Redis failed");
        }
        StoreError::Unavailable
    }

    /// The server for people: without user and password.
    fn shown(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        rest.rsplit_once('@').map_or(rest, |(_, address)| address)
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    let settings =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&settings).await
}

/// Whether nothing more will come over the connection, or nothing that can be told apart.
fn broken(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse) || error.is_unrecoverable_error()
}

impl Keys {
    pub(super) fn new(server: Arc<Server>, scope: &str) -> Keys {
        // What is between the braces decides where a cluster keeps it: the three lie together.
        let key = |part: &str| format!("tenon:{{{scope}}}:{part}").into();
        Keys { server, values: key("values"), keys: key("keys"), bytes: key("bytes") }
    }

    /// A script on this store; its arguments follow.
    fn script(&self, text: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(3).arg(&*self.values).arg(&*self.keys).arg(&*self.bytes);
        command
    }

    /// A script that may be refused for want of room, with the arguments that all of these begin with.
    fn bounded(&self, text: &str, limit: u64) -> Cmd {
        let mut command = self.script(text);
        command.arg(limit).arg(ENTRY_BYTES);
        command
    }

    pub(super) async fn get_many(
        &self,
        keys: &[String],
        room: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = self.script(scripts::GET);
        command.arg(room).arg(keys);
        match self.server.ask(&command, Repeat::Yes).await? {
            Value::Int(bytes) => Err(StoreError::AnswerTooLong(usize::try_from(bytes).unwrap_or(usize::MAX))),
            value => self.read(value),
        }
    }

    pub(super) async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("HEXISTS");
        command.arg(&*self.values).arg(key);
        let value = self.server.ask(&command, Repeat::Yes).await?;
        self.read(value)
    }

    pub(super) async fn keys(&self, after: Option<&str>, count: usize) -> Result<Vec<String>, StoreError> {
        let mut command = redis::cmd("ZRANGEBYLEX");
        let start = after.map_or("-".to_owned(), |after| format!("({after}"));
        command.arg(&*self.keys).arg(start).arg("+").arg("LIMIT").arg(0).arg(count);
        let value = self.server.ask(&command, Repeat::Yes).await?;
        self.read(value)
    }

    pub(super) async fn set_many(&self, entries: &[(String, Vec<u8>)], limit: u64) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut command = self.bounded(scripts::SET, limit);
        for (key, value) in entries {
            command.arg(key).arg(value);
        }
        let value = self.server.ask(&command, Repeat::Yes).await?;
        self.told(value, limit).map(|_| ())
    }

    pub(super) async fn delete_many(&self, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut command = self.bounded(scripts::DELETE, u64::MAX);
        command.arg(keys);
        let value = self.server.ask(&command, Repeat::Yes).await?;
        self.told(value, u64::MAX).map(|_| ())
    }

    pub(super) async fn increment(&self, key: &str, delta: i64, limit: u64) -> Result<i64, StoreError> {
        let mut command = self.bounded(scripts::INCREMENT, limit);
        command.arg(key).arg(delta);
        let value = self.server.ask(&command, Repeat::No).await?;
        self.told(value, limit)?.parse().map_err(|_| StoreError::NotANumber)
    }

    pub(super) async fn swap(
        &self,
        key: &str,
        seen: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StoreError> {
        let mut command = self.bounded(scripts::SWAP, limit);
        command.arg(key).arg(value);
        if let Some(seen) = seen {
            command.arg(seen);
        }
        let value = self.server.ask(&command, Repeat::No).await?;
        Ok(self.told(value, limit)? != scripts::OTHERWISE)
    }

    /// What a script says: a word, or that it has refused.
    fn told(&self, value: Value, limit: u64) -> Result<String, StoreError> {
        let word: String = self.read(value)?;
        match word.as_str() {
            scripts::FULL => Err(StoreError::Full(limit >> 20)),
            scripts::NOT_A_NUMBER => Err(StoreError::NotANumber),
            scripts::OVERFLOW => Err(StoreError::Overflow),
            _ => Ok(word),
        }
    }

    /// A value of the server's in our form.
    fn read<T: redis::FromRedisValue>(&self, value: Value) -> Result<T, StoreError> {
        let value = value.extract_error().map_err(|error| self.server.failed(&error))?;
        redis::from_redis_value(value).map_err(|error| self.server.failed(&error.into()))
    }
}
