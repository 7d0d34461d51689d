//! A recording of the demonstration as a picture that moves: an SVG of what it printed, line by line, when it did.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::program::{cargo, is_root, root, succeeds, target_dir};
use crate::setup;

/// The terminal that is drawn: longer lines are cut, and more lines scroll.
const COLUMNS: usize = 114;
const ROWS: usize = 32;
const LINE_PX: f64 = 19.0;
const CHAR_PX: f64 = 8.4;
const MARGIN_PX: f64 = 16.0;
/// A pause in the demonstration is shown as no longer than this, and a line for no less than the other.
const LONGEST_PAUSE: Duration = Duration::from_millis(1200);
const SHORTEST_PAUSE: Duration = Duration::from_millis(170);
/// How long the finished page stays before it begins anew.
const REST: Duration = Duration::from_secs(6);

/// A line and when it is shown.
struct Line {
    at: Duration,
    text: String,
}

/// Records `adit demo` into `docs/demo.svg`, with the program at `binary` or one built here.
pub fn run(binary: Option<&str>) -> Result<bool> {
    if !is_root() {
        bail!(
            "the demonstration makes network namespaces, and that needs root. Run: sudo cargo xtask picture"
        );
    }
    setup::for_demo()?;
    let adit = match binary {
        Some(path) => PathBuf::from(path),
        None => {
            if !succeeds(&mut cargo(&[
                "build",
                "--release",
                "--locked",
                "--package",
                "adit",
                "--bin",
                "adit",
            ]))? {
                return Ok(false);
            }
            target_dir()?.join("release/adit")
        }
    };
    let Some(lines) = record(&adit)? else {
        bail!("the demonstration failed, and a picture of that helps nobody");
    };
    let path = root().join("docs/demo.svg");
    std::fs::write(&path, draw(&lines)).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {} lines", path.display(), lines.len());
    Ok(true)
}

/// What the demonstration prints; `None` when it fails.
fn record(adit: &Path) -> Result<Option<Vec<Line>>> {
    let mut child = Command::new(adit)
        .args(["--color", "always", "demo"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", adit.display()))?;
    let stdout = child.stdout.take().context("stdout is a pipe")?;
    let mut lines = vec![Line { at: Duration::ZERO, text: "\u{1b}[1m$ sudo adit demo\u{1b}[0m".to_owned() }];
    let (mut shown, mut last) = (Duration::from_millis(800), Instant::now());
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        println!("{text}");
        shown += last.elapsed().clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        last = Instant::now();
        lines.push(Line { at: shown, text });
    }
    Ok(child.wait()?.success().then_some(lines))
}

fn draw(lines: &[Line]) -> String {
    let width = COLUMNS as f64 * CHAR_PX + 2.0 * MARGIN_PX;
    let height = lines.len().min(ROWS) as f64 * LINE_PX + 2.0 * MARGIN_PX;
    let end = lines.last().map_or(Duration::ZERO, |line| line.at) + REST;
    let percent = |line: &Line| line.at.as_secs_f64() / end.as_secs_f64() * 100.0;
    let up = |number: usize| (number + 1).saturating_sub(ROWS) as f64 * LINE_PX;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
         aria-label=\"adit demo in a terminal\">\n\
         <style>text{{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#d8dee9;white-space:pre}}\
         .b{{font-weight:bold}}.d{{fill:#8b93a5}}.c31{{fill:#e06c75}}.c32{{fill:#98c379}}.c33{{fill:#e5c07b}}\
         .c34{{fill:#61afef}}.c35{{fill:#c678dd}}.c36{{fill:#56b6c2}}\n\
         #screen{{transform:translateY(-{:.0}px)}}\n",
        up(lines.len().saturating_sub(1))
    );
    // Who asks for less motion, or cannot animate, sees the last screen.
    svg.push_str("@media (prefers-reduced-motion:no-preference){\n");
    let seconds = end.as_secs_f64();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.at > Duration::ZERO) {
        let at = percent(line);
        let _ = writeln!(
            svg,
            "@keyframes k{number}{{0%,{at:.2}%{{opacity:0}}{:.2}%,100%{{opacity:1}}}}\
             #l{number}{{animation:k{number} {seconds:.1}s infinite}}",
            at + 0.01,
        );
    }
    svg.push_str("@keyframes scroll{0%{transform:translateY(0px)}");
    for (number, line) in lines.iter().enumerate().skip(ROWS) {
        let _ = write!(svg, "{:.2}%{{transform:translateY(-{:.0}px)}}", percent(line), up(number));
    }
    let _ = writeln!(
        svg,
        "}}#screen{{animation:scroll {seconds:.1}s step-end infinite}}\n}}</style>\n\
         <clipPath id=\"glass\"><rect y=\"{MARGIN_PX:.0}\" width=\"{width:.0}\" height=\"{:.0}\"/></clipPath>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\" fill=\"#1e2228\"/>\n\
         <g clip-path=\"url(#glass)\"><g id=\"screen\">",
        height - 2.0 * MARGIN_PX
    );
    for (number, line) in lines.iter().enumerate() {
        let y = MARGIN_PX + (number as f64 + 0.75) * LINE_PX;
        let _ = writeln!(
            svg,
            "<text id=\"l{number}\" x=\"{MARGIN_PX:.0}\" y=\"{y:.1}\">{}</text>",
            spans(&line.text)
        );
    }
    svg.push_str("</g></g></svg>\n");
    svg
}

