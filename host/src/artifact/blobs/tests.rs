//! Tests of the store: of one process, and of several, some of which are killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::*;
use crate::artifact::cache::Goal;
use crate::artifact::cache::eviction_for_tests as evict;

const LIMIT: u64 = 1 << 20;

fn store() -> (tempfile::TempDir, Blobs) {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&root.path().join("cache"), 0).unwrap();
    (root, blobs)
}

/// As another process, or this one later, sees the same cache.
fn again(blobs: &Blobs) -> Blobs {
    Blobs::open(&blobs.store.root, 0).unwrap()
}

/// As after the machine was started again.
fn after_restart(blobs: &Blobs) -> Blobs {
    let mut again = again(blobs);
    let store = Arc::get_mut(&mut again.store).unwrap();
    store.records = store.records.clone().in_run("another run");
    again
}

/// Overwrites a file in a way that only reading it tells.
fn damage(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(b"#").unwrap();
    file.set_modified(modified).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn incoming(receiving: Receiving) -> Incoming {
    match receiving {
        Receiving::Part(incoming) => incoming,
        Receiving::Whole(path) => panic!("{} is there", path.display()),
    }
}

#[test]
fn a_blob_is_one_read_only_file_under_its_digest() {
    let (_root, blobs) = store();
    assert_eq!(blobs.get(&Digest::of(b"seven")).unwrap(), None);
    assert_eq!(blobs.read(&Digest::of(b"seven"), LIMIT).unwrap(), None);
    let digest = blobs.put(b"seven").unwrap();
    assert_eq!(blobs.put(b"seven").unwrap(), digest);
    assert_eq!(digest, Digest::of(b"seven"));
    let path = blobs.get(&digest).unwrap().unwrap();
    assert_eq!(path, blobs.path(&digest));
    assert_eq!(fs::read(&path).unwrap(), b"seven");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
    assert_eq!(blobs.read(&digest, 5).unwrap().unwrap(), b"seven");
    let error = blobs.read(&digest, 4).unwrap_err().to_string();
    assert!(error.contains("larger than the 4 bytes"), "{error}");
    assert_eq!(names(&blobs.partial()), [""; 0], "nothing is left behind");
}

#[test]
fn a_file_is_read_once_and_then_not_again_until_it_changes() {
    let (root, blobs) = store();
    let file = root.path().join("model.onnx");
    fs::write(&file, "first").unwrap();
    let earlier = SystemTime::now() - Duration::from_secs(60);
    let backdate = || File::options().append(true).open(&file).unwrap().set_modified(earlier).unwrap();
    backdate();
    let first = (Digest::of(b"first"), 5);
    assert_eq!(blobs.put_file(&file, LIMIT).unwrap(), first);
    // What only reading could tell shows that it was not read.
    fs::write(&file, "f1rst").unwrap();
    backdate();
    assert_eq!(blobs.put_file(&file, LIMIT).unwrap(), first);
    fs::write(&file, "second").unwrap();
    assert_eq!(blobs.put_file(&file, LIMIT).unwrap(), (Digest::of(b"second"), 6));
    assert_eq!(fs::read(blobs.path(&first.0)).unwrap(), b"first");
    // One that was written a moment ago is read again: its times may not tell yet.
    fs::write(&file, "sec0nd").unwrap();
    assert_eq!(blobs.put_file(&file, LIMIT).unwrap(), (Digest::of(b"sec0nd"), 6));
    // A blob that is gone is made again, though its file was seen.
    fs::write(&file, "first").unwrap();
    backdate();
    blobs.put_file(&file, LIMIT).unwrap();
    fs::remove_file(blobs.path(&first.0)).unwrap();
    assert_eq!(blobs.put_file(&file, LIMIT).unwrap(), first);
    assert_eq!(fs::read(blobs.path(&first.0)).unwrap(), b"first");
}

#[test]
fn a_path_of_a_blob_is_neither_copied_nor_read() {
    let (_root, blobs) = store();
    let digest = blobs.put(b"weights").unwrap();
    damage(&blobs.path(&digest));
    assert_eq!(blobs.put_file(&blobs.path(&digest), LIMIT).unwrap(), (digest, 7));
    assert_eq!(names(&blobs.store.root.join("blobs/sha256")).len(), 1);
    assert_eq!(names(&blobs.store.root.join("seen")), [""; 0]);
}

#[test]
fn what_cannot_be_kept_says_why() {
    let (root, blobs) = store();
    let file = root.path().join("model.onnx");
    let check = |limit, expected: &str| {
        let error = blobs.put_file(&file, limit).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(LIMIT, "cannot read");
    fs::write(&file, "12345").unwrap();
    check(4, "is larger than the 4 bytes");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    check(LIMIT, "it is not a file");
    // A folder of the cache that cannot be written: nothing is half there.
    fs::remove_dir(blobs.partial()).unwrap();
    fs::write(blobs.partial(), "").unwrap();
    let error = blobs.put(b"seven").unwrap_err().to_string();
    assert!(error.contains("cannot write to the cache") && error.contains("cache.dir"), "{error}");
    let error = blobs.receive(&Digest::of(b"seven"), 5).unwrap_err().to_string();
    assert!(error.contains("cannot write to the cache"), "{error}");
    assert_eq!(names(&blobs.store.root.join("blobs/sha256")), [""; 0]);
    let advice = |kind: io::ErrorKind| {
        let path = PathBuf::from("/cache");
        BlobError::Write { path, source: kind.into() }.to_string()
    };
    assert!(advice(io::ErrorKind::ReadOnlyFilesystem).contains("let the host's user write there"));
    assert!(advice(io::ErrorKind::StorageFull).contains("free some space"));
}

#[test]
fn a_blob_comes_in_parts_and_goes_on_where_it_was() {
    let (_root, blobs) = store();
    let digest = Digest::of(b"hello world");
    let mut part = incoming(blobs.receive(&digest, 11).unwrap());
    assert_eq!((part.received(), part.size()), (0, 11));
    part.write(b"hello ").unwrap();
    drop(part);
    assert_eq!(blobs.get(&digest).unwrap(), None);
    let blobs = again(&blobs);
    let mut part = incoming(blobs.receive(&digest, 11).unwrap());
    assert_eq!(part.received(), 6);
    part.write(b"world").unwrap();
    let path = part.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
    assert!(matches!(blobs.receive(&digest, 11).unwrap(), Receiving::Whole(whole) if whole == path));
    assert_eq!(names(&blobs.partial()), [""; 0]);
    // A blob of nothing is one too.
    let empty = Digest::of(b"");
    let path = incoming(blobs.receive(&empty, 0).unwrap()).finish().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"");
    // One that was asked for and never came leaves nothing.
    drop(blobs.receive(&Digest::of(b"never"), 5).unwrap());
    assert_eq!(names(&blobs.partial()), [""; 0]);
}

#[test]
fn what_comes_wrong_is_said_and_never_becomes_a_blob() {
    let (_root, blobs) = store();
    let digest = Digest::of(b"hello");
    let partial = blobs.partial().join(digest.hex());
    let mut part = incoming(blobs.receive(&digest, 5).unwrap());
    part.write(b"hel").unwrap();
    let error = part.write(b"low").unwrap_err().to_string();
    assert!(error.contains("more than the 5 bytes"), "{error}");
    assert_eq!(part.received(), 3);
    let error = part.finish().unwrap_err().to_string();
    assert!(error.contains("3 of the 5 bytes"), "{error}");
    let mut part = incoming(blobs.receive(&digest, 5).unwrap());
    assert_eq!(part.received(), 3, "what came stays");
    part.write(b"p!").unwrap();
    let error = part.finish().unwrap_err().to_string();
    assert!(error.contains(&digest.to_string()) && error.contains("was removed"), "{error}");
    assert!(!partial.exists());
    // What an earlier process left: too long, and damaged.
    for left in ["hello and more", "help!"] {
        fs::write(&partial, left).unwrap();
        assert_eq!(incoming(blobs.receive(&digest, 5).unwrap()).received(), 0, "{left}");
    }
    // Left at the last moment: all there, and read-only already.
    fs::write(&partial, "hello").unwrap();
    fs::set_permissions(&partial, fs::Permissions::from_mode(MODE)).unwrap();
    let part = incoming(blobs.receive(&digest, 5).unwrap());
    assert_eq!(part.received(), 5);
    part.finish().unwrap();
    let error = blobs.receive(&digest, 6).unwrap_err().to_string();
    assert!(error.contains("has 5 bytes and not 6"), "{error}");
    // Nobody has a disk for this.
    let error = blobs.receive(&Digest::of(b"huge"), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("MiB left") && error.contains("prune"), "{error}");
}

#[test]
fn one_receives_and_the_others_wait() {
    let (_root, blobs) = store();
    let digest = Digest::of(b"hello world");
    let mut first = incoming(blobs.receive(&digest, 11).unwrap());
    first.write(b"hello ").unwrap();
    let other = again(&blobs);
    assert!(other.try_receive(&digest, 11).unwrap().is_none());
    let stalled = Duration::from_millis(80);
    let error = other.receive_for_test(&digest, 11, stalled).unwrap_err().to_string();
    assert!(error.contains("has not gone on"), "{error}");
    std::thread::scope(|scope| {
        let finds = scope.spawn(|| matches!(other.receive(&digest, 11).unwrap(), Receiving::Whole(_)));
        first.write(b"world").unwrap();
        first.finish().unwrap();
        assert!(finds.join().unwrap(), "it is whole");
    });
    // Where the first gives up, the next goes on.
    let digest = Digest::of(b"another world");
    let mut first = incoming(blobs.receive(&digest, 13).unwrap());
    first.write(b"another ").unwrap();
    std::thread::scope(|scope| {
        let goes_on = scope.spawn(|| incoming(other.receive(&digest, 13).unwrap()).received());
        drop(first);
        assert_eq!(goes_on.join().unwrap(), 8);
    });
}

#[test]
fn whoever_comes_while_it_is_finished_finds_it_whole() {
    let (_root, blobs) = store();
    for round in 0_u32..200 {
        let bytes = round.to_le_bytes();
        let digest = Digest::of(&bytes);
        let finish = || loop {
            match blobs.try_receive(&digest, 4).unwrap() {
                None => std::thread::yield_now(),
                Some(Receiving::Whole(path)) => break path,
                Some(Receiving::Part(mut part)) => {
                    part.write(&bytes).unwrap();
                    break part.finish().unwrap();
                }
            }
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(finish)).collect();
            all.into_iter().for_each(|one| assert_eq!(fs::read(one.join().unwrap()).unwrap(), bytes));
        });
    }
    assert_eq!(names(&blobs.partial()), [""; 0]);
}

