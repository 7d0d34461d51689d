//! The product as people run it: `adit gateway`, and `adit up` with a profile that the gateway made.

use std::time::Duration;

use adit_lab::{Host, Process};
use anyhow::Result;

/// The gateway inside.
pub const INSIDE: &str = "10.9.0.1";
const NETWORK: &str = "10.9.0.0/24";
const SOON: Duration = Duration::from_secs(15);

/// A client and its gateway, the client first, joined by a stream over `carrier`.
pub fn start(
    adit: &str,
    [client, gateway]: [&Host; 2],
    endpoint: &str,
    carrier: &str,
) -> Result<[Process; 2]> {
    let homes = [client, gateway].map(|host| host.directory().join("home").display().to_string());
    let [at_client, at_gateway] = [0, 1].map(|number| [adit, "--home", homes[number].as_str()]);
    if !gateway.directory().join("home").exists() {
        let init = ["init", "--endpoint", endpoint, "--network", NETWORK];
        gateway.exec([&at_gateway[..], &init].concat())?;
    }
    let mut running = gateway.spawn([&at_gateway[..], &["gateway"]].concat())?;
    running.wait_for_text("gateway ready", SOON)?;
    let file = client.directory().join("bench.conf");
    if !file.exists() {
        let profile = gateway.exec([&at_gateway[..], &["peer", "add", "bench"]].concat())?.stdout;
        client.write("bench.conf", only_the_network(&profile))?;
    }
    let file = file.display().to_string();
    let up = ["up", &file, "--foreground", "--carrier", carrier];
    let mut tunnel = client.spawn([&at_client[..], &up].concat())?;
    tunnel.wait_for_text("is reached by a connection", SOON)?;
    Ok([tunnel, running])
}

/// Nothing else of the client's host is to pass the tunnel.
fn only_the_network(profile: &str) -> String {
    let lines = profile.lines().filter(|line| !line.starts_with("DNS")).map(|line| {
        if line.starts_with("AllowedIPs") { format!("AllowedIPs = {NETWORK}\n") } else { format!("{line}\n") }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_bench_leads_only_its_network() {
        let profile = "[Interface]\nPrivateKey = x\nDNS = 10.9.0.1\n\n[Peer]\nAllowedIPs = 0.0.0.0/0, ::/0\n";
        let expected = "[Interface]\nPrivateKey = x\n\n[Peer]\nAllowedIPs = 10.9.0.0/24\n";
        assert_eq!(only_the_network(profile), expected);
    }
}
