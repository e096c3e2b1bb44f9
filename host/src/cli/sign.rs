//! `tenon sign`: signs an artifact that lies in a registry already.

use std::path::PathBuf;

use clap::Args;

use super::key;
use super::progress::Progress;
use crate::artifact::cache::Cache;
use crate::artifact::oci::Digest;
use crate::artifact::reference::Reference;
use crate::artifact::registry::{Options, Registry};
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
    /// Speaks to the registry without TLS.
    #[arg(long)]
    plain_http: bool,
}

/// Signs what the reference leads to.
///
/// # Errors
/// Where there is no such artifact, the key is not to be had, or the registry refuses.
pub async fn run(args: &SignArgs, config: &Config, progress: &Progress) -> anyhow::Result<()> {
    let key = key::read(&args.key)?;
    let registry = Registry::new(Options::new(&config.registry, args.plain_http))?;
    let (digest, _) = registry.manifest(&args.reference).await?;
    let cache = Cache::bounded(&config.cache_dir()?, config.cache.max_bytes())?;
    sign(&registry, &cache, &args.reference, digest, &key, progress).await
}

/// Signs an artifact by its digest, and tells so: what `tenon push --sign` does in the end.
///
/// # Errors
/// Where the registry refuses, or the artifact has too many signatures.
pub async fn sign(
    registry: &Registry,
    cache: &Cache,
    artifact: &Reference,
    digest: Digest,
    key: &Key,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (place, is_new) = transfer::push(registry, &cache.blobs(), artifact, digest, key).await?;
    let by = if is_new { "by" } else { "as before, by" };
    progress.say("Signed", format!("{} {by} {}, as {place}", artifact.at(digest), key.digest()));
    Ok(())
}
