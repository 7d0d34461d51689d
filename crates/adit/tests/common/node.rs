use adit_lab::{Host, Invocation};

use super::SOON;
use super::device::{Device, Program};

/// A device with a key of its own that is changed while it runs, by `wg set`.
pub struct Node {
    pub device: Device,
    pub host: Host,
    /// Its public key in base64.
    pub public: String,
}

/// A private key and its public key in base64.
pub fn key_pair() -> (String, String) {
    let run = |words: &[&str], input: &str| {
        let output = Invocation::new(words.iter().copied()).input(input).exec().unwrap();
        output.stdout.trim().to_owned()
    };
    let private = run(&["wg", "genkey"], "");
    let public = run(&["wg", "pubkey"], &private);
    (private, public)
}

impl Node {
    /// A device that is up, listens on `port` and has these inside addresses.
    pub fn start(host: &Host, port: u16, addresses: &[&str]) -> Self {
        let device = Device::bare(Program::Adit, host);
        let (private, public) = key_pair();
        let node = Self { device, host: host.clone(), public };
        node.set_key(&private);
        node.set(&format!("listen-port {port}"));
        for address in addresses {
            host.add_address(node.name(), address).unwrap();
        }
        node.device.set_mtu(1420);
        host.ip(["link", "set", node.name(), "up"]).unwrap();
        node
    }

    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// `wg set DEVICE WORDS`.
    pub fn set(&self, words: &str) {
        let words = words.split_whitespace();
        self.host.exec(["wg", "set", self.name()].into_iter().chain(words)).unwrap();
    }

    /// Gives it another private key, and nothing else.
    pub fn set_key(&self, private: &str) {
        let argv = ["wg", "set", self.name(), "private-key", "/dev/stdin"];
        self.host.command(argv).input(private).exec().unwrap();
    }

    /// Adds or changes a peer: `allowed-ips 10.9.0.2/32 endpoint 192.0.2.2:5001` and the like.
    pub fn knows(&self, peer: &Self, words: &str) {
        self.set(&format!("peer {} {words}", peer.public));
    }

    pub fn forgets(&self, public: &str) {
        self.set(&format!("peer {public} remove"));
    }

    /// Where it thinks `peer` is.
    pub fn endpoint_of(&self, peer: &Self) -> String {
        self.of_peer("endpoints", peer).pop().unwrap()
    }

    /// Bytes received from and sent to `peer`.
    pub fn transfer(&self, peer: &Self) -> (u64, u64) {
        let columns = self.of_peer("transfer", peer);
        (columns[0].parse().unwrap(), columns[1].parse().unwrap())
    }

    /// Waits until `peer` is where `endpoint` says.
    pub fn wait_for_endpoint(&self, peer: &Self, endpoint: &str) {
        let waited = adit_lab::wait_for(format!("{} to move to {endpoint}", peer.name()), SOON, || {
            (self.endpoint_of(peer) == endpoint).then_some(())
        });
        waited.unwrap_or_else(|error| panic!("{error}; it is at {}", self.endpoint_of(peer)));
    }

    fn of_peer(&self, what: &str, peer: &Self) -> Vec<String> {
        let shown = self.host.exec(["wg", "show", self.name(), what]).unwrap().stdout;
        let line = shown.lines().find(|line| line.starts_with(&peer.public));
        let line = line.unwrap_or_else(|| panic!("{} is no peer: {shown}", peer.public));
        line.split('\t').skip(1).map(|column| column.trim().to_owned()).collect()
    }
}
