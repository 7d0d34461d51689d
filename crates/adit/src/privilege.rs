//! Who we are and what we may do.

use std::fs;
use std::path::Path;

use anyhow::bail;

/// The bit of the capability to configure the network (`capabilities(7)`).
const CAP_NET_ADMIN: u32 = 12;

/// The effective user id of this process.
pub fn user_id() -> Option<u32> {
    status_field("Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// The effective group id of this process.
pub fn group_id() -> Option<u32> {
    status_field("Gid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// The user who called sudo, when root does something for somebody.
pub fn sudo_user_id() -> Option<u32> {
    (user_id() == Some(0)).then(|| std::env::var("SUDO_UID").ok()?.parse().ok()).flatten()
}

/// Refuses to go on when this process may not configure the network.
///
/// # Errors
/// One line that says so, and the command to run instead.
pub fn require_root(verb: &str) -> anyhow::Result<()> {
    if may_configure_network() {
        return Ok(());
    }
    let line = std::env::args().skip(1).map(|word| quote(&word)).collect::<Vec<_>>().join(" ");
    let does = match verb {
        "down" => "removes a network interface and its routes",
        "gateway" => "makes a network interface, routes and firewall rules",
        "demo" => "makes network namespaces",
        _ => "makes a network interface and routes",
    };
    bail!("`adit {verb}` {does}, which only root may do; run `sudo adit {line}`")
}

/// Whether this process may configure the network of its namespace.
pub fn may_configure_network() -> bool {
    has_capability(CAP_NET_ADMIN)
}

/// Whether the capability of this number (`capabilities(7)`) is in effect.
pub fn has_capability(number: u32) -> bool {
    status_field("CapEff:")
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << number) != 0)
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// A path as a word of a command that a person is told to run.
pub fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

fn quote(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_=+./:,@%".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn our_user_id_is_the_owner_of_what_we_make() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(user_id(), Some(file.as_file().metadata().unwrap().uid()));
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quote("--home=/a/b"), "--home=/a/b");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }
}
