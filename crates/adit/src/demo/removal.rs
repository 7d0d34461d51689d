use std::fs;
use std::time::Duration;

use adit_lab::Lab;

use super::report::Report;
use super::scenery::{Scenery, WEB, WEB6, client_addresses};
use super::snapshot::{Snapshot, same};
use super::tunnel::Tunnels;
use super::visit::{visit, way};

const SOON: Duration = Duration::from_secs(10);

/// Closes the tunnels, then removes the little network, and looks whether anything is left of either.
pub(super) fn show(report: &mut Report, scenery: Scenery, tunnels: Option<Tunnels>, machine: &Snapshot) {
    if let Some(tunnels) = tunnels {
        close(report, &scenery, tunnels);
    }
    let why = "Namespaces, links, firewall tables and processes of the little internet are removed. Your machine must be\n\
               as it was before.";
    report.step("removal", "Everything is removed", why, |step| {
        let name = scenery.lab.name().to_owned();
        let processes = scenery.lab.processes();
        step.command("machine", &format!("adit lab remove {name}"));
        drop(scenery);
        step.verify("processes to end", !processes.is_empty(), "some", processes.len());
        let left: Vec<_> = processes.iter().filter(|pid| runs(**pid)).map(u32::to_string).collect();
        step.check(format!("of {} processes, still running", processes.len()), "none", or_none(&left));
        step.check("namespaces and files left", "none", or_none(&Lab::remains(&name)));
        let difference = machine.compared(Snapshot::of_machine)?;
        step.check("this machine's links, routes, rules, tables and sysctls", same(), difference);
        Ok(())
    });
}

fn close(report: &mut Report, scenery: &Scenery, mut tunnels: Tunnels) {
    let why = "`adit down` puts back exactly what `adit up` changed, and so does the gateway when it ends. Each computer's\n\
               links, addresses, routes, rules, firewall and sysctls are compared with what they were before.";
    report.step("down", "The tunnels close", why, |step| {
        let (a, gateway) = (&tunnels.a, &mut tunnels.gateway);
        a.down(step)?;
        let (four, six) = client_addresses(0);
        way(step, &a.host, WEB, "eth0")?;
        visit(step, scenery, &a.host, WEB, &four.to_string())?;
        visit(step, scenery, &a.host, WEB6, &six)?;
        let difference = a.network_before.compared(|| Snapshot::of_host(&a.host))?;
        step.check("client-a's network, compared with before", same(), difference);

        step.command("gateway", &format!("kill {}", gateway.process.id()));
        gateway.process.terminate();
        gateway.process.finish(SOON)?;
        let difference = gateway.network_before.compared(|| Snapshot::of_host(&gateway.host))?;
        step.check("the gateway's network, compared with before", same(), difference);
        Ok(())
    });
}

fn runs(pid: u32) -> bool {
    // One that has ended but has not been collected by its parent has no command line any more.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn or_none(lines: &[String]) -> String {
    if lines.is_empty() { "none".to_owned() } else { lines.join(", ") }
}
