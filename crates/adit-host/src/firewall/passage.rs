//! A way through the forward chains of other programs. In nftables a drop anywhere is final, so what Docker, ufw or
//! firewalld drop by default can only be let through where they drop it: two rules at the head of their chain, marked
//! as ours, while the tunnel is up. Nothing of theirs is changed, and what may pass is decided by our own table.

use std::fmt;
use std::fs::File;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{list_ruleset, run};
use crate::error::HostError;
use crate::guard::Outcome;

/// A chain of another program that drops what is forwarded, and the link whose traffic is to pass it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Passage {
    pub family: String,
    pub table: String,
    pub chain: String,
    pub link: String,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Passage { family, table, chain, link } = self;
        write!(f, "chain {family} {table} {chain} (not ours): what comes from or goes to {link} passes")
    }
}

impl Passage {
    fn comment(&self) -> String {
        comment(&self.link)
    }

    fn rule(&self, key: &str) -> Value {
        let Passage { family, table, chain, link } = self;
        let of_link = json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": link}});
        json!({"insert": {"rule": {
            "family": family, "table": table, "chain": chain, "comment": self.comment(),
            "expr": [of_link, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}],
        }}})
    }

    /// The handles of our rules in the chain.
    fn handles(&self, ruleset: &Value) -> Vec<u64> {
        let rules = ruleset["nftables"].as_array().into_iter().flatten().filter_map(|it| it.get("rule"));
        let here = rules.filter(|rule| {
            rule["family"] == self.family.as_str()
                && rule["table"] == self.table.as_str()
                && rule["chain"] == self.chain.as_str()
                && rule["comment"] == self.comment().as_str()
        });
        here.filter_map(|rule| rule["handle"].as_u64()).collect()
    }
}

fn comment(link: &str) -> String {
    format!("adit {link}")
}

/// The chains of others that drop what is forwarded unless a rule accepts it, and that have no accepting rule for
/// `link` but perhaps ours. None where nftables cannot be asked; tables of the legacy iptables are not seen.
pub fn foreign_forward_drops(link: &str) -> Vec<Passage> {
    list_ruleset().map(|ruleset| forward_drops(&ruleset, link)).unwrap_or_default()
}

fn forward_drops(ruleset: &Value, link: &str) -> Vec<Passage> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let rules = || objects().filter_map(|it| it.get("rule"));
    let is_ours = |it: &Value| {
        it["family"] == "inet" && it["table"].as_str().is_some_and(|table| table.starts_with("adit"))
    };
    let same =
        |rule: &Value, chain: &Value| rule["family"] == chain["family"] && rule["table"] == chain["table"];
    let drops = |chain: &Value| {
        let mut own = rules().filter(|rule| same(rule, chain) && rule["chain"] == chain["name"]);
        chain["policy"] == "drop" || own.any(drops_all)
    };
    // The rule may stand in a chain that this one jumps to, so any in the table counts.
    let is_let_through = |chain: &Value| rules().any(|rule| same(rule, chain) && accepts_from(rule, link));
    objects()
        .filter_map(|it| it.get("chain"))
        .filter(|it| it["hook"] == "forward" && !is_ours(it) && drops(it) && !is_let_through(it))
        .map(|it| {
            let [family, table, chain] =
                ["family", "table", "name"].map(|key| it[key].as_str().unwrap_or_default().to_owned());
            Passage { family, table, chain, link: link.to_owned() }
        })
        .collect()
}

fn drops_all(rule: &Value) -> bool {
    let mut statements = rule["expr"].as_array().into_iter().flatten();
    let ends = |it: &Value| it.get("drop").is_some() || it.get("reject").is_some();
    let is_plain = |it: &Value| ends(it) || it.get("counter").is_some() || it.get("log").is_some();
    statements.clone().all(is_plain) && statements.any(ends)
}

fn accepts_from(rule: &Value, link: &str) -> bool {
    let statements = || rule["expr"].as_array().into_iter().flatten();
    let is_from_link = |it: &Value| {
        let of = &it["match"];
        of["op"] == "==" && of["left"]["meta"]["key"] == "iifname" && of["right"] == link
    };
    let by_us = rule["comment"] == comment(link).as_str();
    !by_us && statements().any(is_from_link) && statements().any(|it| it.get("accept").is_some())
}

/// Two rules we put at the head of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadePassage {
    #[serde(flatten)]
    passage: Passage,
}

impl fmt::Display for MadePassage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.passage.fmt(f)
    }
}

/// `None` where both rules stand there already.
pub(crate) fn prepare(passage: &Passage) -> Result<Option<MadePassage>, HostError> {
    let there = list_ruleset().map(|ruleset| passage.handles(&ruleset).len()).unwrap_or_default();
    Ok((there < 2).then(|| MadePassage { passage: passage.clone() }))
}

pub(crate) fn make(made: &MadePassage, lock: &File) -> Result<(), HostError> {
    let rules = ["oifname", "iifname"].map(|key| made.passage.rule(key));
    run(&json!({"nftables": rules}), &format!("let {} pass {}", made.passage.link, made.passage.chain), lock)
}

/// Whether the chain is there to be passed: whoever reloads a firewall takes its tables away first.
pub(crate) fn make_where_needed(made: &MadePassage, lock: &File) -> Result<bool, HostError> {
    match make(made, lock) {
        Ok(()) => Ok(true),
        Err(HostError::ProgramFailed { said, .. }) if said.contains("No such file or directory") => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn undo(made: &MadePassage, lock: &File) -> Result<Outcome, HostError> {
    let passage = &made.passage;
    let handles = list_ruleset().map(|ruleset| passage.handles(&ruleset)).unwrap_or_default();
    if handles.is_empty() {
        return Ok(Outcome::Gone);
    }
    let Passage { family, table, chain, .. } = passage;
    let delete = |handle: &u64| json!({"delete": {"rule": {"family": family, "table": table, "chain": chain, "handle": handle}}});
    let rules: Vec<Value> = handles.iter().map(delete).collect();
    match run(&json!({"nftables": rules}), &format!("take our rules out of {chain}"), lock) {
        Ok(()) => Ok(Outcome::Undone),
        Err(HostError::ProgramFailed { said, .. }) if said.contains("No such file or directory") => {
            Ok(Outcome::Gone)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(ruleset: Value) -> Vec<String> {
        let named = |it: Passage| format!("{} {} {}", it.family, it.table, it.chain);
        forward_drops(&ruleset, "adit0").into_iter().map(named).collect()
    }

    fn chain(table: &str, policy: &str) -> Value {
        json!({"chain": {"family": "ip", "table": table, "name": "FORWARD", "hook": "forward", "policy": policy}})
    }

    fn rule(table: &str, comment: &str, expr: Value) -> Value {
        json!({"rule": {"family": "ip", "table": table, "chain": "FORWARD", "comment": comment, "expr": expr}})
    }

    #[test]
    fn a_chain_that_drops_by_policy_or_by_its_last_rule_needs_a_passage() {
        let from =
            |link: &str| json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": link}});
        let reject = json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
        let found = chains(json!({"nftables": [
            chain("policy", "drop"),
            chain("open", "accept"), rule("open", "", json!([from("eth0"), {"drop": null}])),
            chain("last", "accept"), rule("last", "", json!([{"counter": {}}, reject])),
            chain("known", "drop"), rule("known", "", json!([from("adit0"), {"accept": null}])),
            chain("ours", "drop"), rule("ours", "adit adit0", json!([from("adit0"), {"accept": null}])),
        ]}));
        assert_eq!(found, ["ip policy FORWARD", "ip last FORWARD", "ip ours FORWARD"]);
    }
}