#[test]
fn a_put_and_a_receiver_of_the_same_bytes_do_not_disturb_each_other() {
    let (_root, blobs) = store();
    let digest = Digest::of(b"hello");
    let mut part = incoming(blobs.receive(&digest, 5).unwrap());
    part.write(b"hello").unwrap();
    blobs.put(b"hello").unwrap();
    let inode = fs::metadata(blobs.path(&digest)).unwrap().ino();
    let path = part.finish().unwrap();
    assert_eq!(fs::metadata(path).unwrap().ino(), inode, "what links to it stays the same file");
    assert_eq!(names(&blobs.partial()), [""; 0]);
}

#[test]
fn after_the_machine_went_down_a_blob_is_read_through_once() {
    let (_root, blobs) = store();
    let (good, bad) = (blobs.put(b"good").unwrap(), blobs.put(b"bad").unwrap());
    let models = blobs.store.root.join("models");
    fs::create_dir(&models).unwrap();
    fs::hard_link(blobs.path(&bad), models.join("model.onnx")).unwrap();
    damage(&blobs.path(&bad));
    assert!(blobs.get(&bad).unwrap().is_some(), "in one run of the machine nobody reads it again");
    let later = after_restart(&blobs);
    assert_eq!(later.get(&bad).unwrap(), None);
    assert!(!blobs.path(&bad).exists() && names(&models).is_empty(), "it is thrown away by all its names");
    assert_eq!(later.get(&good).unwrap(), Some(blobs.path(&good)));
    damage(&blobs.path(&good));
    assert!(later.get(&good).unwrap().is_some(), "it was verified");
    // A record that was lost or torn has it read again; so has a file that was changed in the open.
    for text in ["", "another"] {
        let digest = blobs.put(text.as_bytes()).unwrap();
        damage(&blobs.path(&digest));
        fs::write(blobs.store.root.join("records").join(digest.hex()), text).unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), None);
    }
    let digest = blobs.put(b"open").unwrap();
    fs::set_permissions(blobs.path(&digest), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(blobs.path(&digest), "ope").unwrap();
    assert_eq!(blobs.get(&digest).unwrap(), None);
    // Small ones are checked whenever they are read.
    let digest = blobs.put(b"small").unwrap();
    damage(&blobs.path(&digest));
    assert_eq!(blobs.read(&digest, LIMIT).unwrap(), None);
    assert!(!blobs.path(&digest).exists());
}

