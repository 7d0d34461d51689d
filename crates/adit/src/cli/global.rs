//! What every verb may be told: the home, the log, colours.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice, ValueEnum};

use crate::config::Layers;

/// What every verb may be told.
#[derive(Debug, Args)]
pub struct Global {
    /// Keep configuration, state and sockets in DIR, not in /etc, /var/lib and /run
    #[arg(long, value_name = "DIR", env = "ADIT_HOME", global = true)]
    pub(super) home: Option<PathBuf>,
    /// Log more; twice logs everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", global = true, value_parser = ["text", "json"])]
    log_format: Option<String>,
    /// Log to a file or to journald, not to standard error
    #[arg(long, value_name = "PATH|journald", global = true)]
    log_file: Option<PathBuf>,
    /// Colours: auto heeds the terminal and NO_COLOR
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto")]
    pub(super) color: Color,
}

/// When output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Global {
    /// What the environment and the flags of every verb say about the configuration.
    pub(super) fn layers(&self) -> Layers {
        let mut layers = Layers::from_environment();
        match (self.quiet, self.verbose) {
            (true, _) => layers.flag("log.level", "--quiet", "warn"),
            (false, 0) => {}
            (false, 1) => layers.flag("log.level", "--verbose", "debug"),
            (false, _) => layers.flag("log.level", "--verbose", "trace"),
        }
        if let Some(format) = &self.log_format {
            layers.flag("log.format", "--log-format", format);
        }
        if let Some(file) = &self.log_file {
            let is_word = ["-", "journald"].iter().any(|word| file.as_os_str() == *word);
            let rooted = std::path::absolute(file).ok().filter(|_| !is_word);
            let file = rooted.unwrap_or_else(|| file.clone());
            layers.flag("log.file", "--log-file", file.display());
        }
        layers
    }

    /// Whether more than warnings was asked for.
    pub(super) fn is_loud(&self) -> bool {
        self.verbose > 0
    }

    /// The same again but for the home, for another process of this program.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = (0..self.verbose).map(|_| "--verbose".into()).collect();
        words.extend(self.quiet.then(|| "--quiet".into()));
        if let Some(format) = &self.log_format {
            words.extend(["--log-format".into(), format.into()]);
        }
        if let Some(file) = &self.log_file {
            words.extend(["--log-file".into(), file.into()]);
        }
        let color = match self.color {
            Color::Auto => None,
            Color::Always => Some("--color=always"),
            Color::Never => Some("--color=never"),
        };
        words.extend(color.map(OsString::from));
        words
    }
}

impl Color {
    /// Whether to colour what goes to `stream`.
    pub fn wanted(self, stream: &impl IsTerminal) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && stream.is_terminal()
            }
        }
    }
}

/// The colour must be known before the command line is parsed: its errors are coloured too.
pub(super) fn asked_color(arguments: &[OsString]) -> Color {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let joined = words.iter().find_map(|word| word.strip_prefix("--color="));
    let apart = || words.windows(2).find_map(|pair| (pair[0] == "--color").then_some(pair[1]));
    let asked = joined.or_else(apart).and_then(|word| Color::from_str(word, false).ok());
    asked.unwrap_or(Color::Auto)
}

pub(super) fn clap_color(color: Color) -> ColorChoice {
    match color {
        Color::Auto => ColorChoice::Auto,
        Color::Always => ColorChoice::Always,
        Color::Never => ColorChoice::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
    }

    #[test]
    fn another_process_is_told_the_same() {
        let words = |global: &Global| -> Vec<String> {
            global.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let of = |line: &str| Line::try_parse_from(line.split(' ')).unwrap().global;
        let loud = of("adit -vv --log-file /x y".trim_end_matches(" y"));
        assert_eq!(words(&loud), ["--verbose", "--verbose", "--log-file", "/x"]);
        let other = of("adit -q --log-format json --color never");
        assert_eq!(words(&other), ["--quiet", "--log-format", "json", "--color=never"]);
        let again: Vec<String> = [vec!["adit".to_owned()], words(&other)].concat();
        assert_eq!(words(&of(&again.join(" "))), words(&other));
        assert!(words(&of("adit")).is_empty());
    }

    #[test]
    fn the_colour_is_known_before_the_rest_is() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(asked_color(&words("adit --color never up")), Color::Never);
        assert_eq!(asked_color(&words("adit up --color=always")), Color::Always);
        assert_eq!(asked_color(&words("adit up --color")), Color::Auto);
    }
}
