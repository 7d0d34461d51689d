//! The ratios to wireguard-go as a picture: SVG by hand, legible on light and dark pages.

use super::options::{Nic, Peer};
use super::record::{Record, median};
use super::report::MEASURE;
use super::work::{GBPS, Metric, PACKETS, PER_TUNNEL_CPU, RTT_MEAN, Work};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 236.0;
const MARGIN: f64 = 16.0;
const VALUES: f64 = 62.0;
const TOP: f64 = 98.0;
const BAR: f64 = 13.0;
const GAP: f64 = 3.0;
const ROW_GAP: f64 = 14.0;

const SHOWN: [(Work, Metric, &str); 8] = [
    (Work::TcpX1, GBPS, "TCP, one flow"),
    (Work::TcpX4, GBPS, "TCP, four flows"),
    (Work::TcpBoth, GBPS, "TCP, both ways"),
    (Work::TcpX1, PER_TUNNEL_CPU, "TCP per CPU second"),
    (Work::Udp(64), PACKETS, "64-byte packets a second"),
    (Work::Udp(1300), PACKETS, "1300-byte packets a second"),
    (Work::RttIdle, RTT_MEAN, "delay when idle, times shorter"),
    (Work::RttLoad, RTT_MEAN, "delay under load, times shorter"),
];

const BARS: [(Peer, &str); 3] = [(Peer::Aes, "aes"), (Peer::Chacha, "chacha"), (Peer::AesTcp, "tcp")];

