//! Sends a host the blobs of an artifact that it lacks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::remote::Remote;
use super::view::HostView;
use crate::artifact::oci::Digest;
use crate::cli::transfer::{at_speed, bar, bytes};
use crate::control::client::{ClientError, Content};

/// A blob of the artifact, in the cache of this machine.
#[derive(Clone)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) path: PathBuf,
}

/// Sends what the host lacks, in the order of the blobs.
///
/// # Errors
/// Where the host refuses a blob, or the connection breaks.
pub(super) async fn upload(host: &dyn Remote, blobs: &[Blob], view: &HostView) -> Result<(), ClientError> {
    if blobs.is_empty() {
        return Ok(());
    }
    let begun = Instant::now();
    view.at("Uploading", "looking what is there".to_owned(), true);
    let mut missing = Vec::new();
    for blob in blobs {
        if !host.has_blob(&blob.digest).await? {
            missing.push(blob);
        }
    }
    let sum = |blobs: &mut dyn Iterator<Item = &Blob>| blobs.map(|blob| blob.size).sum::<u64>();
    let total = sum(&mut missing.iter().copied());
    let present = sum(&mut blobs.iter()) - total;
    let before = AtomicU64::new(0);
    for blob in &missing {
        let at = |sent: u64| {
            let at = before.load(Ordering::Relaxed) + sent.min(blob.size);
            view.at("Uploading", format!("{} {} of {}", bar(at, total), bytes(at), bytes(total)), false);
        };
        at(0);
        host.put_blob(&blob.digest, &Content::File(blob.path.clone()), &at).await?;
        before.fetch_add(blob.size, Ordering::Relaxed);
    }
    view.rest();
    let took = begun.elapsed();
    let moved = match missing.len() {
        0 => "nothing".to_owned(),
        1 => format!("1 blob, {}", at_speed(total, took)),
        many => format!("{many} blobs, {}", at_speed(total, took)),
    };
    let there = if present > 0 { format!(", {} there already", bytes(present)) } else { String::new() };
    view.done("Uploaded", &format!("{moved}{there}"), took);
    Ok(())
}
