//! Archives of a component's files, the same bytes for the same files.

use std::fs::File;
use std::io;

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

use crate::artifact::manifest::FileMount;

/// Writes `mounts`, in their order, into a temporary file.
pub(super) fn write(mounts: &[FileMount]) -> io::Result<NamedTempFile> {
    let target = NamedTempFile::new()?;
    // Without the time, and with a name for the system that does not depend on the machine.
    let encoder = GzBuilder::new().mtime(0).operating_system(255).write(target, Compression::default());
    let mut archive = Builder::new(encoder);
    for mount in mounts {
        let mut file = File::open(&mount.source)?;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(file.metadata()?.len());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let path = mount.destination.trim_start_matches('/');
        archive.append_data(&mut header, format!("./{path}"), &mut file)?;
    }
    archive.into_inner()?.finish()
}
