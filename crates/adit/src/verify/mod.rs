//! `adit verify`: does anything leave this host beside the tunnel, also while the tunnel is cut?
//!
//! ```text
//!   control: the sniffer has to see the tunnel's own packets, and one that is sent outside on purpose
//!   for each cut: cut ─► traffic of every class ─► what left by the interfaces outside? ─► mend
//! ```
//!
//! What is not the tunnel, and not what keeps a host on its network, is a leak, whoever sent it. A test whose control
//! fails has no result at all.

mod cut;
mod sniffer;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

pub use self::cut::mend_leftovers;
use self::cut::{Cut, Cuts};
use self::sniffer::{Seen, Sniffer};
use self::traffic::{CONTROL, Class, Fate, Outside};
use crate::home::Home;
use crate::privilege;
use crate::status::{self, Report};

/// What `adit verify` may be told.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The tunnel [default: the only one]
    #[arg(value_name = "IFNAME")]
    interface: Option<String>,
    /// Do not cut the tunnel: only look at what leaves while it is up
    #[arg(long)]
    no_cuts: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The outcome of a test.
#[derive(Debug, Serialize)]
struct Outcome {
    schema: u32,
    interface: String,
    outside_interfaces: Vec<String>,
    /// Whether the sniffer saw what it has to see; without that, nothing else counts.
    control: Control,
    kill_switch: bool,
    /// Whether nothing left beside the tunnel.
    tight: bool,
    /// How many kinds of traffic could not be sent, in one situation at least.
    not_tested: usize,
    situations: Vec<Situation>,
}

#[derive(Debug, Default, Serialize)]
struct Control {
    saw_the_tunnel: bool,
    saw_a_packet_outside: bool,
}

#[derive(Debug, Serialize)]
struct Situation {
    situation: &'static str,
    /// Why it could not be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    /// By class: `kept in`, `refused`, `leaked`, or `not tested: ` and why.
    traffic: BTreeMap<&'static str, String>,
    /// What left beside the tunnel, with how often.
    leaks: Vec<Leak>,
}

#[derive(Debug, Serialize)]
struct Leak {
    frame: String,
    count: u64,
    /// The class of our own traffic that it was, if it was ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
}

