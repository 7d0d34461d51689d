//! What is said about connections: the gateway's ports and web page, and how a client goes about it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::diagnostic::Complaint;
use super::host_port::port_number;
use super::service_url::ServiceUrl;
use super::value::choice;
use crate::endpoint::HostPort;

/// What the gateway does with connections.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StreamSettings {
    /// Where they are taken.
    pub listen: Vec<StreamListen>,
    /// The chain and the key of the certificate; one made here when there are none.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// What visitors find.
    pub web: Web,
    /// Where the WebSocket is; `None` follows from the gateway's key.
    pub path: Option<String>,
}

/// A place where connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamListen {
    /// The port of the datagrams, on every address.
    Same,
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

/// What a visitor finds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Web {
    /// A plain page.
    #[default]
    Page,
    /// The files below a directory.
    Directory(PathBuf),
    /// What another web server says, at this host and port.
    Upstream(String),
}

/// How the server of a TLS connection shows that it is the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TlsVerify {
    /// By the pin of its certificate.
    #[default]
    Pin,
    /// By a certificate that this machine's authorities have signed.
    WebPki,
    /// Not at all: the session in it proves the gateway.
    Off,
}

/// An HTTP proxy that connects us (CONNECT).
#[derive(Clone, PartialEq, Eq)]
pub struct Via {
    /// Where it is.
    pub proxy: HostPort,
    /// Who we are to it.
    pub user: Option<String>,
    /// What proves it.
    pub password: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Via").field("proxy", &self.proxy).field("user", &self.user).finish_non_exhaustive()
    }
}

/// "same", "off", `:PORT`, a port, or `ADDRESS:PORT`.
///
/// # Errors
/// Anything else.
pub fn parse_stream_listen(text: &str) -> Result<StreamListen, Complaint> {
    let port = port_number(text.strip_prefix(':').unwrap_or(text));
    match (text, port, text.parse::<SocketAddr>()) {
        ("same", ..) => Ok(StreamListen::Same),
        ("off", ..) => Ok(StreamListen::Off),
        (_, Some(port), _) if port > 0 => {
            Ok(StreamListen::At(SocketAddr::new(IpAddr::from(Ipv6Addr::UNSPECIFIED), port)))
        }
        (.., Ok(at)) if at.port() > 0 => Ok(StreamListen::At(at)),
        _ => Err(Complaint::new(
            format!("`{text}` is no place to take connections"),
            "write \"same\" for the port of the datagrams, \":443\", \"127.0.0.1:8443\", or \"off\"",
        )),
    }
}

/// "page", a directory, or the URL of another web server.
///
/// # Errors
/// A URL that cannot be passed on to.
pub fn parse_web(text: &str) -> Result<Web, Complaint> {
    if text == "page" {
        return Ok(Web::Page);
    }
    if text.starts_with('/') {
        return Ok(Web::Directory(PathBuf::from(text)));
    }
    match text.parse::<ServiceUrl>() {
        Ok(url) if !url.is_https && url.target == "/" => {
            let host = HostPort { host: url.host, port: url.port };
            Ok(Web::Upstream(host.to_string()))
        }
        _ => Err(Complaint::new(
            format!("`{text}` is nothing to show to visitors"),
            "write \"page\", the path of a directory like \"/var/www/html\", or \"http://127.0.0.1:8080\"",
        )),
    }
}

/// The path of a URL.
///
/// # Errors
/// Anything else.
pub fn parse_stream_path(text: &str) -> Result<String, Complaint> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    if text.starts_with('/') && text.len() > 1 && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(Complaint::new(format!("`{text}` is not a path"), "write one like \"/tunnel\""))
}

/// The path of a file.
///
/// # Errors
/// It is not absolute.
pub fn parse_file(text: &str) -> Result<PathBuf, Complaint> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    Err(Complaint::new(format!("`{text}` is not the whole path of a file"), "begin it with a /"))
}

/// "pinned" (or "pin"), "webpki" or "off".
///
/// # Errors
/// Anything else.
pub fn parse_tls_verify(text: &str) -> Result<TlsVerify, Complaint> {
    choice(
        text,
        &[
            ("pinned", TlsVerify::Pin),
            ("pin", TlsVerify::Pin),
            ("webpki", TlsVerify::WebPki),
            ("off", TlsVerify::Off),
        ],
    )
}

/// `sha256:` and the hash of a public key in base64.
///
/// # Errors
/// Anything else.
pub fn parse_tls_pin(text: &str) -> Result<String, Complaint> {
    use base64::Engine;
    let hash = text.strip_prefix("sha256:").and_then(|it| base64::prelude::BASE64_STANDARD.decode(it).ok());
    if hash.is_some_and(|hash| hash.len() == 32) {
        return Ok(text.to_owned());
    }
    Err(Complaint::new(
        format!("`{text}` is not the pin of a certificate"),
        "copy it from what `adit peer export` prints: sha256: and 44 letters",
    ))
}

