//! The test suite: every unit, property, simulation, corpus and namespace test of the workspace.
//!
//! cargo-nextest runs it when it is here. Otherwise we run each test binary ourselves, with a deadline.
//! Either way the tests that ran are counted and compared with the [`Roster`].

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::binary::{self, Binary, Tally};
use crate::program::{Ending, cargo, find, is_root, root, run_bounded, succeeds, target_dir, works};
use crate::roster::Roster;
use crate::setup;

/// Which tests to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Selection<'a> {
    /// All, and compare with the roster.
    All,
    /// All, and rewrite the roster.
    Record,
    /// Those whose name contains the text.
    Filter(&'a str),
}

/// Runs the selection; the last line printed is `N passed, N failed`.
pub fn run(selection: Selection<'_>) -> Result<bool> {
    let (tally, sound) = run_counted(selection)?;
    println!("{tally}");
    Ok(sound)
}

/// Runs the selection and says how it went, without the closing line.
pub fn run_counted(selection: Selection<'_>) -> Result<(Tally, bool)> {
    let filter = if let Selection::Filter(text) = selection { Some(text) } else { None };
    if filter.is_none() {
        if !is_root() {
            bail!(
                "many tests make network namespaces, and that needs root. \
                 Run: sudo -E env \"PATH=$PATH\" cargo xtask test (or name a FILTER: cargo xtask test replay)"
            );
        }
        setup::for_tests()?;
    }
    let mut names = Vec::new();
    let mut chosen = Vec::new();
    for binary in binary::build()? {
        let listed = binary.test_names(filter)?;
        if !listed.is_empty() {
            names.extend(listed);
            chosen.push(binary);
        }
    }
    if names.is_empty() {
        println!("no test has a name like that");
        return Ok((Tally::default(), false));
    }
    let tally = run_tests(chosen, filter)?;
    let ran = tally.passed + tally.failed;
    let mut faults = Vec::new();
    if ran < names.len() {
        faults.push(format!("{ran} tests ran, but the test binaries list {}", names.len()));
    }
    if filter.is_none() {
        faults.extend(compare(Roster::new(names), ran, selection == Selection::Record)?);
    }
    faults.iter().for_each(|fault| println!("{fault}"));
    Ok((tally, tally.failed == 0 && faults.is_empty()))
}

/// Runs the examples in the documentation.
pub fn run_doc_tests() -> Result<bool> {
    succeeds(&mut cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"]))
}

fn run_tests(binaries: Vec<Binary>, filter: Option<&str>) -> Result<Tally> {
    let log = target_dir()?.join(format!("xtask-test-{}.log", std::process::id()));
    let mut tally = Tally::default();
    let mut ours = binaries;
    if let Some(nextest) = nextest() {
        let for_nextest;
        (ours, for_nextest) = ours.into_iter().partition(Binary::has_own_harness);
        if !for_nextest.is_empty() {
            tally += run_nextest(nextest, filter)?;
        }
    }
    for binary in &ours {
        tally += binary.run(filter, &log)?;
    }
    std::fs::remove_file(log).ok();
    Ok(tally)
}

/// What is wrong when the tests `now` exist and `ran` of them ran.
fn compare(now: Roster, ran: usize, record: bool) -> Result<Vec<String>> {
    let path = root().join("xtask/tests.list");
    if record {
        std::fs::write(&path, now.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("recorded {} tests in xtask/tests.list", now.count());
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    Ok(match Roster::parse(&text) {
        Ok(recorded) => recorded.faults(&now, ran),
        Err(error) => vec![error.to_string()],
    })
}

/// `XTASK_PLAIN=1` runs the test binaries one by one even where cargo-nextest is installed.
fn nextest() -> Option<Command> {
    if std::env::var_os("XTASK_PLAIN").is_some() {
        return None;
    }
    find("cargo-nextest")?;
    works(&mut cargo(&["nextest", "--version"])).then(|| {
        let mut command = cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
        command.args([
            "--color=never",
            "--status-level=slow",
            "--final-status-level=fail",
            "--no-tests=pass",
        ]);
        command
    })
}

fn run_nextest(mut command: Command, filter: Option<&str>) -> Result<Tally> {
    let log = target_dir()?.join(format!("xtask-nextest-{}.log", std::process::id()));
    command.args(filter);
    let (ending, text) = run_bounded(&mut command, &log, Duration::from_secs(2400))?;
    std::fs::remove_file(log).ok();
    println!("{}", text.trim_end());
    let tally = nextest_summary(&text).unwrap_or(Tally { passed: 0, failed: 1 });
    let clean = matches!(ending, Ending::Exited(code) if code.success());
    Ok(if clean || tally.failed > 0 { tally } else { Tally { failed: 1, ..tally } })
}

/// Reads `Summary [ 1.2s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 0 skipped`.
fn nextest_summary(text: &str) -> Option<Tally> {
    let line = text.lines().rev().find(|line| line.trim_start().starts_with("Summary ["))?;
    let (ran, results) = line.split_once(']')?.1.split_once(" run: ")?;
    let ran: usize = ran.trim().split([' ', '/']).next()?.parse().ok()?;
    let passed = results.split(',').find_map(|part| {
        let mut words = part.split_whitespace();
        let count = words.next()?.parse().ok()?;
        (words.next()? == "passed").then_some(count)
    });
    let passed: usize = passed.unwrap_or(0);
    Some(Tally { passed, failed: ran.checked_sub(passed)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_nextest_is_read_with_slow_and_timed_out_tests() {
        let read = |text| nextest_summary(text).unwrap();
        let good = "     Summary [   1.2s] 9 tests run: 9 passed (2 slow), 4 skipped\n";
        assert_eq!(read(good), Tally { passed: 9, failed: 0 });
        let bad = "     Summary [   1.2s] 9 tests run: 6 passed, 2 failed, 1 timed out, 4 skipped\n";
        assert_eq!(read(bad), Tally { passed: 6, failed: 3 });
        let broken = "     Summary [   0.0s] 5/9 tests run: 0 passed, 5 failed, 0 skipped\n";
        assert_eq!(read(broken), Tally { passed: 0, failed: 5 });
        assert_eq!(nextest_summary("error: no such profile"), None);
    }
}
