//! Apps as images: packed by the program once, and given other environments here, so that each revision is one of its
//! own to the byte.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// An app that can be uploaded.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Of its manifest.
    pub(crate) digest: String,
    /// Its manifest first.
    blobs: Vec<(String, Bytes)>,
}

/// The app that the stories deploy: one function.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) name: String,
    /// The compiled candidate, or another guest.
    pub(crate) wasm: PathBuf,
    /// The function's environment, by which it behaves. `REVISION` comes to it.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Further lines of the component.
    pub(crate) settings: String,
}

impl App {
    /// The candidate function, which answers at `/<name>` and as the model `<name>`.
    pub(crate) fn new(name: &str, wasm: &Path) -> App {
        App { name: name.to_owned(), wasm: wasm.to_owned(), environment: Vec::new(), settings: String::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> App {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(crate) fn settings(mut self, lines: &str) -> App {
        self.settings = lines.to_owned();
        self
    }

    /// Where its function answers.
    pub(crate) fn paths(&self) -> Vec<String> {
        vec![format!("/{}", self.name), format!("/v2/models/{}/infer", self.name)]
    }

    /// Its `spin.toml`, where it calls itself by this label.
    pub(crate) fn manifest(&self, label: u32) -> String {
        let App { name, wasm, settings, .. } = self;
        let own = [("REVISION", label.to_string())];
        let variables = self.environment.iter().chain(&own);
        let environment: Vec<_> = variables.map(|(name, value)| format!("{name} = {value:?}")).collect();
        format!(
            "spin_manifest_version = 2\n[application]\nname = {name:?}\nversion = \"1.0.0\"\n\
             [[trigger.http]]\nroute = \"/{name}\"\ncomponent = {name:?}\n\
             [component.{name}]\nsource = {wasm:?}\nenvironment = {{ {} }}\n{settings}\n",
            environment.join(", ")
        )
    }

    /// Has the program pack the app. `folder` takes it, and may have files that the settings name.
    ///
    /// # Errors
    /// Where the program packs it not.
    pub(crate) fn pack(&self, program: &Path, config: &Path, folder: &Path) -> anyhow::Result<Image> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("spin.toml"), self.manifest(0))?;
        let output = folder.join("package");
        let mut command = Command::new(program);
        command.arg("package").arg("-f").arg(folder).arg("-o").arg(&output).arg("--config").arg(config);
        let told = command.current_dir(folder).stdin(Stdio::null()).output()?;
        ensure!(told.status.success(), "tenon package failed:\n{}", String::from_utf8_lossy(&told.stderr));
        Image::read(&output)
    }
}

impl Image {
    /// The one image of an OCI layout.
    ///
    /// # Errors
    /// Where it is not whole.
    pub(crate) fn read(layout: &Path) -> anyhow::Result<Image> {
        let blob = |digest: &str| -> anyhow::Result<Bytes> {
            let path = layout.join("blobs").join(digest.replace(':', "/"));
            Ok(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.into())
        };
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a digest is missing");
        let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
        let digest = text(&index["manifests"][0]["digest"])?;
        let manifest = blob(&digest)?;
        let parsed: Value = serde_json::from_slice(&manifest)?;
        let mut blobs = vec![(digest.clone(), manifest)];
        for part in parsed["layers"].as_array().into_iter().flatten().chain([&parsed["config"]]) {
            let digest = text(&part["digest"])?;
            blobs.push((digest.clone(), blob(&digest)?));
        }
        Ok(Image { digest, blobs })
    }

    pub(crate) fn blobs(&self) -> &[(String, Bytes)] {
        &self.blobs
    }

    /// The same app, whose revision calls itself by this label, with these values of variables of its environment that
    /// it has already.
    ///
    /// # Errors
    /// Where the app has no such variable.
    pub(crate) fn relabelled(&self, label: u32, environment: &[(&str, &str)]) -> anyhow::Result<Image> {
        let label = label.to_string();
        let (mut blobs, mut renamed) = (Vec::new(), Vec::new());
        // The manifest names the others: it is last.
        for (digest, bytes) in self.blobs.iter().skip(1) {
            let changed = changed(bytes, |locked| {
                set(locked, "REVISION", &label)?;
                environment.iter().try_for_each(|(name, value)| set(locked, name, value))
            })?;
            match changed {
                Some(bytes) => {
                    let now = digest_of(&bytes);
                    renamed.push((digest.clone(), now.clone(), bytes.len()));
                    blobs.push((now, bytes));
                }
                None => blobs.push((digest.clone(), bytes.clone())),
            }
        }
        ensure!(!renamed.is_empty(), "the image has no environment to change");
        let mut manifest: Value = serde_json::from_slice(&self.blobs[0].1)?;
        rename(&mut manifest, &renamed);
        let bytes = Bytes::from(manifest.to_string());
        let digest = digest_of(&bytes);
        blobs.insert(0, (digest.clone(), bytes));
        Ok(Image { digest, blobs })
    }
}

/// A locked app with its environment changed; `None` of whatever else the blob is.
fn changed(
    bytes: &Bytes,
    change: impl Fn(&mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Bytes>> {
    let Ok(mut parsed) = serde_json::from_slice::<Value>(bytes) else { return Ok(None) };
    let Some(locked) = find(&mut parsed) else { return Ok(None) };
    change(locked)?;
    Ok(Some(parsed.to_string().into()))
}

/// The `env` of the one component of a locked app.
fn find(locked: &mut Value) -> Option<&mut Value> {
    locked.get_mut("components")?.get_mut(0)?.get_mut("env").filter(|env| env.get("REVISION").is_some())
}

fn set(environment: &mut Value, name: &str, value: &str) -> anyhow::Result<()> {
    let slot = environment.get_mut(name).with_context(|| format!("the app has no {name}"))?;
    *slot = value.into();
    Ok(())
}

/// Writes the new digests and sizes in place of the old ones, wherever they stand.
fn rename(value: &mut Value, renamed: &[(String, String, usize)]) {
    match value {
        Value::Object(members) => {
            let was = members.get("digest").and_then(Value::as_str).map(str::to_owned);
            for (_, now, size) in renamed.iter().filter(|(before, ..)| Some(before) == was.as_ref()) {
                members.insert("digest".to_owned(), now.as_str().into());
                members.insert("size".to_owned(), (*size).into());
            }
            members.values_mut().for_each(|member| rename(member, renamed));
        }
        Value::Array(elements) => elements.iter_mut().for_each(|element| rename(element, renamed)),
        _ => {}
    }
}

/// `sha256:...` of these bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
