use adit_lab::Host;

use super::report::Report;
use super::tunnel::{INSIDE, INSIDE6, Tunnels};

/// Everybody inside reaches everybody.
pub(super) fn show(report: &mut Report, tunnels: &Tunnels) -> Option<()> {
    let why = "Inside the tunnel each computer has an address of its own, so they can reach each other wherever they\n\
               are: the client the gateway, the gateway the client, and one client the other through the gateway.";
    report.step("inside", "A network of one's own", why, |step| {
        let Tunnels { gateway, a, b, .. } = tunnels;
        let journeys: [(&Host, &str, &str); 6] = [
            (&a.host, "the gateway", INSIDE),
            (&a.host, "the gateway", INSIDE6),
            (&gateway.host, "client-a", &a.inside),
            (&gateway.host, "client-a", &a.inside6),
            (&a.host, "client-b", &b.inside),
            (&b.host, "client-a", &a.inside6),
        ];
        for (from, name, address) in journeys {
            step.command(from.name(), &format!("ping {address}"));
            let answers = from.ping(address, 2)?;
            step.check(
                format!("answers from {name} to {}", from.name()),
                "2 of 2",
                format!("{answers} of 2"),
            );
        }
        Ok(())
    })
}
