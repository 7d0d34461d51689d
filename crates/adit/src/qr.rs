//! QR codes on a terminal.

use std::fmt::Write as _;

use anyhow::anyhow;
use qrcodegen::{QrCode, QrCodeEcc};
use zeroize::Zeroizing;

/// Modules of white around the code (ISO/IEC 18004 section 6.3.8 asks for four; phones take two).
const QUIET: i32 = 2;

/// The code of `text`, two rows of modules to a line. White is written, black is the background of most terminals;
/// colours make it sure.
///
/// # Errors
/// It is longer than a code can hold.
pub fn terminal(text: &[u8]) -> anyhow::Result<Zeroizing<String>> {
    let code = QrCode::encode_binary(text, QrCodeEcc::Low).map_err(|_| {
        anyhow!("this is too long for a QR code; send the text another way, or name fewer networks")
    })?;
    let size = code.size();
    let lines = (size + 2 * QUIET + 1) / 2;
    let mut out = Zeroizing::new(String::with_capacity(
        (lines * (3 * (size + 2 * QUIET) + 16)).unsigned_abs() as usize,
    ));
    for line in 0..lines {
        // White on black, whatever the colours of the terminal.
        out.push_str("\x1b[97;40m");
        for x in -QUIET..size + QUIET {
            let y = 2 * line - QUIET;
            let is_white = |y: i32| !code.get_module(x, y) && y < size + QUIET;
            out.push(match (is_white(y), is_white(y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        let _ = writeln!(out, "\x1b[0m");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_its_corners_and_a_border() {
        let shown = terminal(b"adit://192.0.2.1:51820/#abc").unwrap();
        let lines: Vec<&str> = shown.lines().collect();
        let first = lines[0].trim_start_matches("\x1b[97;40m").trim_end_matches("\x1b[0m");
        assert!(first.chars().all(|it| it == '█'), "the border is white: {first}");
        let second = lines[1].trim_start_matches("\x1b[97;40m");
        assert!(second.starts_with("██ ▄▄▄▄▄ █"), "the corner is black around white: {second}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()));
        assert!(terminal(&[b'x'; 3000]).is_err());
    }
}
