//! The edges of the tunnel: TUN devices, carriers and the few system calls the program needs.
//!
//! ```text
//!            inside                                                    outside
//!   Tun::read ──► Inside ──► Segmenter ──► (seal) ──► Transmit ──► Port::send
//!   Tun ◄── Coalescer::flush ◄── push ◄── (open in place) ◄── ReceiveBatch ◄── Port::receive
//! ```
//!
//! One lane owns one [`tun::Tun`] queue and one [`carrier::Port`], and sleeps in a [`poll::Poller`].
//! Nothing here allocates per packet once its buffers have grown to the size of a batch.
//! This is the only crate with `unsafe`: system calls, one dispatch on CPU features, and an allocator that counts for tests.

pub mod carrier;
pub mod counting;
pub mod memory;
pub mod poll;
pub mod sys;
pub mod tun;
