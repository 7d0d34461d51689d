//! A command that cannot be meant, beyond what the command line itself finds: exit code 2.

/// What is wrong with it, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
