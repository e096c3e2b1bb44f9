//! `tenon package`: an app as an OCI artifact, in a folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use super::app::{self, App, AppArgs, Sources};
use super::progress::Progress;
use crate::artifact::layout;
use crate::artifact::manifest::Source;
use crate::artifact::package::{self, Packed};
use crate::config::Config;
use crate::host::{self, Surroundings};

#[derive(Args)]
pub struct PackageArgs {
    #[command(flatten)]
    app: AppArgs,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// Where to: a folder that becomes an OCI image layout.
    #[arg(short = 'o', long, value_name = "FOLDER", default_value = "package")]
    output: PathBuf,
    /// What the artifact is called in the folder.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Packs this component alone, without models and settings, as other tools for components expect it.
    #[arg(short = 'c', long = "component-id", value_name = "ID")]
    component: Option<String>,
}

/// Packs, and prints the artifact's digest.
///
/// # Errors
/// Where the app is not whole, or the folder cannot be written.
pub async fn run(args: &PackageArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let sources = Sources::open(&config, &args.app.registry, progress)?.naming(&args.app.reference());
    let packed = packed(&sources, &args.app, args.build, args.component.as_deref()).await?;
    let (blobs, output, tag) = (sources.blobs(), args.output.clone(), args.tag.clone());
    let digest = packed.digest;
    let write = move || layout::write(&digest, tag.as_deref(), &blobs, &output);
    tokio::task::spawn_blocking(write).await.context("writing the folder failed")??;
    progress.say("Packaged", app::summary(&packed.digest, &packed.manifest));
    progress.say("Folder", args.output.display());
    println!("{}", packed.digest);
    Ok(())
}

/// The artifact of the app that `args` name, with all of it in the store.
///
/// # Errors
/// Where the app is not whole.
pub(super) async fn packed(
    sources: &Sources<'_>,
    args: &AppArgs,
    build: bool,
    component: Option<&str>,
) -> anyhow::Result<Packed> {
    let app = sources.app(args, build, false).await?;
    let packed = match (component, &app.image) {
        (Some(id), _) => alone(sources, &app.manifest, id).await?,
        // It is packed already, and stays the same to the byte.
        (None, Some(image)) => {
            Packed { digest: image.digest, manifest: image.manifest.clone(), warnings: Vec::new() }
        }
        (None, None) => whole(sources, app).await?,
    };
    for warning in &packed.warnings {
        sources.progress.warn(warning);
    }
    Ok(packed)
}

async fn whole(sources: &Sources<'_>, app: App) -> anyhow::Result<Packed> {
    sources.components(&app.manifest).await?;
    let interfaces = interfaces(sources, &app).await?;
    for warning in app.manifest.warnings.iter().chain(&app.files.warnings) {
        sources.progress.warn(warning);
    }
    let step = sources.progress.step("Packaging", &app.manifest.name);
    let blobs = sources.blobs();
    let pack = move || package::pack(&app.manifest, &app.files, &interfaces, &blobs);
    let packed = tokio::task::spawn_blocking(pack).await.context("packing failed")??;
    step.done();
    Ok(packed)
}

async fn alone(
    sources: &Sources<'_>,
    manifest: &crate::artifact::manifest::Manifest,
    id: &str,
) -> anyhow::Result<Packed> {
    let component = manifest.components.iter().find(|component| component.id == id);
    let Some(component) = component else {
        let ids: Vec<_> = manifest.components.iter().map(|component| component.id.as_str()).collect();
        bail!("there is no component `{id}`; there are {}", ids.join(", "));
    };
    let blobs = sources.blobs();
    let path = match &component.source {
        Source::Path(path) => path.clone(),
        Source::Url { digest, .. } => {
            sources.components(manifest).await?;
            blobs.path(&digest.parse()?)
        }
        Source::Model => bail!("component `{id}` has no code; `tenon model push` ships a model alone"),
    };
    let pack = move || package::component(&path, &blobs);
    Ok(tokio::task::spawn_blocking(pack).await.context("packing failed")??)
}

/// What callers of the app's functions find. Asks the components themselves.
async fn interfaces(sources: &Sources<'_>, app: &App) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let logs = tempfile::tempdir().context("cannot make a folder for the functions' output")?;
    let around = Surroundings { program, logs: logs.path().to_owned(), state: logs.path().join("state") };
    let deployer = host::workbench(sources.config.clone(), around, false)?;
    let mut interfaces = BTreeMap::new();
    for component in &app.manifest.components {
        let name = app.manifest.function(component);
        let step = sources.progress.step("Describing", &name);
        let interface = deployer.interface(&name, component).await;
        let interface =
            interface.with_context(|| format!("`{name}` cannot be served, so it is not packed"))?;
        interfaces.insert(component.id.clone(), serde_json::to_value(interface)?);
        step.done();
    }
    Ok(interfaces)
}
