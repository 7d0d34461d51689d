//! The answer for people.

use serde::Serialize;

use super::flow::Direction;
use super::load::Load;
use super::round_trip::RoundTrips;
use super::{Measured, Page};

/// What keeps a direction from being faster, as far as this machine can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Limit {
    pub(super) kind: &'static str,
    pub(super) sentence: String,
}

/// A thread that runs so much of the time could not do much more.
const FULL_CORE: f64 = 0.9;
const BUSY_IDLE_PERCENT: f64 = 10.0;
const LOSS_PERCENT: f64 = 1.0;
/// A flow of seconds sends tens of thousands of segments; a few sent again are no limit.
const RETRANSMITS: u64 = 100;

impl Limit {
    pub(super) fn of(direction: Direction, load: &Load, trips: &RoundTrips) -> Self {
        let cores = load.cores;
        if load.busiest_thread_cores >= FULL_CORE {
            let thread = load.busiest_thread.as_deref().unwrap_or("a thread");
            let busy = load.busiest_thread_cores * 100.0;
            let sentence = format!(
                "one core: the thread {thread} of the tunnel is busy {:.0} % of the time",
                busy.min(100.0)
            );
            return Self { kind: "one_core", sentence };
        }
        if load.machine_idle_percent < BUSY_IDLE_PERCENT {
            let (idle, tunnel) = (load.machine_idle_percent, load.tunnel_cores);
            let all = if cores == 1 { "the only core".to_owned() } else { format!("all {cores} cores") };
            let sentence = format!(
                "the CPU of this machine: {all} are busy ({idle:.0} % idle), {tunnel:.1} of them with the tunnel"
            );
            return Self { kind: "cpu", sentence };
        }
        let sends_again = direction == Direction::Upload && load.tcp_retransmits > RETRANSMITS;
        if trips.loss_percent >= LOSS_PERCENT || sends_again {
            let again = match direction {
                Direction::Upload => format!(" and {} segments were sent again", load.tcp_retransmits),
                Direction::Download => String::new(),
            };
            let sentence = format!("the path: it lost {:.1} % of the probes{again}", trips.loss_percent);
            return Self { kind: "loss", sentence };
        }
        let idle = load.machine_idle_percent;
        let sentence = format!(
            "not this machine ({idle:.0} % idle), and nothing was lost: the path's bandwidth and delay, or the gateway"
        );
        Self { kind: "path", sentence }
    }
}

pub(super) fn print(page: &Page) -> String {
    let in_use = &page.in_use;
    let lanes = if in_use.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", in_use.lanes) };
    let mut lines = vec![
        format!("{}: {} at the gateway {}", page.interface, page.name, page.gateway.ip()),
        format!(
            "  carrier {}, suite {}, {lanes}, MTU {}, offload {}",
            in_use.carrier.as_deref().unwrap_or("unknown"),
            in_use.suite,
            in_use.mtu_bytes,
            in_use.offload
        ),
        String::new(),
        "            THROUGHPUT   RTT P50   RTT P99    LOST  TUNNEL'S CPU  MACHINE IDLE".to_owned(),
    ];
    lines.push(row("idle", "-".to_owned(), &page.idle, None));
    for (name, measured) in [("download", &page.download), ("upload", &page.upload)] {
        let rate = rate(measured.mbits_per_second);
        lines.push(row(name, rate, &measured.round_trips, Some(measured)));
    }
    lines.push(String::new());
    for (name, measured) in [("download", &page.download), ("upload", &page.upload)] {
        lines.push(format!("What limits the {name}: {}.", measured.limit.sentence));
    }
    lines.join("\n")
}

fn row(name: &str, rate: String, trips: &RoundTrips, measured: Option<&Measured>) -> String {
    let time = |time: Option<f64>| time.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
    let (cpu, idle) = match measured.map(|it| &it.load) {
        Some(load) => {
            (format!("{:.2} cores", load.tunnel_cores), format!("{:.0} %", load.machine_idle_percent))
        }
        None => ("-".to_owned(), "-".to_owned()),
    };
    let (p50, p99, lost) = (time(trips.p50_ms), time(trips.p99_ms), format!("{:.1} %", trips.loss_percent));
    format!("  {name:<8} {rate:>11} {p50:>9} {p99:>9} {lost:>7} {cpu:>13} {idle:>13}")
}

fn rate(mbits_per_second: f64) -> String {
    if mbits_per_second >= 1_000.0 {
        format!("{:.2} Gb/s", mbits_per_second / 1_000.0)
    } else {
        format!("{mbits_per_second:.1} Mb/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            tunnel_cores: 0.4,
            busiest_thread: Some("lane-0".to_owned()),
            busiest_thread_cores: 0.4,
            machine_idle_percent: 60.0,
            cores: 2,
            tcp_retransmits: 0,
        }
    }

    fn trips(loss_percent: f64) -> RoundTrips {
        RoundTrips { sent: 100, answered: 100, loss_percent, p50_ms: Some(0.5), p99_ms: Some(1.0) }
    }

    #[test]
    fn what_limits_is_said_in_a_sentence() {
        let kind = |direction, load: &Load, loss| Limit::of(direction, load, &trips(loss)).kind;
        assert_eq!(kind(Direction::Download, &load(), 0.0), "path");
        assert_eq!(kind(Direction::Download, &load(), 2.0), "loss");
        let lossy = Load { tcp_retransmits: 5_000, ..load() };
        assert_eq!(kind(Direction::Upload, &lossy, 0.0), "loss");
        assert_eq!(kind(Direction::Download, &lossy, 0.0), "path", "they are not of the download");
        let busy = Load { machine_idle_percent: 3.0, tunnel_cores: 0.8, ..load() };
        assert_eq!(kind(Direction::Upload, &busy, 5.0), "cpu", "a busy machine loses packets too");
        let one = Load { busiest_thread_cores: 0.97, machine_idle_percent: 40.0, ..load() };
        let limit = Limit::of(Direction::Upload, &one, &trips(0.0));
        assert_eq!(limit.kind, "one_core");
        assert_eq!(limit.sentence, "one core: the thread lane-0 of the tunnel is busy 97 % of the time");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(
            [0.04, 87.26, 999.9, 12_345.0].map(rate),
            ["0.0 Mb/s", "87.3 Mb/s", "999.9 Mb/s", "12.35 Gb/s"]
        );
    }
}
