//! `adit peer list` and `adit peer show`.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::peer_of;
use crate::config::{Config, Layers, Peer, PeerLimits, PeerName};
use crate::home::Home;
use crate::keys;
use crate::table::Table;

/// Prints the peers, one per line.
///
/// # Errors
/// The configuration is wrong.
pub fn list(home: &Home, json: bool, layers: &Layers) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, layers)?;
    if json {
        let peers: Vec<Value> = config.peers.iter().map(describe).collect();
        crate::print_line(&json!({"schema": 1, "peers": peers}).to_string())?;
    } else if config.peers.is_empty() {
        eprintln!("there are no peers yet; `adit invite NAME{}` invites one", home.flag());
    } else {
        crate::print_line(page(&config.peers).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints everything about a peer but its secrets.
///
/// # Errors
/// There is no such peer, or the configuration is wrong.
pub fn show(home: &Home, name: &PeerName, json: bool, layers: &Layers) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, layers)?;
    let peer = peer_of(home, &config, name)?;
    let facts = describe(peer);
    if json {
        let mut page = json!({"schema": 1});
        if let (Value::Object(page), Value::Object(facts)) = (&mut page, facts) {
            page.extend(facts);
        }
        crate::print_line(&page.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let keepalive = match peer.persistent_keepalive_secs {
        0 => "off".to_owned(),
        secs => format!("every {secs} s"),
    };
    let lines = [
        ("name", peer.name.to_string()),
        ("public key", keys::public_text(&peer.public_key)),
        ("preshared key", if peer.preshared_key.is_some() { "(hidden)" } else { "none" }.to_owned()),
        ("addresses", join(&peer.addresses)),
        ("networks", or_none(join(&peer.extra_allowed_ips))),
        ("suite", peer.suite.to_string()),
        ("endpoint", peer.endpoint.as_ref().map_or("learned".to_owned(), ToString::to_string)),
        ("keepalive", keepalive),
        ("enabled", yes_no(peer.enabled).to_owned()),
        ("tags", or_none(peer.tags.join(", "))),
        ("limits", limits_text(&peer.limits)),
    ];
    let mut page = String::new();
    for (label, value) in lines {
        let _ = writeln!(page, "{label:<14} {value}");
    }
    crate::print_line(page.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// As they are configured; how they stand is in `adit status`.
fn limits_text(limits: &PeerLimits) -> String {
    let PeerLimits { expires, schedule, rate_up, rate_down, quota } = limits;
    let mut parts = Vec::new();
    parts.extend(expires.map(|expires| format!("expires {}", expires.text())));
    parts.extend(schedule.as_ref().map(|schedule| format!("schedule {schedule}")));
    parts.extend(rate_up.map(|rate| format!("up {rate}bit/s")));
    parts.extend(rate_down.map(|rate| format!("down {rate}bit/s")));
    parts.extend(quota.map(|quota| format!("{quota} a month")));
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn describe(peer: &Peer) -> Value {
    json!({
        "name": peer.name.as_str(),
        "public_key": keys::public_text(&peer.public_key),
        "has_preshared_key": peer.preshared_key.is_some(),
        "addresses": peer.addresses,
        "allowed_ips": peer.allowed_ips().collect::<Vec<_>>(),
        "suite": peer.suite.name(),
        "endpoint": peer.endpoint.as_ref().map(ToString::to_string),
        "persistent_keepalive_secs": peer.persistent_keepalive_secs,
        "enabled": peer.enabled,
        "tags": peer.tags,
        "expires": peer.limits.expires.map(|expires| expires.to_string()),
        "schedule": peer.limits.schedule.as_ref().map(ToString::to_string),
        "rate_up": peer.limits.rate_up.map(|rate| rate.to_string()),
        "rate_down": peer.limits.rate_down.map(|rate| rate.to_string()),
        "quota": peer.limits.quota.map(|quota| quota.to_string()),
    })
}

fn page(peers: &[Peer]) -> String {
    let mut table = Table::new(["NAME", "ADDRESSES", "SUITE", "PUBLIC KEY", "TAGS"]);
    for peer in peers {
        let state = if peer.enabled { "" } else { " (disabled)" };
        let key = keys::public_text(&peer.public_key);
        let name = format!("{}{state}", peer.name);
        table.row([name, join(&peer.addresses), peer.suite.to_string(), key, peer.tags.join(", ")]);
    }
    table.to_string()
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
