use std::fmt;

use nftables::expr::MetaKey;
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfHook};
use serde::{Deserialize, Serialize};

use super::table::{Builder, RAW, is, meta, number};

/// Cuts a tunnel off from its peers, to see what the host does then: what bears its mark is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutageFirewall {
    pub fwmark: u32,
}

impl OutageFirewall {
    pub(super) fn build(&self, table: &mut Builder) {
        table.chain("output", NfChainType::Filter, NfHook::Output, RAW);
        let ours = is(meta(MetaKey::Mark), number(self.fwmark));
        table.rule("output", [ours, Statement::Drop(None)]);
    }
}

impl fmt::Display for OutageFirewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing with mark {:#x} leaves", self.fwmark)
    }
}