const STYLE: &str = "\
    text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #57606a; }
    .title { font-size: 16px; font-weight: 600; fill: #24292f; }
    .value { font-size: 12px; font-weight: 600; fill: #24292f; }
    .axis { stroke: #8c959f; stroke-width: 1; }
    .aes { fill: #0969da; } .chacha { fill: #1b7c83; } .tcp { fill: #8250df; } .one { fill: #afb8c1; }
    @media (prefers-color-scheme: dark) {
      text { fill: #9198a1; } .title, .value { fill: #e6edf3; } .axis { stroke: #656d76; }
      .aes { fill: #4493f8; } .chacha { fill: #39c5cf; } .tcp { fill: #a371f7; } .one { fill: #656d76; }
    }";

/// The bars of one line of the picture.
struct Row {
    label: &'static str,
    bars: Vec<(&'static str, f64)>,
}

/// The picture; `None` when there is nothing to compare.
pub fn svg(record: &Record) -> Option<String> {
    let nic = [Nic::Offload, Nic::Plain].into_iter().find(|nic| record.has(*nic, MEASURE))?;
    let rows: Vec<Row> = SHOWN.iter().filter_map(|shown| row(record, nic, shown)).collect();
    let longest = rows.iter().flat_map(|row| &row.bars).map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    if rows.is_empty() {
        return None;
    }
    let scale = (WIDTH - LABELS - MARGIN - VALUES) / longest;
    let mut body = String::new();
    let mut y = TOP;
    for row in &rows {
        let height = row.bars.len() as f64 * (BAR + GAP) - GAP;
        body += &text(LABELS - 10.0, y + height / 2.0 + 4.5, "end", "", row.label);
        for (class, ratio) in &row.bars {
            let width = ratio * scale;
            body += &rect(LABELS, y, width, class);
            body += &text(LABELS + width + 6.0, y + BAR - 2.5, "start", "value", &format!("{ratio:.1}×"));
            y += BAR + GAP;
        }
        y += ROW_GAP - GAP;
    }
    let end = y - ROW_GAP / 2.0;
    for (x, class) in [(LABELS, "axis"), (LABELS + scale, "axis one-times")] {
        let dash = if class == "axis" { "" } else { " stroke-dasharray=\"3 3\"" };
        body += &format!(
            "  <line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\"{dash}/>\n",
            TOP - 8.0
        );
    }
    body += &text(LABELS + scale, end + 16.0, "middle", "", "wireguard-go = 1");
    let height = end + 28.0;
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{}\">\n  <style>\n{STYLE}\n  </style>\n{}{body}</svg>\n",
        escaped(&summary(&rows)),
        head(record, nic)
    ))
}

fn row(record: &Record, nic: Nic, (work, metric, label): &(Work, Metric, &'static str)) -> Option<Row> {
    let bar = |(peer, class): (Peer, &'static str)| {
        let ratio = median(&record.ratios(nic, metric.name, (*work, peer), (*work, MEASURE)))?;
        let times = if metric.is_cost() { 1.0 / ratio } else { ratio };
        times.is_finite().then_some((class, times))
    };
    let bars: Vec<_> = BARS.into_iter().filter_map(bar).collect();
    (!bars.is_empty()).then_some(Row { label, bars })
}

fn head(record: &Record, nic: Nic) -> String {
    let link = if nic == Nic::Offload { "virtual link" } else { "like a plain network card" };
    let machine = |name: &str| record.machine.get(name).map_or("?", String::as_str);
    let version = record.versions.get(MEASURE.name()).map_or("?", String::as_str);
    let version = version.trim_start_matches("wireguard-go ");
    let where_ = format!(
        "medians of {} runs against {version}; {} cores for both ends and the load, {link}",
        record.usual_runs().0,
        machine("cores")
    );
    let mut head = text(MARGIN, 26.0, "start", "title", "adit, times as fast as wireguard-go");
    head += &text(MARGIN, 47.0, "start", "", &where_);
    let legend = [
        (MARGIN, "aes", "aes-256-gcm"),
        (MARGIN + 130.0, "chacha", "chacha20-poly1305 (WireGuard)"),
        (MARGIN + 370.0, "tcp", "aes-256-gcm over TCP"),
    ];
    for (x, class, name) in legend.into_iter().filter(|it| it.1 != "tcp" || record.has(nic, Peer::AesTcp)) {
        head += &format!(
            "  <rect class=\"{class}\" x=\"{x:.1}\" y=\"60\" width=\"11\" height=\"11\" rx=\"2\"/>\n"
        );
        head += &text(x + 16.0, 70.0, "start", "", name);
    }
    head
}

fn summary(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let bars: Vec<String> = row.bars.iter().map(|(class, ratio)| format!("{class} {ratio:.1}")).collect();
        format!("{}: {}", row.label, bars.join(", "))
    };
    let rows: Vec<String> = rows.iter().map(row).collect();
    format!("adit compared with wireguard-go, which is 1. {}.", rows.join("; "))
}

fn rect(x: f64, y: f64, width: f64, class: &str) -> String {
    format!(
        "  <rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>\n"
    )
}

fn text(x: f64, y: f64, anchor: &str, class: &str, words: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("  <text{class} x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escaped(words))
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::record::sample_record;
    use super::*;

    /// Fails on what no XML parser would take: open elements, bare `<` and `&`, unquoted values.
    fn check_well_formed(xml: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = xml;
        while let Some(start) = rest.find('<') {
            check_text(&rest[..start]);
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "{tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            tag.split('"').skip(1).step_by(2).for_each(check_text);
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().expect("a name");
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (false, false) => open.push(name),
                (false, true) => {}
            }
            rest = &rest[end + 1..];
        }
        check_text(rest);
        assert!(open.is_empty(), "{open:?}");
    }

    fn check_text(text: &str) {
        for (at, _) in text.match_indices('&') {
            let entity = ["amp;", "lt;", "gt;", "quot;"].iter().any(|it| text[at + 1..].starts_with(it));
            assert!(entity, "{text}");
        }
    }

    #[test]
    fn the_picture_is_well_formed_whatever_the_versions_are_called() {
        let mut record = sample_record();
        check_well_formed(&svg(&record).unwrap());
        record.versions.insert("wireguard-go".into(), "<v\"0\"> & co".into());
        let picture = svg(&record).unwrap();
        check_well_formed(&picture);
        assert!(picture.contains("&lt;v&quot;0&quot;&gt; &amp; co"));
    }

    #[test]
    #[should_panic(expected = "Some")]
    fn the_check_finds_an_element_that_is_closed_in_the_wrong_order() {
        check_well_formed("<svg><text>a</svg></text>");
    }

    #[test]
    fn bars_are_as_long_as_their_ratios_and_less_delay_counts_as_more() {
        let picture = svg(&sample_record()).unwrap();
        let widths = |class: &str| -> Vec<f64> {
            let bars = picture.lines().filter(|line| line.contains(&format!("<rect class=\"{class}\"")));
            let width = |line: &str| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok();
            bars.skip(1).filter_map(width).collect()
        };
        let (aes, chacha) = (widths("aes"), widths("chacha"));
        assert_eq!((aes.len(), chacha.len()), (SHOWN.len(), SHOWN.len()));
        for (aes, chacha) in aes.iter().zip(&chacha) {
            assert!((aes / chacha - 1.5).abs() < 0.01, "{aes} {chacha}");
        }
    }

    #[test]
    fn without_a_measure_there_is_no_picture() {
        let mut record = sample_record();
        record.samples.retain(|it| it.peer != MEASURE);
        assert_eq!(svg(&record), None);
    }
}
