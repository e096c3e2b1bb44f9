//! The app that a command is about: a spin.toml, an OCI layout folder, or a reference into a registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::sync::OnceCell;

use super::build;
use super::progress::Progress;
use super::transfer::{Transfer, Way, bytes};
use crate::artifact::blobs::{BlobError, Blobs};
use crate::artifact::cache::Cache;
use crate::artifact::manifest::{self, Files, Manifest, Options, Source};
use crate::artifact::oci::{Digest, ImageManifest, MAX_MANIFEST_BYTES};
use crate::artifact::reference::Reference;
use crate::artifact::registry::{self, Pulled, Registry};
use crate::artifact::signature::{self, policy::Policy};
use crate::artifact::{fetch, layout, modelpack, unpack};
use crate::config::{self, Config};

/// Names an app, and gives what its manifest leaves open.
#[derive(Args, Clone, Debug)]
pub struct AppArgs {
    /// A spin.toml, a folder with one in it or above it, an OCI layout folder, or a reference into a registry.
    #[arg(short = 'f', long = "from", value_name = "APP", default_value = ".")]
    pub from: String,
    /// The build profile whose overrides apply.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The value of an app variable.
    #[arg(long = "variable", value_name = "NAME=VALUE | NAME=@FILE | @FILE.json | @FILE.toml")]
    pub variables: Vec<String>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// How registries are spoken to.
#[derive(Args, Clone, Debug)]
pub struct RegistryArgs {
    /// Speaks plain HTTP, in place of HTTPS, to the registries that the command names and to those of this machine.
    #[arg(short = 'k', long = "plain-http", alias = "insecure")]
    pub plain_http: bool,
}

/// What `--from` names.
pub enum From {
    /// A spin.toml.
    Manifest(PathBuf),
    /// An OCI layout folder.
    Layout(PathBuf),
    Registry(Reference),
}

impl AppArgs {
    /// What the arguments name.
    ///
    /// # Errors
    /// Where there is nothing of that name, and it is no reference.
    pub fn source(&self) -> anyhow::Result<From> {
        let path = Path::new(&self.from);
        if layout::is_layout(path) {
            return Ok(From::Layout(path.to_owned()));
        }
        if path.extension().is_some_and(|ending| ending == "onnx" || ending == "xml") && path.is_file() {
            bail!(
                "`{}` is a model, not an app: `tenon up` serves it as it is and `tenon model push` pushes it; \
                 docs/packaging.md shows the spin.toml that makes an app of it",
                path.display()
            );
        }
        if let Some(found) = manifest::find(path) {
            return Ok(From::Manifest(found));
        }
        if path.exists() {
            bail!("there is no spin.toml in `{}` or above it; `tenon new` makes an app", path.display());
        }
        // A word alone is rather a folder that is not there.
        match self.from.contains('/') && !self.from.starts_with(['.', '/']) {
            true => Ok(From::Registry(self.from.parse()?)),
            false => bail!(
                "there is no `{}`; name a spin.toml, a folder, or a reference such as `ghcr.io/acme/digits:1.0`",
                self.from
            ),
        }
    }

    /// The reference that the arguments name, if it is one.
    pub fn reference(&self) -> Option<Reference> {
        match self.source() {
            Ok(From::Registry(reference)) => Some(reference),
            Ok(From::Manifest(_) | From::Layout(_)) | Err(_) => None,
        }
    }

    /// The manifest of a local app.
    ///
    /// # Errors
    /// Where there is none, or it is wrong.
    pub fn manifest(&self, path: &Path, values_required: bool) -> anyhow::Result<Manifest> {
        let variables = self.variables()?;
        let profile = self.profile.as_deref();
        let environment = &config::variable;
        Ok(Manifest::load(path, &Options { profile, variables: &variables, environment, values_required })?)
    }

    fn variables(&self) -> anyhow::Result<BTreeMap<String, String>> {
        super::variables::read(&self.variables)
    }
}

/// An app and the files that it names, all of them on this machine.
pub struct App {
    pub manifest: Manifest,
    pub files: Files,
    /// What callers of its functions find, by the component's id, where it was packed.
    pub interfaces: BTreeMap<String, serde_json::Value>,
    /// The artifact that it came in.
    pub image: Option<Pulled>,
    /// Keeps its models that came from registries in the cache.
    pub models: Vec<Pulled>,
}

/// Where apps come from: this machine's files, its cache, and registries.
pub struct Sources<'a> {
    pub config: &'a Config,
    pub cache: Cache,
    pub progress: &'a Progress,
    options: registry::Options,
    registry: OnceCell<Registry>,
    /// Keeps in the cache whatever a command brought there or found, to its end.
    blobs: Blobs,
}

