//! The datagrams a lane has sealed and not yet sent.

use std::sync::Arc;

use adit_io::carrier::{Port, SendReport, Transmit};
use adit_io::tun::Inside;
use adit_proto::endpoint::Endpoint;
use adit_proto::event::Notice;
use adit_proto::forward::Forwarding;
use adit_proto::keypair::{Keypair, blocks_of};
use adit_proto::packet::Ecn;
use adit_proto::path::Path;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::time::Instant;
use adit_proto::unfinished;

/// Header and tag of a message.
const OVERHEAD: usize = 32;
const HEADER: usize = 16;
/// The batch is sent when it holds this much: a few of the largest runs the kernel takes in one call.
const FULL: usize = 256 * 1024;
/// Room for one more superpacket with the headers and overhead of its segments, at the smallest segment size that Linux
/// accepts for TCP (48 bytes with options).
const SLACK: usize = 256 * 1024;
/// The kernel segments at most this many datagrams of one run (UDP_MAX_SEGMENTS before Linux 6.9).
const MAX_RUN: usize = 64;
/// The largest UDP payload over IPv4.
const MAX_RUN_BYTES: usize = 65_507;

/// Sealed datagrams, back to back, in runs that one call can send.
pub(super) struct Outgoing {
    bytes: Box<[u8]>,
    len: usize,
    runs: Vec<Run>,
}

/// Datagrams of equal size to one endpoint, the last perhaps shorter.
struct Run {
    path: Arc<Path>,
    endpoint: Endpoint,
    ecn: Ecn,
    hop_limit: Option<u8>,
    segment_size: usize,
    count: usize,
    start: usize,
    end: usize,
    /// A shorter datagram ended it.
    closed: bool,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; FULL + SLACK].into(), len: 0, runs: Vec::with_capacity(64) }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= FULL
    }

    /// Free space for a packet that is not to be sent now.
    pub(super) fn scratch(&mut self, len: usize) -> &mut [u8] {
        self.bytes.get_mut(self.len..self.len + len).unwrap_or_default()
    }

    /// Seals each packet of `inside` to its place on the wire.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn seal(
        &mut self,
        now: Instant,
        forwarding: &Forwarding,
        keypair: &Arc<Keypair>,
        endpoint: &Endpoint,
        inside: &Inside,
        buffer: &[u8],
        notices: &mut Vec<Notice>,
    ) {
        // Only adit speaks this suite, and knows what to do with a checksum that is left to it.
        let unfinished = match keypair.suite {
            Suite::Aes256Gcm => inside.unfinished_segments(buffer),
            Suite::ChaCha20Poly1305 => None,
        };
        let leaves_checksums = unfinished.is_some();
        let mut segments = unfinished.unwrap_or_else(|| inside.segments(buffer));
        let count = segments.count();
        let padding = forwarding.padding();
        let padded = padding.padded_len(segments.stride());
        let worst = count * (padded + OVERHEAD);
        if self.len + worst > self.bytes.len() {
            forwarding.drops.add(DropReason::TooBig, count as u64);
            return;
        }
        let Some(first) = keypair.reserve(count as u64, count as u64 * blocks_of(padded)) else {
            forwarding.drops.add(DropReason::KeyExhausted, count as u64);
            if keypair.rekey_after_sending(now) {
                notices.push(Notice::Rekey(Arc::clone(keypair)));
            }
            return;
        };
        let ecn = inside.header().ecn;
        let hop_limit = inside.header().outside_hop_limit().flatten();
        let before = self.len;
        let mut same_way = self.runs.last().is_some_and(|run| {
            run.ecn == ecn
                && run.hop_limit == hop_limit
                && run.endpoint == *endpoint
                && Arc::ptr_eq(&run.path, &keypair.path)
        });
        for counter in (first..).take(count) {
            let message = &mut self.bytes[self.len..];
            let Some(len) = segments.next(&mut message[HEADER..]) else { break };
            if leaves_checksums {
                unfinished::mark(&mut message[HEADER..HEADER + len]);
            }
            let padded = padding.padded_len(len);
            message[HEADER + len..HEADER + padded].fill(0);
            if keypair.seal(counter, &mut message[..padded + OVERHEAD]).is_none() {
                forwarding.drops.count(DropReason::KeyExhausted);
                continue;
            }
            let len = padded + OVERHEAD;
            if !(same_way && self.append(len)) {
                self.runs.push(Run {
                    path: Arc::clone(&keypair.path),
                    endpoint: *endpoint,
                    ecn,
                    hop_limit,
                    segment_size: len,
                    count: 1,
                    start: self.len,
                    end: self.len + len,
                    closed: false,
                });
                same_way = true;
            }
            self.len += len;
        }
        forwarding.sent(now, keypair, count as u64, (self.len - before) as u64, notices);
    }

    /// Takes the `len` bytes just written into the last run, if they fit.
    fn append(&mut self, len: usize) -> bool {
        let Some(run) = self.runs.last_mut() else { return false };
        let fits = !run.closed
            && len <= run.segment_size
            && run.count < MAX_RUN
            && run.end - run.start + len <= MAX_RUN_BYTES;
        if fits {
            run.count += 1;
            run.end += len;
            run.closed = len < run.segment_size;
        }
        fits
    }

    /// Sends everything and starts anew.
    pub(super) fn send(&mut self, port: &mut Port, forwarding: &Forwarding) {
        for runs in self.runs.chunks(TRANSMITS) {
            let transmits: [Transmit<'_>; TRANSMITS] = std::array::from_fn(|i| {
                let run = &runs[i.min(runs.len() - 1)];
                Transmit {
                    endpoint: &run.endpoint,
                    ecn: run.ecn,
                    hop_limit: run.hop_limit,
                    segment_size: run.segment_size,
                    contents: &self.bytes[run.start..run.end],
                }
            });
            let report = port.send(&transmits[..runs.len()]);
            count_drops(&report, forwarding);
            for &stale in port.stale_sources() {
                if let Some(run) = runs.get(stale) {
                    run.path.forget_source(&run.endpoint);
                }
            }
        }
        self.runs.clear();
        self.len = 0;
    }
}

/// Runs handed to the port at once.
const TRANSMITS: usize = 16;

pub(super) fn count_drops(report: &SendReport, forwarding: &Forwarding) {
    for (reason, packets) in report.drops() {
        if packets > 0 {
            forwarding.drops.add(reason, packets);
        }
    }
}
