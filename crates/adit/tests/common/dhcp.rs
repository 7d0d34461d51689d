//! A DHCP server that lies (dnsmasq), and a client that believes it (udhcpc).

use adit_lab::{Host, Process};

use super::SOON;
use super::leak::ROUTER;

/// Answers on the router, and gives out routes as option 121 (RFC 3442).
pub struct Dhcp {
    _server: Process,
}

/// What udhcpc runs. It touches nothing but routes, which it marks as a DHCP client's.
const SCRIPT: &str = "#!/bin/sh
case \"$1\" in bound|renew) ;; *) exit 0 ;; esac
set -- $staticroutes
while [ $# -ge 2 ]; do
  ip route replace \"$1\" via \"$2\" dev \"$interface\" proto dhcp metric 100
  shift 2
done
";

impl Dhcp {
    /// Gives `address` out on `interface` of `router`, with routes to `networks` through the router.
    pub fn start(router: &Host, interface: &str, address: &str, networks: &[&str]) -> Self {
        let routes: Vec<String> = networks.iter().map(|net| format!("{net},{ROUTER}")).collect();
        let leases = router.directory().join("dhcp.leases").display().to_string();
        let options = [
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--log-facility=-".to_owned(),
            "--log-dhcp".to_owned(),
            "--port=0".to_owned(),
            "--no-ping".to_owned(),
            "--user=root".to_owned(),
            "--pid-file=".to_owned(),
            "--bind-interfaces".to_owned(),
            "--dhcp-authoritative".to_owned(),
            format!("--interface={interface}"),
            format!("--dhcp-leasefile={leases}"),
            format!("--dhcp-range={address},{address},1h"),
            format!("--dhcp-option=121,{}", routes.join(",")),
        ];
        let argv = ["dnsmasq"].into_iter().map(str::to_owned).chain(options);
        let mut server = router.spawn(argv).unwrap();
        server.wait_for_text("DHCP, IP range", SOON).unwrap();
        Self { _server: server }
    }

    /// `client` asks for a lease on `eth0` and does what it is told.
    pub fn lease(&self, client: &Host) {
        let script = client.write("dhcp-script", SCRIPT).unwrap();
        client.exec(["chmod", "700", &script.display().to_string()]).unwrap();
        let script = script.display().to_string();
        let ask =
            ["udhcpc", "-f", "-n", "-q", "-t", "20", "-T", "1", "-i", "eth0", "-O", "staticroutes", "-s"];
        client.exec(ask.into_iter().chain([script.as_str()])).unwrap();
    }
}
