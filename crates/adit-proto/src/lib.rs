//! The sans-IO protocol core of adit: WireGuard's protocol and its AES-256-GCM sibling over one state
//! machine.
//!
//! No clock, socket, thread or async lives here: time and randomness are arguments. The protocol has two
//! halves:
//!
//! - [`engine::Engine`] controls: peers, handshakes, cookies, timers. One thread, `&mut self`.
//! - [`forward::Forwarding`] carries data: routes, keypairs, replay windows. Every lane, `&self`.
//!
//! The engine is the only writer of what it publishes to the forwarding half, but for endpoints; lanes answer with
//! notices.

pub mod aead;
pub mod allowance;
pub mod allowed_ips;
pub mod content;
pub mod cookie;
pub mod endpoint;
pub mod engine;
pub mod event;
pub mod forward;
pub mod handshake;
pub mod icmp;
mod inbound;
pub mod index;
pub mod key;
pub mod keypair;
pub mod limit;
pub mod noise;
pub mod packet;
mod padding;
pub mod path;
mod peer;
pub mod pmtu;
pub mod reason;
pub mod replay;
pub mod schedule;
pub mod suite;
pub mod time;
pub mod timers;
pub mod unfinished;
pub mod wire;
