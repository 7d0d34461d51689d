//! Errors for people: what is wrong, where (file, line, column), and how to put it right.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

/// More than this many errors are counted, not kept.
const KEPT: usize = 100;
/// The widest piece of a source line that is shown.
const SHOWN_CHARS: usize = 100;

/// A configuration text and where it came from. The text holds keys, so it is erased when dropped.
pub struct Source {
    name: String,
    text: Zeroizing<String>,
    line_starts: Vec<usize>,
}

/// Why a value cannot be accepted, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {fix}")]
pub struct Complaint {
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes of the source text.
    Span(Range<usize>),
    /// The file as a whole.
    File,
    /// Somewhere else: an environment variable or a flag.
    Outside(String),
}

/// One error and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it is.
    pub place: Place,
    /// What is wrong and what to do.
    pub complaint: Complaint,
}

/// Every error found in one source, in the order of the text.
#[derive(Clone)]
pub struct Report {
    source: Arc<Source>,
    diagnostics: Vec<Diagnostic>,
    omitted: usize,
}

impl Source {
    /// A text known by `name`, usually a path.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        let text = Zeroizing::new(text.into());
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Arc::new(Self { name: name.into(), text, line_starts })
    }

    /// Takes bytes as text.
    ///
    /// # Errors
    /// Points at the first byte that is not UTF-8.
    pub fn from_bytes(name: impl Into<String>, bytes: Zeroizing<Vec<u8>>) -> Result<Arc<Self>, Report> {
        match str::from_utf8(&bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let at = error.valid_up_to();
                let source = Self::new(name, String::from_utf8_lossy(&bytes));
                let byte = bytes.get(at).copied().unwrap_or_default();
                Err(Report::single(
                    &source,
                    Place::Span(at..at + 3),
                    Complaint::new(
                        format!("byte 0x{byte:02x} is not UTF-8 text"),
                        "save the file as UTF-8; if it is a binary file, it is the wrong one",
                    ),
                ))
            }
        }
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at)
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    pub fn line_column(&self, at: usize) -> (usize, usize) {
        let at = self.floor(at);
        let line = self.line(at);
        (line, self.text.get(self.line_start(line)..at).unwrap_or_default().chars().count() + 1)
    }

    fn line_start(&self, line: usize) -> usize {
        self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(self.text.len())
    }

    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn line_at(&self, at: usize) -> &str {
        let line = self.line(self.floor(at));
        let text = self.text.get(self.line_start(line)..self.line_start(line + 1)).unwrap_or_default();
        text.trim_end_matches(['\r', '\n'])
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({:?}, {} bytes)", self.name, self.text.len())
    }
}

impl Complaint {
    /// A reason and a fix, both without a final full stop.
    pub fn new(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { reason: reason.into(), fix: fix.into() }
    }
}

impl Report {
    /// A report on `source` without errors yet.
    pub fn new(source: &Arc<Source>) -> Self {
        Self { source: source.clone(), diagnostics: Vec::new(), omitted: 0 }
    }

    /// A report of one error.
    pub fn single(source: &Arc<Source>, place: Place, complaint: Complaint) -> Self {
        let mut report = Self::new(source);
        report.push(place, complaint);
        report
    }

