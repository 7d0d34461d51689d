//! Where traffic goes, by network or by name: the items of `include` and `exclude`.

use std::fmt;

use ipnet::IpNet;

use super::diagnostic::Complaint;
use super::parse_prefix;

/// A network, or a domain with all below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Every address of a network.
    Network(IpNet),
    /// A domain in lower case, without a last dot, and every name below it.
    Domain(String),
}

impl Destination {
    /// Whether `name`, in lower case without a last dot, is the domain or below it.
    pub fn holds_name(&self, name: &str) -> bool {
        let Self::Domain(domain) = self else { return false };
        name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// A network, an address, or a domain: `192.168.0.0/16`, `203.0.113.9`, `example.org`, `*.example.org`.
///
/// # Errors
/// Anything else.
pub fn parse_destination(text: &str) -> Result<Destination, Complaint> {
    if let Ok(network) = parse_prefix(text) {
        return Ok(Destination::Network(network.trunc()));
    }
    let domain = text.strip_prefix("*.").unwrap_or(text).trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
        (1..=63).contains(&label.len()) && label.chars().all(allowed) && !label.starts_with('-')
    };
    // What looks like an address but is none is a typing error rather than a name.
    let ends_with_letters = domain.rsplit('.').next().is_some_and(|last| last.parse::<u32>().is_err());
    if domain.len() <= 253 && domain.split('.').all(is_label) && ends_with_letters && !text.contains('/') {
        return Ok(Destination::Domain(domain));
    }
    Err(Complaint::new(
        format!("`{text}` is neither a network nor a domain"),
        "write for example 192.168.0.0/16, 203.0.113.9 or example.org (which means all below it too)",
    ))
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Domain(domain) => domain.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_addresses_and_domains_are_told_apart() {
        let text = |text: &str| parse_destination(text).map(|it| it.to_string()).unwrap_or_default();
        assert_eq!(text("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(text("2001:db8::1"), "2001:db8::1/128");
        assert_eq!(text("*.Example.ORG."), "example.org");
        assert_eq!(text("intranet"), "intranet");
        for wrong in ["10.0.0.0/33", "10.0.0.300", "exa mple", "-x.org", "a..b", "", "https://example.org"] {
            assert!(parse_destination(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_domain_holds_what_is_below_it_and_nothing_that_only_ends_like_it() {
        let domain = parse_destination("example.org").unwrap();
        assert!(domain.holds_name("example.org") && domain.holds_name("a.b.example.org"));
        assert!(!domain.holds_name("badexample.org") && !domain.holds_name("org"));
        assert!(!parse_destination("10.0.0.0/8").unwrap().holds_name("10.0.0.1"));
    }
}
