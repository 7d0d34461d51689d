//! The small choices of the configuration: each has one spelling.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use adit_proto::suite::Suite;

use super::diagnostic::{Complaint, did_you_mean};
use crate::events::EventLevel;
use crate::log::LogFormat;

/// The MTU of the tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mtu {
    /// The MTU of the route to the other side, less what the tunnel adds.
    #[default]
    Auto,
    /// So many bytes, 576 to 65535.
    Bytes(u16),
}

/// The resolver that a gateway offers at its inside addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum GatewayDns {
    /// None.
    #[default]
    Off,
    /// It asks the servers of the host.
    Gateway,
    /// It asks these.
    Servers(Vec<IpAddr>),
}

impl GatewayDns {
    /// One word, or addresses.
    ///
    /// # Errors
    /// Both at once, or neither.
    pub fn from_words(words: &[String]) -> Result<Self, Complaint> {
        match words {
            [] => Ok(Self::Off),
            [word] if word == "off" => Ok(Self::Off),
            [word] if word == "gateway" => Ok(Self::Gateway),
            addresses => {
                let parsed: Result<Vec<IpAddr>, _> = addresses.iter().map(|text| text.parse()).collect();
                parsed.map(Self::Servers).map_err(|_| {
                    Complaint::new(
                        format!("`{}` names no resolver", addresses.join(" ")),
                        "write \"gateway\", \"off\", or the addresses of DNS servers: [\"9.9.9.9\", \"2620:fe::fe\"]",
                    )
                })
            }
        }
    }
}

/// How many lanes (threads, each with a queue of the device and a socket) carry packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lanes {
    /// One per core, as far as it helps.
    #[default]
    Auto,
    /// Exactly so many, 1 to 64.
    Count(NonZeroU16),
}

/// Whether segmentation and checksum offloads of the kernel are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Offload {
    /// As far as the kernel has them.
    #[default]
    Auto,
    /// Never; slower, for kernels and cards that get them wrong.
    Off,
}

/// "auto", or bytes from 576 to 65535.
///
/// # Errors
/// Anything else.
pub fn parse_mtu(text: &str) -> Result<Mtu, Complaint> {
    match number(text) {
        Some(bytes @ 576..=65535) => Ok(Mtu::Bytes(bytes as u16)),
        None if text == "auto" => Ok(Mtu::Auto),
        _ => Err(Complaint::new(
            format!("`{text}` is not an MTU"),
            "write \"auto\" or a number of bytes from 576 to 65535, for example 1420",
        )),
    }
}

/// "auto", or a number from 1 to 64.
///
/// # Errors
/// Anything else.
pub fn parse_lanes(text: &str) -> Result<Lanes, Complaint> {
    let count = number(text).filter(|count| *count <= 64).and_then(|count| NonZeroU16::new(count as u16));
    match count {
        Some(count) => Ok(Lanes::Count(count)),
        None if text == "auto" => Ok(Lanes::Auto),
        None => Err(Complaint::new(
            format!("`{text}` is not a number of lanes"),
            "write \"auto\" or a number from 1 to 64",
        )),
    }
}

/// "auto" or "off".
///
/// # Errors
/// Anything else.
pub fn parse_offload(text: &str) -> Result<Offload, Complaint> {
    choice(text, &[("auto", Offload::Auto), ("off", Offload::Off)])
}

/// A port, or "off".
///
/// # Errors
/// Anything else.
pub fn parse_inside_api(text: &str) -> Result<Option<NonZeroU16>, Complaint> {
    let port = number(text).and_then(|port| u16::try_from(port).ok()).and_then(NonZeroU16::new);
    match port {
        Some(port) => Ok(Some(port)),
        None if text == "off" => Ok(None),
        None => Err(Complaint::new(
            format!("`{text}` is not a port for the inside API"),
            "write a port from 1 to 65535, for example 9585, or \"off\"",
        )),
    }
}

/// An address with a port, or "off".
///
/// # Errors
/// Anything else.
pub fn parse_metrics(text: &str) -> Result<Option<SocketAddr>, Complaint> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        _ if text == "off" => Ok(None),
        _ => Err(Complaint::new(
            format!("`{text}` is not an address with a port"),
            "write it like \"127.0.0.1:9586\" or \"[::1]:9586\", or \"off\"",
        )),
    }
}

/// The mark on outside packets, decimal or hexadecimal; "off" is 0, no mark.
///
/// # Errors
/// Anything else.
pub fn parse_fwmark(text: &str) -> Result<u32, Complaint> {
    let mark = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if text == "off" => Some(0),
        None => number(text),
    };
    mark.ok_or_else(|| {
        Complaint::new(
            format!("`{text}` is not a firewall mark"),
            "write \"off\", a number up to 4294967295, or hexadecimal like 0xca6c",
        )
    })
}

