//! The local socket: for this user and root alone, and one host at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

use crate::artifact::cache::make_private;

/// The longest path of a socket that Linux takes, in bytes.
const MAX_PATH_BYTES: usize = 107;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("a host is listening on `{}` already; stop it, or give this one a state folder of its own (`--state`)", .0.display())]
    Live(PathBuf),
    #[error("`{}` is in the way of the control socket, and is no socket; remove it, or set `control.socket`", .0.display())]
    InTheWay(PathBuf),
    #[error(
        "the path of the control socket, `{}`, is longer than the {MAX_PATH_BYTES} bytes that the system takes; set \
         `control.socket` in host.toml to a shorter one", .0.display()
    )]
    TooLong(PathBuf),
    #[error(
        "others may write to `{folder}`, and could put a control socket of their own there; `chmod go-w {folder}` mends that, or \
         set `control.socket` in host.toml to a path in another folder", folder = .0.display()
    )]
    Untrusted(PathBuf),
    #[error("cannot make the control socket `{}`: {source}; let the host's user write there, or set `control.socket` in host.toml", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A socket that this process listens on. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Whoever has this lock may take the path.
    _lock: File,
}

impl Socket {
    /// Listens on `path`, in place of a socket that nobody listens on any more. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where somebody listens there, something else is in the way, or others could put a socket of theirs there.
    pub(super) fn bind(path: &Path) -> Result<Socket, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        // A name beside it is a little longer.
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let fresh = beside(".new");
        if fresh.as_os_str().as_bytes().len() > MAX_PATH_BYTES {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_private(folder).map_err(failed)?;
        let found = fs::metadata(folder).map_err(failed)?;
        let is_own = is_allowed(found.uid(), geteuid().as_raw());
        if !is_own || found.mode() & 0o022 != 0 {
            return Err(SocketError::Untrusted(folder.to_owned()));
        }
        let lock =
            File::options().create(true).append(true).mode(0o600).open(beside(".lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::Live(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::InTheWay(path.to_owned()));
            }
            // Whoever listens there does not know of the lock.
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(SocketError::Live(path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        // Under another name until its mode is right; then it takes the place of an old one in one step.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::symlink_metadata(&fresh).map_err(failed)?.ino();
        fs::rename(&fresh, path).map_err(failed)?;
        Ok(Socket { listener, path: path.to_owned(), inode, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next caller and its user; `None` for one that is neither this user nor root.
    pub(super) async fn accept(&self) -> io::Result<Option<(UnixStream, u32)>> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        Ok(is_allowed(user, geteuid().as_raw()).then_some((stream, user)))
    }
}

fn is_allowed(user: u32, own: u32) -> bool {
    user == own || user == 0
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Unless it is another's by now.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_user_and_root_are_allowed() {
        let check = |user, own, expected| assert_eq!(is_allowed(user, own), expected, "{user} {own}");
        check(1000, 1000, true);
        check(0, 1000, true);
        check(1001, 1000, false);
        check(1000, 0, false);
    }

    #[tokio::test]
    async fn a_socket_is_its_users_and_goes_with_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/tenon.sock");
        let socket = Socket::bind(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let _caller = UnixStream::connect(&path).await.unwrap();
        let (_, user) = socket.accept().await.unwrap().unwrap();
        assert_eq!(user, geteuid().as_raw());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/tenon.sock");
        let is_live = |bound: Result<Socket, SocketError>| matches!(bound, Err(SocketError::Live(_)));
        let first = Socket::bind(&path).unwrap();
        assert!(is_live(Socket::bind(&path)));
        drop(first);
        // As one that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Socket::bind(&path).unwrap();
        drop(second);
        // One that knows of no lock.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_live(Socket::bind(&path)));
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file of somebody").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InTheWay(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file of somebody");
    }

    #[tokio::test]
    async fn a_socket_that_others_could_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("open");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Socket::bind(&folder.join("t.sock")).unwrap_err();
        assert!(matches!(error, SocketError::Untrusted(_)), "{error}");
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(Socket::bind(&long), Err(SocketError::TooLong(_))));
    }
}
