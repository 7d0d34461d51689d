//! Where a public service says which address it sees.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

use super::diagnostic::Complaint;

/// The URL of a service that answers with the address of whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUrl {
    /// Whether TLS proves who answers.
    pub is_https: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Path and query.
    pub target: String,
}

/// Run by different people and answering in different formats, so that one of them failing is not all of them.
const USUAL: &[&str] = &[
    "https://api64.ipify.org/?format=json",
    "https://icanhazip.com/",
    "https://httpbin.org/ip",
    "https://ipinfo.io/json",
    "https://ifconfig.co/json",
    "https://checkip.amazonaws.com/",
];

impl ServiceUrl {
    /// How many may be configured.
    pub const MOST: usize = 16;

    /// The services asked when none are configured.
    ///
    /// # Panics
    /// Never: a test parses each.
    pub fn usual() -> Vec<Self> {
        USUAL.iter().map(|url| url.parse().expect("a test parses each")).collect()
    }

    /// The host as it stands in a URL, with a port that is not the usual one.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.is_https { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

impl FromStr for ServiceUrl {
    type Err = Complaint;

    /// `https://HOST[:PORT][/PATH]`, or the same with `http`; without user or fragment.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        const FIX: &str = "write a URL like \"https://api64.ipify.org/\"";
        let complain = |reason: String| Complaint::new(reason, FIX);
        let uri: Uri = text.parse().map_err(|_| complain(format!("`{text}` is not a URL")))?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(complain(format!("`{text}` begins neither with https:// nor with http://"))),
        };
        let authority = uri.authority().ok_or_else(|| complain(format!("`{text}` names no host")))?;
        if authority.as_str().contains('@') {
            return Err(complain("a user name or password cannot be part of the URL".to_owned()));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(complain(format!("`{text}` names no host")));
        }
        let has_port = authority.as_str().rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let port = match uri.port_u16() {
            Some(port) if port > 0 => port,
            None if !has_port => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            _ => return Err(complain(format!("`{text}` has a port that is none"))),
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { is_https, host: host.to_owned(), port, target: target.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_services_are_https_and_of_several_people() {
        let usual = ServiceUrl::usual();
        assert!(usual.iter().all(|service| service.is_https && service.port == 443));
        let hosts: std::collections::HashSet<_> = usual.iter().map(|service| &service.host).collect();
        assert!(hosts.len() == usual.len() && usual.len() <= ServiceUrl::MOST);
    }

    #[test]
    fn a_url_is_read_and_written_the_same() {
        for url in [
            "https://a.example/",
            "http://192.0.2.1:8080/ip?x=1",
            "https://[2001:db8::1]/",
            "http://[::1]:81/a",
        ] {
            assert_eq!(url.parse::<ServiceUrl>().unwrap().to_string(), url);
        }
        let short: ServiceUrl = "https://a.example".parse().unwrap();
        assert_eq!((short.port, short.target.as_str()), (443, "/"));
        assert_eq!("http://[::1]:81/a".parse::<ServiceUrl>().unwrap().host, "::1");
    }

    #[test]
    fn what_is_no_url_of_a_service_is_refused_with_advice() {
        for bad in [
            "",
            "ipify",
            "ftp://a.example/",
            "https://",
            "https:///x",
            "file:///etc/passwd",
            "https://u:p@a.example/",
            "https://a.example:0/",
            "https://a.example:99999/",
            "https://a b/",
            "https://a\r\nHost: b/",
            "/ip",
        ] {
            let complaint = bad.parse::<ServiceUrl>().expect_err(bad);
            assert!(!complaint.fix.is_empty());
        }
    }
}
