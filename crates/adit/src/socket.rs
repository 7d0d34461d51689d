//! A Unix socket that only its owner can reach, with bounded clients.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A process answers on it.
    #[error("{} is in use: a running process answers on it; stop that one first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has its name.
    #[error("{} is in the way: it is not a socket; remove or rename it", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot open the socket {}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket of mode 0600 in a directory of mode 0700; its file goes when this is dropped.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl PrivateSocket {
    /// Listens on `path`, replacing a socket that nobody answers on.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let system = |source| SocketError::System { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(system)?;
            close_to_others(directory).map_err(system)?;
        }
        remove_stale(path)?;
        let listener = adit_io::sys::bind_private(path).map_err(system)?;
        let identity = identity_of(path).map_err(system)?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// The file of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is still there and still ours.
    pub fn is_intact(&self) -> bool {
        identity_of(&self.path).is_ok_and(|identity| identity == self.identity)
    }

    /// Answers clients for the life of the process, each on a thread of its own; a client beyond
    /// `clients_max` is hung up on.
    ///
    /// # Errors
    /// The error of starting the thread.
    pub fn serve(
        &self,
        clients_max: usize,
        client: impl Fn(UnixStream) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let client = Arc::new(client);
        let clients = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().name("accept".into()).spawn(move || {
            loop {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "accepting a local client failed");
                        std::thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                };
                let slot = Slot::take(&clients);
                if slot.number > clients_max {
                    tracing::warn!(clients_max, "too many local clients at once: one was turned away");
                    continue;
                }
                let client = client.clone();
                let started = std::thread::Builder::new().name("client".into()).spawn(move || {
                    client(stream);
                    drop(slot);
                });
                if let Err(error) = started {
                    tracing::warn!(%error, "no thread for a local client");
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        if self.is_intact() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Other programs (`wg`, another WireGuard device) may have made the directory with a mode that lets others in.
fn close_to_others(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let is_ours = metadata.uid() == 0 && crate::privilege::user_id() == Some(0);
    if is_ours && metadata.mode() & 0o077 != 0 && metadata.mode() & 0o1000 == 0 {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

struct Slot {
    clients: Arc<AtomicUsize>,
    number: usize,
}

impl Slot {
    fn take(clients: &Arc<AtomicUsize>) -> Self {
        let number = clients.fetch_add(1, AcqRel).wrapping_add(1);
        Self { clients: clients.clone(), number }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, AcqRel);
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::System { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::InTheWay { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| SocketError::System { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

/// How long a client may take, and how much it may say at once.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between requests.
    pub idle: Duration,
    /// From the first byte of a request to its end, and for taking the answer.
    pub request: Duration,
    /// The longest request in bytes, its end included.
    pub bytes_max: usize,
}

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// A request longer than allowed.
    #[error("the request is too long")]
    TooLong,
    /// The client hung up in the middle of a request.
    #[error("the client hung up in the middle of a request")]
    Truncated,
    /// The client took too long, or the system failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Requests read one after another from a client. The bytes are erased when this is dropped: they
/// may hold keys.
#[derive(Debug)]
pub struct Requests<'a> {
    stream: &'a UnixStream,
    end: &'static [u8],
    patience: Patience,
    buffer: Zeroizing<Vec<u8>>,
}

impl<'a> Requests<'a> {
    /// Requests that each finish with `end`.
    pub fn new(stream: &'a UnixStream, end: &'static [u8], patience: Patience) -> Self {
        Self { stream, end, patience, buffer: Zeroizing::new(Vec::with_capacity(4096)) }
    }

    /// The next request with its end, or `None` when the client hung up between two.
    ///
    /// # Errors
    /// [`TalkError`]; nothing more can be read after it.
    pub fn next_request(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, TalkError> {
        let mut deadline = (!self.buffer.is_empty()).then(|| Instant::now() + self.patience.request);
        let mut searched = 0;
        let mut chunk = Zeroizing::new([0; 16 * 1024]);
        loop {
            let unsearched = self.buffer.get(searched..).unwrap_or_default();
            if let Some(at) = unsearched.windows(self.end.len()).position(|window| window == self.end) {
                return Ok(Some(self.take(searched + at + self.end.len())));
            }
            searched = (self.buffer.len() + 1).saturating_sub(self.end.len());
            if self.buffer.len() >= self.patience.bytes_max {
                return Err(TalkError::TooLong);
            }
            let wait = match deadline {
                None => self.patience.idle,
                Some(deadline) => remaining(deadline)?,
            };
            self.stream.set_read_timeout(Some(wait))?;
            match self.stream.read(&mut chunk[..]) {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(TalkError::Truncated),
                Ok(count) => append(&mut self.buffer, chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            deadline = deadline.or_else(|| Some(Instant::now() + self.patience.request));
        }
    }

    fn take(&mut self, count: usize) -> Zeroizing<Vec<u8>> {
        let request = Zeroizing::new(self.buffer.get(..count).unwrap_or_default().to_vec());
        self.buffer.drain(..count);
        request
    }
}

/// Sends a whole answer before the patience with one request is over.
///
/// # Errors
/// The error of the socket; a client that does not read is a timeout.
pub fn answer(mut stream: &UnixStream, patience: Patience, mut text: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + patience.request;
    while !text.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn append(buffer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(buffer.capacity() * 2)));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { idle: Duration::from_secs(5), request: Duration::from_millis(300), bytes_max: 1 << 20 };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_and_its_directory_are_for_the_owner_only_and_go_with_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/x.sock");
        let socket = PrivateSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(socket.is_intact());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = PrivateSocket::bind(&path).unwrap();
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::InUse { .. })));
        assert!(socket.is_intact());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_closed_but_not_one_for_all() {
        let directory = tempfile::tempdir().unwrap();
        for (before, after) in [(0o755, 0o700), (0o777, 0o700), (0o1777, 0o1777), (0o700, 0o700)] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(before)).unwrap();
            let _socket = PrivateSocket::bind(&directory.path().join("x.sock")).unwrap();
            let mode = fs::metadata(directory.path()).unwrap().mode() & 0o7777;
            let ours = fs::metadata(directory.path()).unwrap().uid() == 0;
            assert_eq!(mode, if ours { after } else { before }, "{before:o}");
        }
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.sock");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(PrivateSocket::bind(&path), Err(SocketError::InTheWay { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_socket_whose_file_was_replaced_knows_and_leaves_the_new_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.sock");
        let socket = PrivateSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!socket.is_intact());
        let second = PrivateSocket::bind(&path).unwrap();
        drop(socket);
        assert!(second.is_intact());
    }

    #[test]
    fn requests_are_cut_at_their_end_however_they_arrive() {
        let (client, server) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for part in ["a=1\n", "\nb=", "2\n\nc=3\n\nd"] {
                (&client).write_all(part.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut requests = Requests::new(&server, b"\n\n", PATIENCE);
        for expected in ["a=1\n\n", "b=2\n\n", "c=3\n\n"] {
            assert_eq!(**requests.next_request().unwrap().unwrap(), *expected.as_bytes());
        }
        assert!(matches!(requests.next_request(), Err(TalkError::Truncated)));
        writer.join().unwrap();
    }

    #[test]
    fn a_request_that_never_ends_is_cut_off_by_time_and_by_size() {
        let (client, server) = UnixStream::pair().unwrap();
        (&client).write_all(b"a").unwrap();
        let started = Instant::now();
        assert!(matches!(
            Requests::new(&server, b"\n\n", PATIENCE).next_request(),
            Err(TalkError::System(_))
        ));
        assert!(started.elapsed() < Duration::from_secs(3));

        let writer = std::thread::spawn(move || {
            let _ = (&client).write_all(&vec![b'x'; 3 << 20]);
        });
        assert!(matches!(Requests::new(&server, b"\n\n", PATIENCE).next_request(), Err(TalkError::TooLong)));
        drop(server);
        writer.join().unwrap();
    }

    #[test]
    fn a_client_that_never_reads_is_given_up() {
        let (_client, server) = UnixStream::pair().unwrap();
        let started = Instant::now();
        assert!(answer(&server, PATIENCE, &vec![0; 8 << 20]).is_err());
        assert!(started.elapsed() < Duration::from_secs(3));
        assert!(answer(&server, PATIENCE, &[]).is_ok());
    }

    #[test]
    fn silent_clients_do_not_keep_others_waiting() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.sock");
        let socket = PrivateSocket::bind(&path).unwrap();
        socket
            .serve(8, |stream| {
                while let Ok(Some(request)) = Requests::new(&stream, b"\n", PATIENCE).next_request() {
                    if answer(&stream, PATIENCE, &request).is_err() {
                        break;
                    }
                }
            })
            .unwrap();
        let silent: Vec<_> = (0..7).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        client.write_all(b"hello\n").unwrap();
        let mut echo = [0; 6];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"hello\n");

        let mut beyond = UnixStream::connect(&path).unwrap();
        beyond.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        assert_eq!(beyond.read(&mut echo).unwrap(), 0);
        drop(silent);
    }
}
