//! Names that people choose: interfaces and peers.

use std::fmt;
use std::str::FromStr;

use super::diagnostic::Complaint;

/// The name of a network interface: 1 to 15 of `[a-zA-Z0-9_=+.-]`, as `wg-quick` has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

/// The name of a peer: 1 to 63 of `[A-Za-z0-9_.-]`, not beginning with `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(String);

impl InterfaceName {
    /// The longest name Linux takes.
    pub const MAX_BYTES: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PeerName {
    /// The longest name.
    pub const MAX_BYTES: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = Complaint;

    fn from_str(text: &str) -> Result<Self, Complaint> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || "_=+.-".contains(char);
        check(text, Self::MAX_BYTES, allowed, "an interface", "`_=+.-`", "adit0").map(Self)
    }
}

impl FromStr for PeerName {
    type Err = Complaint;

    fn from_str(text: &str) -> Result<Self, Complaint> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || "_.-".contains(char);
        check(text, Self::MAX_BYTES, allowed, "a peer", "`_.-`", "laptop").map(Self)
    }
}

fn check(
    text: &str,
    max_bytes: usize,
    allowed: impl Fn(char) -> bool,
    noun: &str,
    marks: &str,
    example: &str,
) -> Result<String, Complaint> {
    let fix = format!(
        "use 1 to {max_bytes} letters, digits or {marks}, not beginning with `-`, for example `{example}`"
    );
    let reason = if text.is_empty() {
        format!("the name of {noun} is empty")
    } else if let Some(wrong) = text.chars().find(|&char| !allowed(char)) {
        format!("{wrong:?} is not allowed in the name of {noun}")
    } else if text.len() > max_bytes {
        format!("the name of {noun} has {} characters, more than {max_bytes}", text.len())
    } else if text == "." || text == ".." || text.starts_with('-') {
        format!("`{text}` cannot be the name of {noun}")
    } else {
        return Ok(text.to_owned());
    };
    Err(Complaint::new(reason, fix))
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_follow_wg_quick() {
        for good in ["adit0", "a", "wg_=+.-x", "abcdefghijklmno"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-f", "a/b", "a b", "abcdefghijklmnop", "é", "a\n"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_of_peers_cannot_leave_a_directory_or_look_like_a_flag() {
        for good in ["laptop", "a.b-c_d", &"x".repeat(63)] {
            assert_eq!(good.parse::<PeerName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", &"x".repeat(64), "a\x1b"] {
            assert!(bad.parse::<PeerName>().is_err(), "{bad:?}");
        }
    }
}
