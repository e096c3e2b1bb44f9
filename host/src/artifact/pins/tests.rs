//! Pins over evictions, restarts, damage and sudden ends.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::artifact::cache::{Cache, Goal};

/// A cache and a state folder beside it.
struct Place {
    root: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        Place { root, cache }
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state/pins")
    }

    fn open(&self) -> Pins {
        fs::create_dir_all(self.state()).unwrap();
        // A child that another test starts has the lock as well, from when it is forked until it is another program.
        for _ in 0..500 {
            match Pins::open(&self.state()) {
                Err(PinError::InUse { .. }) => std::thread::sleep(std::time::Duration::from_millis(10)),
                opened => return opened.unwrap(),
            }
        }
        panic!("it stays in use");
    }

    fn put(&self, text: &str) -> Digest {
        self.cache.blobs().put(text.as_bytes()).unwrap()
    }

    /// The file of a blob in the cache.
    fn cached(&self, digest: &Digest) -> PathBuf {
        self.cache.blobs().path(digest)
    }

    fn evict(&self) {
        self.cache.evict(Goal::All, false).unwrap();
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    entries(folder)
        .unwrap()
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn hex(digests: &[Digest]) -> BTreeSet<String> {
    digests.iter().map(Digest::hex).collect()
}

#[test]
fn what_is_pinned_comes_back_to_the_cache() {
    let place = Place::new();
    let (model, code, other) = (place.put("model"), place.put("code"), place.put("other"));
    place.open().pin("app 1", &[model, code, model], &place.cache.blobs()).unwrap();
    place.evict();
    assert!([model, code, other].iter().all(|digest| !place.cached(digest).exists()));
    let pins = place.open();
    assert_eq!(pins.owners(), BTreeMap::from([("app 1".to_owned(), BTreeSet::from([model, code]))]));
    let blobs = place.cache.blobs();
    assert_eq!(pins.restore(&blobs).unwrap(), Restored { put_back: 2, ..Restored::default() });
    assert_eq!(fs::read(blobs.get(&model).unwrap().unwrap()).unwrap(), b"model");
    assert_eq!(pins.restore(&blobs).unwrap(), Restored::default());
    // The bytes are there once.
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&place.cached(&code)), inode(&pins.blob(&code)));
    // What goes through `blobs` stays.
    place.evict();
    assert!(place.cached(&code).exists());
    drop(blobs);
    pins.unpin("app 1").unwrap();
    place.evict();
    assert!(!place.cached(&code).exists());
    assert_eq!((names(&pins.dir.join(BLOBS)).len(), names(&pins.dir.join(OWNERS)).len()), (0, 0));
}

#[test]
fn a_blob_stays_until_both_owners_let_go() {
    let place = Place::new();
    let (shared, own) = (place.put("shared"), place.put("own"));
    let (pins, blobs) = (place.open(), place.cache.blobs());
    pins.pin("app 1", &[shared, own], &blobs).unwrap();
    pins.pin("app 2", &[shared], &blobs).unwrap();
    let kept = || names(&pins.dir.join(BLOBS));
    pins.unpin("app 1").unwrap();
    assert_eq!(kept(), hex(&[shared]));
    pins.unpin("app 1").unwrap();
    pins.unpin("app 2").unwrap();
    assert_eq!(kept(), hex(&[]));
    // A pin takes the place of the owner's former one.
    pins.pin("app 1", &[shared], &blobs).unwrap();
    pins.pin("app 1", &[own], &blobs).unwrap();
    assert_eq!(kept(), hex(&[own]));
    pins.pin("app 2", &[shared], &blobs).unwrap();
    pins.retain(&|owner| owner == "app 2").unwrap();
    assert_eq!(kept(), hex(&[shared]));
}

#[test]
fn a_pin_that_fails_changes_nothing() {
    let place = Place::new();
    let (there, new) = (place.put("there"), place.put("new"));
    let gone = Digest::of(b"gone");
    let (pins, blobs) = (place.open(), place.cache.blobs());
    pins.pin("app 1", &[there], &blobs).unwrap();
    let before = pins.owners();
    let error = pins.pin("app 1", &[new, gone], &blobs).unwrap_err().to_string();
    assert!(error.contains(&gone.to_string()) && error.contains("deploy again"), "{error}");
    assert_eq!(pins.owners(), before);
    assert_eq!(names(&pins.dir.join(BLOBS)), hex(&[there]));
    assert!(matches!(pins.pin(&"x".repeat(2000), &[there], &blobs), Err(PinError::TooMany { .. })));
    let error = Pins::open(&place.state()).unwrap_err().to_string();
    assert!(error.contains("another host uses the state") && error.contains("--state"), "{error}");
    drop(pins);
    assert_eq!(place.open().owners(), before);
}