    /// Adds an error.
    pub fn push(&mut self, place: Place, complaint: Complaint) {
        if self.diagnostics.len() < KEPT {
            self.diagnostics.push(Diagnostic { place, complaint });
        } else {
            self.omitted += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// How many errors there are, shown or not.
    pub fn count(&self) -> usize {
        self.diagnostics.len() + self.omitted
    }

    /// The errors that are kept (at most a hundred), in the order of the text.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// What the report is about.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `Err(self)` if there is an error, or else `value`.
    ///
    /// # Errors
    /// The report itself, in the order of the text.
    pub fn into_result<T>(mut self, value: Option<T>) -> Result<T, Self> {
        self.diagnostics.sort_by_key(|diagnostic| match &diagnostic.place {
            Place::File => 0,
            Place::Span(span) => span.start + 1,
            Place::Outside(_) => usize::MAX,
        });
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// The report as a compiler would print it, with ANSI colours if `color`.
    pub fn render(&self, color: bool) -> String {
        let paint = Paint { color };
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            self.render_one(&mut out, diagnostic, paint);
        }
        let count = self.count();
        let plural = if count == 1 { "error" } else { "errors" };
        let _ = write!(out, "{}: {count} {plural}", escape(&self.source.name));
        if self.omitted > 0 {
            let _ = write!(out, ", the first {} are shown", self.diagnostics.len());
        }
        out.push('\n');
        out
    }

    fn render_one(&self, out: &mut String, diagnostic: &Diagnostic, paint: Paint) {
        let Complaint { reason, fix } = &diagnostic.complaint;
        let name = escape(&self.source.name);
        let (red, blue, bold, off) =
            (paint.code("1;31"), paint.code("1;34"), paint.code("1"), paint.code("0"));
        let _ = writeln!(out, "{red}error{off}{bold}: {}{off}", brief(reason));
        let mut gutter = String::from(" ");
        match &diagnostic.place {
            Place::File => {
                let _ = writeln!(out, " {blue}-->{off} {name}");
            }
            Place::Outside(place) => {
                let _ = writeln!(out, " {blue}-->{off} {}", escape(place));
            }
            Place::Span(span) => {
                let (line, column) = self.source.line_column(span.start);
                let shown = Shown::new(&self.source, span, column);
                gutter = " ".repeat(line.to_string().len() + 1);
                let _ = writeln!(out, "{gutter}{blue}-->{off} {name}:{line}:{column}");
                let _ = writeln!(out, "{gutter}{blue}|{off}");
                let _ = writeln!(out, "{blue}{line} |{off} {}", shown.text);
                let indent = " ".repeat(shown.indent);
                let carets = "^".repeat(shown.carets);
                let _ = writeln!(out, "{gutter}{blue}|{off} {indent}{red}{carets}{off}");
            }
        }
        let _ = writeln!(out, "{gutter}{blue}={off} {bold}fix{off}: {}\n", brief(fix));
    }
}

/// One line, for a log: the first errors without the source. [`Report::render`] is for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let name = escape(&self.source.name);
        for (index, diagnostic) in self.diagnostics.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            match &diagnostic.place {
                // Once is enough: `there is no file /a/adit.toml`.
                Place::File if name.contains('/') && escape(&diagnostic.complaint.reason).contains(&name) => {
                }
                Place::File => write!(f, "{name}: ")?,
                Place::Outside(place) => write!(f, "{}: ", escape(place))?,
                Place::Span(span) => {
                    let (line, column) = self.source.line_column(span.start);
                    write!(f, "{name}:{line}:{column}: ")?;
                }
            }
            let Complaint { reason, fix } = &diagnostic.complaint;
            write!(f, "{} ({})", brief(reason), brief(fix))?;
        }
        match self.count().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

/// Makes text safe for a terminal and a log: one line, no control or direction-changing characters.
pub fn escape(text: &str) -> String {
    text.chars().map(|char| if is_unsafe(char) { '\u{fffd}' } else { char }).collect()
}

/// One escaped line that fits on a page, however long the value in it is.
fn brief(text: &str) -> String {
    const MOST_CHARS: usize = 400;
    match text.char_indices().nth(MOST_CHARS) {
        Some((at, _)) => format!("{} ...", escape(text.get(..at).unwrap_or_default())),
        None => escape(text),
    }
}

/// The known word closest to `given`, if it is close enough to be a slip of the keyboard.
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let given = given.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|word| (strsim::osa_distance(&given, &word.to_ascii_lowercase()), word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, word)| word)
}

#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn code(self, code: &str) -> String {
        if self.color { format!("\x1b[{code}m") } else { String::new() }
    }
}

/// The piece of a source line that is shown, and where the carets go.
struct Shown {
    text: String,
    indent: usize,
    carets: usize,
}

impl Shown {
    fn new(source: &Source, span: &Range<usize>, column: usize) -> Self {
        let line = hide_keys(source.line_at(span.start));
        let length = line.len();
        let caret = (column - 1).min(length);
        let from = if length <= SHOWN_CHARS { 0 } else { caret.saturating_sub(SHOWN_CHARS / 2) };
        let to = (from + SHOWN_CHARS).min(length);
        let mut text = String::new();
        let mut indent = caret - from;
        if from > 0 {
            text.push_str("... ");
            indent += 4;
        }
        text.extend(line.iter().skip(from).take(to - from).map(|&char| match char {
            '\t' => ' ',
            char if is_unsafe(char) => '\u{fffd}',
            char => char,
        }));
        if to < length {
            text.push_str(" ...");
        }
        let span_text = source.text.get(source.floor(span.start)..source.floor(span.end)).unwrap_or_default();
        let span_chars = span_text.lines().next().unwrap_or_default().trim_end().chars().count();
        Self { text, indent, carets: span_chars.min(to.saturating_sub(caret)).max(1) }
    }
}

/// A name that nobody knows, fit for a message: what stands where a name should may hold a key.
pub(super) fn unknown_name(name: &str) -> String {
    const SHOWN: usize = 40;
    let shown = hide_keys(name).into_iter().take(SHOWN);
    shown.map(|char| if is_unsafe(char) { '\u{fffd}' } else { char }).collect()
}

