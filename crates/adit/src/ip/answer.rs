//! What a service says, in whichever format it says it.

use std::net::IpAddr;

use serde_json::Value;

use super::Family;
use crate::config::diagnostic::escape;

/// Keys under which services put the address.
const KEYS: [&str; 5] = ["ip", "origin", "query", "address", "ip_addr"];

/// The one public address of `family` in an answer: alone on a line, after `ip=` on one of several lines, as a JSON
/// string, or in a JSON object. Of several in a list (`{"origin": "a, b"}`) the first public one counts: proxies add
/// to it.
///
/// # Errors
/// There is none; the text is for people.
pub(super) fn address_in(body: &[u8], family: Family) -> Result<IpAddr, String> {
    let text =
        std::str::from_utf8(body).map_err(|_| "it answered with something that is no text".to_owned())?;
    let text = text.trim();
    let said = match serde_json::from_str::<Value>(text) {
        Ok(Value::String(said)) => Some(said),
        Ok(Value::Object(object)) => {
            KEYS.iter().find_map(|key| object.get(*key)?.as_str().map(str::to_owned))
        }
        Ok(_) => None,
        Err(_) => text.lines().find_map(|line| line.strip_prefix("ip=")).or(Some(text)).map(str::to_owned),
    };
    let said = said.ok_or_else(|| format!("it answered with no address: {}", glance(text)))?;
    let addresses: Option<Vec<IpAddr>> = said.split(',').map(|part| part.trim().parse().ok()).collect();
    let addresses = addresses.ok_or_else(|| format!("it answered with no address: {}", glance(text)))?;
    let public = addresses.iter().map(IpAddr::to_canonical).find(|address| is_public(*address));
    let Some(address) = public else {
        return Err(format!("it answered with {}, which nobody has on the internet", glance(&said)));
    };
    if Family::of(address) == family {
        Ok(address)
    } else {
        Err(format!("it was asked over {family} and answered with {address}"))
    }
}

fn glance(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    let short: String = text.chars().take(CHARS_MAX).collect();
    let more = if text.chars().count() > CHARS_MAX { "…" } else { "" };
    if short.is_empty() { "nothing at all".to_owned() } else { format!("`{}{more}`", escape(&short)) }
}

/// Whether a host on the internet may have the address. Those of documentation count: nobody has them either, but
/// manuals and laboratories play the internet with them.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            let is_reserved = a == 0 || a >= 224;
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_shared || is_reserved)
        }
        IpAddr::V6(v6) => {
            let in_use = v6.segments()[0] & 0xe000 == 0x2000;
            in_use && v6.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(body: &str) -> Result<IpAddr, String> {
        address_in(body.as_bytes(), Family::V4)
    }

    #[test]
    fn every_format_of_the_usual_services_is_read() {
        for body in [
            "203.0.113.9",
            "203.0.113.9\n",
            r#"{"ip":"203.0.113.9"}"#,
            "{\n  \"origin\": \"203.0.113.9\"\n}\n",
            r#"{"origin": "203.0.113.9, 198.51.100.7"}"#,
            r#"{"origin": "10.0.0.8, 203.0.113.9"}"#,
            r#"{"ip": "203.0.113.9", "hostname": "a.example", "city": "X", "loc": "1,2", "org": "AS1"}"#,
            r#"{"ip":"203.0.113.9","ip_decimal":3405803785,"country":"X"}"#,
            r#"{"status":"success","query":"203.0.113.9"}"#,
            "\"203.0.113.9\"",
            "fl=1\nh=example.org\nip=203.0.113.9\nts=1\n",
            "::ffff:203.0.113.9",
        ] {
            assert_eq!(v4(body).unwrap().to_string(), "203.0.113.9", "{body}");
        }
        for body in ["2001:db8::9\n", r#"{"ip":"2001:db8::9"}"#] {
            assert_eq!(address_in(body.as_bytes(), Family::V6).unwrap().to_string(), "2001:db8::9");
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for body in [
            "",
            "\n",
            "hello",
            "<html>203.0.113.9</html>",
            "203.0.113",
            "203.0.113.9 and more",
            "203.0.113.9:80",
            "{}",
            "[]",
            "null",
            "12",
            r#"{"ip":7}"#,
            r#"{"ip":null}"#,
            r#"{"ip":""}"#,
            r#"{"other":"203.0.113.9"}"#,
            r#"{"ip":"203.0.113.9""#,
            r#"{"origin":"203.0.113.9, unknown"}"#,
            "\u{1b}[2J",
        ] {
            let reason = v4(body).expect_err(body);
            assert!(reason.contains("no address") && !reason.contains('\u{1b}'), "{body}: {reason}");
        }
        assert!(address_in(&[0xff, 0xfe], Family::V4).unwrap_err().contains("no text"));
    }

    #[test]
    fn an_address_that_nobody_has_on_the_internet_is_refused() {
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::1",
        ] {
            let family = if address.contains(':') { Family::V6 } else { Family::V4 };
            let reason = address_in(address.as_bytes(), family).expect_err(address);
            assert!(reason.contains("nobody has"), "{address}: {reason}");
        }
        for address in
            ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.32.0.1", "223.255.255.1", "2a00::1", "3fff::1"]
        {
            let family = if address.contains(':') { Family::V6 } else { Family::V4 };
            assert_eq!(address_in(address.as_bytes(), family).unwrap().to_string(), address);
        }
    }

    #[test]
    fn an_answer_of_the_other_family_is_refused() {
        assert!(address_in(b"203.0.113.9", Family::V6).unwrap_err().contains("over IPv6"));
        assert!(address_in(b"2001:db8::9", Family::V4).unwrap_err().contains("over IPv4"));
    }

    #[test]
    fn a_long_answer_is_quoted_in_short() {
        assert!(v4(&"x".repeat(4000)).unwrap_err().len() < 100);
    }
}
