//! The figures as tables, for people.

use super::options::{Nic, Peer};
use super::record::{Record, median};
use super::work::{GBPS, Metric, Work};

/// The peer whose figure is 1.
pub const MEASURE: Peer = Peer::WireguardGo;

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Terminal,
    Markdown,
}

/// Everything, table by table.
pub fn render(record: &Record, style: Style) -> String {
    let mut text = preamble(record, style);
    for (nic, title) in [
        (Nic::Offload, "Virtual link with offloads"),
        (Nic::Plain, "Like a plain network card (no segmentation offload on the link)"),
    ] {
        let peers: Vec<Peer> = Peer::ALL.into_iter().filter(|peer| record.has(nic, *peer)).collect();
        if peers.is_empty() {
            continue;
        }
        text += &heading(title, style);
        text += &table(&rows(record, nic, &peers), style);
        let shares = shares(record, nic, &peers);
        if shares.len() > 1 {
            text += "\n";
            text += &table(&shares, style);
        }
    }
    text
}

fn preamble(record: &Record, style: Style) -> String {
    let (runs, others) = record.usual_runs();
    let others: Vec<String> = others.iter().map(|(work, runs)| format!("; {runs} of {work}")).collect();
    let mut lines = vec![format!(
        "Medians of {runs} interleaved runs{} (least to greatest) and, after ×, the median of the ratios to \
         {} in the same run. TCP for {} s each.",
        others.concat(),
        MEASURE.name(),
        record.seconds
    )];
    lines.extend(record.machine.iter().map(|(name, text)| format!("* {name}: {text}")));
    lines.extend(record.versions.iter().map(|(name, text)| format!("* {name}: {text}")));
    if style == Style::Markdown && lines.len() > 1 {
        lines.insert(1, String::new());
    }
    lines.join("\n") + "\n"
}

fn heading(title: &str, style: Style) -> String {
    match style {
        Style::Terminal => format!("\n{title}\n\n"),
        Style::Markdown => format!("\n### {title}\n\n"),
    }
}

fn rows(record: &Record, nic: Nic, peers: &[Peer]) -> Vec<Vec<String>> {
    let names = peers.iter().map(|peer| peer.name().to_owned());
    let mut rows = vec![[String::new()].into_iter().chain(names).collect()];
    for work in Work::all() {
        for metric in work.metrics() {
            let cells: Vec<String> =
                peers.iter().map(|peer| cell(record, nic, work, *peer, metric)).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let title = format!("{}: {}", work.title(), metric.title);
                rows.push([title].into_iter().chain(cells).collect());
            }
        }
    }
    rows
}

fn cell(record: &Record, nic: Nic, work: Work, peer: Peer, metric: &Metric) -> String {
    let values = record.values(nic, work, peer, metric.name);
    let Some(middle) = median(&values) else { return String::new() };
    let shown = |value: f64| format!("{:.*}", metric.decimals, value / metric.scale);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut cell = shown(middle);
    if values.len() > 1 {
        cell += &format!(" ({} to {})", shown(least), shown(most));
    }
    let ratio = median(&record.ratios(nic, metric.name, (work, peer), (work, MEASURE)));
    if let Some(ratio) = ratio.filter(|_| peer != MEASURE) {
        cell += &format!(" ×{ratio:.2}");
    }
    cell
}

/// Ratios that are not to another peer of the same work: a crowd to a single peer, a cipher to none.
fn shares(record: &Record, nic: Nic, peers: &[Peer]) -> Vec<Vec<String>> {
    let names = peers.iter().map(|peer| peer.name().to_owned());
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    let mut row = |title: String, ratio: &dyn Fn(Peer) -> Vec<f64>| {
        let percent = |peer: &Peer| {
            median(&ratio(*peer)).map(|ratio| format!("{:.0} %", ratio * 100.0)).unwrap_or_default()
        };
        let cells: Vec<String> = peers.iter().map(percent).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push([title].into_iter().chain(cells).collect());
        }
    };
    for count in [100, 1_000, 10_000] {
        row(format!("Gb/s with {count} peers, of that with one"), &|peer| {
            record.ratios(nic, GBPS.name, (Work::Peers(count), peer), (Work::Peers(1), peer))
        });
    }
    for work in Work::all().into_iter().filter(|work| work.is_bulk()) {
        row(format!("{}: Gb/s, of that without a cipher", work.title()), &|peer| match peer {
            Peer::Aes | Peer::Chacha => record.ratios(nic, GBPS.name, (work, peer), (work, Peer::Null)),
            _ => Vec::new(),
        });
    }
    rows
}

/// The first row is the head.
fn table(rows: &[Vec<String>], style: Style) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        text += &match style {
            Style::Terminal => cells.join("  ").trim_end().to_owned(),
            Style::Markdown => format!("| {} |", cells.join(" | ")),
        };
        text += "\n";
        if number == 0 && style == Style::Markdown {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
            text += &format!("| {} |\n", rules.join(" | "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::sample_record;
    use super::*;

    fn line(text: &str, start: &str) -> String {
        let found = text.lines().find(|line| line.trim_start_matches("| ").starts_with(start));
        found.unwrap_or_else(|| panic!("no {start:?} in\n{text}")).to_owned()
    }

    #[test]
    fn a_cell_has_median_spread_and_ratio() {
        let text = render(&sample_record(), Style::Markdown);
        let tcp = line(&text, "TCP, 1 flow: Gb/s");
        let cells: Vec<&str> = tcp.split('|').map(str::trim).collect();
        assert_eq!(cells[2], "6.00 (3.00 to 12.00) ×3.00");
        assert_eq!(cells[4], "2.00 (1.00 to 4.00)", "the measure itself has no ratio");
        let rtt = line(&text, "RTT idle: mean");
        assert!(rtt.contains("×0.33") && rtt.contains("×0.50"), "{rtt}");
    }

    #[test]
    fn the_share_of_the_bound_and_of_a_single_peer_are_shown() {
        let text = render(&sample_record(), Style::Terminal);
        let bound = line(&text, "TCP, 1 flow: Gb/s, of that without a cipher");
        assert!(bound.contains("60 %") && bound.contains("40 %") && !bound.contains("100 %"), "{bound}");
        assert!(line(&text, "Gb/s with 10000 peers").contains("100 %"));
    }

    #[test]
    fn what_was_not_measured_has_no_row_and_no_column() {
        let mut record = sample_record();
        record.samples.retain(|it| it.nic == Nic::Plain && it.work == Work::TcpX4 && it.peer != Peer::Null);
        let text = render(&record, Style::Terminal);
        assert!(text.contains("TCP, 4 flows: Gb/s") && text.contains("plain network card"));
        for absent in ["TCP, 1 flow", "UDP", "null", "with offloads", "without a cipher"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn every_row_of_a_markdown_table_has_as_many_cells_as_its_head() {
        let text = render(&sample_record(), Style::Markdown);
        let mut cells = None;
        let mut rows = 0;
        for line in text.lines() {
            if !line.starts_with('|') {
                cells = None;
                continue;
            }
            let count = line.matches('|').count();
            assert_eq!(*cells.get_or_insert(count), count, "{line}");
            rows += 1;
        }
        assert!(rows > 40, "{rows}");
    }
}
