use crate::lab::Lab;
use crate::{Host, Invocation, Result};

/// One end of a link: an interface to be made on a host.
pub struct End {
    host: Host,
    interface: String,
    addresses: Vec<String>,
    mtu_bytes: Option<u32>,
    offloads: bool,
}

impl End {
    /// An interface on `host`, up, without addresses.
    pub fn new(host: &Host, interface: &str) -> Self {
        Self {
            host: host.clone(),
            interface: interface.to_owned(),
            addresses: Vec::new(),
            mtu_bytes: None,
            offloads: true,
        }
    }

    /// One more ADDRESS/LENGTH, IPv4 or IPv6.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// An MTU other than 1500.
    pub fn mtu(mut self, mtu_bytes: u32) -> Self {
        self.mtu_bytes = Some(mtu_bytes);
        self
    }

    /// Whether the interface may carry unsegmented and unchecksummed packets, as virtual links do by default. Without
    /// it each packet costs what it costs on a simple network card.
    pub fn offloads(mut self, on: bool) -> Self {
        self.offloads = on;
        self
    }

    fn configure(&self) -> Result<()> {
        let interface = &self.interface;
        let mut batch = String::new();
        for address in &self.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            batch += &format!("address add {address} dev {interface}{nodad}\n");
        }
        if let Some(mtu_bytes) = self.mtu_bytes {
            batch += &format!("link set {interface} mtu {mtu_bytes}\n");
        }
        batch += &format!("link set {interface} up\n");
        self.host.ip_batch(&batch)?;
        if self.offloads { Ok(()) } else { set_offloads(&self.host, interface, false) }
    }
}

/// A cable, or a switch with cables.
pub struct Link {
    ends: Vec<(Host, String)>,
}

impl Lab {
    /// A cable between two hosts.
    pub fn connect(&self, left: End, right: End) -> Result<Link> {
        cable((&left.host, &left.interface), (&right.host, &right.interface))?;
        left.configure()?;
        right.configure()?;
        Ok(Link { ends: vec![(left.host, left.interface), (right.host, right.interface)] })
    }

    /// A switch called `name` (a host of its own) with a cable to each end.
    pub fn switch(&self, name: &str, ends: Vec<End>) -> Result<Link> {
        let switch = self.host(name)?;
        switch.ip(["link", "add", "bridge", "type", "bridge", "stp_state", "0"])?;
        switch.ip(["link", "set", "bridge", "up"])?;
        for (number, end) in ends.iter().enumerate() {
            let port = format!("port{number}");
            cable((&end.host, &end.interface), (&switch, &port))?;
            switch.ip_batch(&format!("link set {port} master bridge\nlink set {port} up\n"))?;
            if !end.offloads {
                set_offloads(&switch, &port, false)?;
            }
            end.configure()?;
        }
        Ok(Link { ends: ends.into_iter().map(|end| (end.host, end.interface)).collect() })
    }
}

impl Link {
    /// The hosts and interfaces it joins.
    pub fn ends(&self) -> &[(Host, String)] {
        &self.ends
    }

    /// Plugs every end in.
    pub fn up(&self) -> Result<()> {
        self.each(|host, interface| host.ip(["link", "set", interface, "up"]).map(drop))
    }

    /// Unplugs every end; addresses stay, IPv6 ones and routes do not.
    pub fn down(&self) -> Result<()> {
        self.each(|host, interface| host.ip(["link", "set", interface, "down"]).map(drop))
    }

    /// Sets the MTU of every end.
    pub fn set_mtu(&self, mtu_bytes: u32) -> Result<()> {
        let mtu = mtu_bytes.to_string();
        self.each(|host, interface| host.ip(["link", "set", interface, "mtu", &mtu]).map(drop))
    }

    /// Allows or forbids unsegmented and unchecksummed packets at every end.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        self.each(|host, interface| set_offloads(host, interface, on))
    }

    /// Lets every end send at most this many megabits per second, with up to 50 ms of queue.
    pub fn limit_rate(&self, megabits_per_second: u32) -> Result<()> {
        let rate = format!("{megabits_per_second}mbit");
        // The bucket has to hold what the timer may let pass at once: 10 ms of it, and one superpacket at least.
        let burst = (u64::from(megabits_per_second) * 1_250).max(70_000).to_string();
        self.each(|host, interface| {
            let tbf = ["rate", &rate, "burst", &burst, "latency", "50ms"];
            host.exec(["tc", "qdisc", "replace", "dev", interface, "root", "tbf"].iter().chain(&tbf).copied())
                .map(drop)
        })
    }

    fn each(&self, mut act: impl FnMut(&Host, &str) -> Result<()>) -> Result<()> {
        self.ends.iter().try_for_each(|(host, interface)| act(host, interface))
    }
}

fn cable((left, here): (&Host, &str), (right, there): (&Host, &str)) -> Result<()> {
    let peer = ["type", "veth", "peer", "name", there, "netns", right.namespace()];
    Invocation::new(["ip", "-n", left.namespace(), "link", "add", here].into_iter().chain(peer))
        .exec()
        .map(drop)
}

fn set_offloads(host: &Host, interface: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    const FEATURES: [&str; 7] = ["tx", "rx", "sg", "tso", "gso", "gro", "tx-udp-segmentation"];
    let wanted = FEATURES.into_iter().flat_map(|feature| [feature, state]);
    host.exec(["ethtool", "-K", interface].into_iter().chain(wanted)).map(drop)
}
