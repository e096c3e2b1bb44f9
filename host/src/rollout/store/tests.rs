//! Tests of the store: what is kept, and what becomes of it where processes are killed and files damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redb::Database;
use serde_json::json;

use super::*;
use crate::rollout::machine::Rollout;
use crate::rollout::plan::{Plan, Strategy};

fn record(number: u64) -> AppRecord {
    let revision = RevisionRecord {
        digest: format!("sha256:{number:064x}"),
        reference: None,
        uploaded: true,
        variables: BTreeMap::from([("token".to_owned(), "secret".to_owned())]),
        created_ms: number,
        version: None,
        message: None,
    };
    let functions = ["classify".to_owned()];
    let plan = Plan::of(Strategy::Canary);
    let (rollout, _) = Rollout::start(number, "shop", Some(1), number, plan, &functions, number);
    AppRecord {
        stable: Some(1),
        revisions: BTreeMap::from([(number, revision)]),
        next_revision: number + 1,
        rollout: Some(rollout),
        ..AppRecord::default()
    }
}

fn event(number: u64) -> Event {
    Event {
        time_ms: number,
        revision: Some(number),
        event: "weight".to_owned(),
        text: format!("entry {number}"),
        details: json!({ "number": number }),
    }
}

fn shown(record: &AppRecord) -> String {
    serde_json::to_string(record).unwrap()
}

/// A folder in memory, where there is one: what is written there is there for other processes, but no disk is waited
/// for.
fn quick() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

#[test]
fn what_was_put_is_there_after_it_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let store = Store::open(&state).unwrap();
    assert!(store.apps().unwrap().is_empty());
    assert!(store.history("shop", None, 10).unwrap().is_empty());
    store.put("shop", &record(7), &[event(1), event(2)]).unwrap();
    store.put("other", &record(1), &[event(3)]).unwrap();
    store.put("shop", &record(8), &[event(4)]).unwrap();
    store.remove("other", &[event(5)]).unwrap();
    drop(store);

    let store = Store::open(&state).unwrap();
    let apps = store.apps().unwrap();
    assert_eq!(apps.keys().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(shown(&apps["shop"]), shown(&record(8)));
    let entries = |app: &str, before, limit| {
        let entries = store.history(app, before, limit).unwrap();
        entries.iter().map(|entry| (entry.id, entry.time_ms)).collect::<Vec<_>>()
    };
    assert_eq!(entries("shop", None, 10), [(4, 4), (2, 2), (1, 1)]);
    assert_eq!(entries("shop", Some(4), 1), [(2, 2)]);
    assert_eq!(entries("shop", None, 0), []);
    assert_eq!(entries("other", None, 10), [(5, 5), (3, 3)]);
    assert_eq!(entries("sho", None, 10), []);
    let entry = &store.history("shop", None, 1).unwrap()[0];
    assert_eq!((entry.app.as_str(), entry.text.as_str(), entry.revision), ("shop", "entry 4", Some(4)));
    assert_eq!(entry.details, json!({ "number": 4 }));

    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(store.path()), 0o600);
    assert_eq!(mode(&state.join("control.lock")), 0o600);
    assert!(!format!("{:?}", record(1)).contains("secret"));
}

#[test]
fn a_file_that_others_could_read_is_closed_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = Store::open(dir.path()).unwrap().path().to_owned();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(Store::open(dir.path()).unwrap());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn history_records_and_names_are_bounded() {
    let dir = quick();
    let store = Store::open(dir.path()).unwrap();
    let batch: Vec<_> = (0..4000).map(event).collect();
    for _ in 0..3 {
        store.put("shop", &record(1), &batch).unwrap();
    }
    // What is beyond the bound goes a thousand at a time.
    store.put("shop", &record(1), &[]).unwrap();
    let count = || {
        let (mut count, mut before) = (0, None);
        loop {
            let entries = store.history("shop", before, 5000).unwrap();
            let Some(last) = entries.last() else { return (count, before) };
            assert!(entries.len() <= AT_ONCE);
            (count, before) = (count + entries.len() as u64, Some(last.id));
        }
    };
    assert_eq!(count(), (HISTORY_OF_AN_APP, Some(2001)));
    store.put("shop", &record(1), &[event(1)]).unwrap();
    assert_eq!(count(), (HISTORY_OF_AN_APP, Some(2002)));

    let long = Event { text: "ä".repeat(100_000), details: json!("x".repeat(1 << 20)), ..event(1) };
    store.put("shop", &record(1), &[long]).unwrap();
    let entry = store.history("shop", None, 1).unwrap().remove(0);
    assert!(entry.text.len() <= 4 << 10);
    assert_eq!(entry.details, json!({ "left_out_bytes": (1 << 20) + 2 }));

    let mut large = record(1);
    large.revisions.get_mut(&1).unwrap().message = Some("x".repeat(RECORD_BYTES));
    let refused = store.put("shop", &large, &[]).unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge(_)), "{refused}");
    assert!(store.put(&"x".repeat(NAME_BYTES + 1), &record(1), &[]).is_err());
    assert_eq!(shown(&store.apps().unwrap()["shop"]), shown(&record(1)));
}

