//! The figures in a document: between two marks, beside what is wanted.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::options::{Nic, Peer};
use super::record::{Record, median};
use super::report::{MEASURE, Style, render};
use super::work::{GBPS, Metric, PACKETS, PER_TUNNEL_CPU, RTT_MEAN, Work};

const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --document` -->\n";
const END: &str = "<!-- end of the figures -->\n";

/// The columns.
const PEERS: [Peer; 3] = [Peer::Aes, Peer::Chacha, Peer::AesTcp];

/// What is wanted of each of [`PEERS`], as ratios to the measure: at least, or of a cost at most.
const WANTED: [(Nic, Work, Metric, [Option<f64>; 3]); 13] = [
    (Nic::Offload, Work::TcpX1, GBPS, [Some(3.3), Some(1.9), Some(4.0)]),
    (Nic::Offload, Work::TcpReverse, GBPS, [Some(3.3), Some(1.9), Some(4.0)]),
    (Nic::Offload, Work::TcpX4, GBPS, [Some(3.6), Some(2.1), Some(4.3)]),
    (Nic::Offload, Work::TcpBoth, GBPS, [Some(3.6), Some(2.0), Some(4.3)]),
    (Nic::Offload, Work::TcpX1, PER_TUNNEL_CPU, [Some(5.0), Some(1.9), Some(7.0)]),
    (Nic::Offload, Work::RttIdle, RTT_MEAN, [Some(0.5), Some(0.6), None]),
    (Nic::Offload, Work::RttLoad, RTT_MEAN, [Some(0.25), Some(0.35), None]),
    (Nic::Offload, Work::Udp(64), PACKETS, [Some(7.0), Some(7.0), None]),
    (Nic::Offload, Work::Udp(1300), PACKETS, [Some(7.0), Some(7.0), None]),
    (Nic::Plain, Work::TcpX1, GBPS, [Some(1.3), Some(1.3), None]),
    (Nic::Plain, Work::TcpReverse, GBPS, [Some(1.3), Some(1.3), None]),
    (Nic::Plain, Work::TcpX4, GBPS, [Some(1.3), Some(1.3), None]),
    (Nic::Plain, Work::TcpBoth, GBPS, [Some(1.3), Some(1.3), None]),
];

/// Writes the figures of a record into a document, in place of those that were there.
pub fn update(file: &Path, record: &Record) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let updated = replaced(&text, &figures(record))
        .with_context(|| format!("{} has no place for figures: {BEGIN}…{END}", file.display()))?;
    fs::write(file, updated).with_context(|| format!("cannot write {}", file.display()))
}

fn replaced(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
}

fn figures(record: &Record) -> String {
    let mut text = format!(
        "Medians of the ratios to {} in the same run, beside what is wanted; of delays less is better.\n\n",
        MEASURE.name()
    );
    text += "| | AES-256-GCM | wanted | ChaCha20-Poly1305 | wanted | AES-256-GCM over TCP | wanted |\n";
    text += "|---|---|---|---|---|---|---|\n";
    for (nic, work, metric, wanted) in &WANTED {
        let link = if *nic == Nic::Plain { ", like on a plain network card" } else { "" };
        let cells: Vec<String> = PEERS
            .into_iter()
            .zip(wanted)
            .map(|(peer, wanted)| {
                let ratios = record.ratios(*nic, metric.name, (*work, peer), (*work, MEASURE));
                cell(metric, median(&ratios), *wanted)
            })
            .collect();
        text += &format!("| {}: {}{link} | {} |\n", work.title(), metric.title, cells.join(" | "));
    }
    text + "\n" + render(record, Style::Markdown).trim_end() + "\n"
}

/// What was reached beside what is wanted.
fn cell(metric: &Metric, reached: Option<f64>, wanted: Option<f64>) -> String {
    let missed =
        |reached: f64, wanted: f64| if metric.is_cost() { reached > wanted } else { reached < wanted };
    let mark = match (reached, wanted) {
        (Some(reached), Some(wanted)) if missed(reached, wanted) => " (missed)",
        _ => "",
    };
    let shown = |value: Option<f64>, digits| value.map(|it| format!("{it:.digits$}")).unwrap_or_default();
    let wanted = wanted.map(|it| it.to_string()).unwrap_or_default();
    format!("{} | {wanted}{mark}", shown(reached, 2))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::record::{Sample, Values};
    use super::*;

    fn record(aes: f64) -> Record {
        let sample = |peer, gbps| Sample {
            run: 0,
            nic: Nic::Offload,
            work: Work::TcpX1,
            peer,
            values: Values::from([("gbps".to_owned(), gbps)]),
        };
        let samples = vec![sample(Peer::Aes, aes), sample(MEASURE, 2.0)];
        Record { machine: BTreeMap::new(), versions: BTreeMap::new(), seconds: 3, samples }
    }

    #[test]
    fn figures_take_the_place_of_earlier_ones_and_say_what_is_missed() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        for (aes, row) in [(7.0, "3.50 | 3.3 |"), (6.0, "3.00 | 3.3 (missed) |")] {
            let updated = replaced(&text, &figures(&record(aes))).unwrap();
            assert!(updated.starts_with("before\n<!--") && updated.ends_with("-->\nafter\n"), "{updated}");
            assert!(
                updated.contains(&format!("| TCP, 1 flow: Gb/s | {row}")) && !updated.contains("old"),
                "{updated}"
            );
            assert_eq!(replaced(&updated, &figures(&record(aes))).unwrap(), updated);
        }
        assert_eq!(replaced("no place", "x"), None);
    }

    #[test]
    fn every_row_has_as_many_cells_as_the_head() {
        let text = figures(&record(7.0));
        let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with('|')).take(15).collect();
        assert!(table.iter().all(|row| row.matches('|').count() == 8), "{table:#?}");
    }
}
