use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use adit::keys;
use adit_lab::{Host, Process, wait_for};
use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;

use super::peer::{Interface, Peer};
use super::{ADIT, SOON};

/// Who plays a userspace WireGuard device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Adit,
    WireguardGo,
}

/// A userspace WireGuard device in the foreground, driven by `wg`.
pub struct Device {
    pub name: String,
    host: Host,
    pub process: Process,
}

/// What `wg show` says of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerShown {
    pub endpoint: String,
    pub last_handshake_unix_secs: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

impl Device {
    /// A device that is up and configured.
    pub fn start(program: Program, host: &Host, interface: &Interface) -> Self {
        let device = Self::bare(program, host);
        device.configure(interface);
        for address in interface.addresses() {
            host.add_address(&device.name, &address).unwrap();
        }
        device.set_mtu(interface.mtu_bytes);
        host.ip(["link", "set", &device.name, "up"]).unwrap();
        device
    }

    /// A device that was told nothing yet.
    pub fn bare(program: Program, host: &Host) -> Self {
        // The sockets of all devices share one directory on the machine.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("w{}n{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let argv = match program {
            Program::Adit => vec![ADIT, "wg", "-f", &name],
            Program::WireguardGo => vec!["wireguard-go", "-f", &name],
        };
        let mut process = host.spawn(argv).unwrap();
        wait_for(format!("the socket of {program:?}"), SOON, || {
            assert!(process.ended().is_none(), "{program:?} ended: {}", process.stderr());
            socket(&name).exists().then_some(())
        })
        .unwrap();
        Self { name, host: host.clone(), process }
    }

    /// Makes key, port and peers those of `interface`, by `wg setconf`.
    pub fn configure(&self, interface: &Interface) {
        let of_another_suite = |peer: &Peer| peer.suite != Suite::default();
        // A keepalive would go out at once, in the suite that `wg` knows.
        let quiet = |peer: &Peer| {
            let keepalive_secs = if of_another_suite(peer) { 0 } else { peer.keepalive_secs };
            Peer { keepalive_secs, ..peer.clone() }
        };
        let peers = interface.peers.iter().map(quiet).collect();
        let file = Interface { peers, secret: interface.secret.clone(), ..*interface }.file("");
        self.host.command(["wg", "setconf", &self.name, "/dev/stdin"]).input(file).exec().unwrap();
        for peer in interface.peers.iter().filter(|peer| of_another_suite(peer)) {
            self.set_suite(&peer.public, peer.suite);
            let (key, secs) = (keys::public_text(&peer.public), peer.keepalive_secs.to_string());
            self.host.exec(["wg", "set", &self.name, "peer", &key, "persistent-keepalive", &secs]).unwrap();
        }
    }

    /// What `wg` has no word for.
    pub fn set_suite(&self, peer: &PublicKey, suite: Suite) {
        let key: String = peer.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("set=1\npublic_key={key}\nsuite={suite}\n\n")), "errno=0\n\n");
    }

    pub fn set_mtu(&self, mtu_bytes: u32) {
        self.host.ip(["link", "set", &self.name, "mtu", &mtu_bytes.to_string()]).unwrap();
    }

    /// Forgets a peer and everything about it.
    pub fn remove(&self, peer: &Peer) {
        let key = keys::public_text(&peer.public);
        self.host.exec(["wg", "set", &self.name, "peer", &key, "remove"]).unwrap();
    }

    pub fn shown(&self, peer: &PublicKey) -> PeerShown {
        let key = keys::public_text(peer);
        let dump = self.host.exec(["wg", "show", &self.name, "dump"]).unwrap().stdout;
        let line =
            dump.lines().find(|line| line.starts_with(&key)).unwrap_or_else(|| panic!("{key} in {dump}"));
        let columns: Vec<&str> = line.split('\t').collect();
        let number = |column: usize| columns[column].parse().unwrap();
        PeerShown {
            endpoint: columns[2].to_owned(),
            last_handshake_unix_secs: number(4),
            rx_bytes: number(5),
            tx_bytes: number(6),
        }
    }

    /// One conversation on the UAPI socket.
    pub fn ask(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(socket(&self.name)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn socket(device: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{device}.sock"))
}
