//! The leak test with as many transitions as one wants.

use anyhow::Result;

use crate::program::{cargo, succeeds};
use crate::setup;

/// How many transitions, and which; the test chooses and prints a seed when there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    count: u64,
    seed: Option<u64>,
}

impl Options {
    /// `None` is a usage error.
    pub fn parse(args: &[&str]) -> Option<Options> {
        let mut options = Options { count: 1000, seed: None };
        let mut args = args.iter();
        while let Some(option) = args.next() {
            let number = args.next()?.parse().ok()?;
            match *option {
                "--count" => options.count = number,
                "--seed" => options.seed = Some(number),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Runs it. It takes about half a second per transition.
pub fn run(options: &Options) -> Result<bool> {
    setup::for_tests()?;
    let mut test = cargo(&["test", "--locked", "--package", "adit", "--test", "netns_leak_transitions"]);
    test.args(["--", "--nocapture"]).env("ADIT_LEAK_TRANSITIONS", options.count.to_string());
    if let Some(seed) = options.seed {
        test.env("ADIT_LEAK_SEED", seed.to_string());
    }
    succeeds(&mut test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_transitions_unless_told() {
        assert_eq!(Options::parse(&[]), Some(Options { count: 1000, seed: None }));
        let told = Options { count: 5, seed: Some(7) };
        assert_eq!(Options::parse(&["--seed", "7", "--count", "5"]), Some(told));
        assert_eq!(Options::parse(&["--seed"]), None);
        assert_eq!(Options::parse(&["--seed", "x"]), None);
    }
}
