use std::collections::BTreeMap;
use std::path::PathBuf;

use adit::keys;
use adit_lab::{Host, Process, wait_for};
use adit_proto::key::PublicKey;
use adit_proto::reason::DropReason;
use serde_json::Value;

use super::peer::Interface;
use super::{ADIT, SOON};

/// `adit up` in the foreground, on the interface `adit0`: unlike a device for `wg` it tells what it dropped.
pub struct Tunnel {
    host: Host,
    home: PathBuf,
    pub process: Process,
}

impl Tunnel {
    pub const INTERFACE: &str = "adit0";

    /// A tunnel that is up, with no routes but those of its addresses.
    pub fn up(host: &Host, interface: &Interface) -> Self {
        let more = format!(
            "Address = {}\nMTU = {}\nTable = off\n",
            interface.addresses().join(", "),
            interface.mtu_bytes
        );
        let file = host.write(&format!("{}.conf", Self::INTERFACE), interface.file(&more)).unwrap();
        let home = host.directory().join("home");
        let (file, home_flag) = (file.display().to_string(), home.display().to_string());
        let mut process = host.spawn([ADIT, "--home", &home_flag, "up", "--foreground", &file]).unwrap();
        process.wait_for_text("tunnel ready", SOON).unwrap();
        Self { host: host.clone(), home, process }
    }

    pub fn status(&self) -> Value {
        let home = self.home.display().to_string();
        self.host.exec([ADIT, "--home", &home, "status", "--json"]).unwrap().json().unwrap()
    }

    /// The entry of a peer in the status.
    pub fn peer(&self, peer: &PublicKey) -> Value {
        let key = keys::public_text(peer);
        let status = self.status();
        let mut peers = status["peers"].as_array().into_iter().flatten();
        peers.find(|peer| peer["public_key"] == *key).unwrap_or_else(|| panic!("{key} in {status}")).clone()
    }

    /// Packets dropped so far, by reason.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.status()["drops"].clone()).unwrap()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops().get(reason.label()).copied().unwrap_or(0)
    }

    /// Waits until at least `count` packets were dropped for `reason`.
    pub fn wait_until_dropped(&self, reason: DropReason, count: u64) {
        wait_for(format!("{count} drops for {}", reason.label()), SOON, || {
            (self.dropped(reason) >= count).then_some(())
        })
        .unwrap();
    }

    /// The memory of the process that is not in a file or swapped out, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let pid = self.status()["pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }
}
