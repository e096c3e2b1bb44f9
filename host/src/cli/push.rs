//! `tenon push` and `tenon pull`: an app to a registry, and from there into the cache of this machine.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::app::{self, AppArgs, RegistryArgs, Sources};
use super::progress::Progress;
use super::transfer::{Transfer, Way};
use super::{key, package, sign};
use crate::artifact::layout;
use crate::artifact::oci::ImageManifest;
use crate::artifact::package::Packed;
use crate::artifact::reference::Reference;
use crate::config::Config;

#[derive(Args)]
pub struct PushArgs {
    /// Where to: such as `ghcr.io/acme/digits:1.0`.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    #[command(flatten)]
    app: AppArgs,
    /// Runs each component's build command first.
    #[arg(long)]
    build: bool,
    /// Pushes this component alone, without models and settings, as other tools for components expect it.
    #[arg(short = 'c', long = "component-id", value_name = "ID")]
    component: Option<String>,
    /// Signs what was pushed with the private key in this file; `tenon key generate` makes one.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
}

#[derive(Args)]
pub struct PullArgs {
    /// What to pull: such as `ghcr.io/acme/digits:1.0`.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// Writes it to a folder too, as an OCI image layout.
    #[arg(short = 'o', long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Packs an app and pushes it. Prints its reference with its digest.
///
/// # Errors
/// Where the app is not whole, or the registry refuses.
pub async fn push(args: &PushArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    // A password is asked for before anything takes its time.
    let key = args.sign.as_deref().map(key::read).transpose()?;
    let sources = Sources::open(&config, &args.app.registry, progress)?;
    let sources = sources.naming(&args.app.reference()).naming([&args.reference]);
    let packed = package::packed(&sources, &args.app, args.build, args.component.as_deref()).await?;
    send(&sources, &args.reference, &packed).await?;
    match key {
        Some(key) => sign::sign(&sources, &args.reference, packed.digest, &key).await,
        None => Ok(()),
    }
}

/// Pushes an artifact that is in the store.
///
/// # Errors
/// Where the registry refuses.
pub(super) async fn send(
    sources: &Sources<'_>,
    reference: &Reference,
    packed: &Packed,
) -> anyhow::Result<()> {
    let registry = sources.registry().await?;
    let transfer = Transfer::new(sources.progress, Way::Push);
    let blobs = sources.blobs();
    let moved = registry.push_stored(reference, packed.digest, &blobs, &transfer.report()).await?;
    transfer.done(reference, &moved);
    let (digest, text) = (packed.digest, reference.to_string());
    tokio::task::spawn_blocking(move || blobs.remember(&text, &digest))
        .await
        .context("remembering failed")??;
    sources.progress.say("Artifact", app::summary(&packed.digest, &packed.manifest));
    println!("{}", reference.at(packed.digest));
    Ok(())
}

/// Pulls an artifact into the cache. Prints its reference with its digest.
///
/// # Errors
/// Where it cannot be had.
pub async fn pull(args: &PullArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let sources = Sources::open(&config, &args.registry, progress)?.naming([&args.reference]);
    let pulled = sources.pull(&args.reference).await?;
    sources.progress.say("Artifact", app::summary(&pulled.digest, &pulled.manifest));
    if let Some(folder) = &args.output {
        let (blobs, digest, output) = (sources.blobs(), pulled.digest, folder.clone());
        let tag = args.reference.tag().map(str::to_owned);
        let write = move || layout::write(&digest, tag.as_deref(), &blobs, &output);
        tokio::task::spawn_blocking(write).await.context("writing the folder failed")??;
        sources.progress.say("Folder", folder.display());
    }
    advise(&sources, &args.reference, &pulled.manifest);
    println!("{}", args.reference.at(pulled.digest));
    Ok(())
}

/// What can be done with what was pulled.
fn advise(sources: &Sources<'_>, reference: &Reference, manifest: &ImageManifest) {
    let next = match crate::artifact::modelpack::is_model(manifest) {
        true => format!("it is a model; `tenon model pull {reference} -o FOLDER` writes its files"),
        false => format!("tenon up -f {reference}"),
    };
    sources.progress.say("Try", next);
}
