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

/// What is wanted of AES-256-GCM and of ChaCha20-Poly1305, as ratios to the measure: at least, or of a cost at most.
const WANTED: [(Nic, Work, Metric, f64, f64); 13] = [
    (Nic::Offload, Work::TcpX1, GBPS, 3.3, 1.9),
    (Nic::Offload, Work::TcpReverse, GBPS, 3.3, 1.9),
    (Nic::Offload, Work::TcpX4, GBPS, 3.6, 2.1),
    (Nic::Offload, Work::TcpBoth, GBPS, 3.6, 2.0),
    (Nic::Offload, Work::TcpX1, PER_TUNNEL_CPU, 5.0, 1.9),
    (Nic::Offload, Work::RttIdle, RTT_MEAN, 0.5, 0.6),
    (Nic::Offload, Work::RttLoad, RTT_MEAN, 0.25, 0.35),
    (Nic::Offload, Work::Udp(64), PACKETS, 7.0, 7.0),
    (Nic::Offload, Work::Udp(1300), PACKETS, 7.0, 7.0),
    (Nic::Plain, Work::TcpX1, GBPS, 1.3, 1.3),
    (Nic::Plain, Work::TcpReverse, GBPS, 1.3, 1.3),
    (Nic::Plain, Work::TcpX4, GBPS, 1.3, 1.3),
    (Nic::Plain, Work::TcpBoth, GBPS, 1.3, 1.3),
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
    text += "| | AES-256-GCM | wanted | ChaCha20-Poly1305 | wanted |\n|---|---|---|---|---|\n";
    for (nic, work, metric, aes, chacha) in &WANTED {
        let link = if *nic == Nic::Plain { ", like on a plain network card" } else { "" };
        let cells = [(Peer::Aes, *aes), (Peer::Chacha, *chacha)].map(|(peer, wanted)| {
            let ratios = record.ratios(*nic, metric.name, (*work, peer), (*work, MEASURE));
            let Some(ratio) = median(&ratios) else { return format!(" | {wanted}") };
            let reached = if metric.is_cost() { ratio <= wanted } else { ratio >= wanted };
            format!("{ratio:.2} | {wanted}{}", if reached { "" } else { " (missed)" })
        });
        text += &format!("| {}: {}{link} | {} |\n", work.title(), metric.title, cells.join(" | "));
    }
    text + "\n" + render(record, Style::Markdown).trim_end() + "\n"
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
        assert!(table.iter().all(|row| row.matches('|').count() == 6), "{table:#?}");
    }
}
