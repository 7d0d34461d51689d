//! What networks do to packets, by nftables rules inside a host. Each kind has a table of its own, so that one can be
//! set, changed and taken away without the others.

use std::time::Duration;

use crate::{Host, Result};

/// How long a router remembers an idle flow.
#[derive(Debug, Clone, Copy)]
pub struct NatTimeouts {
    pub udp: Duration,
    pub udp_stream: Duration,
}

impl Host {
    /// Loads a script of nftables rules.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.command(["nft", "-f", "-"]).input(script).exec().map(drop)
    }

    /// Loses each UDP packet that arrives here, to stay or to pass, with this probability (0.0 to 1.0, steps of 0.0001).
    pub fn drop_udp_probability(&self, probability: f64) -> Result<()> {
        let of_ten_thousand = (probability.clamp(0.0, 1.0) * 10_000.0).round();
        self.replace_table(
            "loss",
            &format!("meta l4proto udp numgen random mod 10000 < {of_ten_thousand} counter drop"),
        )
    }

    /// Loses every UDP packet longer than `bytes` (the whole IP packet) that arrives here, as a narrow path does that
    /// sends no error.
    pub fn drop_udp_larger_than(&self, bytes: u32) -> Result<()> {
        self.replace_table("narrow", &format!("meta l4proto udp meta length > {bytes} counter drop"))
    }

    /// Loses all UDP that arrives here.
    pub fn drop_udp(&self) -> Result<()> {
        self.replace_table("noudp", "meta l4proto udp counter drop")
    }

    /// Takes away loss, narrowness and the UDP block.
    pub fn drop_nothing(&self) -> Result<()> {
        self.nft(&["loss", "narrow", "noudp"].map(emptied).concat())
    }

    /// Makes the host a home router: what leaves by `interface` gets its address, what comes in unasked is dropped.
    pub fn masquerade(&self, interface: &str, timeouts: Option<NatTimeouts>) -> Result<()> {
        self.enable_forwarding()?;
        self.nft(&format!(
            "{}table inet adit_lab_nat {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat
                    oifname {interface:?} masquerade
                }}
                chain forward {{
                    type filter hook forward priority filter; policy accept
                    iifname {interface:?} ct state new,invalid drop
                }}
            }}",
            emptied("nat")
        ))?;
        let Some(NatTimeouts { udp, udp_stream }) = timeouts else { return Ok(()) };
        self.set_sysctl("net.netfilter.nf_conntrack_udp_timeout", &udp.as_secs().to_string())?;
        self.set_sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", &udp_stream.as_secs().to_string())
    }

    fn replace_table(&self, name: &str, rule: &str) -> Result<()> {
        self.nft(&format!(
            "{}table inet adit_lab_{name} {{
                chain prerouting {{
                    type filter hook prerouting priority -350; policy accept
                    {rule}
                }}
            }}",
            emptied(name)
        ))
    }
}

fn emptied(name: &str) -> String {
    format!("add table inet adit_lab_{name}\ndelete table inet adit_lab_{name}\n")
}
