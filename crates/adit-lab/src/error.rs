use std::time::Duration;

/// Why the lab could not do something; the text says what happened, what was seen and what to try.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("`{tool}` is not installed (looked in {searched}); try: apt-get install {package}")]
    MissingTool { tool: String, searched: &'static str, package: &'static str },

    #[error("`{command}` {ended}{}{}", indented(stderr), hinted(*hint))]
    Failed { command: String, ended: String, stderr: String, hint: Option<&'static str> },

    #[error("`{command}` was still running after {:.1} s and was killed{}", after.as_secs_f64(), indented(stderr))]
    TimedOut { command: String, after: Duration, stderr: String },

    #[error("`{command}` could not be started: {source}")]
    NotStarted { command: String, source: std::io::Error },

    #[error("waited {:.1} s for {what}, in vain{}", after.as_secs_f64(), indented(detail))]
    NeverHappened { what: String, after: Duration, detail: String },

    #[error("cannot {action}: {source}")]
    Io { action: String, source: std::io::Error },

    #[error("{what} is not understood: {why}")]
    Malformed { what: String, why: String },
}

impl LabError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    pub(crate) fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }
}

/// What usually helps when `stderr` reads like this.
pub(crate) fn hint_for(stderr: &str) -> Option<&'static str> {
    const HINTS: &[(&str, &str)] = &[
        ("Operation not permitted", "network namespaces need root: run with sudo"),
        ("must be root", "network namespaces need root: run with sudo"),
        ("mkdir /run/netns failed", "network namespaces need root: run with sudo"),
        (
            "mount --make-shared",
            "the container forbids mounts: run it with --privileged, or outside a container",
        ),
        ("Unknown device type", "the kernel lacks this link type: load it with modprobe veth bridge"),
        ("Specified qdisc", "the kernel lacks this queue discipline"),
        ("Could not process rule", "the kernel lacks a part of nftables this rule needs"),
    ];
    HINTS.iter().find(|(seen, _)| stderr.contains(seen)).map(|(_, hint)| *hint)
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("\n    {line}")).collect()
}

fn hinted(hint: Option<&str>) -> String {
    hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default()
}
