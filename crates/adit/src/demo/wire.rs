use std::net::{IpAddr, Ipv4Addr};

use adit_lab::{Capture, pcap::Frame};

use super::report::Report;
use super::scenery::{GATEWAY, Scenery, TAP, WEB, client_addresses};
use super::tunnel::Tunnels;

/// One request, seen inside the tunnel and outside at the same time.
pub(super) fn show(report: &mut Report, scenery: &Scenery, tunnels: &Tunnels) -> Option<()> {
    let why = "Client A sends a note to the web server. We listen in two places at once: on A's tunnel interface, where\n\
               packets are not sealed yet, and at the router, where a stranger would listen.";
    report.step("wire", "What a stranger on the way can read", why, |step| {
        let a = &tunnels.a;
        let note = "after-my-password-is-swordfish";
        let inner = Capture::start(&a.host, &a.interface)?;
        let outer = Capture::start(&scenery.router, TAP)?;
        step.command("client-a", &format!("tcpdump -i {} -w inner.pcap &", a.interface));
        step.command("router", &format!("tcpdump -i {TAP} -w outer.pcap &"));
        step.command("client-a", &format!("curl 'http://{WEB}/?note={note}'"));
        scenery.get(&a.host, WEB, &format!("/?note={note}"))?;
        let (inner, outer) = (inner.stop()?, outer.stop()?);
        let readable =
            |frames: &[Frame]| frames.iter().filter(|frame| frame.contains(note.as_bytes())).count();
        let (inside, outside) = (readable(&inner), readable(&outer));
        step.verify(
            format!("packets in the tunnel that contain {note:?}"),
            inside > 0,
            "at least one",
            inside,
        );
        step.check(format!("packets at the router that contain {note:?}"), 0, outside);

        let (client, _) = client_addresses(0);
        let destinations = || outer.iter().filter_map(journey).filter(|(from, _)| *from == client);
        let to =
            |address: &str| destinations().filter(|(_, to)| IpAddr::from(*to).to_string() == address).count();
        let (to_gateway, to_web) = (to(GATEWAY), to(WEB));
        step.verify(
            "packets at the router from client-a to the gateway",
            to_gateway > 0,
            "at least one",
            to_gateway,
        );
        step.check("packets at the router from client-a to the web server", 0, to_web);
        step.figure("inner_packets", inner.len());
        step.figure("outer_packets", outer.len());
        Ok(())
    })
}

/// Source and destination of an Ethernet frame with an IPv4 packet (RFC 894, RFC 791).
fn journey(frame: &Frame) -> Option<(Ipv4Addr, Ipv4Addr)> {
    const IPV4: [u8; 2] = [0x08, 0x00];
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.bytes.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    (frame.bytes.get(12..14)? == IPV4).then(|| Some((address(26)?, address(30)?)))?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_ipv4_frames_have_a_journey() {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 10, 198, 51, 100, 2]);
        let mut frame = Frame { time: Duration::ZERO, bytes };
        assert_eq!(journey(&frame), Some((Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(198, 51, 100, 2))));
        frame.bytes.pop();
        assert_eq!(journey(&frame), None);
        frame.bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame.bytes.push(2);
        assert_eq!(journey(&frame), None);
    }
}
