//! What is on its way, piece by piece, and what the other end has said of each (RFC 2018, RFC 8985).

use std::collections::VecDeque;

use super::segment::before;

/// Acknowledgements that say the same again mean, to who has no selective ones, that a segment was lost (RFC 5681).
const DUPLICATES: u32 = 3;
/// Pieces that room is kept for when none is under way.
const KEPT: usize = 64;

/// A segment that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) sequence: u32,
    /// In sequence numbers: the end of the stream takes one.
    pub(super) len: u32,
    /// It ends the stream.
    pub(super) last: bool,
    fate: Fate,
    again: bool,
    sent: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Flying,
    /// To be sent again.
    Lost,
    /// Arrived, as a selective acknowledgement says, while something before it has not.
    Reported,
}

/// How things stood when a piece was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    at: u64,
    delivered: u64,
    delivered_at: u64,
    first_sent_at: u64,
    limited: bool,
}

/// What an acknowledgement told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Bytes that are known to have arrived now.
    pub(super) delivered_bytes: usize,
    /// Bytes that are held for lost now.
    pub(super) lost_bytes: usize,
    pub(super) round_trip_micros: Option<u64>,
    pub(super) rate: Option<Rate>,
}

/// How fast things arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) bytes_per_second: u64,
    /// The sender had not more to send.
    pub(super) limited: bool,
    pub(super) interval_micros: u64,
    /// What had arrived when the piece was sent that this was measured with.
    pub(super) delivered_before: u64,
}

#[derive(Debug, Default)]
pub(super) struct Board {
    pieces: VecDeque<Piece>,
    flying: usize,
    lost: usize,
    reported: usize,
    /// Bytes that have ever arrived.
    delivered: u64,
    delivered_at: u64,
    first_sent_at: u64,
    /// Until so much has arrived, rates say what the sender had to send.
    limited_until: u64,
    /// The piece sent last of those that arrived: when, and its end.
    latest: Option<(u64, u32)>,
    latest_round_trip: u64,
    /// The end of the furthest piece that arrived.
    furthest: Option<u32>,
    /// The way has been seen to change the order.
    reorders: bool,
    duplicates: u32,
    /// Without selective acknowledgements: losses are looked for until this is acknowledged.
    recover_until: Option<u32>,
}

impl Board {
    /// Bytes under way.
    pub(super) fn flying(&self) -> usize {
        self.flying
    }

    /// Bytes to be sent again.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The sender has nothing to send beyond what is under way and so many bytes.
    pub(super) fn limit(&mut self, more: usize) {
        self.limited_until = (self.delivered + (self.flying + more) as u64).max(1);
    }

    pub(super) fn sent(&mut self, now: u64, sequence: u32, len: u32, last: bool) {
        let sent = self.stamp(now);
        self.flying += len as usize;
        self.pieces.push_back(Piece { sequence, len, last, fate: Fate::Flying, again: false, sent });
    }

    fn stamp(&mut self, now: u64) -> Stamp {
        if self.flying == 0 {
            (self.first_sent_at, self.delivered_at) = (now, now);
        }
        Stamp {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            limited: self.limited_until > self.delivered,
        }
    }

    /// The first piece to be sent again.
    pub(super) fn first_lost(&self) -> Option<usize> {
        if self.lost == 0 {
            return None;
        }
        self.pieces.iter().position(|piece| piece.fate == Fate::Lost)
    }

    /// The last piece that nothing was heard of.
    pub(super) fn last_flying(&self) -> Option<usize> {
        self.pieces.iter().rposition(|piece| piece.fate == Fate::Flying)
    }

    pub(super) fn piece(&self, at: usize) -> Option<Piece> {
        self.pieces.get(at).copied()
    }

    pub(super) fn sent_again(&mut self, now: u64, at: usize) {
        let sent = self.stamp(now);
        let Some(piece) = self.pieces.get_mut(at) else { return };
        if piece.fate == Fate::Lost {
            self.lost -= piece.len as usize;
            self.flying += piece.len as usize;
        }
        piece.fate = Fate::Flying;
        piece.again = true;
        piece.sent = sent;
    }

