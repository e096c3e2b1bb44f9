//! `tenon sign`: signs an artifact that lies in a registry already.

use std::path::PathBuf;

use clap::Args;

use super::app::{RegistryArgs, Sources};
use super::key;
use super::progress::Progress;
use crate::artifact::oci::Digest;
use crate::artifact::reference::Reference;
use crate::artifact::signature::keys::Key;
use crate::artifact::signature::transfer;
use crate::config::Config;

/// Signs an artifact in a registry, as `tenon push --sign` and `cosign sign --key` do.
///
/// A password of the key is taken from TENON_KEY_PASSWORD or COSIGN_PASSWORD, or asked for.
#[derive(Args)]
pub struct SignArgs {
    /// The artifact; a digest says which one for certain: `registry.example/team/app@sha256:...`.
    reference: Reference,
    /// The file of the private key; `tenon key generate` makes one.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Signs what the reference leads to.
///
/// # Errors
/// Where there is no such artifact, the key is not to be had, or the registry refuses.
pub async fn run(args: &SignArgs, config: &Config, progress: &Progress) -> anyhow::Result<()> {
    let key = key::read(&args.key)?;
    let sources = Sources::open(config, &args.registry, progress)?.naming([&args.reference]);
    let (digest, _) = sources.registry().await?.manifest(&args.reference).await?;
    sign(&sources, &args.reference, digest, &key).await
}

/// Signs an artifact by its digest, and tells so.
///
/// # Errors
/// Where the registry refuses, or the artifact has too many signatures.
pub(super) async fn sign(
    sources: &Sources<'_>,
    artifact: &Reference,
    digest: Digest,
    key: &Key,
) -> anyhow::Result<()> {
    let (registry, blobs) = (sources.registry().await?, sources.blobs());
    let (place, is_new) = transfer::push(registry, &blobs, artifact, digest, key).await?;
    let by = if is_new { "by" } else { "as before, by" };
    sources.progress.say("Signed", format!("{} {by} {}, as {place}", artifact.at(digest), key.digest()));
    Ok(())
}
