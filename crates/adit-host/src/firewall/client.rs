use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::{FibFlag, MetaKey};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};

use super::block::KillSwitch;
use super::table::{
    Builder, MANGLE, RAW, assign, ct, fib, in_network, is, is_not, meta, meta_is_not, number, set, string,
};

/// Guards a full tunnel: our address answers only through the tunnel, and replies keep the mark of their connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientFirewall {
    pub link: String,
    pub addresses: Vec<IpAddr>,
    pub fwmark: u32,
    #[serde(default)]
    pub kill_switch: Option<KillSwitch>,
}

impl ClientFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        table.chain("raw_prerouting", NfChainType::Filter, NfHook::Prerouting, RAW);
        for address in &self.addresses {
            // Nobody on the local network may probe for the inside address (CVE-2019-14899).
            let elsewhere = meta_is_not(MetaKey::Iifname, &self.link);
            let to_us = in_network("daddr", IpNet::from(*address));
            let not_from_us = is_not(fib(FibFlag::Saddr), string("local"));
            table.rule("raw_prerouting", [elsewhere, to_us, not_from_us, Statement::Drop(None)]);
        }
        let carried = || is(meta(MetaKey::L4proto), set(vec![string("tcp"), string("udp")]));
        let mark = || number(self.fwmark);

        table.chain("mark_prerouting", NfChainType::Filter, NfHook::Prerouting, MANGLE);
        let ours = is(ct("mark"), mark());
        table.rule("mark_prerouting", [carried(), ours, assign(meta(MetaKey::Mark), mark())]);

        table.chain("mark_postrouting", NfChainType::Filter, NfHook::Postrouting, MANGLE);
        let ours = is(meta(MetaKey::Mark), mark());
        table.rule("mark_postrouting", [carried(), ours, assign(ct("mark"), mark())]);

        if let Some(kill_switch) = &self.kill_switch {
            kill_switch.build(table, &self.link, self.fwmark);
        }
    }
}

impl fmt::Display for ClientFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        write!(
            f,
            "{} only through {}, replies keep mark {:#x}",
            addresses.join(" "),
            self.link,
            self.fwmark
        )?;
        self.kill_switch.as_ref().map_or(Ok(()), |it| write!(f, ", {it}"))
    }
}
