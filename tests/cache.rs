//! The cache that all apps of a host share: what is served stays in it, and its commands tell and keep the truth.

use std::path::Path;

use tenon::artifact::cache::{Cache, Goal};
use tenon::artifact::oci::Digest;

use crate::harness::{TestHost, app, run, tenon};
use crate::raw::{call, grant, le, model, raw};

/// `tenon cache` with these arguments for the cache at `cache`: its exit code, and what it says on both outputs.
async fn command(folder: &Path, cache: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let settings = format!("[cache]\ndir = {cache:?}\n");
    let arguments = [&["cache"], arguments].concat();
    let output = tenon(folder, &settings, &arguments).output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), said)
}

fn count(cache: &Path, folder: &str) -> usize {
    std::fs::read_dir(cache.join(folder)).unwrap().count()
}

#[test]
fn what_is_served_stays_in_the_cache_until_it_is_not_served_any_more() {
    run(async {
        let host = TestHost::of(app(&[raw("add", &grant("add", &model("add"), "backend = \"tract\""))]))
            .private_cache()
            .start()
            .await;
        let folder = host.folder.path().to_owned();
        let cache = folder.join("cache");
        let loose = host.host.deployer.intake.cache.blobs().put(b"of no use to anybody").unwrap();
        let (code, said) = command(&folder, &cache, &["prune", "--all", "--dry-run"]).await;
        assert_eq!((code, said.contains("would free 20 B in 1 files")), (Some(0), true), "{said}");
        let (code, said) = command(&folder, &cache, &["prune", "--all"]).await;
        assert_eq!((code, said.contains("freed 20 B in 1 files")), (Some(0), true), "{said}");
        let counts =
            || ["models", "compiled", "verdicts", "blobs/sha256"].map(|folder| count(&cache, folder));
        assert_eq!(counts(), [1; 4]);
        assert!(!cache.join("blobs/sha256").join(loose.hex()).exists());
        // The graph is not in memory yet: this loads the model from its file.
        let inputs = "input=a:I64:1&input=b:I64:1";
        let input = le![1_i64, 2_i64];
        call(&host, "add", &format!("model=add&{inputs}"), &input).await.expect(200);
        let (code, said) = command(&folder, &cache, &["ls"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("models") && said.contains("compiled components"), "{said}");
        let (_, said) = command(&folder, &cache, &["ls", "--json"]).await;
        let told: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(told["bytes"], told["in_use_bytes"], "{said}");
        let TestHost { host, folder: _kept } = host;
        assert!(host.drain().await);
        // What a call still holds goes a moment after it.
        crate::harness::eventually("everything goes", async || {
            command(&folder, &cache, &["prune", "--all"]).await;
            counts() == [0; 4]
        })
        .await;
    });
}

#[test]
fn a_cache_is_verified_and_what_is_damaged_is_named() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let (code, said) = command(folder.path(), &cache, &["ls"]).await;
        assert_eq!((code, cache.exists()), (Some(0), false), "{said}");
        let blobs = Cache::open(&cache).unwrap().blobs();
        let [good, bad] = [&b"good"[..], b"bad"].map(|bytes| blobs.put(bytes).unwrap());
        let (code, said) = command(folder.path(), &cache, &["verify"]).await;
        assert_eq!((code, said.as_str()), (Some(0), "2 files are whole\n"));
        std::fs::remove_file(blobs.path(&bad)).unwrap();
        std::fs::write(blobs.path(&bad), "b4d").unwrap();
        let (code, said) = command(folder.path(), &cache, &["verify"]).await;
        assert_eq!(code, Some(1), "{said}");
        let path = blobs.path(&bad).display().to_string();
        assert!(said.contains(&path) && said.contains("1 files are whole"), "{said}");
        assert!(blobs.path(&good).exists() && !blobs.path(&bad).exists());
        let (code, said) = command(folder.path(), &cache, &["prune", "--older-than", "soon"]).await;
        assert_eq!((code, said.contains("such as `7d`")), (Some(2), true), "{said}");
    });
}

#[test]
fn a_host_keeps_its_cache_within_its_bound() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let cache = Cache::bounded(&dir, 4 << 20).unwrap();
        for number in 0..6 {
            cache.blobs().put(&vec![number; 1 << 20]).unwrap();
        }
        let left = cache.evict(Goal::Bytes(u64::MAX), true).unwrap().left_bytes;
        assert!(left <= 4 << 20, "{left}");
        assert!(
            cache.blobs().get(&Digest::of(&vec![5; 1 << 20])).unwrap().is_some(),
            "the last that was used"
        );
        let host = TestHost::of(app(&[raw("none", "")])).config(|config| {
            config.cache.dir = Some(dir.clone());
            config.cache.max_mib = 1;
        });
        let host = host.start().await;
        crate::harness::eventually("a deployment makes room", async || count(&dir, "blobs/sha256") == 0)
            .await;
        assert!(host.stop().await);
    });
}