/// A name to ask for by TLS.
///
/// # Errors
/// Anything that is no DNS name.
pub fn parse_sni(text: &str) -> Result<String, Complaint> {
    if super::host_port::is_name(text) {
        return Ok(text.to_owned());
    }
    Err(Complaint::new(format!("`{text}` is not a host name"), "write one like \"www.example.org\""))
}

/// `http://[USER@]HOST:PORT`. The password is said elsewhere, and never on a command line.
///
/// # Errors
/// Anything else.
pub fn parse_via(text: &str) -> Result<Via, Complaint> {
    const FIX: &str =
        "write \"http://HOST:PORT\" or \"http://USER@HOST:PORT\"; the password is set by via_password";
    let complain = |reason: String| Complaint::new(reason, FIX);
    let rest = text
        .strip_prefix("http://")
        .ok_or_else(|| complain("a proxy is named by a URL that begins with http://".to_owned()))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            return Err(complain("a password does not belong into the URL, where others see it".to_owned()));
        }
        Some((user, place)) => (Some(user.to_owned()), place),
        None => (None, rest),
    };
    let proxy = place.parse().map_err(|_| complain(format!("`{place}` is not a host and a port")))?;
    Ok(Via { proxy, user, password: None })
}

/// `env:NAME` or `file:PATH`; what it stands for.
///
/// # Errors
/// Anything else, or nothing there.
pub fn parse_via_password(text: &str) -> Result<Zeroizing<String>, Complaint> {
    const FIX: &str = "write \"env:NAME\" or \"file:PATH\", so that the password is in no list of processes";
    let found = match (text.strip_prefix("env:"), text.strip_prefix("file:")) {
        (Some(name), _) => std::env::var(name).map_err(|_| format!("the variable {name} is not set")),
        (_, Some(path)) => {
            std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
        }
        _ => Err("a password cannot be written here".to_owned()),
    };
    let found = Zeroizing::new(found.map_err(|reason| Complaint::new(reason, FIX))?);
    Ok(Zeroizing::new(found.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen() {
        let at = |text: &str| StreamListen::At(text.parse().unwrap());
        for (text, expected) in [
            ("same", StreamListen::Same),
            ("off", StreamListen::Off),
            (":443", at("[::]:443")),
            ("443", at("[::]:443")),
            ("127.0.0.1:8443", at("127.0.0.1:8443")),
            ("[::1]:8443", at("[::1]:8443")),
        ] {
            assert_eq!(parse_stream_listen(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "on", ":0", ":70000", "127.0.0.1", "127.0.0.1:0", "example.org:443"] {
            assert!(parse_stream_listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn proxies_and_their_passwords() {
        let via = parse_via("http://me@proxy.example.org:3128/").unwrap();
        assert_eq!(
            (via.proxy.to_string().as_str(), via.user.as_deref()),
            ("proxy.example.org:3128", Some("me"))
        );
        assert!(parse_via("http://10.0.0.1:8080").unwrap().user.is_none());
        for wrong in ["proxy:3128", "https://proxy:3128", "http://me:secret@proxy:3128", "http://proxy"] {
            let complaint = format!("{:?}", parse_via(wrong).unwrap_err());
            assert!(!complaint.contains("secret"), "{complaint}");
        }
        let with = Via { password: Some(Zeroizing::new("secret".to_owned())), ..via };
        assert!(!format!("{with:?}").contains("secret"), "{with:?}");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        assert_eq!(parse_via_password(&format!("file:{}", file.display())).unwrap().as_str(), "secret");
        assert!(
            parse_via_password("secret").is_err() && parse_via_password("env:NO_SUCH_NAME_HERE").is_err()
        );
    }

    #[test]
    fn pins_and_pages() {
        let pin = "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(parse_tls_pin(pin).unwrap(), pin);
        for wrong in ["47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "sha256:aaaa", "sha1:aaaa"] {
            assert!(parse_tls_pin(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_web("http://127.0.0.1:8080").unwrap(), Web::Upstream("127.0.0.1:8080".to_owned()));
        assert_eq!(parse_web("/var/www").unwrap(), Web::Directory("/var/www".into()));
        for wrong in ["https://example.org", "http://127.0.0.1:8080/sub", "www"] {
            assert!(parse_web(wrong).is_err(), "{wrong}");
        }
        assert!(parse_stream_path("/a-b").is_ok() && parse_stream_path("a b").is_err());
    }
}
