//! `tenon verify`: who signed an artifact, by the host's policy or by keys that are named.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::app::{RegistryArgs, Sources};
use super::progress::Progress;
use crate::artifact::reference::Reference;
use crate::artifact::signature::keys::TrustedKey;
use crate::artifact::signature::policy::Policy;
use crate::artifact::signature::transfer;
use crate::config::Config;

/// Tells whether an artifact in a registry is signed by a trusted key, and by which.
#[derive(Args)]
pub struct VerifyArgs {
    /// The artifact.
    reference: Reference,
    /// The files of public keys, one of which must have signed; by default those of `[signatures]` in host.toml.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Writes the signatures and what they are over to this folder, to be looked at by other tools.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Verifies, and tells by whom the artifact is signed.
///
/// # Errors
/// Where no trusted key signed it, or the registry cannot be asked.
pub async fn run(args: &VerifyArgs, config: &Config, progress: &Progress) -> anyhow::Result<()> {
    let policy = if args.key.is_empty() { Policy::load(&config.signatures)? } else { named(&args.key)? };
    let sources = Sources::open(config, &args.registry, progress)?.naming([&args.reference]);
    let (registry, blobs) = (sources.registry().await?, sources.blobs());
    let (digest, _) = registry.manifest(&args.reference).await?;
    if let Some(folder) = &args.save {
        let place = transfer::reference(&args.reference, digest);
        let signatures = transfer::signatures(registry, &blobs, &place).await?;
        for (index, signed) in signatures.iter().enumerate() {
            write(&folder.join(format!("{}.payload", index + 1)), &signed.payload)?;
            write(&folder.join(format!("{}.signature", index + 1)), &signed.signature)?;
        }
        progress.say("Saved", format!("{} signatures to {}", signatures.len(), folder.display()));
    }
    let artifact = args.reference.at(digest);
    match transfer::verified(Some(registry), &blobs, &args.reference, digest, &policy).await? {
        Some(key) => println!("{artifact} is signed by `{}`, {}", key.name, key.digest()),
        None => println!("{artifact} needs no signature: no key in host.toml is for its repository"),
    }
    Ok(())
}

/// The policy that one of these keys must have signed.
fn named(files: &[PathBuf]) -> anyhow::Result<Policy> {
    let keys = files.iter().map(|file| {
        let name = file.display().to_string();
        TrustedKey::read(&name, file).with_context(|| format!("the public key `{name}`"))
    });
    Ok(Policy::trusting(keys.collect::<anyhow::Result<_>>()?))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, bytes));
    written.with_context(|| format!("`{}` cannot be written", path.display()))
}
