use adit_lab::{Capture, Host};

use super::report::{Report, Step};
use super::scenery::{GATEWAY, GATEWAY6, Scenery, TAP, WEB, WEB6, client_addresses};

/// What everybody on the way can see of a visit to a web server without a tunnel.
pub(super) fn before(report: &mut Report, scenery: &Scenery) -> Option<()> {
    let why = "Client A visits a web server as everybody does. The server learns A's address, and whoever carries the\n\
               packets can read them.";
    report.step("before", "Before: no tunnel", why, |step| {
        let a = &scenery.clients[0];
        let (four, six) = client_addresses(0);
        visit(step, scenery, a, WEB, &four.to_string())?;
        visit(step, scenery, a, WEB6, &six)?;
        way(step, a, WEB, "eth0")?;
        let note = "before-my-password-is-swordfish";
        let tap = Capture::start(&scenery.router, TAP)?;
        scenery.get(a, WEB, &format!("/?note={note}"))?;
        let readable = tap.stop()?.iter().filter(|frame| frame.contains(note.as_bytes())).count();
        step.command("router", &format!("tcpdump -i {TAP}"));
        let expected = "at least one";
        step.verify(
            format!("packets on the way in which {note:?} can be read"),
            readable > 0,
            expected,
            readable,
        );
        Ok(())
    })
}

/// The same visits through the tunnel.
pub(super) fn after(report: &mut Report, scenery: &Scenery) -> Option<()> {
    let why = "The same visits again. Packets now go to the gateway sealed, and it sends them on under its own address,\n\
               so that is all the web server gets to know. Every address, old (IPv4) and new (IPv6), takes this way.";
    report.step("after", "After: the web server sees the gateway", why, |step| {
        let [a, b, ..] = scenery.clients.as_slice() else { anyhow::bail!("the scenery has no clients") };
        for client in [a, b] {
            visit(step, scenery, client, WEB, GATEWAY)?;
            visit(step, scenery, client, WEB6, GATEWAY6)?;
        }
        way(step, a, WEB, "tun-a")?;
        way(step, a, WEB6, "tun-a")
    })
}

/// Asks the web server for the caller's address.
pub(super) fn visit(
    step: &mut Step,
    scenery: &Scenery,
    client: &Host,
    server: &str,
    expected: &str,
) -> anyhow::Result<()> {
    let url = super::scenery::http_url(server, "/");
    step.command(client.name(), &format!("curl {url}"));
    let answer = scenery.get(client, server, "/")?;
    let seen = answer["text"].as_str().unwrap_or("nothing").trim();
    step.check(format!("the web server says {} comes from", client.name()), expected, seen);
    Ok(())
}

/// Checks by which interface packets to `destination` leave.
pub(super) fn way(step: &mut Step, client: &Host, destination: &str, expected: &str) -> anyhow::Result<()> {
    step.command(client.name(), &format!("ip route get {destination}"));
    let route = client.route_to(destination)?;
    let seen = route["dev"].as_str().unwrap_or("none");
    step.check(format!("packets to {destination} leave by the interface"), expected, seen);
    Ok(())
}
