//! One sentence about the protocol each, over seeds and both suites, on virtual time.

mod attack;
mod clock;
mod configuration;
mod cookie;
mod crowd;
mod determinism;
mod fuzz;
mod handshake;
mod limits;
mod network;
mod rekey;
mod restart;
mod roam;
mod timers;
mod traffic;