    /// Nothing was heard for long: all is to be sent again, also what was reported (RFC 2018 section 8).
    pub(super) fn lose_all(&mut self) {
        for piece in &mut self.pieces {
            piece.fate = Fate::Lost;
        }
        self.lost = self.pieces.iter().map(|piece| piece.len as usize).sum();
        (self.flying, self.reported) = (0, 0);
        (self.latest, self.duplicates, self.recover_until) = (None, 0, None);
    }

    /// Everything before `acknowledged` has arrived, and so have the blocks. `shortest_micros` is the shortest round trip
    /// so far.
    pub(super) fn acknowledge(
        &mut self,
        now: u64,
        acknowledged: u32,
        blocks: impl Iterator<Item = (u32, u32)>,
        shortest_micros: u64,
    ) -> Report {
        let mut report = Report::default();
        let mut newest = None;
        let before_all = self.delivered;
        while let Some(front) = self.pieces.front_mut() {
            if !before(front.sequence, acknowledged) {
                break;
            }
            let covered = acknowledged.wrapping_sub(front.sequence).min(front.len);
            let mut part = *front;
            part.len = covered;
            if covered == front.len {
                self.pieces.pop_front();
            } else {
                front.sequence = acknowledged;
                front.len -= covered;
            }
            self.arrived(&part, &mut newest);
            if part.fate == Fate::Reported {
                self.reported -= covered as usize;
            }
        }
        let start = self.pieces.front().map_or(acknowledged, |piece| piece.sequence);
        for (left, right) in blocks {
            // A block below the acknowledgement reports a duplicate (RFC 2883).
            if !before(acknowledged, left) || !before(left, right) {
                continue;
            }
            let offset = |number: u32| number.wrapping_sub(start);
            let first = self.pieces.partition_point(|piece| offset(piece.sequence) < offset(left));
            for at in first..self.pieces.len() {
                let Some(piece) = self.pieces.get_mut(at) else { break };
                if before(right, piece.sequence.wrapping_add(piece.len)) {
                    break;
                }
                if piece.fate != Fate::Reported {
                    let arrived = *piece;
                    piece.fate = Fate::Reported;
                    self.reported += arrived.len as usize;
                    self.arrived(&arrived, &mut newest);
                }
            }
        }
        if self.pieces.is_empty() && self.pieces.capacity() > KEPT {
            self.pieces = VecDeque::new();
        }
        report.delivered_bytes = usize::try_from(self.delivered - before_all).unwrap_or_default();
        let Some(newest) = newest else { return report };
        self.delivered_at = now;
        self.first_sent_at = newest.sent.at;
        let round_trip = now.saturating_sub(newest.sent.at).max(1);
        if !newest.again {
            report.round_trip_micros = Some(round_trip);
        }
        // One that was sent twice and is acknowledged too soon: the first has arrived.
        if !newest.again || round_trip >= shortest_micros {
            let end = newest.sequence.wrapping_add(newest.len);
            if self.latest.is_none_or(|latest| later((newest.sent.at, end), latest)) {
                self.latest = Some((newest.sent.at, end));
                self.latest_round_trip = round_trip;
            }
        }
        let sending = newest.sent.at.saturating_sub(newest.sent.first_sent_at);
        let interval_micros = sending.max(now.saturating_sub(newest.sent.delivered_at));
        let bytes = self.delivered - newest.sent.delivered;
        report.rate =
            bytes.saturating_mul(1_000_000).checked_div(interval_micros).map(|bytes_per_second| Rate {
                bytes_per_second,
                limited: newest.sent.limited,
                interval_micros,
                delivered_before: newest.sent.delivered,
            });
        report
    }

