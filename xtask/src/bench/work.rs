//! The kinds of work a tunnel is given, and what is read off each.

use std::fmt;
use std::str::FromStr;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// One TCP flow from the client to the gateway.
    TcpX1,
    /// One from the gateway to the client.
    TcpReverse,
    /// Four flows to the gateway.
    TcpX4,
    /// One flow each way at the same time.
    TcpBoth,
    /// UDP datagrams of so many bytes of payload, at the highest rate of which less than 1 % is lost.
    Udp(u32),
    /// Echoes over a tunnel that does nothing else.
    RttIdle,
    /// Echoes beside one TCP flow in the same direction.
    RttLoad,
    /// Handshakes of many peers with one gateway.
    Handshakes,
    /// One TCP flow, while the gateway knows so many peers.
    Peers(u32),
    /// One TCP flow while all of 10,000 other peers start a session.
    Storm,
}

/// A value that is read off a kind of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub title: &'static str,
    /// What the value is divided by to be shown.
    pub scale: f64,
    pub decimals: usize,
    better: Better,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

impl Metric {
    /// Whether less of it is better.
    pub fn is_cost(&self) -> bool {
        self.better == Better::Less
    }
}

const fn gain(name: &'static str, title: &'static str, scale: f64, decimals: usize) -> Metric {
    Metric { name, title, scale, decimals, better: Better::More }
}

const fn cost(name: &'static str, title: &'static str, scale: f64, decimals: usize) -> Metric {
    Metric { name, title, scale, decimals, better: Better::Less }
}

pub const GBPS: Metric = gain("gbps", "Gb/s", 1.0, 2);
pub const PER_TUNNEL_CPU: Metric =
    gain("gb_per_tunnel_cpu_sec", "Gb per CPU second, tunnel processes", 1.0, 2);
pub const PER_MACHINE_CPU: Metric =
    gain("gb_per_machine_cpu_sec", "Gb per CPU second, whole machine", 1.0, 2);
pub const RSS: Metric = cost("rss_peak_kib", "peak RSS of the gateway, MiB", 1024.0, 1);
pub const PACKETS: Metric = gain("packets_per_sec", "1000 packets/s", 1e3, 1);
pub const REORDERED: Metric = cost("reordered", "reordered", 1.0, 0);
pub const RTT_MEAN: Metric = cost("rtt_mean_us", "mean, µs", 1.0, 0);
pub const RTT_P50: Metric = cost("rtt_p50_us", "p50, µs", 1.0, 0);
pub const RTT_P99: Metric = cost("rtt_p99_us", "p99, µs", 1.0, 0);
pub const HANDSHAKES: Metric = gain("handshakes_per_sec", "completed per second", 1.0, 0);
pub const HANDSHAKES_PER_CPU: Metric =
    gain("handshakes_per_cpu_sec", "per CPU second of the gateway", 1.0, 0);

pub const GOODPUT: Metric = gain("goodput_percent", "% of the throughput before", 1.0, 0);
pub const STORM_SECS: Metric = cost("storm_secs", "seconds", 1.0, 1);
pub const STORM_COMPLETED: Metric = gain("storm_completed", "sessions", 1.0, 0);

impl Work {
    pub fn all() -> Vec<Self> {
        use Work::*;
        let single =
            [TcpX1, TcpReverse, TcpX4, TcpBoth, Udp(64), Udp(512), Udp(1300), RttIdle, RttLoad, Handshakes];
        single.into_iter().chain([1, 100, 1_000, 10_000].map(Peers)).chain([Storm]).collect()
    }

    /// Bulk transfer over TCP.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::TcpX1 | Self::TcpReverse | Self::TcpX4 | Self::TcpBoth)
    }

    pub fn title(self) -> String {
        match self {
            Self::TcpX1 => "TCP, 1 flow".into(),
            Self::TcpReverse => "TCP, 1 flow, reverse".into(),
            Self::TcpX4 => "TCP, 4 flows".into(),
            Self::TcpBoth => "TCP, both ways".into(),
            Self::Udp(bytes) => format!("UDP {bytes} B, < 1 % lost"),
            Self::RttIdle => "RTT idle".into(),
            Self::RttLoad => "RTT under one TCP flow".into(),
            Self::Handshakes => "handshakes".into(),
            Self::Peers(1) => "TCP, 1 flow, 1 peer".into(),
            Self::Peers(count) => format!("TCP, 1 flow, {count} peers"),
            Self::Storm => "10,000 peers start over beside 1 TCP flow".into(),
        }
    }

    /// What is shown of it; records hold more.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::TcpX1 | Self::TcpReverse | Self::TcpX4 | Self::TcpBoth => {
                &[GBPS, PER_TUNNEL_CPU, PER_MACHINE_CPU, RSS]
            }
            Self::Udp(_) => &[PACKETS, REORDERED],
            Self::RttIdle | Self::RttLoad => &[RTT_MEAN, RTT_P50, RTT_P99],
            Self::Handshakes => &[HANDSHAKES, HANDSHAKES_PER_CPU],
            Self::Peers(_) => &[GBPS, RSS],
            Self::Storm => &[GOODPUT, STORM_SECS, STORM_COMPLETED],
        }
    }

    /// The works that a list such as `tcp,udp-64` names.
    pub fn selected(text: &str) -> Result<Vec<Self>, String> {
        let mut chosen = Vec::new();
        for word in text.split(',') {
            let fits = |work: &Self| {
                let name = work.to_string();
                name == word || name.strip_prefix(word).is_some_and(|rest| rest.starts_with('-'))
            };
            let before = chosen.len();
            chosen.extend(Self::all().into_iter().filter(fits));
            if chosen.len() == before {
                let known: Vec<String> = Self::all().iter().map(Self::to_string).collect();
                return Err(format!("{word:?} is none of the works: {}", known.join(" ")));
            }
        }
        chosen.sort();
        chosen.dedup();
        Ok(chosen)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpX1 => f.write_str("tcp-x1"),
            Self::TcpReverse => f.write_str("tcp-reverse"),
            Self::TcpX4 => f.write_str("tcp-x4"),
            Self::TcpBoth => f.write_str("tcp-both"),
            Self::Udp(bytes) => write!(f, "udp-{bytes}"),
            Self::RttIdle => f.write_str("rtt-idle"),
            Self::RttLoad => f.write_str("rtt-load"),
            Self::Handshakes => f.write_str("handshakes"),
            Self::Peers(count) => write!(f, "peers-{count}"),
            Self::Storm => f.write_str("storm"),
        }
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all()
            .into_iter()
            .find(|work| work.to_string() == text)
            .ok_or_else(|| format!("{text:?} is none of the works"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_names_its_works_and_a_name_only_itself() {
        assert_eq!(Work::selected("udp").unwrap(), [Work::Udp(64), Work::Udp(512), Work::Udp(1300)]);
        assert_eq!(Work::selected("peers-1").unwrap(), [Work::Peers(1)]);
        assert_eq!(Work::selected("rtt-load,rtt").unwrap(), [Work::RttIdle, Work::RttLoad]);
        assert!(Work::selected("ud").is_err());
        assert!(Work::selected("").is_err());
    }

    #[test]
    fn every_work_is_found_by_its_name() {
        for work in Work::all() {
            assert_eq!(work.to_string().parse(), Ok(work));
        }
        assert!("tcp".parse::<Work>().is_err());
    }
}
