use serde_json::Value;

use super::{Firewall, nft_missing};
use crate::error::HostError;
use crate::program;

/// How the kernel shows one of our tables, without what changes by itself; `None` when it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown(Option<Value>);

impl Shown {
    pub(crate) fn now(firewall: &Firewall) -> Result<Shown, HostError> {
        Shown::of_table(&firewall.table())
    }

    pub(crate) fn of_table(name: &str) -> Result<Shown, HostError> {
        let nft = program::find("nft");
        let doing = format!("look at the nftables table {name}");
        let Some(nft) = nft else { return Err(nft_missing(&doing)) };
        match program::ask(&nft, &["-j", "list", "table", "inet", name], &doing) {
            Ok(text) => {
                let mut shown = serde_json::from_slice(&text).unwrap_or_default();
                strip(&mut shown);
                Ok(Shown(Some(shown)))
            }
            Err(HostError::ProgramFailed { said, .. }) if said.contains("No such file or directory") => {
                Ok(Shown(None))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Whether everything that `firewall` loads is there.
    pub(crate) fn is_complete(&self, firewall: &Firewall) -> bool {
        self.0.as_ref().is_some_and(|shown| size(shown) == firewall.size())
    }

    /// Whether there are as many chains and rules as a transaction adds.
    pub(super) fn has_all_of(&self, ruleset: &Value) -> bool {
        self.0.as_ref().is_some_and(|shown| size(shown) == size(ruleset))
    }
}

/// How many chains and rules there are in a table that is shown, or in a transaction.
fn size(objects: &Value) -> (usize, usize) {
    let count = |kind: &str| {
        let objects = objects["nftables"].as_array().into_iter().flatten();
        objects.filter(|it| it.get(kind).or_else(|| it.pointer(&format!("/add/{kind}"))).is_some()).count()
    };
    (count("chain"), count("rule"))
}

/// Takes out handles, counters, the version of nft, and what sets learn from traffic.
fn strip(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.retain(|it| it.get("metainfo").is_none());
            items.iter_mut().for_each(strip);
        }
        Value::Object(fields) => {
            fields.remove("handle");
            fields.remove("counter");
            for kind in ["set", "map"] {
                if let Some(Value::Object(set)) = fields.get_mut(kind) {
                    set.remove("elem");
                }
            }
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}