/// A line with its colours (SGR sequences) as spans; anything else that steers a terminal is left out.
fn spans(line: &str) -> String {
    let (mut out, mut classes, mut left) = (String::new(), Vec::<String>::new(), COLUMNS);
    for (index, part) in line.split("\u{1b}[").enumerate() {
        let text = if index == 0 {
            part
        } else {
            let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(part.len());
            let (codes, rest) = part.split_at(end);
            if rest.starts_with('m') {
                for code in codes.split(';') {
                    match code {
                        "" | "0" => classes.clear(),
                        "1" => classes.push("b".to_owned()),
                        "2" => classes.push("d".to_owned()),
                        "31" | "32" | "33" | "34" | "35" | "36" => classes.push(format!("c{code}")),
                        _ => {}
                    }
                }
            }
            rest.get(1..).unwrap_or_default()
        };
        let text: String = text.chars().filter(|c| !c.is_control()).take(left).collect();
        left -= text.chars().count();
        if text.is_empty() {
            continue;
        }
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        match classes.is_empty() {
            true => out.push_str(&text),
            false => {
                let _ = write!(out, "<tspan class=\"{}\">{text}</tspan>", classes.join(" "));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_nothing_else_gets_through() {
        assert_eq!(spans("a \u{1b}[1;32mok\u{1b}[0m <b>"), "a <tspan class=\"b c32\">ok</tspan> &lt;b&gt;");
        assert_eq!(spans("\u{1b}[2Kx\u{7}y & z"), "xy &amp; z");
        assert_eq!(spans(&"w".repeat(500)).len(), COLUMNS);
    }

    #[test]
    fn every_line_is_shown_at_its_time_and_the_first_at_once() {
        let line = |millis, text: &str| Line { at: Duration::from_millis(millis), text: text.to_owned() };
        let svg = draw(&[line(0, "$ x"), line(2_000, "two"), line(4_000, "three")]);
        assert!(
            !svg.contains("@keyframes k0") && svg.contains("@keyframes k1{0%,20.00%{opacity:0}"),
            "{svg}"
        );
        assert!(svg.contains("@keyframes k2{0%,40.00%") && svg.contains(">three</text>"), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn more_lines_than_the_screen_has_scroll_and_the_last_screen_stays() {
        let line =
            |number: usize| Line { at: Duration::from_millis(number as u64 * 100), text: "x".to_owned() };
        let svg = draw(&(0..ROWS + 2).map(line).collect::<Vec<_>>());
        assert!(svg.contains("#screen{transform:translateY(-38px)}"), "{svg}");
        assert_eq!(svg.matches("{transform:translateY(-19px)}").count(), 1, "{svg}");
        assert!(draw(&[line(0)]).contains("#screen{transform:translateY(-0px)}"));
    }
}
