//! The client against registries that lie, stall, break and refuse, and against a real one.

use std::sync::{Mutex, PoisonError};

use super::*;

mod hostile;
mod logins;
mod pulls;
mod pushes;
mod real;
mod tls;

use hostile::{Reply, Server};

/// Everything of one test: a store, options, and what was reported.
struct Bench {
    folder: tempfile::TempDir,
    options: Options,
    told: Arc<Mutex<Vec<(Layer, What)>>>,
}

impl Bench {
    fn new() -> Bench {
        let settings = config::Registry { stall_ms: 300, retries: 3, ..config::Registry::default() };
        let credentials = CredentialFiles::default();
        let backoff = Duration::from_millis(1);
        let (grace, whole) = (pace::GRACE, WHOLE);
        let named = Vec::new();
        let options = Options { settings, credentials, plain_http: true, named, grace, whole, backoff };
        let folder = tempfile::tempdir().unwrap();
        // The cache asks that nobody else may write into it.
        std::fs::create_dir(folder.path().join("cache")).unwrap();
        Bench { folder, options, told: Arc::default() }
    }

    /// With credentials for everything in Docker's form, as `auths` has them.
    fn with_credentials(mut self, registry: &str, entry: &str) -> Bench {
        let path = self.folder.path().join("config.json");
        std::fs::write(&path, format!(r#"{{"auths": {{"{registry}": {entry}}}}}"#)).unwrap();
        self.options.credentials.docker = Some(path);
        self
    }

    fn blobs(&self) -> Blobs {
        Blobs::open(&self.folder.path().join("cache"), 0).unwrap()
    }

    fn registry(&self) -> Registry {
        Registry::new(self.options.clone()).unwrap()
    }

    fn report(&self) -> Report {
        let told = Arc::clone(&self.told);
        Report::to(move |layer, what| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push((layer.clone(), what));
        })
    }

    fn told(&self) -> Vec<What> {
        self.told.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }

    async fn pull(&self, server: &Server) -> Result<Pulled, RegistryError> {
        self.registry().pull(&server.reference("latest"), &self.blobs(), &self.report()).await
    }

    /// What is left of an unfinished blob.
    fn partial(&self) -> Vec<u64> {
        let files = std::fs::read_dir(self.folder.path().join("cache/partial")).unwrap();
        let mut sizes: Vec<u64> = files.map(|file| file.unwrap().metadata().unwrap().len()).collect();
        sizes.retain(|size| *size > 0);
        sizes
    }
}

/// Bytes that no compression and no chance reproduces.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A manifest of these layers, the first with a title, with an empty config.
fn manifest_of(layers: &[&[u8]]) -> ImageManifest {
    let descriptor = |bytes: &[u8]| Descriptor::new("application/x", Digest::of(bytes), bytes.len() as u64);
    let config = Descriptor { media_type: "application/vnd.oci.empty.v1+json".into(), ..descriptor(b"{}") };
    let layers =
        layers.iter().enumerate().map(|(index, bytes)| descriptor(bytes).titled(&format!("l{index}.bin")));
    ImageManifest::new(config, layers.collect())
}

#[track_caller]
fn assert_says(error: impl std::fmt::Display, expected: &[&str]) {
    let error = error.to_string();
    for part in expected {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}
