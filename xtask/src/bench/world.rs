//! Hosts, two by two, and the links between them.

use adit_lab::{End, Host, Lab};
use anyhow::Result;

use super::options::{Nic, Peer};
use super::programs::Programs;

/// Where everything happens. What makes firewalls and routes of its own does not share hosts with bare devices.
pub struct Worlds {
    devices: World,
    product: World,
    lab: Lab,
}

impl Worlds {
    pub fn new(programs: &Programs) -> Result<Self> {
        let lab = Lab::with_agent("bench", [programs.adit.display().to_string(), "lab".to_owned()])?;
        let devices = World::new(&lab, ["client", "gateway"])?;
        let product = World::new(&lab, ["client2", "gateway2"])?;
        Ok(Self { devices, product, lab })
    }

    /// The name of the lab, which removes it.
    pub fn name(&self) -> &str {
        self.lab.name()
    }

    pub fn of(&self, peer: Peer) -> &World {
        if peer == Peer::AesTcp { &self.product } else { &self.devices }
    }

    pub fn set_nic(&self, nic: Nic) -> Result<()> {
        self.devices.set_nic(nic)?;
        self.product.set_nic(nic)
    }
}

/// A client and a gateway, each a network namespace, joined by a virtual link.
pub struct World {
    pub client: Host,
    pub gateway: Host,
}

impl World {
    pub const CLIENT: &'static str = "192.0.2.1";
    pub const GATEWAY: &'static str = "192.0.2.2";
    const INTERFACE: &'static str = "eth0";

    fn new(lab: &Lab, [client, gateway]: [&str; 2]) -> Result<Self> {
        let (client, gateway) = (lab.host(client)?, lab.host(gateway)?);
        lab.connect(
            End::new(&client, Self::INTERFACE).address(format!("{}/24", Self::CLIENT)),
            End::new(&gateway, Self::INTERFACE).address(format!("{}/24", Self::GATEWAY)),
        )?;
        Ok(Self { client, gateway })
    }

    /// Makes the link one that takes unsegmented packets, as virtual links do, or one that does not, as a plain network
    /// card. Both keep the checksum offload, which even plain cards have.
    fn set_nic(&self, nic: Nic) -> Result<()> {
        let state = if nic == Nic::Offload { "on" } else { "off" };
        // Off by default on virtual links.
        let words = ["tso", state, "gso", state, "gro", "off", "tx-udp-segmentation", state];
        for host in [&self.client, &self.gateway] {
            host.exec(["ethtool", "-K", Self::INTERFACE].iter().chain(&words).copied())?;
        }
        Ok(())
    }
}
