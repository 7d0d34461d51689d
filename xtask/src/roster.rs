//! The recorded tests: a suite may grow, but no test may go missing unseen.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};

/// How many tests there are, and their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    count: usize,
    names: BTreeSet<String>,
}

impl Roster {
    /// The roster of these tests.
    pub fn new(names: Vec<String>) -> Self {
        Self { count: names.len(), names: names.into_iter().collect() }
    }

    /// Reads what [`fmt::Display`] wrote: `N tests`, then a name on each line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let count = first.strip_suffix(" tests").and_then(|number| number.parse().ok());
        let count = count.context(
            "xtask/tests.list is missing or does not begin with `N tests`: run `cargo xtask test --record`",
        )?;
        Ok(Self { count, names: lines.map(str::to_owned).collect() })
    }

    /// How many tests are recorded.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What is wrong when the tests `now` exist and `ran` of them ran.
    pub fn faults(&self, now: &Self, ran: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if ran < self.count {
            faults.push(format!("only {ran} tests ran, but {} are recorded in xtask/tests.list", self.count));
        }
        for name in self.names.difference(&now.names) {
            faults.push(format!("the recorded test `{name}` is gone"));
        }
        if !faults.is_empty() {
            faults
                .push("if that is meant, run `cargo xtask test --record` and commit xtask/tests.list".into());
        }
        faults
    }
}

impl fmt::Display for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} tests", self.count)?;
        self.names.iter().try_for_each(|name| writeln!(f, "{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(names: &[&str]) -> Roster {
        Roster::new(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_roster_reads_what_it_wrote() {
        let written = roster(&["b two", "a one"]);
        assert_eq!(written.to_string(), "2 tests\na one\nb two\n");
        assert_eq!(Roster::parse(&written.to_string()).unwrap(), written);
        assert!(Roster::parse("many tests").is_err());
    }

    #[test]
    fn more_tests_than_recorded_are_welcome() {
        assert!(roster(&["a"]).faults(&roster(&["a", "b"]), 2).is_empty());
    }

    #[test]
    fn a_test_that_went_missing_is_a_fault_even_when_the_number_holds() {
        let faults = roster(&["a", "b"]).faults(&roster(&["a", "c"]), 2);
        assert!(faults.iter().any(|fault| fault.contains("`b`")), "{faults:?}");
    }

    #[test]
    fn fewer_tests_run_than_recorded_is_a_fault() {
        let both = roster(&["a", "b"]);
        assert!(both.faults(&both, 2).is_empty());
        assert!(!both.faults(&both, 1).is_empty());
    }
}