#[test]
fn the_history_of_all_apps_together_is_bounded() {
    let dir = quick();
    let store = Store::open(dir.path()).unwrap();
    let batch: Vec<_> = (0..HISTORY_OF_AN_APP).map(event).collect();
    for app in 0..=HISTORY / HISTORY_OF_AN_APP {
        store.put(&format!("app{app}"), &record(1), &batch).unwrap();
    }
    for _ in 0..HISTORY_OF_AN_APP / AT_ONCE as u64 {
        store.put("app1", &record(1), &[]).unwrap();
    }
    assert!(store.history("app0", None, 10).unwrap().is_empty());
    assert_eq!(store.history("app1", None, 10).unwrap().len(), 10);
    let totals = store.file.read(|transaction| {
        let counts = transaction.open_table(COUNTS)?;
        let entries = (transaction.open_table(ENTRIES)?.len()?, transaction.open_table(OF_APP)?.len()?);
        let counted: Result<u64, Failure> =
            counts.iter()?.try_fold(0, |sum, entry| Ok(sum + entry?.1.value()));
        Ok((entries, counted?))
    });
    assert_eq!(totals.unwrap(), ((HISTORY, HISTORY), HISTORY));
}

#[test]
fn old_revisions_are_forgotten_but_for_those_that_are_needed() {
    let mut app = record(9);
    for revision in 1..=12 {
        app.revisions.insert(revision, record(9).revisions[&9].clone());
    }
    (app.stable, app.former) = (Some(3), Some(2));
    assert_eq!(app.forget_old(5), [1, 4, 5, 6, 7, 8, 10]);
    assert_eq!(app.revisions.keys().copied().collect::<Vec<_>>(), [2, 3, 9, 11, 12]);
    assert_eq!(app.forget_old(1), [11, 12]);
    assert!(app.forget_old(0).is_empty());
}

#[test]
fn a_second_process_is_told_who_has_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let started = Instant::now();
    let error = File::open(dir.path(), Duration::from_millis(100)).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("the process {}", std::process::id())), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(100) && started.elapsed() < PATIENCE);
    // One that is about to end is waited for.
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(store);
    });
    drop(Store::open(dir.path()).unwrap());
    ending.join().unwrap();
}

#[test]
fn what_is_no_state_of_a_host_is_refused_and_left_as_it_is() {
    let check = |what: &dyn Fn(&Path), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.redb");
        what(&path);
        let before = fs::read(&path).ok();
        let error = Store::open(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("move it away") || error.contains("folder"), "{error}");
        if !expected.contains("something else") && !expected.contains("later") {
            assert_eq!(fs::read(&path).ok(), before);
        }
    };
    check(&|path| fs::write(path, b"").unwrap(), "it is empty");
    check(&|path| fs::write(path, b"[control]\nlisten = \"off\"\n").unwrap(), "it is no database");
    check(&|path| fs::write(path, b"redb\x1a\x0a\xa9\x0d\x0a").unwrap(), "is damaged");
    check(&|path| fs::create_dir(path).unwrap(), "it is no file");
    let database = |path: &Path, write: &dyn Fn(&WriteTransaction)| {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        write(&transaction);
        transaction.commit().unwrap();
    };
    let foreign: &dyn Fn(&WriteTransaction) = &|transaction| {
        transaction.open_table(RECORDS).unwrap();
    };
    check(&|path| database(path, foreign), "a database of something else");
    let later: &dyn Fn(&WriteTransaction) = &|transaction| {
        transaction.open_table(META).unwrap().insert(FORMAT_KEY, FORMAT + 1).unwrap();
    };
    check(&|path| database(path, later), "is of a later Tenon");
    let record: &dyn Fn(&WriteTransaction) = &|transaction| {
        transaction.open_table(META).unwrap().insert(FORMAT_KEY, FORMAT).unwrap();
        transaction.open_table(RECORDS).unwrap().insert("shop", b"{".as_slice()).unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    database(&dir.path().join("control.redb"), record);
    let error = Store::open(dir.path()).unwrap().apps().unwrap_err().to_string();
    assert!(error.contains("the record of the app `shop`") && error.contains("restore it"), "{error}");
}

#[test]
fn a_file_that_was_begun_by_a_process_that_died_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("control.redb.new"), b"half").unwrap();
    fs::write(dir.path().join("control.lock"), b"not a number, and much longer than one would be").unwrap();
    Store::open(dir.path()).unwrap().put("shop", &record(1), &[]).unwrap();
    assert!(!dir.path().join("control.redb.new").exists());
}

