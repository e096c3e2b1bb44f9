//! Tests of what leaves a cache, and of what stays.

use std::fs::File;
use std::path::PathBuf;

use super::*;
use crate::artifact::blobs::Blobs;
use crate::artifact::cache::Cache;
use crate::artifact::oci::{Descriptor, Digest, IMAGE_CONFIG, ImageManifest};

/// A cache of which everything was last used a number of minutes ago.
struct Aged {
    root: tempfile::TempDir,
    cache: Cache,
}

impl Aged {
    fn new(max_bytes: u64) -> Aged {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::bounded(&root.path().join("cache"), max_bytes).unwrap();
        Aged { root, cache }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn minutes_ago(minutes: u64) -> SystemTime {
        SystemTime::now() - Duration::from_secs(minutes * 60)
    }

    fn age(&self, place: &str, minutes: u64) {
        let file = File::options().append(true).open(self.folder().join(place)).unwrap();
        file.set_modified(Aged::minutes_ago(minutes)).unwrap();
    }

    fn blob(&self, bytes: &[u8], minutes: u64) -> Digest {
        let digest = self.cache.blobs().put(bytes).unwrap();
        self.age(&format!("records/{}", digest.hex()), minutes);
        digest
    }

    /// A reference to a manifest, a config and these layers.
    fn reference(&self, name: &str, layers: &[&[u8]], minutes: u64) -> Digest {
        let blob = |bytes: &[u8]| Descriptor::new("a/b", self.blob(bytes, minutes), bytes.len() as u64);
        let config = Descriptor { media_type: IMAGE_CONFIG.to_owned(), ..blob(name.as_bytes()) };
        let manifest = ImageManifest::new(config, layers.iter().map(|layer| blob(layer)).collect());
        let digest = self.blob(&manifest.bytes(), minutes);
        self.cache.blobs().remember(name, &digest).unwrap();
        self.age(&format!("references/{}", Digest::of(name.as_bytes()).hex()), minutes);
        self.age(&format!("records/{}", digest.hex()), minutes);
        digest
    }

    fn has(&self, bytes: &[u8]) -> bool {
        self.blobs().path(&Digest::of(bytes)).exists()
    }

    fn blobs(&self) -> Blobs {
        self.cache.blobs()
    }

    fn bytes(&self) -> u64 {
        Inventory::of(&self.folder()).unwrap().bytes
    }
}

#[test]
fn the_least_recently_used_go_first_and_only_as_far_as_needed() {
    let aged = Aged::new(0);
    for (bytes, minutes) in [([1; 10], 30), ([2; 10], 50), ([3; 10], 10), ([4; 10], 40)] {
        aged.blob(&bytes, minutes);
    }
    let goal = Goal::Bytes(25);
    let told = aged.cache.evict(goal, true).unwrap();
    assert_eq!((told.bytes, told.files, told.left_bytes), (20, 2, 20));
    assert_eq!(aged.bytes(), 40, "a dry run removes nothing");
    assert_eq!(aged.cache.evict(goal, false).unwrap(), told);
    assert_eq!([1, 2, 3, 4].map(|byte| aged.has(&[byte; 10])), [true, false, true, false]);
    // A use makes it young.
    aged.blobs().get(&Digest::of(&[1; 10])).unwrap();
    let evicted = aged.cache.evict(Goal::UnusedSince(Aged::minutes_ago(5)), false).unwrap();
    assert_eq!((evicted.bytes, aged.has(&[1; 10])), (10, true));
    let records = fs::read_dir(aged.folder().join("records")).unwrap().count();
    assert_eq!(records, 1, "records go with what they are of");
}

#[test]
fn a_reference_goes_as_a_whole_and_what_others_share_stays() {
    let aged = Aged::new(0);
    aged.reference("old", &[b"shared", b"old alone"], 60);
    aged.reference("new", &[b"shared", b"new alone"], 20);
    aged.blob(b"loose and older", 90);
    aged.blob(b"loose and younger", 30);
    let all = aged.bytes();
    let goal = |bytes| aged.cache.evict(Goal::Bytes(bytes), false).unwrap();
    let evicted = goal(all - 1);
    assert_eq!((evicted.bytes, evicted.references.len()), (15, 0), "the loose one was older");
    let evicted = goal(aged.bytes() - 1);
    assert_eq!(evicted.references, ["old"]);
    assert_eq!(evicted.files, 3, "manifest, config and the layer of its own");
    let there =
        |aged: &Aged| [&b"old alone"[..], b"shared", b"new alone", b"loose and younger"].map(|b| aged.has(b));
    assert_eq!(there(&aged), [false, true, true, true]);
    assert_eq!(aged.blobs().remembered("old").unwrap(), None);
    goal(aged.bytes() - 1);
    assert_eq!(there(&aged), [false, true, true, false]);
    // One that somebody held lately goes later than its reference.
    aged.blobs().get(&Digest::of(b"shared")).unwrap();
    let evicted = aged.cache.evict(Goal::UnusedSince(Aged::minutes_ago(5)), false).unwrap();
    assert!(evicted.references.is_empty(), "a reference is as young as the youngest of its own");
    let evicted = aged.cache.evict(Goal::All, false).unwrap();
    assert_eq!((evicted.references, aged.bytes()), (vec!["new".to_owned()], 0));
}

#[test]
fn a_reference_whose_manifest_is_gone_is_forgotten_and_one_that_is_held_stays() {
    let aged = Aged::new(0);
    let gone = aged.reference("gone", &[b"gone alone"], 60);
    let held = aged.reference("held", &[b"held alone"], 60);
    aged.reference("partly", &[b"partly held", b"partly alone"], 60);
    fs::remove_file(aged.blobs().path(&gone)).unwrap();
    let _hold = aged.cache.hold([held, Digest::of(b"partly held")]).unwrap();
    let evicted = aged.cache.evict(Goal::All, false).unwrap();
    assert_eq!(evicted.references, ["gone", "partly"]);
    assert!(aged.has(b"held alone") && aged.has(b"partly held"));
    assert!(!aged.has(b"gone alone") && !aged.has(b"partly alone"));
    assert_eq!(evicted.left_bytes, evicted.in_use_bytes);
    assert_eq!(evicted.left_bytes, aged.bytes());
}

#[test]
fn what_was_made_of_a_model_goes_and_stays_with_it() {
    let aged = Aged::new(0);
    let [model, weights] = ["m.xml", "m.bin"].map(|name| aged.root.path().join(name));
    fs::write(&model, "the model").unwrap();
    fs::write(&weights, "the weights").unwrap();
    let stored = aged.cache.store_model(&model, Some(&weights), 100).unwrap();
    let made = |digest: &str| {
        let [verdict, folder] =
            [format!("verdicts/{digest}-12.json"), format!("derived/onnxruntime/{digest}-k")];
        let folder = aged.folder().join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.onnx"), "optimised").unwrap();
        let verdict = aged.folder().join(verdict);
        fs::write(&verdict, "{}").unwrap();
        [verdict, folder]
    };
    let of_model = made(&stored.digest);
    let openvino = aged.folder().join(format!("derived/openvino/2026.1/{}-cpu-f32", stored.digest));
    fs::create_dir_all(&openvino).unwrap();
    fs::hard_link(&stored.path, openvino.join("model.xml")).unwrap();
    let of_nothing = made(&Digest::of(b"no model").hex());
    let code = aged.folder().join(format!("compiled/{}-plain-48-0.cwasm", Digest::of(b"code").hex()));
    fs::write(&code, "native").unwrap();
    let paths = [
        stored.path.clone(),
        stored.weights.clone().unwrap(),
        openvino,
        of_model[0].clone(),
        of_model[1].clone(),
    ];
    let (own, others) = (9 + 11 + 2 + 9, 2 + 9 + 6);
    assert_eq!(aged.bytes(), own + others, "each file once");
    let evicted = aged.cache.evict(Goal::All, false).unwrap();
    assert_eq!((evicted.bytes, evicted.in_use_bytes), (others, own));
    assert!(paths.iter().all(|path| path.exists()));
    assert!(!of_nothing[0].exists() && !of_nothing[1].exists() && !code.exists());
    drop(stored);
    assert_eq!(aged.cache.evict(Goal::All, false).unwrap().bytes, own);
    assert!(!paths.iter().any(|path| path.exists()));
    assert_eq!(aged.bytes(), 0);
}

#[test]
fn a_cache_over_its_bound_makes_room() {
    let aged = Aged::new(1000);
    for number in 0..9 {
        aged.blob(&[number; 100], 100 - u64::from(number));
    }
    assert_eq!(aged.bytes(), 900);
    // What comes now is kept, whatever else goes, and a little more goes than must.
    let session = aged.blobs();
    let coming = session.put(&[9; 300]).unwrap();
    assert!(aged.bytes() <= 900, "{}", aged.bytes());
    assert!(session.path(&coming).exists() && !aged.has(&[2; 100]) && aged.has(&[3; 100]));
    // Room is made before a download fills it.
    let digest = Digest::of(&[10; 700]);
    let receiving = session.receive(&digest, 700).unwrap();
    assert!(aged.bytes() <= 300, "{}", aged.bytes());
    assert!(session.path(&coming).exists(), "it is held");
    drop(receiving);
    // Where everything is in use it is over its bound, which is no reason to refuse anything.
    session.put(&[11; 900]).unwrap();
    assert_eq!(aged.bytes(), 1200);
    drop(session);
    aged.cache.keep_bound();
    assert!(aged.bytes() <= 900, "{}", aged.bytes());
}

#[test]
fn what_died_in_the_making_is_removed_when_it_is_old() {
    let aged = Aged::new(0);
    let leftovers =
        ["partial/put-1", "models/link-2", "verdicts/.tmp3", "derived/onnxruntime/.building-4/model.onnx"];
    for place in leftovers {
        let path = aged.folder().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    assert_eq!(aged.cache.evict(Goal::All, false).unwrap().files, 0, "somebody may be at it");
    for place in leftovers.map(|place| place.trim_end_matches("/model.onnx")) {
        let folder = File::open(aged.folder().join(place)).unwrap();
        folder.set_modified(Aged::minutes_ago(61)).unwrap();
    }
    let evicted = aged.cache.evict(Goal::Bytes(u64::MAX), false).unwrap();
    assert_eq!((evicted.files, evicted.bytes, aged.bytes()), (4, 16, 0));
    // A download that was broken off stays as any blob does.
    let blobs = aged.blobs();
    let digest = Digest::of(b"hello");
    match blobs.receive(&digest, 5).unwrap() {
        crate::artifact::blobs::Receiving::Part(mut part) => part.write(b"hel").unwrap(),
        crate::artifact::blobs::Receiving::Whole(_) => panic!("it is not there"),
    }
    assert_eq!(aged.cache.evict(Goal::All, false).unwrap().bytes, 0);
    drop(blobs);
    assert_eq!(aged.cache.evict(Goal::All, false).unwrap().bytes, 3);
}

#[test]
fn notes_that_lead_nowhere_go() {
    let aged = Aged::new(0);
    let file = aged.root.path().join("model.onnx");
    fs::write(&file, "model").unwrap();
    File::options().append(true).open(&file).unwrap().set_modified(Aged::minutes_ago(1)).unwrap();
    aged.blobs().put_file(&file, 100).unwrap();
    drop(aged.cache.hold([Digest::of(b"never came")]).unwrap());
    let count = |folder: &str| fs::read_dir(aged.folder().join(folder)).unwrap().count();
    aged.cache.evict(Goal::Bytes(u64::MAX), false).unwrap();
    assert_eq!((count("seen"), count("records")), (1, 2));
    aged.age(&format!("records/{}", Digest::of(b"never came").hex()), 25 * 60);
    aged.cache.evict(Goal::All, false).unwrap();
    aged.cache.evict(Goal::All, false).unwrap();
    assert_eq!((count("seen"), count("records")), (0, 0));
}

#[test]
fn what_is_damaged_is_found_named_and_removed() {
    let aged = Aged::new(0);
    aged.reference("app", &[b"good layer", b"bad layer"], 1);
    let copy = |digest: &Digest, ending: &str, text: &str| {
        let path = aged.folder().join(format!("models/{}.{ending}", digest.hex()));
        fs::write(&path, text).unwrap();
        path
    };
    let good = copy(&Digest::of(b"a model"), "onnx", "a model");
    let pair = crate::artifact::cache::digest_of(&[Digest::of(b"model"), Digest::of(b"weights")]);
    let pair = [copy(&pair, "xml", "model"), copy(&pair, "bin", "weights")];
    let bad = copy(&Digest::of(b"another"), "onnx", "an0ther");
    let damaged = aged.blobs().path(&Digest::of(b"bad layer"));
    fs::remove_file(&damaged).unwrap();
    fs::write(&damaged, "b4d layer").unwrap();
    let (mut last, mut total) = (0, 0);
    let verified = aged.cache.verify(&mut |progress| {
        assert!(progress.done > last);
        (last, total) = (progress.done, progress.total);
    });
    let verified = verified.unwrap();
    assert_eq!(verified.broken, [damaged, bad]);
    assert_eq!(verified.incomplete, [("app".to_owned(), 1)]);
    assert_eq!((verified.files, last), (3 + 1 + 2, total));
    assert!(good.exists() && pair.iter().all(|path| path.exists()));
    let verified = aged.cache.verify(&mut |_| {}).unwrap();
    assert_eq!((verified.broken.len(), verified.files), (0, 6));
}
