//! Unix sockets that only their owner can open.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::check;

/// Listens on a Unix socket of mode 0600; missing directories above it are created with mode 0700.
///
/// The socket is never open to others, not even for a moment, and the process umask is not touched.
/// A stale socket file is not removed: that is the caller's decision.
///
/// # Errors
/// `AddrInUse` when the path exists; otherwise what the system says, with the path.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
    };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(explain)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(explain)?;
    // Linux gives the file that bind() makes the mode of the socket's own inode (unix_bind_bsd).
    // SAFETY: a descriptor we own.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) }).map_err(explain)?;
    socket.bind(&SockAddr::unix(path).map_err(explain)?).map_err(explain)?;
    socket.listen(16).map_err(explain)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_socket_is_private_and_a_second_bind_is_refused() {
        let home = std::env::temp_dir().join(format!("adit-io-unix-{}", std::process::id()));
        let path = home.join("deep/control.sock");
        let listener = bind_private(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();

        let error = bind_private(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("control.sock"), "{error}");
        std::fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let path = std::env::temp_dir().join("x".repeat(200));
        assert!(bind_private(&path).unwrap_err().to_string().contains("xxx"));
    }
}
