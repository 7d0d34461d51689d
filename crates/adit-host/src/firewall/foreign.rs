//! What the tables of other programs do to what we forward.

use serde_json::Value;

use crate::program;

/// The chains of others, as `FAMILY TABLE CHAIN`, that drop what is forwarded unless a rule accepts it, and that have
/// no accepting rule for `link`. Empty where nftables cannot be asked; tables of the legacy iptables are not seen.
pub fn foreign_forward_drops(link: &str) -> Vec<String> {
    let Some(nft) = program::find("nft") else { return Vec::new() };
    let told = program::ask(&nft, &["-j", "list", "ruleset"], "list the nftables rules");
    let ruleset = told.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    ruleset.map(|ruleset| forward_drops(&ruleset, link)).unwrap_or_default()
}

fn forward_drops(ruleset: &Value, link: &str) -> Vec<String> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let is_ours = |it: &Value| {
        it["family"] == "inet" && it["table"].as_str().is_some_and(|table| table.starts_with("adit_"))
    };
    // The rule may stand in a chain that this one jumps to, so any in the table counts.
    let is_let_through = |chain: &Value| {
        objects().filter_map(|it| it.get("rule")).any(|rule| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && accepts_from(rule, link)
        })
    };
    objects()
        .filter_map(|it| it.get("chain"))
        .filter(|it| it["hook"] == "forward" && it["policy"] == "drop" && !is_ours(it) && !is_let_through(it))
        .map(|it| ["family", "table", "name"].map(|key| it[key].as_str().unwrap_or_default()).join(" "))
        .collect()
}

fn accepts_from(rule: &Value, link: &str) -> bool {
    let statements = || rule["expr"].as_array().into_iter().flatten();
    let is_from_link = |it: &Value| {
        let of = &it["match"];
        of["op"] == "==" && of["left"]["meta"]["key"] == "iifname" && of["right"] == link
    };
    statements().any(is_from_link) && statements().any(|it| it.get("accept").is_some())
}
