//! Layouts that were written, and such as nobody should have written.

use std::os::unix::fs::symlink;

use super::*;

struct Bench {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("cache"), 0).unwrap();
        Bench { folder, blobs }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, layers: &[&[u8]]) -> Digest {
        let descriptor = |bytes: &[u8]| {
            Descriptor::new("application/x", self.blobs.put(bytes).unwrap(), bytes.len() as u64)
        };
        let layers = layers.iter().map(|bytes| descriptor(bytes).titled("x")).collect();
        let manifest = ImageManifest::new(descriptor(b"{}"), layers);
        self.blobs.put(&manifest.bytes()).unwrap()
    }

    fn layout(&self, layers: &[&[u8]]) -> (Digest, PathBuf) {
        let (digest, folder) = (self.put(layers), self.at("layout"));
        write(&digest, Some("1.0"), &self.blobs, &folder).unwrap();
        (digest, folder)
    }
}

/// Every file below a folder with its bytes, sorted.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| {
            let path = entry.path().strip_prefix(folder).unwrap().to_owned();
            (path, fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn a_layout_comes_back() {
    let bench = Bench::new();
    let (digest, folder) = bench.layout(&[b"one", b"two", b"one", b""]);
    assert!(is_layout(&folder));
    for name in [None, Some("1.0"), Some(digest.to_string().as_str())] {
        let other = Bench::new();
        let read = read(&folder, name, 1, &other.blobs).unwrap();
        assert_eq!((read.digest, read.moved.layers), (digest, 4));
        assert_eq!(read.moved.bytes, 8);
        let one = Digest::of(b"one");
        assert_eq!(other.blobs.read(&one, 10).unwrap().unwrap(), b"one");
    }
    let again = read(&folder, None, 1, &bench.blobs).unwrap();
    assert_eq!(again.moved, Moved { bytes: 0, present: 8, layers: 0 });
}

#[test]
fn the_same_artifact_is_the_same_folder() {
    let (one, two) = (Bench::new(), Bench::new());
    let (_, first) = one.layout(&[b"one", b"two"]);
    two.put(&[b"other"]);
    let (_, second) = two.layout(&[b"one", b"two"]);
    assert_eq!(files(&first), files(&second));
    let index = fs::read_to_string(first.join("index.json")).unwrap();
    let digest = one.put(&[b"one", b"two"]);
    let expected = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":"#
    );
    assert!(index.starts_with(&expected), "{index}");
    assert_eq!(fs::read_to_string(first.join("oci-layout")).unwrap(), r#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[test]
fn the_next_version_takes_the_place_of_the_last() {
    let bench = Bench::new();
    let (_, folder) = bench.layout(&[b"one", b"two"]);
    let (digest, _) = bench.layout(&[b"one", b"three"]);
    let names: Vec<_> = files(&folder.join("blobs")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(read(&folder, None, 1, &Bench::new().blobs).unwrap().digest, digest);
    // A blob that somebody changed is put right.
    let blob = folder.join("blobs/sha256").join(Digest::of(b"one").hex());
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "changed").unwrap();
    bench.layout(&[b"one", b"three"]);
    assert_eq!(fs::read(&blob).unwrap(), b"one");
}

#[test]
fn what_is_not_ours_is_not_overwritten() {
    let bench = Bench::new();
    let digest = bench.put(&[b"one"]);
    let check = |folder: &Path, expected: &str| {
        let error = write(&digest, None, &bench.blobs, folder).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let folder = bench.at("full");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("thesis.txt"), "").unwrap();
    check(&folder, "neither empty nor an OCI layout");
    let (_, folder) = bench.layout(&[b"one"]);
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let (start, entry) = index.split_once('[').unwrap();
    let entry = entry.strip_suffix("]}").unwrap();
    fs::write(folder.join("index.json"), format!("{start}[{entry},{entry}]}}")).unwrap();
    check(&folder, "holds 2 artifacts");
    let missing = Digest::of(b"missing");
    let error = write(&missing, None, &bench.blobs, &bench.at("new")).unwrap_err().to_string();
    assert!(error.contains("is not in the cache"), "{error}");
}

#[test]
fn layouts_that_lie_are_refused() {
    let check = |change: &dyn Fn(&Path), name: Option<&str>, expected: &str| {
        let bench = Bench::new();
        let (_, folder) = bench.layout(&[b"one", &[7; 2000]]);
        change(&folder);
        let other = Bench::new();
        let error = read(&folder, name, 1, &other.blobs).unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
        assert!(other.blobs.get(&Digest::of(b"one")).unwrap().is_none());
    };
    let blob = |folder: &Path| folder.join("blobs/sha256").join(Digest::of(b"one").hex());
    let set = |path: PathBuf, text: &str| {
        let _ = fs::remove_file(&path);
        fs::write(path, text).unwrap();
    };
    check(&|folder| set(blob(folder), "two"), None, "has the digest");
    check(&|folder| set(blob(folder), "longer"), None, "has 6 bytes and not 3");
    check(&|folder| fs::remove_file(blob(folder)).unwrap(), None, "No such file");
    check(
        &|folder| {
            let elsewhere = folder.with_extension("elsewhere");
            fs::rename(blob(folder), &elsewhere).unwrap();
            symlink(elsewhere, blob(folder)).unwrap();
        },
        None,
        "symbolic link",
    );
    check(
        &|folder| {
            let elsewhere = folder.with_extension("elsewhere");
            fs::rename(folder.join("blobs"), &elsewhere).unwrap();
            symlink(elsewhere, folder.join("blobs")).unwrap();
        },
        None,
        "cannot read",
    );
    check(
        &|folder| {
            fs::remove_file(folder.join("index.json")).unwrap();
            symlink("/etc/passwd", folder.join("index.json")).unwrap();
        },
        None,
        "symbolic link",
    );
    check(&|folder| fs::remove_file(folder.join("oci-layout")).unwrap(), None, "it has no `oci-layout`");
    check(&|folder| set(folder.join("oci-layout"), "{}"), None, "`oci-layout` cannot be read");
    check(
        &|folder| set(folder.join("oci-layout"), r#"{"imageLayoutVersion": "2.0"}"#),
        None,
        "version is `2.0`",
    );
    check(&|folder| set(folder.join("index.json"), "{}"), None, "`index.json` cannot be read");
    check(&|folder| set(folder.join("index.json"), r#"{"schemaVersion": 2}"#), None, "names no artifact");
    check(&|_| {}, Some("2.0"), "has no artifact `2.0`; it has `1.0`");
    let larger = |folder: &Path, from: &str, to: &str| {
        let index = folder.join("index.json");
        let text = fs::read_to_string(&index).unwrap();
        assert!(text.contains(from), "{text}");
        set(index, &text.replace(from, to));
    };
    check(&|folder| larger(folder, "\"size\":", "\"size\":9999999"), None, "more than 4194304");
}

#[test]
fn a_layout_of_many_is_asked_for_one() {
    let bench = Bench::new();
    let (_, folder) = bench.layout(&[b"one"]);
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let (start, entry) = index.split_once('[').unwrap();
    let entry = entry.strip_suffix("]}").unwrap();
    let other = entry.replace("1.0", "2.0");
    fs::write(folder.join("index.json"), format!("{start}[{entry},{other}]}}")).unwrap();
    let error = read(&folder, None, 1, &bench.blobs).unwrap_err().to_string();
    assert!(error.contains("name one of `1.0`, `2.0`"), "{error}");
    read(&folder, Some("2.0"), 1, &bench.blobs).unwrap();
}

#[test]
fn an_artifact_over_the_bound_is_not_read() {
    let bench = Bench::new();
    let (_, folder) = bench.layout(&[&vec![1; 3 << 20]]);
    let error = read(&folder, None, 2, &Bench::new().blobs).unwrap_err().to_string();
    assert!(error.contains("4 MiB in its layers, more than the 2"), "{error}");
}
