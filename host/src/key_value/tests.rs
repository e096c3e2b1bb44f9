//! Both kinds of stores do the same; the file is shared by processes, survives their end, and may be damaged.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::config::{KeyValueStore, Secret};

const ROOM: usize = 1 << 20;

fn settings(max_mib: u64) -> config::KeyValue {
    let mut settings = config::KeyValue { max_mib, max_value_kib: 600, ..config::KeyValue::default() };
    let shared = KeyValueStore { shared: true, ..KeyValueStore::default() };
    settings.stores.insert("shared".to_owned(), shared);
    settings
}

fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), story).await })
        .expect("the story hangs")
}

/// A server of the tests' own, which ends with this.
struct Redis {
    server: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Redis {
    /// `None` where the program is not here: the test is then skipped.
    fn start() -> Option<Redis> {
        let folder = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        match Redis::serve(&folder, free) {
            Ok(server) => Some(Redis { server, port: free, folder }),
            Err(error) => {
                assert!(!config::demands("redis"), "TENON_REQUIRE demands redis: {error}");
                eprintln!("skipped: redis-server is not here: {error}");
                None
            }
        }
    }

    fn serve(folder: &tempfile::TempDir, port: u16) -> std::io::Result<Child> {
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--requirepass", "hunter2"]);
        server.args(["--appendonly", "yes", "--save", ""]).arg("--dir").arg(folder.path());
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let started = Instant::now();
        while !is_ready(port) {
            assert!(started.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn stop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    fn again(&mut self) {
        self.stop();
        self.server = Redis::serve(&self.folder, self.port).unwrap();
    }

    fn settings(&self, max_mib: u64) -> config::KeyValue {
        let mut settings = settings(max_mib);
        for store in settings.stores.values_mut() {
            store.place = KeyValuePlace::Redis(Secret(format!("redis://:hunter2@127.0.0.1:{}/2", self.port)));
        }
        settings
    }
}

/// Whether it has read its data and answers.
fn is_ready(port: u16) -> bool {
    let asked = std::net::TcpStream::connect(("127.0.0.1", port)).and_then(|mut server| {
        server.write_all(b"AUTH hunter2\r\nPING\r\nQUIT\r\n")?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.is_ok_and(|answer| answer.contains("+PONG"))
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Everything that a store does, on an empty one of at most 1 MiB.
async fn does_all(store: &Store) {
    let text = |text: &str| text.to_owned();
    assert_eq!(store.get("a", ROOM).await, Ok(None));
    assert_eq!(store.exists("a").await, Ok(false));
    assert_eq!(store.keys(None, 10).await, Ok(vec![]));
    store.set(text("a"), b"one".to_vec()).await.unwrap();
    store.set(text("a"), b"\0\xff".to_vec()).await.unwrap();
    store.set(text(""), Vec::new()).await.unwrap();
    assert_eq!(store.get("a", ROOM).await, Ok(Some(b"\0\xff".to_vec())));
    assert_eq!(store.get("", ROOM).await, Ok(Some(Vec::new())));
    assert_eq!(store.exists("").await, Ok(true));
    assert_eq!(store.get("a", 1).await, Err(StoreError::AnswerTooLong(2)));

    let entries = [("b", "1"), ("ü", "2"), ("b", "3"), ("c", "4")];
    let entries = entries.map(|(key, value)| (text(key), value.as_bytes().to_vec()));
    store.set_many(entries.to_vec()).await.unwrap();
    let found = store.get_many(vec![text("b"), text("?"), text("ü"), text("b")], ROOM).await.unwrap();
    let found: Vec<_> = found.iter().map(|value| value.as_deref()).collect();
    assert_eq!(found, [Some(&b"3"[..]), None, Some(b"2"), Some(b"3")]);
    assert_eq!(store.keys(None, 3).await.unwrap(), ["", "a", "b"]);
    assert_eq!(store.keys(Some("b"), 3).await.unwrap(), ["c", "ü"]);
    assert_eq!(store.keys(Some("bb"), 1).await.unwrap(), ["c"]);
    store.delete_many(vec![text("a"), text("a"), text("?"), text("")]).await.unwrap();
    store.delete_many(vec![]).await.unwrap();
    store.set_many(vec![]).await.unwrap();
    assert_eq!(store.get_many(vec![], ROOM).await, Ok(vec![]));
    assert_eq!(store.keys(None, 9).await.unwrap(), ["b", "c", "ü"]);

    assert_eq!(store.increment(text("n"), 10).await, Ok(10));
    assert_eq!(store.increment(text("n"), i64::MAX - 10).await, Ok(i64::MAX));
    assert_eq!(store.increment(text("n"), 1).await, Err(StoreError::Overflow));
    assert_eq!(store.increment(text("n"), -1).await, Ok(i64::MAX - 1));
    store.set(text("c"), b"no number".to_vec()).await.unwrap();
    assert_eq!(store.increment(text("c"), 1).await, Err(StoreError::NotANumber));

    let swap = async |key: &str, seen: Option<&str>, value: &str| {
        store.swap(text(key), seen.map(|seen| seen.as_bytes().to_vec()), value.as_bytes().to_vec()).await
    };
    assert_eq!(swap("s", Some(""), "1").await, Ok(false));
    assert_eq!(swap("s", None, "1").await, Ok(true));
    assert_eq!(swap("s", None, "2").await, Ok(false));
    assert_eq!(swap("s", Some("1"), "2").await, Ok(true));
    assert_eq!(store.get("s", ROOM).await, Ok(Some(b"2".to_vec())));
    assert_eq!(store.keys(Some("n"), 9).await.unwrap(), ["s", "ü"]);
}

/// What is over a store does all that a store does, and leaves it as it was.
async fn is_layered(stores: &KeyValue) {
    let under = stores.store("layered", "default").await.unwrap();
    does_all(&under.layered()).await;
    assert_eq!(under.keys(None, 9).await, Ok(vec![]));
    let text = |text: &str| text.to_owned();
    for key in ["a", "b", "c", "d", "e", "f"] {
        under.set(text(key), key.as_bytes().to_vec()).await.unwrap();
    }
    under.increment(text("n"), 5).await.unwrap();
    let over = under.layered();
    over.delete_many(vec![text("a"), text("c"), text("d"), text("x")]).await.unwrap();
    over.set_many(vec![(text("bb"), vec![1]), (text("f"), vec![2]), (text("z"), vec![3])]).await.unwrap();
    for count in 1..9 {
        let mut all: Vec<String> = Vec::new();
        loop {
            let page = over.keys(all.last().map(String::as_str), count).await.unwrap();
            all.extend_from_slice(&page);
            if page.len() < count {
                break;
            }
        }
        assert_eq!(all, ["b", "bb", "e", "f", "n", "z"], "{count}");
    }
    assert_eq!(over.increment(text("n"), 1).await, Ok(6));
    assert_eq!(over.swap(text("e"), Some(b"e".to_vec()), vec![]).await, Ok(true));
    assert_eq!(over.swap(text("b"), Some(vec![]), vec![]).await, Ok(false));
    let found = over.get_many(["a", "b", "f", "e"].map(text).to_vec(), ROOM).await.unwrap();
    assert_eq!(found, [None, Some(b"b".to_vec()), Some(vec![2]), Some(vec![])]);
    assert_eq!(over.get_many(vec![text("bb"), text("b")], 1).await, Err(StoreError::AnswerTooLong(1)));
    let mut written = 0;
    while over.set(written.to_string(), vec![0; 500 << 10]).await.is_ok() {
        written += 1;
    }
    assert_eq!(written, 16, "a call has a bound of its own");
    // Another call sees nothing of it, and neither does the store.
    for store in [under.layered(), under.clone()] {
        let keys = store.keys(None, 9).await.unwrap();
        assert_eq!(keys, ["a", "b", "c", "d", "e", "f", "n"]);
        assert_eq!(store.get("f", ROOM).await, Ok(Some(b"f".to_vec())));
    }
    assert_eq!(under.increment(text("n"), 0).await, Ok(5));
}

/// Bounds of keys, values and of the whole store.
async fn is_bounded(stores: &KeyValue) {
    let store = stores.store("bounded", "default").await.unwrap();
    let long = "k".repeat(256);
    assert_eq!(store.get(&long, ROOM).await, Err(StoreError::KeyTooLong(256)));
    store.set(long[1..].to_owned(), vec![1]).await.unwrap();
    let over = StoreError::ValueTooLong { bytes: 600 * 1024 + 1, limit: 600 * 1024 };
    assert_eq!(store.set("v".to_owned(), vec![0; 600 * 1024 + 1]).await, Err(over));
    let many = (0..=MAX_BATCH).map(|i| i.to_string()).collect();
    assert_eq!(store.delete_many(many).await, Err(StoreError::BatchTooLong(MAX_BATCH + 1)));
    let many: Vec<_> = (0..MAX_BATCH).map(|i| (i.to_string(), vec![7; 100])).collect();
    let keys: Vec<_> = many.iter().map(|(key, _)| key.clone()).collect();
    store.set_many(many).await.unwrap();
    assert_eq!(store.get_many(keys.clone(), 100 * MAX_BATCH).await.unwrap().len(), MAX_BATCH);
    assert_eq!(store.keys(None, usize::MAX >> 1).await.unwrap().len(), MAX_BATCH + 1);

    // 4096 entries of some 168 bytes, so that there is no room for 600 KiB.
    let big = vec![1; 600 * 1024];
    assert_eq!(store.set("big".to_owned(), big.clone()).await, Err(StoreError::Full(1)));
    assert_eq!(store.swap("big".to_owned(), None, big.clone()).await, Err(StoreError::Full(1)));
    // All or nothing.
    let both = vec![("small".to_owned(), vec![1]), ("big".to_owned(), big.clone())];
    assert_eq!(store.set_many(both).await, Err(StoreError::Full(1)));
    assert_eq!(store.exists("small").await, Ok(false));
    // Another app's store has room of its own.
    let other = stores.store("other", "default").await.unwrap();
    other.set("big".to_owned(), big.clone()).await.unwrap();
    store.delete_many(keys).await.unwrap();
    for _ in 0..3 {
        store.set("big".to_owned(), big.clone()).await.unwrap();
    }
    let rest = vec![1; 300 * 1024];
    store.set("rest".to_owned(), rest).await.unwrap();
    let mut written = 0;
    while store.increment(format!("{written:0200}"), 1).await.is_ok() {
        written += 1;
    }
    assert_eq!(store.increment("n".repeat(255), 1).await, Err(StoreError::Full(1)));
    assert!((100..500).contains(&written), "{written}");
    // What is full can be made smaller.
    store.set("rest".to_owned(), vec![]).await.unwrap();
    store.set("again".to_owned(), vec![1; 1000]).await.unwrap();
}

async fn keeps_apps_apart(stores: &KeyValue) {
    let store = async |app: &str, name: &str| stores.store(app, name).await.unwrap();
    store("one", "default").await.set("k".to_owned(), b"mine".to_vec()).await.unwrap();
    store("one", "shared").await.set("k".to_owned(), b"ours".to_vec()).await.unwrap();
    let get = async |app: &str, name: &str| store(app, name).await.get("k", ROOM).await.unwrap();
    assert_eq!(get("one", "default").await, Some(b"mine".to_vec()));
    assert_eq!(get("two", "default").await, None);
    assert_eq!(get("one/default", "default").await, None);
    assert_eq!(get("two", "shared").await, Some(b"ours".to_vec()));
    assert_eq!(store("two", "default").await.keys(None, 9).await, Ok(vec![]));
    assert!(matches!(stores.store("one", "other").await, Err(OpenError::Unknown(name)) if name == "other"));
}

/// Many at once lose nothing.
async fn counts_right(stores: &KeyValue) {
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = stores.store("count", "default").await.unwrap();
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                store.increment("n".to_owned(), 1).await.unwrap();
                loop {
                    let seen = store.get("swapped", ROOM).await.unwrap();
                    let next = seen.as_ref().map_or(1, |seen| seen.len() + 1);
                    if store.swap("swapped".to_owned(), seen, vec![7; next]).await.unwrap() {
                        break;
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let store = stores.store("count", "default").await.unwrap();
    assert_eq!(store.increment("n".to_owned(), 0).await, Ok(200));
    assert_eq!(store.get("swapped", ROOM).await.unwrap().unwrap().len(), 200);
}

async fn is_a_store(stores: &KeyValue) {
    is_layered(stores).await;
    does_all(&stores.store("app", "default").await.unwrap()).await;
    is_bounded(stores).await;
    keeps_apps_apart(stores).await;
    counts_right(stores).await;
}

#[test]
fn the_file_does_what_a_store_does_and_is_still_there_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    run(async { is_a_store(&KeyValue::new(settings(1), &dir)).await });
    run(async {
        let stores = KeyValue::new(settings(1), &dir);
        let store = stores.store("app", "default").await.unwrap();
        assert_eq!(store.get("s", ROOM).await, Ok(Some(b"2".to_vec())));
        let store = stores.store("bounded", "default").await.unwrap();
        let big = vec![1; 600 * 1024];
        assert_eq!(store.set("bigger".to_owned(), big).await, Err(StoreError::Full(1)));
    });
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("key-value.redb"))), (0o700, 0o600));
}

#[test]
fn redis_does_what_a_store_does_also_after_it_was_started_anew() {
    let Some(mut redis) = Redis::start() else { return };
    run(async {
        let stores = KeyValue::new(redis.settings(1), Path::new("/nowhere"));
        is_a_store(&stores).await;
        let store = stores.store("app", "default").await.unwrap();
        redis.again();
        // What can be repeated is done at the first try, over a new connection.
        assert_eq!(store.get("s", ROOM).await, Ok(Some(b"2".to_vec())));
        redis.again();
        // What cannot be repeated may be refused once.
        let first = store.increment("after".to_owned(), 1).await;
        assert!(matches!(first, Err(StoreError::Unavailable) | Ok(1)), "{first:?}");
        assert!(store.increment("after".to_owned(), 1).await.is_ok());
        redis.stop();
        let started = Instant::now();
        assert_eq!(store.get("s", ROOM).await, Err(StoreError::Unavailable));
        assert!(started.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn a_redis_server_that_says_nothing_is_given_up() {
    run(async {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://user:hunter2@{}/1", silent.local_addr().unwrap());
        let server = super::redis::Server::new(&url);
        assert!(!format!("{:?}", super::redis::Keys::new(Arc::new(server), "app:a/b")).contains("hunter2"));
        let mut settings = settings(1);
        let place = KeyValuePlace::Redis(Secret(url));
        settings.stores.insert("default".to_owned(), KeyValueStore { place, shared: false });
        let stores = KeyValue::new(settings, Path::new("/nowhere"));
        let store = stores.store("app", "default").await.unwrap();
        let started = Instant::now();
        // All of them together take no longer than one.
        let asking: Vec<_> = (0..20).map(|_| store.clone()).collect();
        let asking = asking.into_iter().map(|store| tokio::spawn(async move { store.exists("a").await }));
        for asked in asking.collect::<Vec<_>>() {
            assert_eq!(asked.await.unwrap(), Err(StoreError::Unavailable));
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    });
}

#[test]
fn a_file_that_is_damaged_or_somebody_elses_is_refused_in_words() {
    let check = |prepare: &dyn Fn(&Path), expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        prepare(&folder.path().join("key-value.redb"));
        let stores = KeyValue::new(settings(1), folder.path());
        let refused = run(stores.store("app", "default")).unwrap_err().to_string();
        assert!(refused.contains(expected) && refused.contains("key-value.redb"), "{refused}");
    };
    check(&|path| std::fs::write(path, "no key-value file").unwrap(), "restore it from a copy");
    check(&|path| std::fs::write(path, vec![0; 1 << 20]).unwrap(), "restore it from a copy");
    check(&|path| std::fs::write(path, vec![7; 9000]).unwrap(), "restore it from a copy");
    check(&|path| std::fs::create_dir(path).unwrap(), "set `key_value.dir`");
    check(
        &|path| std::fs::write(path.with_file_name("key-value.redb"), &good()[..5000]).unwrap(),
        "restore it",
    );
}

/// The bytes of a file with some entries.
fn good() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let stores = KeyValue::new(settings(1), folder.path());
        let store = stores.store("app", "default").await.unwrap();
        let many = (0..2000).map(|i| (format!("key {i:0100}"), vec![i as u8; 100]));
        store.set_many(many.collect()).await.unwrap();
    });
    std::fs::read(folder.path().join("key-value.redb")).unwrap()
}

/// Damage anywhere gives errors or wrong entries, and never a panic that gets out or an end that does not come.
#[test]
fn a_damaged_file_never_panics() {
    let good = good();
    for round in 0..24_usize {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = good.clone();
        let begin = round * bytes.len() / 24;
        let end = (begin + 3000).min(bytes.len());
        for (index, byte) in bytes[begin..end].iter_mut().enumerate() {
            *byte = byte.wrapping_mul(31).wrapping_add((index * 7 + round) as u8);
        }
        std::fs::write(folder.path().join("key-value.redb"), bytes).unwrap();
        let stores = KeyValue::new(settings(1), folder.path());
        run(async {
            let Ok(store) = stores.store("app", "default").await else { return };
            let _ = store.keys(None, 5000).await;
            let _ = store.get("key 7", ROOM).await;
            let _ = store.set("key".to_owned(), vec![1; 10_000]).await;
            let _ = store.increment("n".to_owned(), 1).await;
            let _ = store.delete_many((0..2000).map(|i| format!("key {i:0100}")).collect()).await;
        });
    }
}

/// Not a test by itself: a process that counts until it is killed, and says what it has counted to.
#[test]
#[ignore = "another test starts it"]
fn counts_until_it_is_killed() {
    let Some(dir) = std::env::var_os("TENON_TEST_KEY_VALUE") else { return };
    run(async {
        let stores = KeyValue::new(settings(64), Path::new(&dir));
        let store = stores.store("app", "default").await.unwrap();
        let own = std::process::id().to_string();
        for n in 1.. {
            store.increment("all".to_owned(), 1).await.unwrap();
            store
                .set_many(vec![(own.clone(), vec![1; n % 5000]), (format!("{own}-n"), n.to_string().into())])
                .await
                .unwrap();
            let mut told = std::io::stdout().lock();
            writeln!(told, "wrote {n}").and_then(|()| told.flush()).unwrap();
        }
    });
}

fn counting(dir: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "key_value::tests::counts_until_it_is_killed", "--ignored", "--nocapture"])
        .env("TENON_TEST_KEY_VALUE", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stdout.take().unwrap());
    (child, told)
}

/// Reads until it has written `count` times.
fn wrote(told: &mut impl BufRead, count: usize) -> usize {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it ended by itself");
        if let Some(n) = line.strip_prefix("wrote ").and_then(|n| n.trim().parse::<usize>().ok())
            && n >= count
        {
            return n;
        }
    }
}

#[test]
fn processes_share_a_file_and_what_was_written_outlives_their_being_killed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let stores = KeyValue::new(settings(64), dir);
    let mut least = 0;
    run(async {
        let store = stores.store("app", "default").await.unwrap();
        for round in 0..4 {
            let mut children = [counting(dir), counting(dir)];
            let mut mine = 0;
            for (child, told) in &mut children {
                let n = wrote(told, 5 + round * 3);
                for _ in 0..10 {
                    store.increment("all".to_owned(), 1).await.unwrap();
                    mine += 1;
                }
                child.kill().unwrap();
                child.wait().unwrap();
                let own = child.id().to_string();
                let found = store.get(&format!("{own}-n"), ROOM).await.unwrap().unwrap();
                let found: usize = String::from_utf8(found).unwrap().parse().unwrap();
                assert!(found >= n, "{found} of {n}");
                // Two keys that are set together are never apart.
                assert_eq!(store.get(&own, ROOM).await.unwrap().unwrap().len(), found % 5000);
                least += n;
            }
            least += mine;
            let all = usize::try_from(store.increment("all".to_owned(), 0).await.unwrap()).unwrap();
            assert!(all >= least, "{all} of {least}");
        }
    });
    drop(stores);
    let again = KeyValue::new(settings(64), dir);
    let all = run(async {
        again.store("app", "default").await.unwrap().increment("all".to_owned(), 0).await.unwrap()
    });
    assert!(usize::try_from(all).unwrap() >= least);
}
