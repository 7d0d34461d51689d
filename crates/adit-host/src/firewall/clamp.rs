//! The segment size of TCP connections that pass through this host into or out of a tunnel.

use std::fmt;

use nftables::expr::MetaKey;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};

use super::table::{Builder, MANGLE, clamp_mss, clamp_mss_to, is_syn, meta_is};

/// Keeps others' connections through a client's tunnel to what fits into it. A gateway's table does the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClampFirewall {
    pub link: String,
    pub mtu_bytes: u32,
}

impl ClampFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        clamp(table, &self.link, self.mtu_bytes);
    }
}

/// A route to the internet is wider than the tunnel, so the tunnel's own MTU counts in both directions.
pub(super) fn clamp(table: &mut Builder, link: &str, mtu_bytes: u32) {
    table.chain("forward_mangle", NfChainType::Filter, NfHook::Forward, MANGLE);
    for (family, headers) in [("ipv4", 40), ("ipv6", 60)] {
        let of_family = meta_is(MetaKey::Nfproto, family);
        let clamp = clamp_mss_to(mtu_bytes.saturating_sub(headers));
        table.rule("forward_mangle", [meta_is(MetaKey::Iifname, link), of_family, is_syn(), clamp]);
    }
    for direction in [MetaKey::Iifname, MetaKey::Oifname] {
        table.rule("forward_mangle", [meta_is(direction, link), is_syn(), clamp_mss()]);
    }
}

impl fmt::Display for ClampFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TCP of others through {} keeps to what fits", self.link)
    }
}
