//! The test suite: every unit, property, simulation, corpus and namespace test of the workspace.
//!
//! cargo-nextest runs it when it is here. Otherwise we run each test binary ourselves, with a deadline.
//! Either way the tests that ran are counted and compared with the [`Roster`].

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

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

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed, a binary that died counting as one at least.
    pub failed: usize,
}

impl core::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl core::fmt::Display for Tally {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs the selection; the last line printed is `N passed, N failed`.
pub fn run(selection: Selection<'_>) -> Result<bool> {
    let (tally, sound) = run_counted(selection)?;
    println!("{tally}");
    Ok(sound)
}

/// Runs the selection and says how it went, without the closing line.
pub fn run_counted(selection: Selection<'_>) -> Result<(Tally, bool)> {
    match selection {
        Selection::Filter(_) => {}
        _ if is_root() => setup::for_tests()?,
        _ => bail!(
            "many tests make network namespaces, and that needs root. \
             Run: sudo -E env \"PATH=$PATH\" cargo xtask test (or name a FILTER: cargo xtask test replay)"
        ),
    }
    let binaries = build()?;
    let filter = if let Selection::Filter(text) = selection { Some(text) } else { None };
    let mut names = Vec::new();
    for binary in &binaries {
        names.extend(binary.test_names(filter)?);
    }
    let tally = match nextest() {
        Some(nextest) => run_nextest(nextest, filter)?,
        None => run_binaries(&binaries, filter)?,
    };
    let mut sound = tally.failed == 0;
    if filter.is_some() {
        if names.is_empty() {
            println!("no test has a name like that");
            sound = false;
        }
        return Ok((tally, sound));
    }
    let ran = tally.passed + tally.failed;
    if ran < names.len() {
        println!("{ran} tests ran, but the test binaries list {}", names.len());
        sound = false;
    }
    let path = root().join("xtask/tests.list");
    let now = Roster::new(names);
    if selection == Selection::Record {
        std::fs::write(&path, now.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        println!("recorded {} tests in xtask/tests.list", now.count());
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let faults =
        Roster::parse(&text).map_or_else(|error| vec![error.to_string()], |kept| kept.faults(&now, ran));
    for fault in faults {
        println!("{fault}");
        sound = false;
    }
    Ok((tally, sound))
}

/// Test binaries that work in network namespaces without saying so in their name.
const NAMESPACE_TESTS: &[&str] = &["lab", "namespace"];

/// One test binary that cargo built.
struct Binary {
    name: String,
    executable: PathBuf,
    package_dir: PathBuf,
    in_namespaces: bool,
}

fn build() -> Result<Vec<Binary>> {
    let mut command =
        cargo(&["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    if !output.status.success() {
        bail!("the tests do not build: see above");
    }
    let mut binaries = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line).context("cargo wrote something that is no JSON")?;
        binaries.extend(Binary::from_message(&message));
    }
    binaries.sort_by(|a, b| (a.in_namespaces, &a.name).cmp(&(b.in_namespaces, &b.name)));
    Ok(binaries)
}

impl Binary {
    fn from_message(message: &Value) -> Option<Self> {
        let executable = message["executable"].as_str()?;
        let kind = message["target"]["kind"][0].as_str()?;
        if message["profile"]["test"] != true || !["lib", "bin", "test"].contains(&kind) {
            return None;
        }
        let package_dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let package = package_dir.file_name()?.to_str()?;
        let target = message["target"]["name"].as_str()?;
        Some(Self {
            name: if kind == "test" { format!("{package}::{target}") } else { format!("{package}({kind})") },
            executable: executable.into(),
            package_dir,
            in_namespaces: target.starts_with("netns_") || NAMESPACE_TESTS.contains(&target),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.package_dir).env("CARGO_MANIFEST_DIR", &self.package_dir);
        command.env("RUST_BACKTRACE", "1").env("CARGO", std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command
    }

    /// The tests that a run will run: an ignored test is part of another one (see `tidy`).
    fn test_names(&self, filter: Option<&str>) -> Result<Vec<String>> {
        let ignored = self.list(&["--ignored"], filter)?;
        let mut names = self.list(&[], filter)?;
        names.retain(|name| !ignored.contains(name));
        Ok(names)
    }

    fn list(&self, which: &[&str], filter: Option<&str>) -> Result<Vec<String>> {
        let mut command = self.command();
        command.args(["--list", "--format=terse"]).args(which).args(filter);
        let output = command.stdin(Stdio::null()).output().with_context(|| self.name.clone())?;
        if !output.status.success() {
            bail!("{} does not list its tests: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(|name| format!("{} {name}", self.name)).collect())
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(if self.in_namespaces { 900 } else { 420 })
    }
}

fn run_binaries(binaries: &[Binary], filter: Option<&str>) -> Result<Tally> {
    let log = target_dir()?.join(format!("xtask-test-{}.log", std::process::id()));
    let mut total = Tally::default();
    for binary in binaries {
        let mut command = binary.command();
        command.args(filter);
        if binary.in_namespaces {
            command.arg("--test-threads=2");
        }
        let start = Instant::now();
        let (ending, text) = run_bounded(&mut command, &log, binary.deadline())?;
        let (tally, fault) = judge(&ending, &text);
        if tally != Tally::default() {
            println!("{:>7.1}s  {:<40} {tally}", start.elapsed().as_secs_f64(), binary.name);
        }
        if let Some(fault) = fault {
            let passed = |line: &&str| line.starts_with("test ") && line.ends_with(" ... ok");
            text.lines().filter(|line| !passed(line)).for_each(|line| println!("{line}"));
            println!("{}: {fault}", binary.name);
        }
        total += tally;
    }
    std::fs::remove_file(log).ok();
    Ok(total)
}

/// Reads libtest's closing line, and says what went wrong if anything did.
fn judge(ending: &Ending, text: &str) -> (Tally, Option<String>) {
    let closing = text.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let count = |word: &str| -> Option<usize> {
        let part = closing?.split([';', '.']).find_map(|part| part.trim().strip_suffix(word))?;
        part.trim().parse().ok()
    };
    let tally = Tally { passed: count("passed").unwrap_or(0), failed: count("failed").unwrap_or(0) };
    let died = |why: String| {
        let passed =
            text.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ... ok")).count();
        (Tally { passed, failed: 1 }, Some(why))
    };
    match ending {
        Ending::TimedOut => died("ended after its deadline".into()),
        Ending::Exited(_) if closing.is_none() => died(format!("died ({})", status(ending))),
        Ending::Exited(code) if tally.failed > 0 => (tally, Some(format!("failed ({code})"))),
        Ending::Exited(code) if !code.success() => {
            (Tally { failed: 1, ..tally }, Some(format!("ended badly after its tests ({code})")))
        }
        Ending::Exited(_) => (tally, None),
    }
}

fn status(ending: &Ending) -> String {
    let shown = |status: &ExitStatus| status.to_string();
    if let Ending::Exited(code) = ending { shown(code) } else { "timed out".into() }
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

/// Runs the examples in the documentation.
pub fn run_doc_tests() -> Result<bool> {
    succeeds(&mut cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const CLOSING: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out";

    fn exited(code: i32) -> Ending {
        Ending::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn a_clean_run_is_counted_by_its_closing_line() {
        let (tally, fault) = judge(&exited(0), &format!("test a ... ok\n\n{CLOSING}; finished in 0.1s\n"));
        assert_eq!((tally, fault), (Tally { passed: 12, failed: 0 }, None));
    }

    #[test]
    fn failed_tests_are_counted() {
        let text = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        let (tally, fault) = judge(&exited(101), text);
        assert_eq!(tally, Tally { passed: 3, failed: 2 });
        assert!(fault.is_some());
    }

    #[test]
    fn a_binary_that_dies_half_way_counts_as_a_failure() {
        let (tally, fault) = judge(&exited(134), "running 3 tests\ntest a ... ok\ntest b ... ");
        assert_eq!(tally, Tally { passed: 1, failed: 1 });
        assert!(fault.unwrap().contains("died"));
    }

    #[test]
    fn a_bad_exit_after_good_tests_is_a_failure() {
        let (tally, _) = judge(&exited(1), CLOSING);
        assert_eq!(tally, Tally { passed: 12, failed: 1 });
    }

    #[test]
    fn a_run_past_its_deadline_is_a_failure() {
        let (tally, fault) = judge(&Ending::TimedOut, "test a ... ok\ntest b ... ok\n");
        assert_eq!(tally, Tally { passed: 2, failed: 1 });
        assert!(fault.unwrap().contains("deadline"));
    }

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

    #[test]
    fn benches_examples_and_plain_builds_are_no_tests() {
        let message = |kind: &str, test: bool| {
            serde_json::json!({"executable": "/x/y-123", "manifest_path": "/p/crates/adit-io/Cargo.toml",
                "profile": {"test": test}, "target": {"kind": [kind], "name": "netns_roam"}})
        };
        let test = Binary::from_message(&message("test", true)).unwrap();
        assert_eq!((test.name.as_str(), test.in_namespaces), ("adit-io::netns_roam", true));
        assert!(Binary::from_message(&message("bench", true)).is_none());
        assert!(Binary::from_message(&message("example", true)).is_none());
        assert!(Binary::from_message(&message("bin", false)).is_none());
    }
}
