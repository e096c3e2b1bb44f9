//! Key-value stores and variables, as functions of every generation of Spin's SDK see them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustix::process::Signal;
use tenon::config::{Config, KeyValuePlace, KeyValueStore, Secret, demands};

use crate::harness::{Program, TestHost, UP, app, eventually, exchange, function, request, run, tenon};

/// Both guests, with the store `default` and a variable.
fn both(settings: &str) -> String {
    let settings =
        format!("key_value_stores = [\"default\"]\nvariables = {{ colour = \"red\" }}\n{settings}");
    app(&[
        function("/p2/...", "keys-p2", "keys_p2", &settings),
        function("/p3/...", "keys-p3", "keys_p3", &settings),
    ])
}

async fn check(host: &TestHost, path: &str, expected: &str) {
    let answer = host.get(path).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, expected), "{path}");
}

/// What both guests find, on an empty store of some MiB.
async fn keeps_keys(host: &TestHost) {
    for guest in ["p2", "p3"] {
        let check =
            async |path: &str, expected: &str| check(host, &format!("/{guest}/{path}"), expected).await;
        check("keys/default", "").await;
        check("get/default/a", "none").await;
        check("exists/default/a", "false").await;
        check("set/default/a/one", "done").await;
        check("set/default/a/two", "done").await;
        check("set/default/b/three", "done").await;
        check("get/default/a", "two").await;
        check("keys/default", "a,b").await;
        check("delete/default/a", "done").await;
        check("delete/default/a", "done").await;
        check("exists/default/a", "false").await;
        check("exists/default/b", "true").await;
        check("delete/default/b", "done").await;
    }
    // What one writes, the other reads.
    check(host, "/p2/set/default/a/from%202", "done").await;
    check(host, "/p3/get/default/a", "from%202").await;
    check(host, "/p3/delete/default/a", "done").await;
    check(
        host,
        "/p2/cas/default",
        "[10, -5] Some([116, 119, 111]) true (Some([102, 111, 117, 114]), true) true Some([115, 105, 120])",
    )
    .await;
    for key in ["absent", "k", "sum"] {
        check(host, &format!("/p2/delete/default/{key}"), "done").await;
    }
    let foreign = "Err(Error::Other(\"`17` is not a cursor that list-keys has given\"))";
    let paged = format!("right: true, all: true on 3 pages, foreign: {foreign}, left: 0");
    check(host, "/p2/wasi/default", &paged).await;
    let found = "[(\"w\", Some([49])), (\"x\", Some([50])), (\"?\", None)]";
    let wasi = format!("{found} 5 Some([49]) Some([51]) [\"sum\", \"w\", \"x\"] 0");
    check(host, "/p3/wasi/default", &wasi).await;
    check(host, "/p3/many/default/300", "3000 bytes, all listed: true").await;
    check(host, "/p3/some/default", "Some(\"many 00000\") Some(\"many 00001\")").await;
    check(host, "/p3/lists/default", "4 of 20 were refused").await;
}

#[test]
fn functions_of_every_generation_keep_keys_in_the_file() {
    run(async {
        let host = TestHost::of(both("")).start().await;
        keeps_keys(&host).await;
        assert!(host.folder.path().join("state/key-value.redb").exists());
    });
}