#[test]
fn references_lead_to_manifests_that_are_there() {
    let (_root, blobs) = store();
    let manifest = blobs.put(b"{}").unwrap();
    assert_eq!(blobs.remembered("registry.example/app:1").unwrap(), None);
    for name in ["registry.example/app:1", "registry.example/app:2"] {
        blobs.remember(name, &manifest).unwrap();
    }
    let other = again(&blobs);
    assert_eq!(other.remembered("registry.example/app:1").unwrap(), Some(manifest));
    let all = remembered(&blobs.store.root);
    let all: Vec<_> = all.iter().map(|found| (found.reference.as_str(), found.manifest)).collect();
    assert_eq!(all, [("registry.example/app:1", manifest), ("registry.example/app:2", manifest)]);
    let next = blobs.put(b"[]").unwrap();
    blobs.remember("registry.example/app:1", &next).unwrap();
    assert_eq!(other.remembered("registry.example/app:1").unwrap(), Some(next));
    fs::remove_file(blobs.path(&next)).unwrap();
    assert_eq!(other.remembered("registry.example/app:1").unwrap(), None);
    for wrong in ["", "a b", "a\n", "é", &"a".repeat(2000)] {
        let error = blobs.remember(wrong, &manifest).unwrap_err().to_string();
        assert!(error.contains("no reference"), "{error}");
    }
}

