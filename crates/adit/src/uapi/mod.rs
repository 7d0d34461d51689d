//! The cross-platform WireGuard userspace API: what `wg` says to a device, and its answers.
//!
//! ```text
//!   wg set, wg setconf ──► set=1 … ──► request ──► driver
//!   wg show, wg showconf ─► get=1 ──► driver ──► answer
//! ```
//!
//! One key more than the specification: `suite=` of a peer, answered only for peers whose suite
//! WireGuard does not have.

mod answer;
mod request;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adit_proto::event::Command;
use adit_proto::key::StaticSecret;
use zeroize::Zeroizing;

use crate::driver::Driver;
use crate::socket::{Patience, PrivateSocket, Requests, TalkError, answer as send};

pub use answer::describe;
pub use request::{Request, RequestError, SetRequest, parse, parse_set, parse_with};

/// Where `wg` looks for the sockets of userspace devices.
pub const SOCKET_DIRECTORY: &str = "/var/run/wireguard";

/// The socket of the device `interface`.
pub fn socket_path(interface: &str) -> PathBuf {
    Path::new(SOCKET_DIRECTORY).join(format!("{interface}.sock"))
}

/// Answers `wg` on `socket` for the life of the process.
///
/// # Errors
/// The error of starting the thread.
pub fn serve(socket: &PrivateSocket, driver: Arc<Driver>) -> io::Result<()> {
    let device = Arc::new(Device { driver, writer: Mutex::new(()) });
    socket.serve(CLIENTS_MAX, move |stream| {
        if let Err(error) = talk(&stream, &device) {
            tracing::debug!(%error, "a conversation on the UAPI socket ended early");
        }
    })
}

const CLIENTS_MAX: usize = 64;

const PATIENCE: Patience =
    Patience { idle: Duration::from_secs(60), request: Duration::from_secs(10), bytes_max: 16 << 20 };

fn talk(stream: &UnixStream, device: &Device) -> Result<(), TalkError> {
    let mut requests = Requests::new(stream, b"\n\n", PATIENCE);
    loop {
        match requests.next_request() {
            Ok(Some(text)) => send(stream, PATIENCE, device.respond(&text).as_bytes())?,
            Ok(None) => return Ok(()),
            Err(error) => {
                let errno = match &error {
                    TalkError::TooLong => request::E2BIG,
                    TalkError::Truncated => request::EPROTO,
                    TalkError::System(_) => return Err(error),
                };
                send(stream, PATIENCE, failure(errno).as_bytes())?;
                return Err(error);
            }
        }
    }
}

struct Device {
    driver: Arc<Driver>,
    writer: Mutex<()>,
}

impl Device {
    fn respond(&self, text: &[u8]) -> Zeroizing<String> {
        match parse_with(text, &scope_index) {
            Ok(Request::Get) => describe(&self.driver.snapshot()),
            Ok(Request::Set(request)) => {
                let outcome = self.set(request);
                Zeroizing::new(outcome.map_or_else(failure, |()| "errno=0\n\n".to_owned()))
            }
            Err(error) => {
                tracing::debug!(%error, "a UAPI request was refused");
                Zeroizing::new(failure(error.errno()))
            }
        }
    }

    fn set(&self, request: SetRequest) -> Result<(), i32> {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = self.driver.snapshot();
        let new_port = request.listen_port.filter(|port| *port == 0 || *port != before.listen_port);
        if let Some(port) = new_port {
            self.driver.set_listen_port(port).map_err(|error| errno_of(&error))?;
        }
        if let Some(mark) = request.fwmark.filter(|mark| *mark != before.fwmark)
            && let Err(error) = self.driver.set_fwmark(mark)
        {
            if new_port.is_some() {
                let _ = self.driver.set_listen_port(before.listen_port);
            }
            return Err(errno_of(&error));
        }
        self.driver.apply(worth_applying(request.commands, before.private_key));
        Ok(())
    }
}

/// A device is never its own peer: such a peer is ignored, and goes when the private key becomes its
/// own. Setting the private key there is already (`wg syncconf` does) ends no session.
fn worth_applying(commands: Vec<Command>, mut own: Option<StaticSecret>) -> Vec<Command> {
    let mut own_key = own.as_ref().map(StaticSecret::public_key);
    let mut kept = Vec::with_capacity(commands.len() + 1);
    for command in commands {
        match command {
            Command::SetPrivateKey(secret) if secret == own => {}
            Command::SetPrivateKey(secret) => {
                own_key = secret.as_ref().map(StaticSecret::public_key);
                own.clone_from(&secret);
                kept.push(Command::SetPrivateKey(secret));
                kept.extend(own_key.map(Command::RemovePeer));
            }
            Command::SetPeer(update) if Some(update.public_key) == own_key => {}
            other => kept.push(other),
        }
    }
    kept
}

fn failure(errno: i32) -> String {
    format!("errno=-{errno}\n\n")
}

fn errno_of(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::AddrInUse => request::EADDRINUSE,
        _ => error.raw_os_error().unwrap_or(request::EIO),
    }
}

fn scope_index(name: &str) -> Option<u32> {
    let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    plain.then(|| std::fs::read_to_string(path).ok()?.trim().parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use adit_proto::event::PeerUpdate;
    use adit_proto::key::PublicKey;

    use super::*;

    fn kinds(commands: &[Command]) -> Vec<String> {
        commands
            .iter()
            .map(|command| match command {
                Command::SetPrivateKey(_) => "key".to_owned(),
                Command::SetPeer(update) => format!("set {:02x}", update.public_key.0[0]),
                Command::RemovePeer(key) => format!("remove {:02x}", key.0[0]),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn our_own_key_is_never_a_peer() {
        let secret = StaticSecret::from_bytes([3; 32]);
        let own = secret.public_key();
        let other = PublicKey([0xee; 32]);
        let peer = |key| Command::SetPeer(PeerUpdate::new(key));

        let commands = vec![Command::SetPrivateKey(Some(secret)), peer(own), peer(other)];
        let removed = format!("remove {:02x}", own.0[0]);
        assert_eq!(kinds(&worth_applying(commands, None)), ["key", &removed, "set ee"]);
        let secret = || Some(StaticSecret::from_bytes([3; 32]));
        assert_eq!(kinds(&worth_applying(vec![peer(own), peer(other)], secret())), ["set ee"]);
        assert_eq!(kinds(&worth_applying(vec![peer(other)], None)), ["set ee"]);
    }

    #[test]
    fn setting_the_key_there_is_already_changes_nothing() {
        let secret = |byte| Some(StaticSecret::from_bytes([byte; 32]));
        let set = |byte| vec![Command::SetPrivateKey(secret(byte))];
        assert!(worth_applying(set(3), secret(3)).is_empty());
        assert_eq!(kinds(&worth_applying(set(4), secret(3))).len(), 2);
        assert!(worth_applying(vec![Command::SetPrivateKey(None)], None).is_empty());
        assert_eq!(kinds(&worth_applying(vec![Command::SetPrivateKey(None)], secret(3))), ["key"]);
    }

    #[test]
    fn a_scope_that_is_no_interface_name_reads_no_file() {
        assert_eq!(scope_index("lo"), Some(1));
        for wrong in ["", ".", "..", "../net/lo", "/etc/passwd", "no-such-device"] {
            assert_eq!(scope_index(wrong), None, "{wrong:?}");
        }
    }
}
