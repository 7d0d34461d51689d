use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value, json};

const SCHEMA: u32 = 1;

/// What was shown and how it went, printed as it happens (for people) or at the end (as JSON).
pub(super) struct Report {
    started: Instant,
    steps: Vec<Step>,
    kept: Option<Value>,
    screen: Screen,
}

/// One thing shown.
#[derive(Serialize)]
pub(super) struct Step {
    name: &'static str,
    title: &'static str,
    ok: bool,
    seconds: f64,
    commands: Vec<String>,
    checks: Vec<Check>,
    figures: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    screen: Screen,
}

#[derive(Serialize)]
struct Check {
    what: String,
    ok: bool,
    expected: String,
    seen: String,
}

impl Report {
    pub(super) fn new(json: bool, coloured: bool) -> Self {
        let screen = match (json, coloured) {
            (true, _) => Screen::Dark,
            (false, true) => Screen::Coloured,
            (false, false) => Screen::Plain,
        };
        Self { started: Instant::now(), steps: Vec::new(), kept: None, screen }
    }

    /// Plays one step: says `title` and `why`, then lets `play` act and check. `None` when it could not be played to
    /// its end; a check that failed does not stop anything.
    pub(super) fn step<T>(
        &mut self,
        name: &'static str,
        title: &'static str,
        why: &str,
        play: impl FnOnce(&mut Step) -> anyhow::Result<T>,
    ) -> Option<T> {
        let number = self.steps.len() + 1;
        self.screen.line(&format!("\n{}", self.screen.bold(&format!("{number:>2}. {title}"))));
        why.lines().for_each(|line| self.screen.line(&format!("    {}", line.trim())));
        let mut step = Step {
            name,
            title,
            ok: true,
            seconds: 0.0,
            commands: Vec::new(),
            checks: Vec::new(),
            figures: Map::new(),
            error: None,
            screen: self.screen,
        };
        let started = Instant::now();
        let outcome = play(&mut step);
        step.seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let played = match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                let text = format!("{error:#}");
                self.screen.line(&format!("    {} {}", self.screen.red("✗"), text.replace('\n', "\n      ")));
                step.error = Some(text);
                None
            }
        };
        step.ok = step.error.is_none() && step.checks.iter().all(|check| check.ok);
        self.steps.push(step);
        played
    }

    /// Words for people only.
    pub(super) fn say(&self, text: &str) {
        self.screen.line(text);
    }

    /// What was left on the machine on purpose.
    pub(super) fn kept(&mut self, kept: Value) {
        self.kept = Some(kept);
    }

    /// How many checks failed, and how many there were. A step that could not be played to its end is a check
    /// that failed, whatever it checked before.
    fn tally(&self) -> (usize, usize) {
        let checks = || self.steps.iter().flat_map(|step| &step.checks);
        let errors = self.steps.iter().filter(|step| step.error.is_some()).count();
        (checks().filter(|check| !check.ok).count() + errors, checks().count() + errors)
    }

    /// The verdict.
    pub(super) fn finish(self) -> anyhow::Result<ExitCode> {
        let (failed, total) = self.tally();
        let ok = self.steps.iter().all(|step| step.ok);
        let seconds = (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        if self.screen == Screen::Dark {
            let mut document = json!({ "schema": SCHEMA, "ok": ok, "seconds": seconds, "steps": self.steps });
            if let Some(kept) = self.kept {
                document["kept"] = kept;
            }
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        } else {
            let screen = self.screen;
            let verdict = match ok {
                true => screen.green(&format!("All {total} checks passed in {seconds} seconds.")),
                false => {
                    let names: Vec<_> =
                        self.steps.iter().filter(|step| !step.ok).map(|step| step.title).collect();
                    let names = names.join("”, “");
                    screen.red(&format!("Failed at “{names}”; {failed} of {total} checks failed."))
                }
            };
            screen.line(&format!("\n{verdict}"));
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Step {
    /// A command that is about to run on a host.
    pub(super) fn command(&mut self, host: &str, command: &str) {
        self.screen.line(&format!("    {}", self.screen.dim(&format!("{host}# {command}"))));
        self.commands.push(format!("{host}# {command}"));
    }

    /// Checks that `seen` is what was `expected`.
    pub(super) fn check(&mut self, what: impl Into<String>, expected: impl Display, seen: impl Display) {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        let ok = expected == seen;
        self.verify(what, ok, expected, seen);
    }

    /// Checks something that is more than being equal.
    pub(super) fn verify(
        &mut self,
        what: impl Into<String>,
        ok: bool,
        expected: impl Display,
        seen: impl Display,
    ) {
        let check = Check { what: what.into(), ok, expected: expected.to_string(), seen: seen.to_string() };
        let Check { what, expected, seen, .. } = &check;
        let screen = self.screen;
        match ok {
            true => screen.line(&format!("    {} {what}: {seen}", screen.green("✓"))),
            false => {
                screen.line(&format!("    {} {what}", screen.red("✗")));
                screen.line(&format!("        expected: {expected}"));
                screen.line(&format!("        seen:     {seen}"));
            }
        }
        self.checks.push(check);
    }

    /// A number for machines.
    pub(super) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Words for people only.
    pub(super) fn say(&self, text: &str) {
        self.screen.line(&format!("      {text}"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Screen {
    Dark,
    Plain,
    Coloured,
}

impl Screen {
    /// A reader who has closed the pipe must not keep the lab from being removed, so errors are passed over.
    fn line(self, text: &str) {
        if self != Self::Dark {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    fn bold(self, text: &str) -> String {
        self.painted("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.painted("2", text)
    }

    fn green(self, text: &str) -> String {
        self.painted("32", text)
    }

    fn red(self, text: &str) -> String {
        self.painted("31", text)
    }

    fn painted(self, code: &str, text: &str) -> String {
        if self == Self::Coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(play: impl FnOnce(&mut Step) -> anyhow::Result<()>) -> Report {
        let mut report = Report::new(true, false);
        report.step("name", "Title", "Why.", play);
        report
    }

    #[test]
    fn one_failed_check_fails_its_step_and_the_whole() {
        let good = played(|step| {
            step.check("sum", 4, 2 + 2);
            Ok(())
        });
        assert!(good.steps[0].ok);
        assert_eq!(good.tally(), (0, 1));
        let bad = played(|step| {
            step.check("sum", 4, 2 + 2);
            step.check("sum", 5, 2 + 2);
            Ok(())
        });
        assert!(!bad.steps[0].ok);
        assert_eq!(bad.tally(), (1, 2));
        let checks = serde_json::to_value(&bad.steps[0]).unwrap();
        assert_eq!(
            (&checks["checks"][1]["expected"], &checks["checks"][1]["seen"]),
            (&json!("5"), &json!("4"))
        );
        assert_eq!(format!("{:?}", bad.finish().unwrap()), format!("{:?}", ExitCode::FAILURE));
    }

    #[test]
    fn a_step_that_cannot_be_played_fails_and_says_why() {
        let report = played(|_| anyhow::bail!("the curtain is stuck"));
        assert!(!report.steps[0].ok);
        assert_eq!(report.tally(), (1, 1));
        assert_eq!(report.steps[0].error.as_deref(), Some("the curtain is stuck"));
    }

    #[test]
    fn colours_are_for_coloured_screens_only() {
        assert_eq!(Screen::Plain.green("ok"), "ok");
        assert_eq!(Screen::Coloured.green("ok"), "\x1b[32mok\x1b[0m");
    }
}
