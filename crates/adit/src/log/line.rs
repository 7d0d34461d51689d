//! One event is one line: names and reasons from elsewhere can forge no second line, send no terminal commands and turn no
//! text around.

/// A line for people, with everything a terminal would act on spelt out.
pub(super) fn text_line(line: &[u8]) -> Vec<u8> {
    escaped(line, |character, out| out.extend_from_slice(character.escape_default().to_string().as_bytes()))
}

/// The same for a line that is JSON, in the spelling of JSON.
pub(super) fn json_line(line: &[u8]) -> Vec<u8> {
    escaped(line, |character, out| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
        }
    })
}

fn escaped(line: &[u8], escape: impl Fn(char, &mut Vec<u8>)) -> Vec<u8> {
    let (body, end) = match line {
        [body @ .., b'\n'] => (body, &b"\n"[..]),
        _ => (line, &b""[..]),
    };
    let mut out = Vec::with_capacity(line.len());
    for character in String::from_utf8_lossy(body).chars() {
        if crate::config::diagnostic::is_unsafe(character) {
            escape(character, &mut out);
        } else {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    out.extend_from_slice(end);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_a_second_line_or_colour_the_terminal() {
        let line = "peer=\"a\nFAKE \u{1b}[31mred\u{9b}1m \u{202e}txt\" é\n";
        let shown = String::from_utf8(text_line(line.as_bytes())).unwrap();
        assert_eq!(shown, "peer=\"a\\nFAKE \\u{1b}[31mred\\u{9b}1m \\u{202e}txt\" é\n");
        assert_eq!(text_line(b"plain text\n"), b"plain text\n");
    }

    #[test]
    fn a_line_of_json_stays_json_and_says_the_same() {
        let name = "a\nFAKE \u{1b}[31m \u{9b}1m \u{202e}txt é";
        let line = format!("{}\n", serde_json::json!({ "peer": name }));
        assert!(line.contains('\u{9b}'), "JSON alone leaves it as it is");
        let shown = String::from_utf8(json_line(line.as_bytes())).unwrap();
        assert!(!shown.trim_end().chars().any(|it| it.is_control() || it == '\u{202e}'), "{shown}");
        let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(read["peer"], name);
    }
}
