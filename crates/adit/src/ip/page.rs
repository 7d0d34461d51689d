//! The answer for people.

use super::{Failure, Family, Found, Page, Seen};

pub(super) fn print(page: &Page, only_outside: bool, home_flag: &str) -> String {
    let families = families(page);
    let address = |found: &Option<Found>| found.as_ref().map_or("-".to_owned(), |it| it.address.to_string());
    if only_outside {
        let lines: Vec<String> =
            families.iter().map(|(family, seen)| format!("{family}  {}", address(&seen.outside))).collect();
        return lines.join("\n");
    }
    let mut lines = Vec::new();
    if page.tunnel != "up" {
        lines.extend(families.iter().map(|(family, seen)| format!("{family}  {}", address(&seen.seen))));
        lines.push(String::new());
        lines.push(match page.tunnel {
            "down" if families.iter().all(|(_, seen)| seen.seen.is_none()) => {
                "No tunnel is up, and no service answered: is there a connection, and a name server?"
                    .to_owned()
            }
            "down" => "No tunnel is up: this is the address of your own connection.".to_owned(),
            _ => format!(
                "This is what the world sees now. Whether a tunnel is up only root can tell: `sudo adit ip{home_flag}`."
            ),
        });
        return lines.join("\n");
    }
    let mut rows = vec![["", "THE WORLD SEES", "WITHOUT THE TUNNEL", "MASKED"].map(str::to_owned)];
    rows.extend(families.iter().map(|(family, seen)| {
        let masked = match seen.masked {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        [family.to_string(), address(&seen.seen), address(&seen.outside), masked.to_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 4] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        lines.push(cells.join("  ").trim_end().to_owned());
    }
    lines.push(String::new());
    let interface = page.interface.as_deref().unwrap_or_default();
    lines.push(format!("The tunnel {interface} is up. masked: {}", verdict(&families)));
    for (family, _) in families.iter().filter(|(_, seen)| seen.masked == Some(false)) {
        lines.push(format!("{family} goes around the tunnel: the world sees your own address."));
    }
    lines.join("\n")
}

/// One address that shows is enough to be known by.
fn verdict(families: &[(Family, &Seen)]) -> &'static str {
    let masked = || families.iter().filter_map(|(_, seen)| seen.masked);
    match (masked().any(|masked| !masked), masked().any(|masked| masked)) {
        (true, _) => "no",
        (false, true) => "yes",
        (false, false) => "unknown",
    }
}

/// Which services failed and why, in a line for each family and question.
pub(super) fn complaints(page: &Page) -> Vec<String> {
    let mut lines = Vec::new();
    for (family, seen) in families(page) {
        for (asked, what) in [("seen", "what the world sees"), ("outside", "without the tunnel")] {
            let failures: Vec<&Failure> = seen.failures.iter().filter(|it| it.asked == asked).collect();
            if failures.is_empty() {
                continue;
            }
            let found = if asked == "seen" { seen.seen.is_some() } else { seen.outside.is_some() };
            let found = found || (page.tunnel == "down" && seen.outside.is_some());
            let outcome = if found { "passed over" } else { "nobody said; asked" };
            lines.push(format!("{family}, {what}: {outcome} {}", grouped(&failures)));
        }
    }
    lines
}

/// Services that failed alike share a line, also where each reason holds the service's name.
fn grouped(failures: &[&Failure]) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for failure in failures {
        let host = failure.service.rsplit_once(':').map_or(failure.service.as_str(), |(host, _)| host);
        let alike = match host.contains('.') {
            true => failure.reason.replace(&failure.service, "it").replace(host, "it"),
            false => failure.reason.clone(),
        };
        match groups.iter_mut().find(|(reason, _)| *reason == alike) {
            Some((_, services)) => services.push(&failure.service),
            None => groups.push((alike, vec![&failure.service])),
        }
    }
    let texts: Vec<String> =
        groups.iter().map(|(reason, services)| format!("{} ({reason})", services.join(", "))).collect();
    texts.join("; ")
}

fn families(page: &Page) -> Vec<(Family, &Seen)> {
    let both = [(Family::V4, page.ipv4.as_ref()), (Family::V6, page.ipv6.as_ref())];
    both.into_iter().filter_map(|(family, seen)| Some((family, seen?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str) -> Option<Found> {
        Some(Found { address: address.parse().unwrap(), source: "x".to_owned() })
    }

    fn failure(service: &str, reason: &str) -> Failure {
        Failure { service: service.to_owned(), asked: "seen", reason: reason.to_owned() }
    }

    fn page_of(ipv4: Seen, ipv6: Seen) -> Page {
        let (ipv4, ipv6) = (Some(ipv4), Some(ipv6));
        Page { schema: 1, tunnel: "up", interface: Some("home".to_owned()), ipv4, ipv6 }
    }

    fn seen(seen: Option<Found>, outside: Option<Found>) -> Seen {
        let masked = seen.as_ref().zip(outside.as_ref()).map(|(a, b)| a.address != b.address);
        Seen { seen, outside, masked, failures: Vec::new() }
    }

    #[test]
    fn a_masked_host_sees_it_at_a_glance() {
        let page =
            page_of(seen(found("198.51.100.2"), found("203.0.113.9")), seen(None, found("2001:db8:10::2")));
        assert_eq!(
            print(&page, false, ""),
            "      THE WORLD SEES  WITHOUT THE TUNNEL  MASKED\n\
             IPv4  198.51.100.2    203.0.113.9         yes\n\
             IPv6  -               2001:db8:10::2      -\n\
             \n\
             The tunnel home is up. masked: yes"
        );
        assert_eq!(print(&page, true, ""), "IPv4  203.0.113.9\nIPv6  2001:db8:10::2");
    }

    #[test]
    fn who_has_to_be_root_is_told_with_which_home() {
        let page = Page { tunnel: "unknown", ..page_of(seen(found("198.51.100.2"), None), seen(None, None)) };
        assert!(print(&page, false, " --home /a").contains("`sudo adit ip --home /a`"));
    }

    #[test]
    fn one_family_that_leaks_is_not_masked() {
        let page = page_of(
            seen(found("198.51.100.2"), found("203.0.113.9")),
            seen(found("2001:db8::9"), found("2001:db8::9")),
        );
        let text = print(&page, false, "");
        assert!(text.contains("masked: no") && text.contains("IPv6 goes around the tunnel"), "{text}");
    }

    #[test]
    fn services_that_failed_are_named_once_for_each_reason() {
        let mut page = page_of(seen(found("198.51.100.2"), None), seen(None, None));
        let nameless = ["api.example", "ip.example:81"]
            .map(|service| failure(service, &format!("cannot look up {}", service.trim_end_matches(":81"))));
        assert_eq!(
            grouped(&nameless.iter().collect::<Vec<_>>()),
            "api.example, ip.example:81 (cannot look up it)"
        );
        page.ipv4.as_mut().unwrap().failures = vec![failure("a", "slow"), failure("b", "odd")];
        page.ipv6.as_mut().unwrap().failures = vec![failure("a", "no way"), failure("b", "no way")];
        assert_eq!(
            complaints(&page),
            [
                "IPv4, what the world sees: passed over a (slow); b (odd)",
                "IPv6, what the world sees: nobody said; asked a, b (no way)",
            ]
        );
    }
}