#[test]
fn damage_is_found_and_healed_where_it_can_be() {
    let place = Place::new();
    let (one, two, three) = (place.put("one"), place.put("two"), place.put("three"));
    let pins = place.open();
    pins.pin("a", &[one, two, three], &place.cache.blobs()).unwrap();
    pins.pin("b", &[three], &place.cache.blobs()).unwrap();
    // One is damaged in both places, two lost its pin, three is lost everywhere.
    fs::set_permissions(pins.blob(&one), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(pins.blob(&one), "eno").unwrap();
    fs::remove_file(pins.blob(&two)).unwrap();
    fs::remove_file(pins.blob(&three)).unwrap();
    fs::remove_file(place.cached(&three)).unwrap();
    let restored = pins.restore(&place.cache.blobs()).unwrap();
    let lost = BTreeMap::from([("a".to_owned(), [one, three].into()), ("b".to_owned(), [three].into())]);
    assert_eq!(restored, Restored { lost, ..Restored::default() });
    assert_eq!(names(&pins.dir.join(BLOBS)), hex(&[two]));
    // Whoever brings it back pins it again.
    place.put("one");
    place.put("three");
    pins.pin("a", &[one, two, three], &place.cache.blobs()).unwrap();
    assert_eq!(pins.restore(&place.cache.blobs()).unwrap(), Restored::default());
}

#[test]
fn a_damaged_note_loses_no_blobs() {
    let place = Place::new();
    let (one, two) = (place.put("one"), place.put("two"));
    let pins = place.open();
    pins.pin("a", &[one], &place.cache.blobs()).unwrap();
    pins.pin("b", &[two], &place.cache.blobs()).unwrap();
    fs::write(pins.place("a"), "{").unwrap();
    drop(pins);
    place.evict();
    let pins = place.open();
    assert_eq!(pins.owners().into_keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(pins.restore(&place.cache.blobs()).unwrap().put_back, 2);
    pins.pin("a", &[one], &place.cache.blobs()).unwrap();
    drop(pins);
    assert_eq!(names(&place.open().dir.join(BLOBS)), hex(&[one, two]));
}

#[test]
fn what_cannot_be_read_keeps_nothing_else_from_coming_back() {
    let place = Place::new();
    let (one, two) = (place.put("one"), place.put("two"));
    let pins = place.open();
    pins.pin("a", &[one], &place.cache.blobs()).unwrap();
    pins.pin("b", &[two], &place.cache.blobs()).unwrap();
    pins.pin("c", &[two], &place.cache.blobs()).unwrap();
    place.evict();
    // Folders in the places of files cannot be read by anybody.
    fs::remove_file(pins.blob(&one)).unwrap();
    fs::create_dir(pins.blob(&one)).unwrap();
    fs::remove_file(pins.place("c")).unwrap();
    fs::create_dir(pins.place("c")).unwrap();
    drop(pins);
    let pins = place.open();
    assert_eq!(pins.owners().into_keys().collect::<Vec<_>>(), ["a", "b"]);
    let restored = pins.restore(&place.cache.blobs()).unwrap();
    assert_eq!((restored.put_back, restored.troubles.len()), (1, 1), "{restored:?}");
    assert!(restored.troubles[0].contains(&one.to_string()), "{restored:?}");
}

#[test]
fn pins_come_and_go_beside_each_other() {
    let place = Place::new();
    let (pins, blobs) = (place.open(), place.cache.blobs());
    let shared: Vec<Digest> = (0..8).map(|number: u8| place.put(&format!("blob {number}"))).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (pins, blobs, shared) = (&pins, &blobs, &shared);
            scope.spawn(move || {
                for round in 0..50 {
                    let owner = format!("app {thread}");
                    pins.pin(&owner, &shared[..=round % 8], blobs).unwrap();
                    assert!(shared[..=round % 8].iter().all(|digest| pins.blob(digest).exists()));
                    pins.unpin(&owner).unwrap();
                }
            });
        }
    });
    assert!(names(&pins.dir.join(BLOBS)).is_empty() && names(&pins.dir.join(DRAFTS)).is_empty());
}

