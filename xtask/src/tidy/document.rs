//! Rules about documents: the architecture stays short, and links lead somewhere.

use std::path::Path;

use super::{Finding, TextFile};

const MAX_ARCHITECTURE_LINES: usize = 200;

/// Checks the size of one document.
pub fn check_shape(file: &TextFile) -> Option<Finding> {
    let lines = file.text.lines().count();
    (file.path == "ARCHITECTURE.md" && lines > MAX_ARCHITECTURE_LINES).then(|| {
        Finding::new(
            &file.path,
            0,
            format!("{lines} lines (most {MAX_ARCHITECTURE_LINES}): nobody reads that"),
        )
    })
}

/// Checks that every relative link of every document leads to a file and a heading.
pub fn check_links(files: &[TextFile], root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, target) in links(&file.text) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            if path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let path = if path.is_empty() { file.path.clone() } else { resolve(&file.path, path) };
            let known = files.iter().find(|other| other.path == path);
            if known.is_none() && !root.join(&path).exists() {
                findings.push(Finding::new(&file.path, line, format!("the link to {target} leads nowhere")));
                continue;
            }
            let has_heading = known.is_none_or(|to| headings(&to.text).any(|heading| heading == anchor));
            if !anchor.is_empty() && !has_heading {
                findings.push(Finding::new(&file.path, line, format!("{path} has no heading #{anchor}")));
            }
        }
    }
    findings
}

/// Every `[text](target)` outside code, with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, prose) in prose(text) {
        let spoken: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let mut rest = spoken.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let (target, tail) = after.split_once(')').unwrap_or((after, ""));
            found.push((line, target.split(' ').next().unwrap_or_default().to_owned()));
            rest = tail;
        }
    }
    found
}

/// The lines outside fenced code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

/// The anchors of a document, as forges make them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| {
        let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    })
}

fn resolve(from: &str, link: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn broken(files: &[TextFile]) -> Vec<String> {
        check_links(files, Path::new("/nonexistent")).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn links_to_files_and_headings_that_exist_are_fine() {
        let files = [
            file(
                "README.md",
                "# adit\n[a](docs/a.md) [b](docs/a.md#the-keys-and-nonces) [c](#adit) [d](https://x.example/y)",
            ),
            file("docs/a.md", "## The keys, and nonces\nback to [it](../README.md)"),
        ];
        assert_eq!(broken(&files), [""; 0]);
    }

    #[test]
    fn links_to_nothing_are_found() {
        let files = [file("README.md", "one\n[a](docs/gone.md)"), file("docs/a.md", "[b](../README.md#no)")];
        let found = broken(&files);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("README.md:2:"));
    }

    #[test]
    fn what_looks_like_a_link_in_code_is_none() {
        assert_eq!(broken(&[file("README.md", "`a[i](x)`\n```\n[a](gone.md)\n```\n")]), [""; 0]);
    }

    #[test]
    fn the_architecture_stays_short() {
        assert!(check_shape(&file("ARCHITECTURE.md", &"x\n".repeat(200))).is_none());
        assert!(check_shape(&file("ARCHITECTURE.md", &"x\n".repeat(201))).is_some());
        assert!(check_shape(&file("docs/protocol.md", &"x\n".repeat(900))).is_none());
    }
}