#[test]
fn what_goes_through_a_handle_stays_while_it_lives() {
    let (_root, blobs) = store();
    let other = again(&blobs);
    let session = blobs.afresh();
    let digest = session.put(b"seven").unwrap();
    let clone = session.clone();
    drop(session);
    let evicted = evict(&other, Goal::All);
    assert_eq!((evicted.bytes, evicted.in_use_bytes), (0, 5));
    drop(clone);
    let hold = blobs.hold([digest]).unwrap();
    let twice = hold.clone();
    assert_eq!(hold.digests().into_iter().collect::<Vec<_>>(), [digest]);
    drop(hold);
    assert_eq!(evict(&other, Goal::All).bytes, 0);
    drop(twice);
    assert_eq!(evict(&other, Goal::All).bytes, 5);
    assert_eq!(blobs.get(&digest).unwrap(), None);
    // Held before it is there.
    let hold = other.hold([digest]).unwrap();
    blobs.afresh().put(b"seven").unwrap();
    assert_eq!(evict(&blobs, Goal::All).bytes, 0);
    drop(hold);
    drop((blobs, other));
}

#[test]
fn lists_of_what_is_held_do_not_grow() {
    let (_root, blobs) = store();
    let digest = |number: u32| Digest::of(&number.to_le_bytes());
    for number in 0..100 {
        drop(blobs.hold((number..number + 5).map(digest)).unwrap());
    }
    let held = blobs.store.root.join("held");
    let lists: Vec<_> = names(&held).into_iter().filter(|name| name != "lock").collect();
    let [list] = lists.as_slice() else { panic!("{lists:?}") };
    assert_eq!(fs::metadata(held.join(list)).unwrap().len(), 5 * 66);
    assert!(hold::in_use(&held, None).unwrap().is_empty());
    let hold = blobs.hold([digest(7), digest(8)]).unwrap();
    assert_eq!(hold::in_use(&held, None).unwrap(), hold.digests());
    drop((hold, blobs));
    assert_eq!(names(&held), ["lock"]);
}

/// A process of its own, in the role that a test gives it: this program again, running [`child`].
struct Other(Child, BufReader<std::process::ChildStdout>);

const ROLE: &str = "TENON_TEST_ROLE";