impl<'a> Sources<'a> {
    /// # Errors
    /// Where the cache folder cannot be had.
    pub fn open(
        config: &'a Config,
        args: &RegistryArgs,
        progress: &'a Progress,
    ) -> anyhow::Result<Sources<'a>> {
        let cache = Cache::bounded(&config.cache_dir()?, config.cache.max_bytes())?;
        let options = registry::Options::new(&config.registry, args.plain_http);
        let blobs = cache.blobs();
        Ok(Sources { config, cache, progress, options, registry: OnceCell::new(), blobs })
    }

    /// Names registries that the command is about.
    #[must_use]
    pub fn naming<'r>(mut self, references: impl IntoIterator<Item = &'r Reference>) -> Self {
        references.into_iter().for_each(|reference| self.options.name(reference));
        self
    }

    /// The way to the blobs. What goes through it stays in the cache until the command ends.
    pub fn blobs(&self) -> Blobs {
        self.blobs.clone()
    }

    /// The client of registries, made when it is first needed.
    ///
    /// # Errors
    /// Where the operator's authorities cannot be read.
    pub async fn registry(&self) -> anyhow::Result<&Registry> {
        let made = self.registry.get_or_try_init(async || Registry::new(self.options.clone()));
        Ok(made.await?)
    }

    /// The app that the arguments name, with everything that it needs. `build` is run on a local one.
    ///
    /// # Errors
    /// Where something of it is missing, wrong or not to be trusted.
    pub async fn app(&self, args: &AppArgs, build: bool, values_required: bool) -> anyhow::Result<App> {
        match args.source()? {
            From::Manifest(path) => {
                let manifest = args.manifest(&path, values_required)?;
                if build {
                    build::build(&manifest, &[], self.progress).await?;
                }
                self.local(manifest).await
            }
            From::Layout(folder) => {
                let blobs = self.blobs();
                let limit = self.config.registry.max_artifact_mib;
                let name = folder.display().to_string();
                let read = move || layout::read(&folder, None, limit, &blobs);
                let image =
                    tokio::task::spawn_blocking(read).await.context("reading the layout failed")??;
                self.unpacked(&name, image, args, values_required).await
            }
            From::Registry(reference) => {
                let image = self.pull(&reference).await?;
                self.unpacked(&reference.to_string(), image, args, values_required).await
            }
        }
    }

    /// An app of this machine's files, with the models that it names in registries.
    ///
    /// # Errors
    /// Where a file is missing, or a model cannot be pulled.
    pub async fn local(&self, mut manifest: Manifest) -> anyhow::Result<App> {
        let models = self.models(&mut manifest).await?;
        let files = manifest.files()?;
        Ok(App { manifest, files, interfaces: BTreeMap::new(), image: None, models })
    }

    async fn unpacked(
        &self,
        name: &str,
        image: Pulled,
        args: &AppArgs,
        values_required: bool,
    ) -> anyhow::Result<App> {
        if args.profile.is_some() {
            bail!("`{name}` is packed: its profile was chosen then; leave `--profile` out");
        }
        let (blobs, layers, name) = (self.blobs(), image.manifest.clone(), name.to_owned());
        let (variables, max_unpacked_bytes) = (args.variables()?, self.max_unpacked_bytes());
        let app = tokio::task::spawn_blocking(move || {
            let environment = &config::variable;
            let options = unpack::Options {
                name: &name,
                variables: &variables,
                environment,
                values_required,
                max_unpacked_bytes,
            };
            unpack::unpack(&layers, &blobs, &options).with_context(|| format!("`{name}` cannot be served"))
        });
        let app = app.await.context("unpacking failed")??;
        let mut manifest = app.manifest;
        let models = self.models(&mut manifest).await?;
        Ok(App { manifest, files: app.files, interfaces: app.interfaces, image: Some(image), models })
    }

    fn max_unpacked_bytes(&self) -> u64 {
        self.config.registry.max_artifact_mib << 20
    }

    /// Pulls an artifact that is signed as the operator demands: nothing but its manifest is fetched before that is
    /// known.
    ///
    /// # Errors
    /// Where it cannot be had, or is not signed as the operator demands.
    pub async fn pull(&self, reference: &Reference) -> anyhow::Result<Pulled> {
        let registry = self.registry().await?;
        let (digest, bytes) = self.manifest(reference).await?;
        let policy = Policy::load(&self.config.signatures)?;
        let blobs = self.blobs();
        let key = signature::transfer::verified(Some(registry), &blobs, reference, digest, &policy).await?;
        if let Some(key) = key {
            self.progress.say("Verified", format!("{} is signed by `{}`", reference.at(digest), key.name));
        }
        self.fetch(reference, &bytes).await
    }

    /// Pulls an artifact whoever signed it: one that is not run, or whose digest somebody else answers for.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub async fn pull_unverified(&self, reference: &Reference) -> anyhow::Result<Pulled> {
        let (_, bytes) = self.manifest(reference).await?;
        self.fetch(reference, &bytes).await
    }

    /// The manifest that a reference leads to. One that is named by its digest does not change, so that the registry
    /// is not asked for it again; and where the registry cannot be reached, what a tag led to last has to do.
    async fn manifest(&self, reference: &Reference) -> anyhow::Result<(Digest, Vec<u8>)> {
        let (blobs, name) = (self.blobs(), reference.clone());
        let kept =
            tokio::task::spawn_blocking(move || kept(&blobs, &name)).await.context("reading failed")??;
        if let (Some(_), Some(kept)) = (reference.digest(), &kept) {
            return Ok(kept.clone());
        }
        match (self.registry().await?.manifest(reference).await, kept) {
            (Ok(found), _) => Ok(found),
            (Err(error), Some(kept)) if error.is_unreachable() => {
                self.progress.warn(format!("{error}; taking `{reference}` as it was last, {}", kept.0));
                Ok(kept)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    async fn fetch(&self, reference: &Reference, manifest: &[u8]) -> anyhow::Result<Pulled> {
        let (registry, blobs) = (self.registry().await?, self.blobs());
        let transfer = Transfer::new(self.progress, Way::Pull);
        let pulled = registry.pull_manifest(reference, manifest, &blobs, &transfer.report()).await?;
        transfer.done(reference, &pulled.moved);
        Ok(pulled)
    }

    /// Refuses an app that comes from no registry, where the operator has it so: nobody signed it.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn admit_local(&self, args: &AppArgs) -> anyhow::Result<()> {
        match args.source()? {
            From::Registry(_) => Ok(()),
            From::Manifest(_) | From::Layout(_) => {
                Ok(Policy::load(&self.config.signatures)?.admit_local(&args.from)?)
            }
        }
    }

    /// Brings the models that an app names in registries. They are kept as long as the answer lives.
    ///
    /// # Errors
    /// Where one cannot be had, or is no model.
    pub(super) async fn models(&self, manifest: &mut Manifest) -> anyhow::Result<Vec<Pulled>> {
        let mut pulled = Vec::new();
        let mut files = BTreeMap::new();
        for (text, encodings) in modelpack::references(manifest) {
            let reference: Reference = text.parse()?;
            // Whoever signed the app signed the digest of its model.
            let image = self.pull_unverified(&reference).await.with_context(|| format!("model `{text}`"))?;
            for encoding in encodings {
                let (blobs, layers, limit) =
                    (self.blobs(), image.manifest.clone(), self.max_unpacked_bytes());
                let found =
                    tokio::task::spawn_blocking(move || modelpack::unpack(&layers, encoding, &blobs, limit));
                let found = found.await.context("unpacking failed")?;
                files.insert((text.clone(), encoding), found.with_context(|| format!("model `{text}`"))?);
            }
            pulled.push(image);
        }
        modelpack::resolve(manifest, &files)?;
        Ok(pulled)
    }

    /// Brings the components that an app names by their URLs into the store, for an app that is packed.
    ///
    /// # Errors
    /// Where one cannot be fetched.
    pub async fn components(&self, manifest: &Manifest) -> anyhow::Result<()> {
        for component in &manifest.components {
            if let Source::Url { .. } = component.source {
                let fetched = fetch::component(&component.source).await?;
                let blobs = self.blobs();
                tokio::task::spawn_blocking(move || blobs.put(&fetched.wasm))
                    .await
                    .context("keeping failed")??;
            }
        }
        Ok(())
    }
}

/// The manifest that a reference led to when it was asked for last, as far as it is in the cache.
fn kept(blobs: &Blobs, reference: &Reference) -> Result<Option<(Digest, Vec<u8>)>, BlobError> {
    let digest = match reference.digest() {
        Some(digest) => Some(*digest),
        None => blobs.remembered(&reference.to_string())?,
    };
    let Some(digest) = digest else { return Ok(None) };
    Ok(blobs.read(&digest, MAX_MANIFEST_BYTES)?.map(|bytes| (digest, bytes)))
}

/// An artifact as people are told of it.
pub fn summary(digest: &Digest, manifest: &ImageManifest) -> String {
    let sum: u64 = manifest.blobs().iter().map(|blob| blob.size).sum();
    let layers = match manifest.layers.len() {
        1 => "1 layer".to_owned(),
        layers => format!("{layers} layers"),
    };
    format!("{digest}, {layers}, {}", bytes(sum))
}
