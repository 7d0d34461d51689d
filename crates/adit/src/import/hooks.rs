//! The commands that half the internet has copied into its wg-quick files, and what they mean.

/// What a command means in words of adit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Clients reach the internet with the host's address.
    Masquerade,
    /// What comes from or goes to clients is forwarded.
    Forward,
    /// The host forwards at all.
    Forwarding,
    /// Nothing leaves beside the tunnel.
    KillSwitch,
    /// Nothing at all.
    Nothing,
}

/// The simple commands of a hook, which `;`, `&&` or `||` part.
pub(super) fn commands_of(hook: &str) -> impl Iterator<Item = &str> {
    hook.split(';').flat_map(|part| part.split("&&")).flat_map(|part| part.split("||")).map(str::trim)
}

/// What `command` means for the interface of that name; `None` when that is not known for sure.
pub(super) fn meaning_of(command: &str, interface: &str) -> Option<Meaning> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        [] | ["true" | ":"] => Some(Meaning::Nothing),
        ["sysctl", rest @ ..] => forwarding(rest),
        ["echo", "1", ">", "/proc/sys/net/ipv4/ip_forward"] => Some(Meaning::Forwarding),
        [program, rest @ ..] => {
            let name = program.rsplit('/').next().unwrap_or(program);
            let is_iptables = matches!(
                name,
                "iptables"
                    | "ip6tables"
                    | "iptables-nft"
                    | "ip6tables-nft"
                    | "iptables-legacy"
                    | "ip6tables-legacy"
            );
            is_iptables.then(|| rule(rest, interface)).flatten()
        }
    }
}

fn forwarding(words: &[&str]) -> Option<Meaning> {
    let settings: Vec<&&str> = words.iter().filter(|word| !matches!(**word, "-w" | "-q" | "-qw")).collect();
    const KNOWN: [&str; 4] = [
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.forwarding=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv6.conf.default.forwarding=1",
    ];
    (!settings.is_empty() && settings.iter().all(|it| KNOWN.contains(it))).then_some(Meaning::Forwarding)
}

/// One iptables rule, word by word; whatever is not known makes it unknown.
fn rule(words: &[&str], interface: &str) -> Option<Meaning> {
    let joined = words.join(" ").replace('"', "");
    let own = |name: &str| name == "%i" || name == interface;
    let kill_switch = joined.strip_prefix("-I OUTPUT ").or_else(|| joined.strip_prefix("-D OUTPUT ")).is_some_and(|rest| {
        let plain = rest.replace("%i", interface);
        let of_manual = format!(
            "! -o {interface} -m mark ! --mark $(wg show {interface} fwmark) -m addrtype ! --dst-type LOCAL -j REJECT"
        );
        plain == of_manual
    });
    if kill_switch {
        return Some(Meaning::KillSwitch);
    }
    let mut words = words.iter().copied();
    let (mut chain, mut target, mut is_nat) = (None, None, false);
    let (mut named_own, mut named_other) = (false, false);
    while let Some(word) = words.next() {
        match word {
            "-w" | "--wait" => {}
            "-t" | "--table" => is_nat = words.next()? == "nat",
            "-A" | "-I" | "-D" | "--append" | "--insert" | "--delete" => chain = Some(words.next()?),
            "1" => {}
            "-i" | "-o" | "--in-interface" | "--out-interface" => match own(words.next()?) {
                true => named_own = true,
                false => named_other = true,
            },
            // Which of the own networks is masqueraded follows from the addresses of the gateway.
            "-s" | "--source" => {
                words.next()?.split('/').next()?.parse::<std::net::IpAddr>().ok()?;
            }
            "-m" | "--match" => matches!(words.next()?, "conntrack" | "state" | "comment").then_some(())?,
            "--ctstate" | "--state" => {
                let states = words.next()?;
                states
                    .split(',')
                    .all(|state| matches!(state, "RELATED" | "ESTABLISHED" | "NEW"))
                    .then_some(())?;
            }
            "-j" | "--jump" => target = Some(words.next()?),
            _ => return None,
        }
    }
    match (chain?, target?, is_nat) {
        ("POSTROUTING", "MASQUERADE", true) if named_other || !named_own => Some(Meaning::Masquerade),
        ("FORWARD", "ACCEPT", false) if named_own => Some(Meaning::Forward),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_many_have_copied_are_known_and_others_are_not() {
        for (command, meaning) in [
            ("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", Some(Meaning::Masquerade)),
            (
                "/sbin/iptables -w -t nat -I POSTROUTING 1 -s 10.9.0.0/24 -o ens3 -j MASQUERADE",
                Some(Meaning::Masquerade),
            ),
            ("ip6tables -t nat -D POSTROUTING -o eth0 -j MASQUERADE", Some(Meaning::Masquerade)),
            ("iptables -A FORWARD -i %i -j ACCEPT", Some(Meaning::Forward)),
            ("iptables -A FORWARD -i wg0 -o eth0 -j ACCEPT", Some(Meaning::Forward)),
            (
                "iptables -A FORWARD -o wg0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                Some(Meaning::Forward),
            ),
            ("sysctl -w net.ipv4.ip_forward=1", Some(Meaning::Forwarding)),
            ("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1", Some(Meaning::Forwarding)),
            ("true", Some(Meaning::Nothing)),
            ("", Some(Meaning::Nothing)),
            ("iptables -A FORWARD -i eth0 -j ACCEPT", None),
            ("iptables -A FORWARD -j ACCEPT", None),
            ("iptables -A INPUT -p udp --dport 51820 -j ACCEPT", None),
            ("iptables -A FORWARD -i %i -j DROP", None),
            ("iptables -A FORWARD -i %i -d 10.0.0.0/8 -j ACCEPT", None),
            ("iptables -t mangle -A FORWARD -i %i -j ACCEPT; x", None),
            ("iptables -t nat -A POSTROUTING -o %i -j MASQUERADE", None),
            ("iptables -t nat -A POSTROUTING", None),
            ("sysctl -w net.ipv4.ip_forward=0", None),
            ("sysctl -w", None),
            ("nft add table x", None),
            ("curl http://x | sh", None),
        ] {
            assert_eq!(meaning_of(command, "wg0"), meaning, "{command}");
        }
    }
}
