//! Fuzzing: cargo-fuzz with coverage when it is here, else plain mutation of the committed corpus.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program::{cargo, root, succeeds, works};

/// Prints the targets.
pub fn list() -> Result<bool> {
    for target in targets()? {
        println!("{target}");
    }
    Ok(true)
}

/// Fuzzes one target for a while.
pub fn run(target: &str, secs: u64) -> Result<bool> {
    let targets = targets()?;
    if !targets.iter().any(|known| known == target) {
        bail!("there is no fuzz target {target}. There are: {}", targets.join(" "));
    }
    let secs_text = secs.to_string();
    if works(Command::new("cargo").args(["+nightly", "fuzz", "--version"])) {
        let corpus = format!("fuzz/corpus/{target}");
        let limit = format!("-max_total_time={secs}");
        let mut fuzz = Command::new("cargo");
        fuzz.args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz/libfuzzer", target, &corpus, "--", &limit]);
        return succeeds(fuzz.current_dir(root()));
    }
    println!("cargo-fuzz or a nightly toolchain is missing: mutating the corpus without coverage guidance");
    succeeds(&mut cargo(&["run", "--quiet", "--locked", "--package", "adit-fuzz", "--", target, &secs_text]))
}

/// Every directory of the corpus is a target.
fn targets() -> Result<Vec<String>> {
    let corpus = root().join("fuzz/corpus");
    let entries = corpus.read_dir().with_context(|| format!("cannot read {}", corpus.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