#[test]
fn after_a_failure_it_goes_on_with_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put("shop", &record(1), &[event(1)]).unwrap();
    let failed = store.file.write(|transaction| -> Result<(), Failure> {
        transaction.open_table(RECORDS)?.remove("shop")?;
        Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into()).into())
    });
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("see that the disk has room"), "{error}");
    let panicked = store.file.write(|_| -> Result<(), Failure> { panic!("as a damaged file can make it") });
    assert!(matches!(panicked, Err(StoreError::Damaged { .. })));
    assert_eq!(shown(&store.apps().unwrap()["shop"]), shown(&record(1)));
    store.put("shop", &record(2), &[event(2)]).unwrap();
    assert_eq!(store.history("shop", None, 10).unwrap().len(), 2);
}

/// What a damaged file may lead to: what was kept, or an error that says so.
fn kept_or_refused(dir: &Path, expected: &str) -> bool {
    let read = Store::open(dir).and_then(|store| {
        let apps = store.apps()?;
        let history = store.history("shop", None, 10)?;
        store.put("shop", &record(99), &[event(99)])?;
        Ok(format!("{} {history:?}", apps.get("shop").map(shown).unwrap_or_default()))
    });
    match read {
        Ok(found) => {
            assert_eq!(found, expected);
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("move it away") || text.contains("another"), "{text}");
            false
        }
    }
}

#[test]
fn a_damaged_file_is_refused_or_does_not_matter() {
    let dir = quick();
    let store = Store::open(dir.path()).unwrap();
    for number in 1..=40 {
        store.put("shop", &record(number), &[event(number)]).unwrap();
    }
    let expected = format!("{} {:?}", shown(&record(40)), store.history("shop", None, 10).unwrap());
    let path = store.path().to_owned();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut outcomes = [0, 0];
    let mut check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        outcomes[usize::from(kept_or_refused(dir.path(), &expected))] += 1;
    };
    for length in [1, 8, 9, 100, 319, 320, 4095, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        check(&whole[..length]);
    }
    // Every byte of the header but those that say which of the two latest states it is, and others all over.
    let positions = (0..320).chain((0..400).map(|index| 320 + index * 7919 % (whole.len() - 320)));
    for position in positions {
        for bit in [0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[position] ^= bit;
            check(&bytes);
        }
    }
    assert!(outcomes.iter().all(|count| *count > 20), "{outcomes:?}");
}

/// Set for the child that is killed, to the folder of its state.
const CHILD: &str = "TENON_TEST_STORE_CHILD";

#[test]
#[ignore = "the child of the test below"]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let store = Store::open(&dir).unwrap();
    let from = store.apps().unwrap().get("shop").map_or(0, |app| app.next_revision);
    for number in from.. {
        store.put("shop", &record(number), &[event(number), event(number)]).unwrap();
        fs::write(dir.join("acknowledged.new"), number.to_string()).unwrap();
        fs::rename(dir.join("acknowledged.new"), dir.join("acknowledged")).unwrap();
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_what_it_acknowledged() {
    let dir = quick();
    let mut folders = 0;
    let mut state = PathBuf::new();
    let (mut wrote, mut kept) = (0, None);
    for round in 0_u64..200 {
        // Every tenth begins a state, and may be killed amid that.
        if round % 10 == 0 {
            folders += 1;
            state = dir.path().join(folders.to_string());
            fs::create_dir(&state).unwrap();
            kept = None;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rollout::store::tests::writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD, &state)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let opened = || state.join("control.lock").metadata().is_ok_and(|lock| lock.len() > 0);
        while !opened() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(round * 7919 % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = fs::read_to_string(state.join("acknowledged")).ok();
        let said: Option<u64> = said.map(|number| number.parse().unwrap());
        let store = Store::open(&state).unwrap();
        let Some(app) = store.apps().unwrap().remove("shop") else {
            assert_eq!((said, kept), (None, None), "round {round}");
            continue;
        };
        let number = app.next_revision - 1;
        // The last that was acknowledged, or that was there before, or the one in flight.
        let last = said.max(kept);
        assert!(last.is_none_or(|last| number == last || number == last + 1), "{number} after {last:?}");
        assert!(last.is_some() || number == 0, "round {round}");
        assert_eq!(shown(&app), shown(&record(number)));
        let history = store.history("shop", None, 1000).unwrap();
        let numbers: Vec<u64> = history.iter().map(|entry| entry.time_ms).collect();
        let expected: Vec<u64> = (0..=number).rev().flat_map(|number| [number, number]).take(1000).collect();
        assert_eq!(numbers, expected, "round {round}");
        wrote += u64::from(kept != Some(number));
        kept = Some(number);
    }
    assert!(wrote > 50, "too few rounds in which anything was written: {wrote}");
}