/// The characters of a line with everything that may be a secret replaced by `*`.
///
/// An error in a file must not copy a key into a terminal or a log, so whatever follows the name of a
/// secret is hidden, and so is anything that looks like a key unless the line speaks of a public one.
fn hide_keys(line: &str) -> Vec<char> {
    const SECRETS: [&str; 5] = ["privatekey", "private_key", "presharedkey", "preshared_key", "secret"];
    // Less than half a key: a line may have been broken in the middle of one. No name we know is that long.
    const KEY_CHARS: usize = 20;
    let mut chars: Vec<char> = line.chars().collect();
    let lower = line.to_ascii_lowercase();
    let after_secret = SECRETS
        .iter()
        .filter_map(|word| lower.find(word).map(|at| at + word.len()))
        .min()
        .map(|at| at + lower.get(at..).and_then(|rest| rest.find('=')).map_or(0, |equals| equals + 1));
    if let Some(at) = after_secret {
        let from = lower.get(..at).unwrap_or_default().chars().count();
        chars.iter_mut().skip(from).filter(|char| !char.is_whitespace()).for_each(|char| *char = '*');
    }
    if !lower.contains("public") {
        let is_key_char = |char: &char| char.is_ascii_alphanumeric() || matches!(char, '+' | '/' | '=');
        for run in chars.chunk_by_mut(|a, b| is_key_char(a) && is_key_char(b)) {
            if run.len() >= KEY_CHARS {
                run.fill('*');
            }
        }
    }
    chars
}

/// Whether a terminal would act on it, or show what follows out of order.
pub(crate) fn is_unsafe(char: char) -> bool {
    let changes_direction =
        matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || changes_direction || matches!(char, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str, span: Range<usize>) -> String {
        Report::single(&Source::new("a.toml", text), Place::Span(span), Complaint::new("wrong", "do this"))
            .render(false)
    }

    #[test]
    fn an_error_shows_file_line_column_source_and_caret() {
        let text = "one = 1\n\ttwo = \"é\" x\n";
        let at = text.find('x').unwrap();
        assert_eq!(
            rendered(text, at..at + 1),
            "error: wrong\n  --> a.toml:2:12\n  |\n2 |  two = \"é\" x\n  |            ^\n  = fix: do this\n\na.toml: 1 error\n"
        );
    }

    #[test]
    fn a_line_of_ten_megabytes_is_cut_to_a_window() {
        let text = format!("{}!{}", "a ".repeat(5_000_000), "b ".repeat(10));
        let page = rendered(&text, 10_000_000..10_000_001);
        assert!(page.len() < 600, "{}", page.len());
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[4].find('^'), lines[3].find('!'), "{page}");
    }

    #[test]
    fn secrets_never_reach_the_page_but_public_keys_do() {
        let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        for line in [
            format!("private_key = \"{key}"),
            format!("PresharedKey={key} junk"),
            format!("gateway = {{ private_key = '{key}', x = 1 }}"),
            format!("  {key}"),
        ] {
            let page = rendered(&line, 0..1);
            assert!(!page.contains("yAnz5") && !page.contains("fBmk"), "{page}");
        }
        assert!(rendered(&format!("PublicKey = {key}"), 0..1).contains(key));
    }

    #[test]
    fn control_and_direction_characters_are_replaced() {
        let page = rendered("x = \"\x1b[31m\u{202e}\"", 4..5);
        assert!(!page.contains('\x1b') && !page.contains('\u{202e}'), "{page:?}");
        assert_eq!(escape("a\nb"), "a\u{fffd}b");
    }

    #[test]
    fn close_words_are_suggested_and_far_ones_are_not() {
        let known = ["listen", "endpoint", "masquerade"];
        assert_eq!(did_you_mean("listn", known), Some("listen"));
        assert_eq!(did_you_mean("end-point", known), Some("endpoint"));
        assert_eq!(did_you_mean("colour", known), None);
    }

    #[test]
    fn only_the_first_hundred_errors_are_kept() {
        let source = Source::new("a", "x");
        let mut report = Report::new(&source);
        (0..150).for_each(|_| report.push(Place::File, Complaint::new("r", "f")));
        assert_eq!((report.count(), report.diagnostics().len()), (150, 100));
        assert!(report.render(false).ends_with("a: 150 errors, the first 100 are shown\n"));
    }

    #[test]
    fn a_path_that_the_reason_has_is_not_said_twice() {
        let of = |reason: &str| {
            let source = Source::new("/a/adit.toml", "");
            Report::single(&source, Place::File, Complaint::new(reason, "do this")).to_string()
        };
        assert_eq!(of("there is no file /a/adit.toml"), "there is no file /a/adit.toml (do this)");
        assert_eq!(of("it has no section"), "/a/adit.toml: it has no section (do this)");
    }

    #[test]
    fn a_log_gets_one_line_with_the_first_errors() {
        let source = Source::new("a", "x\ny");
        let mut report = Report::new(&source);
        report.push(Place::Span(2..3), Complaint::new("wrong\nhere", "do this"));
        report.push(Place::Outside("flag --x".into()), Complaint::new("r", "f"));
        assert_eq!(report.to_string(), "a:2:1: wrong\u{fffd}here (do this); flag --x: r (f)");
        (0..3).for_each(|_| report.push(Place::File, Complaint::new("r", "f")));
        assert!(report.to_string().ends_with("a: r (f); and 2 more"), "{report}");
    }

    #[test]
    fn bytes_that_are_no_text_are_pointed_at() {
        let read = |bytes: &[u8]| Source::from_bytes("a", Zeroizing::new(bytes.to_vec()));
        let report = read(b"ok\n  \xff").unwrap_err();
        assert!(report.render(false).contains("a:2:3"), "{report}");
        assert!(read(b"ok").is_ok());
    }
}