/// Seconds between persistent keepalives; "off" is 0.
///
/// # Errors
/// Anything else.
pub fn parse_keepalive(text: &str) -> Result<u16, Complaint> {
    match number(text) {
        Some(secs @ 0..=65535) => Ok(secs as u16),
        None if text == "off" => Ok(0),
        _ => Err(Complaint::new(
            format!("`{text}` is not a keepalive interval"),
            "write \"off\" or seconds from 0 to 65535, for example 25",
        )),
    }
}

/// "true" or "false".
///
/// # Errors
/// Anything else.
pub fn parse_switch(text: &str) -> Result<bool, Complaint> {
    choice(text, &[("true", true), ("false", false)])
}

/// The suite of that name.
///
/// # Errors
/// Names the known suites.
pub fn parse_suite(text: &str) -> Result<Suite, Complaint> {
    choice(text, &Suite::ALL.map(|suite| (suite.name(), suite)))
}

/// A level of `tracing`; "off" is `None`.
///
/// # Errors
/// Names the levels.
pub fn parse_log_level(text: &str) -> Result<Option<tracing::Level>, Complaint> {
    use tracing::Level;
    choice(
        text,
        &[
            ("off", None),
            ("error", Some(Level::ERROR)),
            ("warn", Some(Level::WARN)),
            ("info", Some(Level::INFO)),
            ("debug", Some(Level::DEBUG)),
            ("trace", Some(Level::TRACE)),
        ],
    )
}

/// "off" or "events".
///
/// # Errors
/// Anything else.
pub fn parse_event_level(text: &str) -> Result<EventLevel, Complaint> {
    choice(text, &[("off", EventLevel::Off), ("events", EventLevel::Events)])
}

/// The size of a full log file in MiB, 1 to 10240.
///
/// # Errors
/// Anything else.
pub fn parse_rotate_mib(text: &str) -> Result<u64, Complaint> {
    number(text).filter(|mib| (1..=10_240).contains(mib)).map(|mib| u64::from(mib) << 20).ok_or_else(|| {
        Complaint::new(
            format!("`{text}` is not the size of a log file"),
            "write a number of MiB from 1 to 10240",
        )
    })
}

/// How many full log files are kept, 0 to 100.
///
/// # Errors
/// Anything else.
pub fn parse_rotate_keep(text: &str) -> Result<u32, Complaint> {
    number(text).filter(|count| *count <= 100).ok_or_else(|| {
        Complaint::new(format!("`{text}` is not a number of log files"), "write a number from 0 to 100")
    })
}

/// "text" or "json".
///
/// # Errors
/// Anything else.
pub fn parse_log_format(text: &str) -> Result<LogFormat, Complaint> {
    choice(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

/// A decimal number without sign or space.
pub(super) fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// One of a few words.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Complaint> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let names = names.join(" or ");
    let fix = match did_you_mean(text, choices.iter().map(|(name, _)| *name)) {
        Some(word) => format!("did you mean \"{word}\"? (it is {names})"),
        None => format!("write {names}"),
    };
    Err(Complaint::new(format!("`{text}` is not a choice here"), fix))
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_ranges_and_no_signs() {
        assert_eq!(parse_mtu("1420"), Ok(Mtu::Bytes(1420)));
        assert_eq!(parse_mtu("auto"), Ok(Mtu::Auto));
        for bad in ["575", "65536", "-1", "+1420", " 1420", "0x500", "", "99999999999999999999"] {
            assert!(parse_mtu(bad).is_err(), "{bad:?}");
        }
        assert!(parse_lanes("0").is_err() && parse_lanes("65").is_err() && parse_lanes("64").is_ok());
        assert_eq!(parse_keepalive("off"), Ok(0));
        assert_eq!(parse_keepalive("65535"), Ok(65535));
        assert!(parse_keepalive("65536").is_err());
    }

    #[test]
    fn marks_are_decimal_hexadecimal_or_off() {
        assert_eq!(parse_fwmark("off"), Ok(0));
        assert_eq!(parse_fwmark("51820"), Ok(51820));
        assert_eq!(parse_fwmark("0xCA6C"), Ok(51820));
        assert_eq!(parse_fwmark("4294967295"), Ok(u32::MAX));
        for bad in ["0x", "0x100000000", "4294967296", "0x+1", "-1", "on"] {
            assert!(parse_fwmark(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_slip_in_a_choice_is_answered_with_the_choice() {
        let complaint = parse_suite("aes-256-gmc").unwrap_err();
        assert!(complaint.fix.starts_with("did you mean \"aes-256-gcm\"?"), "{complaint}");
        assert_eq!(parse_suite("aes-256-gcm"), Ok(Suite::Aes256Gcm));
    }
}
