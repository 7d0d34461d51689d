//! The test binaries that cargo builds: what is in them, and how a run of one went.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::program::{Ending, cargo, run_bounded};

/// Binaries that are their own harness: each counts as one test. `.config/nextest.toml` leaves them to us.
const OWN_HARNESS: &[&str] = &["daemon"];

/// Binaries that work in network namespaces without saying so in their name.
const NAMESPACE_TESTS: &[&str] = &["lab", "namespace"];

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

/// One test binary.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    name: String,
    executable: PathBuf,
    package_dir: PathBuf,
    in_namespaces: bool,
    has_own_harness: bool,
}

/// Builds every test of the workspace. Those in namespaces come last.
pub fn build() -> Result<Vec<Binary>> {
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
            has_own_harness: kind == "test" && OWN_HARNESS.contains(&target),
        })
    }

    /// Whether cargo-nextest cannot run it.
    pub fn has_own_harness(&self) -> bool {
        self.has_own_harness
    }

    /// The tests that a run will run: an ignored test is part of another one (see `tidy`).
    pub fn test_names(&self, filter: Option<&str>) -> Result<Vec<String>> {
        if self.has_own_harness {
            let is_wanted = filter.is_none_or(|filter| self.name.contains(filter));
            return Ok(Vec::from_iter(is_wanted.then(|| self.name.clone())));
        }
        let ignored = self.list(&["--ignored"], filter)?;
        let mut names = self.list(&[], filter)?;
        names.retain(|name| !ignored.contains(name));
        Ok(names)
    }

    fn list(&self, which: &[&str], filter: Option<&str>) -> Result<Vec<String>> {
        let mut command = self.command();
        command.args(["--list", "--format=terse"]).args(which).args(filter);
        let output = command.stdin(Stdio::null()).output().with_context(|| self.name.clone())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_test = |line: &&str| line.ends_with(": test");
        if !output.status.success() || !text.lines().all(|line| is_test(&line)) {
            bail!(
                "{} does not list its tests. If it is its own harness, name it in xtask/src/binary.rs and \
                 .config/nextest.toml. It says: {text}{}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(|name| format!("{} {name}", self.name)).collect())
    }

    /// Runs it with a deadline, its output in `log`, and prints how it went and what failed.
    pub fn run(&self, filter: Option<&str>, log: &Path) -> Result<Tally> {
        let mut command = self.command();
        if !self.has_own_harness {
            command.args(filter);
            command.args(self.in_namespaces.then_some("--test-threads=2"));
        }
        let start = Instant::now();
        let (ending, text) = run_bounded(&mut command, log, self.deadline())?;
        let (tally, fault) = if self.has_own_harness { judge_whole(&ending) } else { judge(&ending, &text) };
        println!("{:>7.1}s  {:<40} {tally}", start.elapsed().as_secs_f64(), self.name);
        if let Some(fault) = fault {
            text.lines().filter(|line| !says_passed(line)).for_each(|line| println!("{line}"));
            println!("{}: {fault}", self.name);
        }
        Ok(tally)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.package_dir).env("CARGO_MANIFEST_DIR", &self.package_dir);
        command.env("RUST_BACKTRACE", "1").env("CARGO", std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(if self.in_namespaces { 900 } else { 420 })
    }
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
        let passed = text.lines().filter(|line| says_passed(line)).count();
        (Tally { passed, failed: 1 }, Some(why))
    };
    match ending {
        Ending::TimedOut => died("ended after its deadline".into()),
        Ending::Exited(code) if closing.is_none() => died(format!("died ({code})")),
        Ending::Exited(code) if tally.failed > 0 => (tally, Some(format!("failed ({code})"))),
        Ending::Exited(code) if !code.success() => {
            (Tally { failed: 1, ..tally }, Some(format!("ended badly after its tests ({code})")))
        }
        Ending::Exited(_) => (tally, None),
    }
}

/// A binary that is its own harness is one test.
fn judge_whole(ending: &Ending) -> (Tally, Option<String>) {
    let failed = |why: String| (Tally { passed: 0, failed: 1 }, Some(why));
    match ending {
        Ending::Exited(code) if ExitStatus::success(code) => (Tally { passed: 1, failed: 0 }, None),
        Ending::Exited(code) => failed(format!("failed ({code})")),
        Ending::TimedOut => failed("ended after its deadline".into()),
    }
}

fn says_passed(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... ok")
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
    fn a_binary_that_is_its_own_harness_is_one_test() {
        assert_eq!(judge_whole(&exited(0)).0, Tally { passed: 1, failed: 0 });
        assert_eq!(judge_whole(&exited(1)).0, Tally { passed: 0, failed: 1 });
        assert_eq!(judge_whole(&Ending::TimedOut).0, Tally { passed: 0, failed: 1 });
    }

    #[test]
    fn benches_examples_and_plain_builds_are_no_tests() {
        let message = |kind: &str, test: bool| {
            serde_json::json!({"executable": "/x/y-123", "manifest_path": "/p/crates/adit-io/Cargo.toml",
                "profile": {"test": test}, "target": {"kind": [kind], "name": "netns_roam"}})
        };
        let test = Binary::from_message(&message("test", true)).unwrap();
        assert_eq!((test.name.as_str(), test.in_namespaces), ("adit-io::netns_roam", true));
        assert_eq!(Binary::from_message(&message("bench", true)), None);
        assert_eq!(Binary::from_message(&message("example", true)), None);
        assert_eq!(Binary::from_message(&message("bin", false)), None);
    }
}
