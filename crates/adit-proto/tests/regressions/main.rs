//! Faults that other implementations shipped, one test or a few for each, named after the entry in our
//! list of them (R01 and on). Where two implementations had the same fault it is one entry.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod data;
mod flood;
mod handshake;
mod liveness;
mod nonces;
mod races;
