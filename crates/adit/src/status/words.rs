//! Numbers as people read them.

pub(super) fn list(items: &[String], most: usize) -> String {
    match items {
        [] => "none".to_owned(),
        items if items.len() > most => {
            format!("{}, … {} in all", items.get(..most).unwrap_or(items).join(", "), items.len())
        }
        items => items.join(", "),
    }
}

pub(crate) fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86_400, secs / 3600 % 24),
    }
}

pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

/// Bits of a second, as providers of lines count them.
pub(super) fn speed(bytes_per_sec: u64) -> String {
    let mut value = bytes_per_sec as f64 * 8.0;
    let mut name = "bit/s";
    for unit in ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        name = unit;
    }
    if name == "bit/s" { format!("{value:.0} {name}") } else { format!("{value:.1} {name}") }
}

pub(super) fn round_trip(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{} ms", micros / 1_000),
    }
}

pub(super) fn share(ppm: u32) -> String {
    format!("{:.1} %", f64::from(ppm) / 1e4)
}

/// At most `columns` characters.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// Lines of at most so many characters, broken between words.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let word = cut(word, columns);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_400 * 2 + 3600].map(span),
            ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "2 d 1 h"]
        );
        assert_eq!(
            [0, 1023, 1024, 1 << 30, u64::MAX].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.0 GiB", "16.0 EiB"]
        );
        assert_eq!(
            [0, 124, 125, 12_500_000, 1_250_000_000].map(speed),
            ["0 bit/s", "992 bit/s", "1.0 kbit/s", "100.0 Mbit/s", "10.0 Gbit/s"]
        );
        assert_eq!([999, 1_500, 99_999, 250_000].map(round_trip), ["999 µs", "1.5 ms", "100.0 ms", "250 ms"]);
        assert_eq!([0, 25_000, 1_000_000].map(share), ["0.0 %", "2.5 %", "100.0 %"]);
        assert_eq!(wrapped("one two  three fourteen", 9), ["one two ", "three", "fourteen"]);
        assert_eq!(wrapped("a  b", usize::MAX), ["a  b"]);
        assert_eq!((cut("abcdef", 6), cut("abcdefg", 6)), ("abcdef".to_owned(), "abcde…".to_owned()));
    }
}
