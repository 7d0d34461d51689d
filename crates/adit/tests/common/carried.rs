use std::time::Duration;

use adit_lab::{Host, wait_for};
use serde_json::Value;

use super::internet::{home, status, succeed};

/// The entry of the only peer in the status of `host`.
pub fn peer(host: &Host) -> Value {
    status(host)["peers"][0].clone()
}

/// Waits until messages go by one of these carriers.
pub fn wait_for_carrier(host: &Host, wanted: &[&str], within: Duration) {
    let waited = wait_for(format!("the carrier {wanted:?}"), within, || {
        peer(host)["carrier"].as_str().filter(|it| wanted.contains(it)).map(drop)
    });
    waited.unwrap_or_else(|error| panic!("{error}; it is {}", status(host)));
}

/// `adit up FILE SETTINGS`.
pub fn up(client: &Host, file: &str, settings: &[&str]) {
    succeed(client, &[&["up", file], settings].concat());
}

/// Adds lines below `[gateway]`.
pub fn configure(gateway: &Host, lines: &str) {
    let path = home(gateway).join("adit.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("[gateway]\n", &format!("[gateway]\n{lines}\n"), 1)).unwrap();
}