    fn arrived(&mut self, piece: &Piece, newest: &mut Option<Piece>) {
        let bytes = piece.len as usize;
        match piece.fate {
            Fate::Flying => self.flying -= bytes,
            Fate::Lost => self.lost -= bytes,
            Fate::Reported => return,
        }
        self.delivered += bytes as u64;
        let end = piece.sequence.wrapping_add(piece.len);
        match self.furthest {
            Some(furthest) if before(end, furthest) => self.reorders |= !piece.again,
            _ => self.furthest = Some(end),
        }
        let sent = |it: &Piece| (it.sent.at, it.sequence.wrapping_add(it.len));
        if newest.is_none_or(|newest| later(sent(piece), sent(&newest))) {
            *newest = Some(*piece);
        }
    }

    /// Holds for lost what was sent so long before something that arrived that it cannot come any more (RFC 8985 section
    /// 6.2). How much, and when to look again.
    pub(super) fn find_lost(&mut self, now: u64, shortest_micros: u64) -> (usize, Option<u64>) {
        let Some(latest) = self.latest else { return (0, None) };
        let settled = !self.reorders && (self.lost > 0 || self.reported >= 3 * self.front_len());
        let patience = if settled { 0 } else { shortest_micros / 4 };
        let (mut found, mut look_again) = (0, None);
        for piece in &mut self.pieces {
            let sent = (piece.sent.at, piece.sequence.wrapping_add(piece.len));
            if piece.fate != Fate::Flying || !later(latest, sent) {
                continue;
            }
            let due = piece.sent.at + self.latest_round_trip + patience;
            if due <= now {
                piece.fate = Fate::Lost;
                found += piece.len as usize;
            } else {
                look_again = Some(look_again.map_or(due, |at: u64| at.min(due)));
            }
        }
        self.flying -= found;
        self.lost += found;
        (found, look_again)
    }

    fn front_len(&self) -> usize {
        self.pieces.front().map_or(1, |piece| piece.len as usize)
    }

    /// The same for who has no selective acknowledgements (RFC 6582): what the front is, when three say the same again, and
    /// each time that only a part of what was sent before is acknowledged.
    pub(super) fn find_front_lost(&mut self, acknowledged: u32, advanced: bool) -> usize {
        let next = self.pieces.back().map_or(acknowledged, |piece| piece.sequence.wrapping_add(piece.len));
        if !advanced {
            self.duplicates += 1;
            if self.duplicates != DUPLICATES || self.recover_until.is_some() {
                return 0;
            }
            self.recover_until = Some(next);
        } else {
            self.duplicates = 0;
            match self.recover_until {
                Some(until) if before(acknowledged, until) => {}
                _ => {
                    self.recover_until = None;
                    return 0;
                }
            }
        }
        let Some(front) = self.pieces.front_mut().filter(|front| front.fate == Fate::Flying) else {
            return 0;
        };
        front.fate = Fate::Lost;
        let bytes = front.len as usize;
        self.flying -= bytes;
        self.lost += bytes;
        bytes
    }
}

