//! The configuration file: any bytes give a configuration, or a report that can be shown.

use std::path::Path;

use adit::config::{Config, Layers, Report, Source};
use zeroize::Zeroizing;

/// The bytes of a configuration file.
pub fn run(data: &[u8]) {
    if names_a_file(data) {
        return;
    }
    let parsed = Source::from_bytes("adit.toml", Zeroizing::new(data.to_vec()))
        .and_then(|source| Config::parse(&source, Path::new("/nonexistent"), &Layers::default()));
    match parsed {
        Ok(config) => {
            let mut names: Vec<_> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), config.peers.len(), "two peers have one name");
        }
        Err(report) => check(&report),
    }
}

/// A report says something, in plain characters, and at places that exist.
pub(crate) fn check(report: &Report) {
    assert!(!report.is_empty(), "a refusal without a reason");
    assert!(report.count() >= report.diagnostics().len());
    let text = report.render(false);
    assert!(!text.trim().is_empty());
    let control = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None, "a control character of the file reaches the terminal");
    for diagnostic in report.diagnostics() {
        assert!(!diagnostic.complaint.reason.is_empty() && !diagnostic.complaint.fix.is_empty());
    }
}

/// A key may name a file or a variable, and a fuzzer must not read those of this machine.
fn names_a_file(data: &[u8]) -> bool {
    let contains = |word: &[u8]| data.windows(word.len()).any(|window| window == word);
    contains(b"file") || contains(b"env:") || contains(b"\\")
}
