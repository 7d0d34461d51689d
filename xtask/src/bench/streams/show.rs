//! Medians of what was measured, as tables.

use std::collections::BTreeMap;
use std::fmt;

use super::world::Kind;
use crate::bench::record::percentile;

type Cells<K> = BTreeMap<(Kind, K), Vec<[f64; 3]>>;

/// The median of one of the values of a cell, with the least and the most of them.
fn middle<K: Ord>(cells: &Cells<K>, key: &(Kind, K), at: usize) -> Option<[f64; 3]> {
    let values: Vec<f64> = cells.get(key)?.iter().map(|it| it[at]).collect();
    Some([percentile(&values, 0.5)?, percentile(&values, 0.0)?, percentile(&values, 1.0)?])
}

/// Rates and costs.
pub struct Speed {
    kinds: Vec<Kind>,
    works: [&'static str; 4],
    cells: Cells<&'static str>,
}

impl Speed {
    pub fn new(kinds: &[Kind], works: [&'static str; 4]) -> Self {
        Self { kinds: kinds.to_vec(), works, cells: BTreeMap::new() }
    }

    pub fn add(&mut self, kind: Kind, work: &'static str, gbps: f64, per_cpu_sec: f64) {
        self.cells.entry((kind, work)).or_default().push([gbps, per_cpu_sec, 0.0]);
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| Gb/s: median (least to most) | {} |", self.works.join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(self.works.len()))?;
        for kind in &self.kinds {
            write!(f, "| {} |", kind.name())?;
            for work in self.works {
                match middle(&self.cells, &(*kind, work), 0) {
                    Some([median, least, most]) => write!(f, " {median:.2} ({least:.2} to {most:.2}) |")?,
                    None => f.write_str(" - |")?,
                }
            }
            writeln!(f)?;
        }
        let others =
            [("wireguard-go", Kind::WireguardGo), ("OpenVPN", Kind::Openvpn), ("adit over TCP", Kind::Tcp)];
        for (name, other) in others {
            for kind in [Kind::Tcp, Kind::Tls].into_iter().filter(|kind| *kind != other) {
                write!(f, "| {} / {name} |", kind.name())?;
                for work in self.works {
                    let of = |kind| middle(&self.cells, &(kind, work), 0).map(|it| it[0]);
                    match (of(kind), of(other)) {
                        (Some(this), Some(that)) => write!(f, " {:.2} |", this / that)?,
                        _ => f.write_str(" - |")?,
                    }
                }
                writeln!(f)?;
            }
        }
        for kind in &self.kinds {
            write!(f, "| {}: Gb per CPU second |", kind.name())?;
            for work in self.works {
                match middle(&self.cells, &(*kind, work), 1) {
                    Some([median, ..]) => write!(f, " {median:.2} |")?,
                    None => f.write_str(" - |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Goodput and echoes.
pub struct Loss {
    kinds: Vec<Kind>,
    rtt_millis: u32,
    cells: Cells<u32>,
}

impl Loss {
    pub fn new(kinds: &[Kind], rtt_millis: u32) -> Self {
        Self { kinds: kinds.to_vec(), rtt_millis, cells: BTreeMap::new() }
    }

    pub fn add(&mut self, kind: Kind, lost: u32, mbps: f64, idle_p99_millis: f64, busy_p99_millis: f64) {
        self.cells.entry((kind, lost)).or_default().push([mbps, idle_p99_millis, busy_p99_millis]);
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        writeln!(f, "\n| round trip {} ms, packets lost | what | {} |", self.rtt_millis, names.join(" | "))?;
        writeln!(f, "|---:|---|{}", "---:|".repeat(names.len()))?;
        let rows = ["goodput, Mb/s", "ping p99 idle, ms", "ping p99 beside the flow, ms"];
        let shares: std::collections::BTreeSet<u32> = self.cells.keys().map(|(_, lost)| *lost).collect();
        for lost in shares {
            for (at, what) in rows.into_iter().enumerate() {
                write!(f, "| {} % | {what} |", f64::from(lost) / 100.0)?;
                for kind in &self.kinds {
                    match middle(&self.cells, &(*kind, lost), at) {
                        Some([median, least, most]) if at == 0 => {
                            write!(f, " {median:.1} ({least:.1} to {most:.1}) |")?;
                        }
                        Some([median, least, most]) => write!(f, " {median:.0} ({least:.0} to {most:.0}) |")?,
                        None => f.write_str(" - |")?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
