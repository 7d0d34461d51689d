//! Fuzz harnesses: each takes any bytes, and panics when a promise is broken.
//!
//! The same functions run in three ways: `tests/replay.rs` runs the committed corpus and mutations of
//! it in every test run, `cargo xtask fuzz` mutates for as long as one likes, and the targets in
//! `libfuzzer/` add coverage guidance where cargo-fuzz and a nightly compiler are at hand.

pub mod config;
pub mod corpus;
pub mod datagram;
pub mod inside;
pub mod mutation;
pub mod session;
pub mod stream;
pub mod superpacket;
pub mod uapi;
pub mod wgquick;

/// A harness and its name, which is also the name of its corpus.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// The harness.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "config", run: config::run },
    Target { name: "datagram", run: datagram::run },
    Target { name: "inside", run: inside::run },
    Target { name: "session", run: session::run },
    Target { name: "stream", run: stream::run },
    Target { name: "superpacket", run: superpacket::run },
    Target { name: "uapi", run: uapi::run },
    Target { name: "wgquick", run: wgquick::run },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