/// Runs the test; exit code 0 means that nothing leaked.
///
/// # Errors
/// No tunnel is up, or the control failed.
pub fn run(home: &Home, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    privilege::require_root("verify")?;
    let report = status::client(home, args.interface.as_deref(), "verify")?;
    let endpoints: Vec<SocketAddr> =
        report.peers.iter().filter_map(|peer| peer.endpoint.as_ref()?.parse().ok()).collect();
    let cuts = Cuts::begin(home)?;
    let outside = outside(home, &report, &endpoints)?;
    let names: Vec<String> = outside.iter().map(|it| it.interface.clone()).collect();
    let indices: Vec<u32> = names.iter().filter_map(|name| adit_host::link_index(name)).collect();
    let sniffer = Sniffer::start(&indices).context("cannot listen on the interfaces outside")?;
    let first = outside.first().context("this host has no interface outside")?;

    let control = control_of(&report, &sniffer, &endpoints, first);
    if !control.saw_the_tunnel || !control.saw_a_packet_outside {
        bail!(
            "the control failed, so the test says nothing: of the tunnel's own packets {} were seen on {}, of a packet \
             sent outside on purpose {}. Does the gateway answer (`adit status{}`)? Does another firewall drop what \
             leaves?",
            some(control.saw_the_tunnel),
            names.join(", "),
            some(control.saw_a_packet_outside),
            home.flag()
        );
    }
    let mut situations = vec![look("the tunnel is up", &sniffer, &endpoints, first)];
    if !args.no_cuts {
        for cut in Cut::ALL {
            situations.push(match cuts.make(cut, &report, first) {
                Ok(()) => {
                    let _ = sniffer.take();
                    let situation = look(cut.name(), &sniffer, &endpoints, first);
                    cuts.mend();
                    situation
                }
                Err(error) => Situation {
                    situation: cut.name(),
                    skipped: Some(format!("{error:#}")),
                    traffic: BTreeMap::new(),
                    leaks: Vec::new(),
                },
            });
            let _ = sniffer.take();
        }
    }
    let outcome = Outcome {
        schema: 1,
        interface: report.interface.clone(),
        outside_interfaces: names,
        control,
        kill_switch: kill_switch(&report),
        tight: situations.iter().all(|it| it.leaks.is_empty()),
        not_tested: not_tested(&situations).len(),
        situations,
    };
    let page = if args.json { serde_json::to_string(&outcome)? } else { page(&outcome, &home.flag()) };
    crate::print_line(page.trim_end())?;
    Ok(if outcome.tight { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn some(seen: bool) -> &'static str {
    if seen { "some" } else { "none" }
}

/// The one table of ours that closes chains by their policy.
fn kill_switch(report: &Report) -> bool {
    adit_host::closes_host(&report.interface)
}

/// The interfaces by which the tunnel's own packets leave.
fn outside(home: &Home, report: &Report, endpoints: &[SocketAddr]) -> anyhow::Result<Vec<Outside>> {
    let journal = cut::device_journal(home);
    let mut found: Vec<Outside> = Vec::new();
    for endpoint in endpoints {
        let Some(way) = adit_host::way_to(endpoint.ip(), report.fwmark)? else { continue };
        let Some(interface) = adit_host::link_name(way.link_index) else { continue };
        if found.iter().all(|it| it.interface != interface) {
            found.push(Outside {
                interface,
                address: way.source,
                gateway: way.gateway,
                journal: journal.clone(),
            });
        }
    }
    // Every other interface with a cable is a way out as well.
    for interface in adit_host::ethernet_links() {
        if found.iter().all(|it| it.interface != interface) {
            found.push(Outside { interface, address: None, gateway: None, journal: journal.clone() });
        }
    }
    Ok(found)
}

/// The sniffer has to see what certainly leaves: the tunnel, and a packet that bears the tunnel's mark.
fn control_of(report: &Report, sniffer: &Sniffer, endpoints: &[SocketAddr], outside: &Outside) -> Control {
    let mut control = Control::default();
    for _ in 0..10 {
        // Whatever is sent into the tunnel makes packets of the tunnel; not all of it may leave beside it.
        for class in [Class::Udp4, Class::Udp6, Class::DnsUdp, Class::Ping4] {
            let _ = traffic::send(class, outside);
        }
        let _ = traffic::send_control(report.fwmark, outside);
        thread::sleep(Duration::from_millis(200));
        let seen = sniffer.take();
        control.saw_the_tunnel |= seen.keys().any(|it| it.is_tunnel(endpoints));
        control.saw_a_packet_outside |= seen.keys().any(|it| it.to == CONTROL.ip());
        if control.saw_the_tunnel && control.saw_a_packet_outside {
            break;
        }
    }
    control
}

fn look(name: &'static str, sniffer: &Sniffer, endpoints: &[SocketAddr], outside: &Outside) -> Situation {
    let mut sent = Vec::new();
    for class in Class::ALL {
        sent.push((class, traffic::send(class, outside)));
    }
    // Asking a neighbour for its hardware address takes a moment, and what waits for that leaves late.
    thread::sleep(Duration::from_millis(1_200));
    let seen = sniffer.take();
    let is_leak =
        |seen: &Seen| !seen.is_tunnel(endpoints) && !seen.keeps_the_network() && seen.to != CONTROL.ip();
    let class_of = |to: IpAddr| Class::ALL.into_iter().find(|class| class.target() == to);
    let mut leaks: Vec<(Seen, u64)> = seen.into_iter().filter(|(seen, _)| is_leak(seen)).collect();
    leaks.sort();
    let traffic = sent.into_iter().map(|(class, sent)| {
        let leaked = leaks.iter().any(|(seen, _)| seen.to == class.target());
        let told = match sent {
            _ if leaked => "leaked".to_owned(),
            Fate::Sent => "kept in".to_owned(),
            Fate::Refused => "refused".to_owned(),
            Fate::NotTested(why) => format!("{NOT_TESTED}{why}"),
        };
        (class.name(), told)
    });
    Situation {
        situation: name,
        skipped: None,
        traffic: traffic.collect(),
        leaks: leaks
            .iter()
            .map(|(seen, count)| Leak {
                frame: seen.to_string(),
                count: *count,
                class: class_of(seen.to).map(Class::name),
            })
            .collect(),
    }
}

const NOT_TESTED: &str = "not tested: ";

/// The kinds of traffic that could not be sent in one situation at least.
fn not_tested(situations: &[Situation]) -> BTreeSet<&'static str> {
    let traffic = situations.iter().flat_map(|it| &it.traffic);
    traffic.filter(|(_, told)| told.starts_with(NOT_TESTED)).map(|(class, _)| *class).collect()
}

impl Situation {
    /// The kinds of traffic that could not be sent, by the reason.
    fn not_tested(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut by_reason = BTreeMap::<_, Vec<&str>>::new();
        for (class, told) in &self.traffic {
            if let Some(why) = told.strip_prefix(NOT_TESTED) {
                by_reason.entry(why).or_default().push(class);
            }
        }
        by_reason
    }
}

fn page(outcome: &Outcome, home_flag: &str) -> String {
    let mut lines = vec![
        format!("{} beside {}", outcome.interface, outcome.outside_interfaces.join(", ")),
        "  control: the sniffer sees the tunnel, and a packet sent outside on purpose".to_owned(),
        format!("  kill switch {}", if outcome.kill_switch { "on" } else { "off" }),
    ];
    for situation in &outcome.situations {
        let not_tested = situation.not_tested();
        match &situation.skipped {
            Some(why) => lines.push(format!("  {}: left out: {why}", situation.situation)),
            None if situation.leaks.is_empty() => lines.push(format!(
                "  {}: nothing left beside the tunnel ({} kinds of traffic)",
                situation.situation,
                situation.traffic.len() - not_tested.values().map(Vec::len).sum::<usize>(),
            )),
            None => {
                lines.push(format!("  {}: LEAKED", situation.situation));
                for leak in &situation.leaks {
                    let class = leak.class.map(|class| format!(" ({class})")).unwrap_or_default();
                    lines.push(format!("    {} times {}{class}", leak.count, leak.frame));
                }
            }
        }
        lines.extend(
            not_tested.iter().map(|(why, kinds)| format!("    {}: {NOT_TESTED}{why}", kinds.join(", "))),
        );
    }
    let mut last = match (outcome.tight, outcome.kill_switch) {
        (true, _) => "Nothing leaks.".to_owned(),
        (false, true) => "Something leaks in spite of the kill switch: please report this.".to_owned(),
        (false, false) => format!(
            "Something leaks. `adit up --kill-switch on{home_flag}` keeps in what belongs into the tunnel."
        ),
    };
    let left_out = outcome.situations.iter().filter(|it| it.skipped.is_some()).count();
    let counts = [
        (outcome.not_tested, Class::ALL.len(), "kinds of traffic"),
        (left_out, outcome.situations.len(), "situations"),
    ];
    let some = counts.iter().filter(|(count, ..)| *count > 0);
    let missing: Vec<String> = some.map(|(count, of, what)| format!("{count} of {of} {what}")).collect();
    if !missing.is_empty() {
        last += &format!(" Not tested: {}.", missing.join(", "));
    }
    lines.push(last);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation(traffic: &[(&'static str, &str)], leaks: Vec<Leak>) -> Situation {
        let traffic = traffic.iter().map(|(class, told)| (*class, (*told).to_owned())).collect();
        Situation { situation: "the tunnel is up", skipped: None, traffic, leaks }
    }

    fn outcome(situations: Vec<Situation>) -> Outcome {
        Outcome {
            schema: 1,
            interface: "adit0".into(),
            outside_interfaces: vec!["eth0".into()],
            control: Control { saw_the_tunnel: true, saw_a_packet_outside: true },
            kill_switch: false,
            tight: situations.iter().all(|it| it.leaks.is_empty()),
            not_tested: not_tested(&situations).len(),
            situations,
        }
    }

    #[test]
    fn what_could_not_be_tested_is_neither_good_nor_leaked_and_is_counted_in_the_last_line() {
        let no_route = "not tested: no route leads there";
        let traffic =
            [("tcp over ipv6", no_route), ("udp over ipv4", "kept in"), ("udp over ipv6", no_route)];
        let some = page(&outcome(vec![situation(&traffic, vec![]), situation(&traffic[..2], vec![])]), "");
        assert!(some.contains("nothing left beside the tunnel (1 kinds of traffic)\n"), "{some}");
        assert!(
            some.contains("\n    tcp over ipv6, udp over ipv6: not tested: no route leads there\n"),
            "{some}"
        );
        assert!(some.ends_with("\nNothing leaks. Not tested: 2 of 12 kinds of traffic."), "{some}");
        let all = page(&outcome(vec![situation(&traffic[1..2], vec![])]), "");
        assert!(all.ends_with("\nNothing leaks.") && !all.contains("ot tested"), "{all}");
    }

    #[test]
    fn a_leak_is_told_with_what_was_not_tested_and_with_the_home_to_mend_it_in() {
        let leak = Leak { frame: "udp to 192.0.2.200 port 9".into(), count: 3, class: Some("udp over ipv4") };
        let traffic = [("udp over ipv4", "leaked"), ("udp over ipv6", "not tested: no route leads there")];
        let mut outcome = outcome(vec![situation(&traffic, vec![leak])]);
        let skipped = Some("no router".to_owned());
        outcome.situations.push(Situation { skipped, ..situation(&[], vec![]) });
        let told = page(&outcome, " --home /a");
        assert!(told.contains("udp over ipv6: not tested: "), "{told}");
        assert!(told.contains("`adit up --kill-switch on --home /a`"), "{told}");
        assert!(told.ends_with("Not tested: 1 of 12 kinds of traffic, 1 of 2 situations."), "{told}");
    }
}
