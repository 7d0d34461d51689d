//! The kill switch: nothing enters or leaves but through the tunnel.
//!
//! ```text
//!   loopback ▸ our own marked packets ▸ DHCP and neighbour discovery ▸ the tunnel
//!            ▸ no DNS elsewhere ▸ what belongs inside stays inside ▸ the LAN, if allowed ▸ refused
//! ```
//!
//! A drop is final in nftables, so no other table can open what is closed here. What is asked last is the chain
//! `last_output`, because a packet may be routed anew after it has passed the chain `output`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::MetaKey;
use nftables::stmt::{Reject, RejectType, Statement};
use nftables::types::{NfChainType, NfHook, RejectCode};
use serde::{Deserialize, Serialize};

use super::table::{
    Builder, Expr, FILTER, MANGLE, Stmt, assign, ct, in_network, is, is_reply, meta, meta_is, network,
    number, payload, set, string,
};

/// What a kill switch lets pass besides the tunnel and our own packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KillSwitch {
    /// Private networks around stay within reach, but for DNS.
    pub allow_lan: bool,
    /// Our own UDP port, where peers may speak first.
    #[serde(default)]
    pub listen_port: Option<u16>,
    /// What is behind the tunnel and must never be looked for on the LAN.
    #[serde(default)]
    pub inside: Vec<IpNet>,
    /// Whether others whose packets this host passes on go beside the tunnel too, where a split marks them.
    #[serde(default)]
    pub parted: bool,
}

/// Closes a host before there is a tunnel: from boot on, and when no tunnel is up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lockdown {
    /// The mark on our own packets, which look for the gateway's address.
    pub fwmark: u32,
    pub allow_lan: bool,
}

/// Where private networks are: RFC 1918, RFC 3927, RFC 4193, RFC 4291. Never what a DHCP server calls local
/// (TunnelCrack LocalNet, TunnelVision).
const LAN: [&str; 6] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fe80::/10", "fc00::/7"];

/// What only a private network can carry: link-local and site-local multicast and the broadcast address.
const LAN_CASTS: [&str; 8] = [
    "224.0.0.0/24",
    "239.0.0.0/8",
    "255.255.255.255/32",
    "ff01::/16",
    "ff02::/16",
    "ff03::/16",
    "ff04::/16",
    "ff05::/16",
];

/// The private networks that `allow_lan` opens, as destinations that have a route of their own.
pub(crate) fn lan_networks() -> impl Iterator<Item = IpNet> {
    LAN.iter().filter_map(|net| net.parse().ok())
}

const OUT: Way = Way { name: "output", hook: NfHook::Output };
const IN: Way = Way { name: "input", hook: NfHook::Input };
const THROUGH: Way = Way { name: "forward", hook: NfHook::Forward };
const LAST_OUT: Way = Way { name: "last_output", hook: NfHook::Postrouting };

struct Way {
    name: &'static str,
    hook: NfHook,
}

impl KillSwitch {
    pub(super) fn build(&self, table: &mut Builder, link: &str, fwmark: u32) {
        let block = Block {
            link: Some(link),
            fwmark,
            allow_lan: self.allow_lan,
            inside: &self.inside,
            parted: self.parted,
        };
        block.build(table);
        if let Some(port) = self.listen_port {
            table.rule(IN.name, [to_port(port.into()), accept()]);
        }
    }
}

impl Lockdown {
    pub(super) fn build(&self, table: &mut Builder) {
        let block =
            Block { link: None, fwmark: self.fwmark, allow_lan: self.allow_lan, inside: &[], parted: false };
        block.build(table);
        // Replies are known by the mark of their connection.
        table.chain("mark_postrouting", NfChainType::Filter, NfHook::Postrouting, MANGLE);
        let ours = is(meta(MetaKey::Mark), number(self.fwmark));
        table.rule("mark_postrouting", [ours, assign(ct("mark"), number(self.fwmark))]);
    }
}

struct Block<'a> {
    link: Option<&'a str>,
    fwmark: u32,
    allow_lan: bool,
    inside: &'a [IpNet],
    parted: bool,
}

