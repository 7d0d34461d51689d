//! The rules of the house as checks. Each is a pure function over text, so each has its own tests.

mod crates;
mod document;
mod licence;
mod source;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::program::{metadata, root};

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    place: String,
    line: usize,
    fault: String,
}

impl Finding {
    fn new(place: &str, line: usize, fault: impl Into<String>) -> Self {
        Self { place: place.into(), line, fault: fault.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.fault),
            line => write!(f, "{}:{line}: {}", self.place, self.fault),
        }
    }
}

/// A text file of the checkout; the path is relative to the root.
#[derive(Clone, Debug)]
pub struct TextFile {
    path: String,
    text: String,
}

/// Checks the whole checkout.
pub fn run() -> Result<bool> {
    let mut files = Vec::new();
    collect(root(), "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(source::check(file));
        findings.extend(document::check_shape(file));
    }
    findings.extend(document::check_links(&files, root()));
    let metadata = metadata(&["--filter-platform=x86_64-unknown-linux-gnu"])?;
    let notes = files.iter().find(|file| file.path == "docs/why/dependencies.md");
    findings.extend(crates::check(&metadata, notes.map_or("", |file| &file.text)));
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(findings.is_empty())
}

/// Every text file we wrote: no build output, no corpus, no hidden directory but ours.
fn collect(dir: &Path, prefix: &str, files: &mut Vec<TextFile>) -> Result<()> {
    for entry in dir.read_dir().with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let built = name == "target" || entry.path().join("CACHEDIR.TAG").exists();
            let hidden = name.starts_with('.') && ![".ci", ".cargo", ".config"].contains(&name.as_str());
            if !built && !hidden && path != "fuzz/corpus" && path != "fuzz/artifacts" {
                collect(&entry.path(), &path, files)?;
            }
        } else if kind.is_file()
            && name != "Cargo.lock"
            && let Ok(text) = String::from_utf8(std::fs::read(entry.path())?)
        {
            files.push(TextFile { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
fn file(path: &str, text: &str) -> TextFile {
    TextFile { path: path.into(), text: text.into() }
}
