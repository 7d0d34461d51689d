//! A seeded world of hosts, links and NATs on virtual time, for the protocol's tests.
//!
//! ```text
//! Host ── Link ── [Nat] ──┐                        ┌── [Nat] ── Link ── Host
//!                         ├── the core: Eve looks ─┤
//! inject (an attacker) ───┘                        └── nobody
//! ```
//!
//! Every host runs the real [`adit_proto::engine::Engine`] and [`adit_proto::forward::Forwarding`]; the
//! world runs all of them on one thread. What happens depends on the seed alone: two runs of a seed have
//! the same [`trace::Trace::digest`].
//!
//! Rules that hold in every world are asserted while it runs: no probe is delivered twice, to the wrong
//! host or changed; no nonce is used twice; every packet ends delivered, noticed or dropped for one counted
//! reason; no timer spins. [`world::World::audit`] adds up where the probes went.

pub mod eve;
pub mod host;
pub mod link;
pub mod nat;
pub mod probe;
pub mod scenario;
pub mod topology;
pub mod trace;
pub mod world;