impl Block<'_> {
    fn build(&self, table: &mut Builder) {
        for chain in [OUT, IN, THROUGH, LAST_OUT] {
            table.closed_chain(chain.name, chain.hook, FILTER);
        }
        self.outgoing(table, &OUT);
        self.incoming(table);
        self.forwarded(table);
        self.outgoing(table, &LAST_OUT);
    }

    fn outgoing(&self, table: &mut Builder, chain: &Way) {
        let name = chain.name;
        table.rule(name, [meta_is(MetaKey::Oifname, "lo"), accept()]);
        table.rule(name, [is(meta(MetaKey::Mark), number(self.fwmark)), accept()]);
        // RFC 2131 4.1: a client without an address broadcasts from port 68 to port 67.
        table
            .rule(name, [in_network("daddr", host("255.255.255.255")), from_port(68), to_port(67), accept()]);
        // RFC 8415 7.1, 7.2: All_DHCP_Relay_Agents_and_Servers, from port 546 to port 547.
        table.rule(name, [in_network("daddr", host("ff02::1:2")), from_port(546), to_port(547), accept()]);
        let asks = ["nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"];
        table.rule(name, [neighbour_discovery(&asks), one_hop(), accept()]);
        if let Some(link) = self.link {
            table.rule(name, [meta_is(MetaKey::Oifname, link), accept()]);
            // What another host sent into the tunnel may have its answer.
            if chain.hook == NfHook::Postrouting {
                table.rule(name, [meta_is(MetaKey::Iifname, link), is_reply(), accept()]);
            }
        }
        self.the_rest(table, chain);
    }

    fn incoming(&self, table: &mut Builder) {
        let name = IN.name;
        table.rule(name, [meta_is(MetaKey::Iifname, "lo"), accept()]);
        if let Some(link) = self.link {
            table.rule(name, [meta_is(MetaKey::Iifname, link), accept()]);
        }
        table.rule(name, [is(ct("mark"), number(self.fwmark)), is_reply(), accept()]);
        table.rule(name, [from_port(67), to_port(68), accept()]);
        table.rule(name, [in_network("saddr", net("fe80::/10")), from_port(547), to_port(546), accept()]);
        let told = ["nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert"];
        table.rule(name, [neighbour_discovery(&told), one_hop(), accept()]);
        if self.allow_lan {
            for (protocol, nets) in by_family(LAN.iter().copied()) {
                table.rule(name, [is(payload(protocol, "saddr"), networks(&nets)), accept()]);
            }
        }
    }

    fn forwarded(&self, table: &mut Builder) {
        if let Some(link) = self.link {
            table.rule(THROUGH.name, [meta_is(MetaKey::Oifname, link), accept()]);
            table.rule(THROUGH.name, [meta_is(MetaKey::Iifname, link), is_reply(), accept()]);
            // The far end of the tunnel is no door into the networks around.
            table.rule(THROUGH.name, [meta_is(MetaKey::Iifname, link), Statement::Drop(None)]);
        }
        if self.parted {
            table.rule(THROUGH.name, [is(meta(MetaKey::Mark), number(self.fwmark)), accept()]);
        }
        self.the_rest(table, &THROUGH);
    }

    /// What no rule for the tunnel took.
    fn the_rest(&self, table: &mut Builder, chain: &Way) {
        let name = chain.name;
        // An answer to where the packet came from is not possible any more after routing.
        let refuse = || match chain.hook {
            NfHook::Postrouting => Statement::Drop(None),
            _ => refused(),
        };
        if self.allow_lan {
            for protocol in ["udp", "tcp"] {
                let dns = is(payload(protocol, "dport"), set(vec![number(53), number(853)]));
                table.rule(name, [dns, refuse()]);
            }
            for net in self.inside {
                table.rule(name, [in_network("daddr", *net), refuse()]);
            }
            for (protocol, nets) in by_family(LAN.iter().chain(&LAN_CASTS).copied()) {
                table.rule(name, [is(payload(protocol, "daddr"), networks(&nets)), accept()]);
            }
        }
        table.rule(name, [refuse()]);
    }
}

impl fmt::Display for KillSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing else gets in or out")?;
        if self.allow_lan { write!(f, " but the LAN") } else { Ok(()) }
    }
}

impl fmt::Display for Lockdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing gets in or out")?;
        if self.allow_lan { write!(f, " but the LAN") } else { Ok(()) }
    }
}

fn accept() -> Stmt {
    Statement::Accept(None)
}

/// The program that tried learns it at once.
fn refused() -> Stmt {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

fn from_port(port: u32) -> Stmt {
    is(payload("udp", "sport"), number(port))
}

fn to_port(port: u32) -> Stmt {
    is(payload("udp", "dport"), number(port))
}

/// RFC 4861 without redirects, which only lead astray.
fn neighbour_discovery(kinds: &[&str]) -> Stmt {
    is(payload("icmpv6", "type"), set(kinds.iter().map(|kind| string(kind)).collect()))
}

/// RFC 4861 11.2: a packet that a router passed on has a lower one.
fn one_hop() -> Stmt {
    is(payload("ip6", "hoplimit"), number(255))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a constant network")
}

fn host(text: &str) -> IpNet {
    IpNet::from(text.parse::<IpAddr>().expect("a constant address"))
}

fn by_family<'a>(nets: impl Iterator<Item = &'a str>) -> [(&'static str, Vec<IpNet>); 2] {
    let (v4, v6) = nets.map(net).partition(|net| net.addr().is_ipv4());
    [("ip", v4), ("ip6", v6)]
}

fn networks(nets: &[IpNet]) -> Expr {
    set(nets.iter().map(network).collect())
}