#[test]
fn without_links_there_are_copies() {
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    let place = Place::new();
    let is_other =
        |path: &Path| fs::metadata(path).unwrap().dev() != fs::metadata(place.root.path()).unwrap().dev();
    if !is_other(other.path()) {
        return;
    }
    let digest = place.put("model");
    let pins = Pins::open(other.path()).unwrap();
    pins.pin("a", &[digest], &place.cache.blobs()).unwrap();
    let made = fs::metadata(pins.blob(&digest)).unwrap();
    assert_eq!(made.mode() & 0o777, MODE);
    pins.pin("b", &[digest], &place.cache.blobs()).unwrap();
    assert_eq!(fs::metadata(pins.blob(&digest)).unwrap().ino(), made.ino());
    place.evict();
    assert_eq!(pins.restore(&place.cache.blobs()).unwrap().put_back, 1);
    assert_eq!(fs::read(place.cached(&digest)).unwrap(), b"model");
}

/// Where the process that is killed has its cache and state.
const ROOT: &str = "TENON_TEST_PINS";

/// Not a test: what [`killed_at_any_moment`] kills.
#[test]
#[ignore = "it is started by another test"]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let root = PathBuf::from(root);
    let blobs = Cache::open(&root.join("cache")).unwrap().blobs();
    let pins = Pins::open(&root.join("pins")).unwrap();
    let mut log = File::options().append(true).create(true).open(root.join("log")).unwrap();
    for round in 0_u64.. {
        let owner = format!("app {}", round % 3);
        let digests: Vec<_> = (0..=round % 5)
            .map(|number| blobs.put(format!("{}", (round + number) % 7).as_bytes()).unwrap())
            .collect();
        let listed: Vec<_> = digests.iter().map(Digest::to_string).collect();
        let _ = writeln!(log, "begin {owner}:{}", listed.join(","));
        pins.pin(&owner, &digests, &blobs).unwrap();
        let _ = writeln!(log, "end");
        if round % 4 == 3 {
            let _ = writeln!(log, "begin {owner}:");
            pins.unpin(&owner).unwrap();
            let _ = writeln!(log, "end");
        }
    }
}

#[test]
fn killed_at_any_moment_it_leaves_what_was_acknowledged_or_what_was_under_way() {
    let root = tempfile::tempdir().unwrap();
    let (mut seed, mut pinned) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for round in 0..40 {
        let name = format!("{}::child", module_path!().split_once("::").unwrap().1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored"])
            .env(ROOT, root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros(10_000 + (seed >> 33) % 50_000));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "round {round}");
        let log = fs::read_to_string(root.path().join("log")).unwrap_or_default();
        let (mut sure, mut maybe) = (Owners::new(), None);
        for line in log.lines() {
            match (line.strip_prefix("begin "), maybe.take()) {
                (Some(begun), _) => {
                    let (owner, digests) = begun.split_once(':').unwrap();
                    let digests = digests.split(',').filter(|digest| !digest.is_empty());
                    let digests: BTreeSet<Digest> = digests.map(|digest| digest.parse().unwrap()).collect();
                    maybe = Some((owner.to_owned(), digests));
                }
                (None, Some((owner, digests))) if line == "end" => {
                    sure.insert(owner, digests);
                }
                _ => {}
            }
        }
        sure.retain(|_, digests| !digests.is_empty());
        let mut also = sure.clone();
        also.extend(maybe);
        also.retain(|_, digests| !digests.is_empty());
        let pins = Pins::open(&root.path().join("pins")).unwrap();
        let found = pins.owners();
        assert!(found == sure || found == also, "round {round}: {found:?}\n{sure:?}\n{also:?}");
        let named: Vec<_> = found.values().flatten().copied().collect();
        assert_eq!(names(&pins.dir.join(BLOBS)), hex(&named), "round {round}");
        assert!(names(&pins.dir.join(DRAFTS)).is_empty());
        assert!(named.iter().all(|digest| Digest::of(&fs::read(pins.blob(digest)).unwrap()) == *digest));
        pinned += log.lines().filter(|line| *line == "end").count();
        // The log goes on from what is.
        let text: String = found
            .iter()
            .map(|(owner, digests)| {
                let digests: Vec<_> = digests.iter().map(Digest::to_string).collect();
                format!("begin {owner}:{}\nend\n", digests.join(","))
            })
            .collect();
        fs::write(root.path().join("log"), text).unwrap();
    }
    assert!(pinned > 40, "it was always killed before it had begun: {pinned}");
}
