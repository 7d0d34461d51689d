//! Messages over TCP, TLS and WebSocket: the gateway's door, and a client's links through it.
//!
//! ```text
//!   client   dial ─ link: TCP (through a proxy) ─ TLS ─ WebSocket ─┐
//!   gateway  door: accept ─ first byte ─ TLS ─ HTTP ─ first message ─┴─▶ Streams ─▶ lane
//!                                └─ anybody else: a plain web page
//! ```
//!
//! Everything until a connection is proven runs on one thread per process, apart from the packets. TLS and WebSocket are
//! there to get through networks; what they carry is protected by the sessions of the peers, as over UDP.

mod certificate;
mod door;
mod greeting;
mod http;
#[cfg(test)]
mod layer_tests;
mod link;
mod lobby;
mod recognition;
mod trust;
mod visitor;

use adit_proto::key::PublicKey;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

pub use self::certificate::{Certificate, pin_of};
pub use self::door::{Door, DoorPlan};
pub use self::link::{Link, LinkError, Proxy, Way, connect};
pub use self::lobby::Place;
pub use self::recognition::{GivenPin, Recognition};

const PIN_PREFIX: &str = "sha256:";

/// A pin as profiles have it.
pub fn pin_text(pin: &[u8]) -> String {
    format!("{PIN_PREFIX}{}", BASE64_STANDARD.encode(pin))
}

/// Where the WebSocket is on a gateway's web server: a place that only those find who know the gateway's key.
pub fn usual_path(gateway: &PublicKey) -> String {
    let hash = Sha256::new_with_prefix(b"adit stream path").chain_update(gateway.0).finalize();
    hash.iter().take(8).fold(String::from("/"), |path, byte| format!("{path}{byte:02x}"))
}

/// The provider of everything TLS; key exchange with a post-quantum half comes first.
fn provider() -> std::sync::Arc<tokio_rustls::rustls::crypto::CryptoProvider> {
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    std::sync::Arc::new(aws_lc_rs::default_provider())
}

const ALPN: &[u8] = b"http/1.1";