impl Other {
    fn start(role: &str, blobs: &Blobs) -> Other {
        let test = format!("{}::child", module_path!().split_once("::").unwrap().1);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &test, "--ignored", "--nocapture"]);
        command.env(ROLE, role).env("TENON_TEST_CACHE", &blobs.store.root);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Other(child, out)
    }

    /// Waits until it says so.
    fn says(&mut self, what: &str) {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "it ended before it said `{what}`");
        }
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a process does in [`Other`] until its input ends.
#[test]
#[ignore = "other tests start it"]
#[expect(clippy::print_stdout, reason = "it tells its parent")]
fn child() {
    let role = std::env::var(ROLE).unwrap();
    let blobs = Blobs::open(Path::new(&std::env::var("TENON_TEST_CACHE").unwrap()), 0).unwrap();
    let digest = Digest::of(b"hello world");
    match role.as_str() {
        "receive" => {
            let mut part = incoming(blobs.receive(&digest, 11).unwrap());
            part.write(b"hello ").unwrap();
            println!("received");
            io::stdin().read_line(&mut String::new()).unwrap();
        }
        "hold" => {
            let _hold = blobs.hold([digest]).unwrap();
            println!("held");
            io::stdin().read_line(&mut String::new()).unwrap();
        }
        "use" => {
            let started = Instant::now();
            println!("started");
            for number in 0_u32.. {
                let bytes = vec![u8::try_from(number % 7).unwrap(); 3000];
                let session = blobs.afresh();
                let digest = match number % 2 {
                    0 => session.put(&bytes).unwrap(),
                    _ => {
                        let digest = Digest::of(&bytes);
                        if let Receiving::Part(mut part) = session.receive(&digest, 3000).unwrap() {
                            part.write(&bytes[usize::try_from(part.received()).unwrap()..]).unwrap();
                            part.finish().unwrap();
                        }
                        digest
                    }
                };
                let path = session.get(&digest).unwrap().expect("it is held");
                assert_eq!(fs::read(path).unwrap(), bytes);
                if started.elapsed() > Duration::from_secs(1) {
                    break;
                }
            }
            println!("used");
        }
        role => panic!("{role}"),
    }
}

#[test]
fn where_a_process_was_killed_the_next_goes_on() {
    let (_root, blobs) = store();
    let digest = Digest::of(b"hello world");
    let mut first = Other::start("receive", &blobs);
    first.says("received");
    assert!(blobs.try_receive(&digest, 11).unwrap().is_none());
    assert_eq!(blobs.get(&digest).unwrap(), None, "nothing is visible half written");
    first.kill();
    let mut part = incoming(blobs.receive(&digest, 11).unwrap());
    assert_eq!(part.received(), 6);
    part.write(b"world").unwrap();
    part.finish().unwrap();
    assert_eq!(blobs.read(&digest, 11).unwrap().unwrap(), b"hello world");
}

#[test]
fn what_another_process_holds_stays_until_it_is_gone() {
    let (_root, blobs) = store();
    let digest = blobs.afresh().put(b"hello world").unwrap();
    let mut other = Other::start("hold", &blobs);
    other.says("held");
    assert_eq!(evict(&blobs, Goal::All).bytes, 0);
    let before = SystemTime::now();
    other.kill();
    // It was used until now, so it is not the first to go.
    let evicted = evict(&blobs, Goal::UnusedSince(before - Duration::from_millis(50)));
    assert_eq!(evicted.bytes, 0);
    assert_eq!(
        names(&blobs.store.root.join("held")).len(),
        2,
        "the lock and our own list: the other one is gone"
    );
    assert_eq!(evict(&blobs, Goal::All).bytes, 11);
    assert!(!blobs.path(&digest).exists());
}

#[test]
fn what_is_in_use_is_never_removed_under_its_users() {
    let (_root, blobs) = store();
    let mut others = [Other::start("use", &blobs), Other::start("use", &blobs), Other::start("use", &blobs)];
    others.iter_mut().for_each(|other| other.says("started"));
    let (started, mut removed) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(1200) {
        removed += evict(&blobs, Goal::All).files;
    }
    for mut other in others {
        other.says("used");
        assert!(other.0.wait().unwrap().success());
    }
    assert!(removed > 10, "{removed}");
    evict(&blobs, Goal::All);
    assert_eq!(names(&blobs.store.root.join("blobs/sha256")), [""; 0]);
    assert_eq!(names(&blobs.partial()), [""; 0]);
}