/// Whether the first was sent after the second.
fn later((a, a_end): (u64, u32), (b, b_end): (u64, u32)) -> bool {
    a > b || (a == b && before(b_end, a_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten pieces of 100 bytes from the very end of the numbers, one each millisecond.
    fn board() -> (Board, impl Fn(u32) -> u32) {
        let start = |piece: u32| (u32::MAX - 250).wrapping_add(piece * 100);
        let mut board = Board::default();
        for piece in 0..10 {
            board.sent(u64::from(piece) * 1_000, start(piece), 100, false);
        }
        (board, start)
    }

    fn acknowledge(board: &mut Board, now: u64, to: u32, blocks: &[(u32, u32)]) -> Report {
        board.acknowledge(now, to, blocks.iter().copied(), 20_000)
    }

    #[test]
    fn what_was_sent_before_something_that_arrived_is_lost_after_a_little_patience() {
        let (mut board, at) = board();
        let report = acknowledge(&mut board, 20_000, at(1), &[]);
        assert_eq!((report.delivered_bytes, report.round_trip_micros), (100, Some(20_000)));
        let report = acknowledge(&mut board, 22_000, at(1), &[(at(2), at(3))]);
        assert_eq!(report.delivered_bytes, 100);
        assert_eq!(board.find_lost(22_000, 20_000), (0, Some(26_000)), "it may have been overtaken");
        assert_eq!(board.find_lost(26_000, 20_000).0, 100);
        assert_eq!((board.flying(), board.lost(), board.first_lost()), (700, 100, Some(0)));
        board.sent_again(26_000, 0);
        assert_eq!((board.flying(), board.lost()), (800, 0));
        let report = acknowledge(&mut board, 46_000, at(10), &[]);
        assert_eq!((report.delivered_bytes, board.is_empty(), board.flying()), (800, true, 0));
    }

    #[test]
    fn three_pieces_beyond_a_hole_are_proof_where_the_order_is_kept() {
        let (mut board, at) = board();
        acknowledge(&mut board, 24_000, at(1), &[(at(2), at(5))]);
        assert_eq!(board.find_lost(24_000, 20_000).0, 100);
        assert_eq!(board.find_lost(24_000, 20_000).0, 0, "once");
    }

    #[test]
    fn a_way_that_changes_the_order_is_given_time() {
        let (mut board, at) = board();
        acknowledge(&mut board, 22_000, at(0), &[(at(2), at(3))]);
        acknowledge(&mut board, 22_500, at(3), &[]);
        acknowledge(&mut board, 29_000, at(3), &[(at(4), at(8))]);
        assert_eq!(board.find_lost(29_000, 20_000).0, 0);
    }

    #[test]
    fn a_piece_lost_twice_is_found_lost_twice() {
        let (mut board, at) = board();
        acknowledge(&mut board, 24_000, at(1), &[(at(2), at(5))]);
        board.find_lost(24_000, 20_000);
        board.sent_again(24_000, board.first_lost().unwrap());
        board.sent(25_000, at(10), 100, false);
        acknowledge(&mut board, 45_000, at(1), &[(at(2), at(11))]);
        assert_eq!(board.find_lost(45_000, 20_000).0, 100);
    }

    #[test]
    fn blocks_that_lie_change_nothing() {
        let (mut board, at) = board();
        let lies =
            [(at(0), at(0)), (at(5), at(4)), (at(20), at(30)), (at(0).wrapping_sub(500), at(0)), (7, 9)];
        let report = acknowledge(&mut board, 20_000, at(0), &lies);
        assert_eq!((report.delivered_bytes, board.flying()), (0, 1_000));
        // A part of a piece is no piece.
        let report = acknowledge(&mut board, 20_000, at(0), &[(at(2) + 1, at(3))]);
        assert_eq!(report.delivered_bytes, 0);
        let report = acknowledge(&mut board, 20_000, at(0).wrapping_add(30), &[]);
        assert_eq!((report.delivered_bytes, board.flying()), (30, 970));
    }

    #[test]
    fn without_selective_acknowledgements_three_repetitions_are_a_loss_and_each_part_another() {
        let (mut board, at) = board();
        assert_eq!(board.find_front_lost(at(0), false) + board.find_front_lost(at(0), false), 0);
        assert_eq!(board.find_front_lost(at(0), false), 100);
        assert_eq!(board.find_front_lost(at(0), false), 0, "once");
        board.sent_again(30_000, 0);
        acknowledge(&mut board, 50_000, at(4), &[]);
        assert_eq!(board.find_front_lost(at(4), true), 100);
        board.sent_again(50_000, 0);
        acknowledge(&mut board, 70_000, at(10), &[]);
        assert_eq!(board.find_front_lost(at(10), true), 0);
        assert!(board.is_empty());
    }

    #[test]
    fn rates_are_measured_over_a_round_trip() {
        let mut board = Board::default();
        for number in 0..100 {
            board.sent(1_000 * u64::from(number), 1_000 * number, 1_000, false);
            if number >= 20 {
                let report = acknowledge(&mut board, 1_000 * u64::from(number), 1_000 * (number - 19), &[]);
                if number > 60 {
                    let rate = report.rate.unwrap();
                    assert!((900_000..1_100_000).contains(&rate.bytes_per_second), "{rate:?}");
                }
            }
        }
    }
}