/// A server of the test's own, which ends with this.
struct Redis {
    server: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Redis {
    fn start() -> Option<Redis> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).arg("--dir");
        let server = server.arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match server {
            Ok(server) => Some(Redis { server, port, _folder: folder }),
            Err(error) => {
                assert!(!demands("redis"), "TENON_REQUIRE demands redis: {error}");
                eprintln!("skipped: redis-server is not here: {error}");
                None
            }
        }
    }

    async fn listens(&self) {
        let port = self.port;
        eventually("redis-server listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn in_redis(port: u16) -> impl FnOnce(&mut Config) {
    move |config| {
        let place = KeyValuePlace::Redis(Secret(format!("redis://127.0.0.1:{port}")));
        config.key_value.stores.insert("default".to_owned(), KeyValueStore { place, shared: false });
    }
}

#[test]
fn functions_of_every_generation_keep_keys_in_redis() {
    let Some(redis) = Redis::start() else { return };
    run(async {
        redis.listens().await;
        let host = TestHost::of(both("")).config(in_redis(redis.port)).start().await;
        keeps_keys(&host).await;
        assert!(!host.folder.path().join("state").exists());
    });
}

#[test]
fn a_store_that_does_not_answer_keeps_nobody_beyond_the_deadline() {
    run(async {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let manifest = both("tool.tenon.limits.deadline_ms = 400");
        let host = TestHost::of(manifest).config(in_redis(port)).start().await;
        for guest in ["p2", "p3"] {
            let started = Instant::now();
            let answer = host.get(&format!("/{guest}/get/default/a")).await;
            assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{}", answer.text());
            assert!(started.elapsed() < Duration::from_secs(2));
        }
    });
}

#[test]
fn variables_are_read_through_every_interface() {
    run(async {
        let host = TestHost::of(both("")).start().await;
        for guest in ["p2", "p3"] {
            let check =
                async |path: &str, expected: &str| check(&host, &format!("/{guest}/{path}"), expected).await;
            check("variable/colour", "red").await;
            check("variable/shape", "refused: Error::Undefined(\"shape\")").await;
            check("variable/Shape", "refused: Error::InvalidName(\"Shape\")").await;
            check("config/colour", "Ok(Some(\"red\")) of Ok([(\"colour\", \"red\")])").await;
            check("config/Shape", "Ok(None) of Ok([(\"colour\", \"red\")])").await;
        }
    });
}

#[test]
fn a_store_that_was_not_granted_is_denied_whether_or_not_it_is_there() {
    run(async {
        let host = TestHost::of(both("")).config(|config| {
            config.key_value.stores.insert("other".to_owned(), KeyValueStore::default());
        });
        let host = host.start().await;
        for name in ["other", "nowhere", "", "..%2Fdefault"] {
            for guest in ["p2", "p3"] {
                let denied = "refused: Error::AccessDenied";
                check(&host, &format!("/{guest}/get/{name}/a"), denied).await;
                let wasi = if guest == "p2" { denied } else { "Error::AccessDenied" };
                check(&host, &format!("/{guest}/wasi/{name}"), wasi).await;
            }
        }
    });
}

#[test]
fn a_store_that_the_host_does_not_have_keeps_the_app_from_being_served() {
    run(async {
        let manifest = app(&[function("/", "keys-p2", "keys_p2", "key_value_stores = [\"sessions\"]")]);
        let Err(refused) = TestHost::of(manifest).try_start().await else { panic!("it was served") };
        assert!(refused.contains("failed to deploy `app/keys-p2`"), "{refused}");
        assert!(refused.contains("add `[key_value.stores.sessions]` to host.toml"), "{refused}");
    });
}

#[test]
fn a_damaged_file_keeps_the_app_from_being_served() {
    run(async {
        let host = TestHost::of(both("")).file("state/key-value.redb", vec![7; 9000]);
        let Err(refused) = host.try_start().await else { panic!("it was served") };
        assert!(refused.contains("key-value.redb") && refused.contains("it is damaged"), "{refused}");
    });
}

#[test]
fn an_app_sees_nothing_of_another_that_keeps_its_keys_in_the_same_place() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &str| {
            let stores = "key_value_stores = [\"default\", \"ours\"]";
            let text = app(&[function("/p3/...", "keys-p3", "keys_p3", stores)]);
            let host = TestHost::of(text.replace("name = \"app\"", &format!("name = \"{name}\"")));
            host.config(|config| {
                config.key_value.dir = Some(folder.path().to_owned());
                let shared = KeyValueStore { shared: true, ..KeyValueStore::default() };
                config.key_value.stores.insert("ours".to_owned(), shared);
            })
        };
        let (one, two) = (with("one").start().await, with("two").start().await);
        check(&one, "/p3/set/default/k/secret", "done").await;
        check(&one, "/p3/set/ours/k/known", "done").await;
        check(&two, "/p3/get/default/k", "none").await;
        check(&two, "/p3/keys/default", "").await;
        check(&two, "/p3/get/ours/k", "known").await;
        check(&two, "/p3/set/default/k/other", "done").await;
        check(&one, "/p3/get/default/k", "secret").await;
        assert!(one.stop().await && two.stop().await);
    });
}

#[test]
fn a_function_that_writes_without_end_is_stopped_by_the_bound() {
    run(async {
        let host = TestHost::of(both("")).config(|config| config.key_value.max_mib = 2).start().await;
        for guest in ["p2", "p3"] {
            let answer = host.get(&format!("/{guest}/fill/default")).await.text();
            assert!(answer.starts_with("20 were set") && answer.contains("the store is full"), "{answer}");
            let answer = host.get(&format!("/{guest}/open/default")).await.text();
            assert_eq!(answer, "256 are open: Error::StoreTableFull");
        }
        // What is there can be read, and made smaller.
        check(&host, "/p2/exists/default/7", "true").await;
        check(&host, "/p2/set/default/7/short", "done").await;
        check(&host, "/p2/set/default/more/short", "done").await;
        let longest = "k".repeat(255);
        check(&host, &format!("/p3/set/default/{longest}/v"), "done").await;
        let answer = host.get(&format!("/p3/set/default/{longest}k/v")).await.text();
        assert!(answer.contains("a key of 256 bytes is too long"), "{answer}");
    });
}

fn spin_toml(folder: &Path) {
    std::fs::write(folder.join("spin.toml"), both("")).unwrap();
}

#[test]
fn keys_outlive_a_host_that_was_killed_and_can_be_set_when_it_starts() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        spin_toml(folder.path());
        std::fs::write(folder.path().join("value.txt"), "from a file").unwrap();
        let arguments = [&UP[..], &["--key-value", "a=from = here", "--key-value", "b=@value.txt"]].concat();
        let settings = "[listen]\nadmin = \"off\"\n";
        let (program, _) = Program::of(tenon(folder.path(), settings, &arguments)).await;
        let get = async |program: &Program, path: &str| {
            exchange(program.address, request(Method::GET, path, &[], "")).await.unwrap().text()
        };
        assert_eq!(get(&program, "/p3/get/default/a").await, "from = here");
        assert_eq!(get(&program, "/p2/get/default/b").await, "from a file");
        assert_eq!(get(&program, "/p2/set/default/c/kept").await, "done");
        // A second host of the same app, beside the first.
        let beside = Program::start(folder.path(), "").await;
        assert_eq!(get(&beside, "/p2/get/default/c").await, "kept");
        assert_eq!(get(&beside, "/p3/set/default/d/beside").await, "done");
        program.signal(Signal::KILL);
        program.ended().await;
        assert_eq!(get(&beside, "/p2/set/default/c/later").await, "done");
        beside.signal(Signal::KILL);
        beside.ended().await;
        assert!(folder.path().join(".tenon/key-value.redb").exists());
        let again = Program::start(folder.path(), "").await;
        assert_eq!(get(&again, "/p2/get/default/c").await, "later");
        assert_eq!(get(&again, "/p3/keys/default").await, "a,b,c,d");
    });
}
