//! When UDP is trusted again: after answers in a row, and later each time it has disappointed.

use std::time::Duration;

use tokio::time::Instant;

/// Between looks whether UDP works again.
const PAUSE_MIN: Duration = Duration::from_secs(3);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// UDP that has come and gone again and again is asked no more rarely than that.
const PAUSE_AFTER_RELAPSES: Duration = Duration::from_secs(240);
/// UDP that dies so soon after we came back to it is tried more rarely.
const RELAPSE: Duration = Duration::from_secs(60);
/// Answers in a row before it is trusted, and the time between.
const ANSWERS: u32 = 2;
const STEP: Duration = Duration::from_secs(1);

/// What is known of UDP while a connection carries the session.
#[derive(Debug)]
pub(super) struct WayBack {
    pause: Duration,
    next: Instant,
    asked: bool,
    answers: u32,
    returned: Option<Instant>,
}

impl WayBack {
    pub(super) fn new(now: Instant) -> Self {
        Self { pause: PAUSE_MIN, next: now, asked: false, answers: 0, returned: None }
    }

    /// A connection carries the session from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.asked, self.answers) = (false, 0);
        self.next = now + self.pause;
    }

    /// Whether UDP is to be asked now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        if self.asked {
            // The last question has had no answer: whatever there was before does not count.
            self.answers = 0;
            self.pause = (self.pause * 2).min(PAUSE_MAX.max(self.pause));
        }
        self.asked = true;
        self.next = now + self.pause;
        true
    }

    /// UDP has answered. Whether to move back to it.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        if !std::mem::take(&mut self.asked) {
            return false;
        }
        self.answers += 1;
        self.next = now + STEP;
        let is_good = self.answers >= ANSWERS;
        if is_good {
            self.returned = Some(now);
        }
        is_good
    }

    /// UDP has died below a session.
    pub(super) fn note_death(&mut self, now: Instant) {
        let relapsed = self.returned.take().is_some_and(|at| now.duration_since(at) < RELAPSE);
        self.pause = if relapsed { (self.pause * 2).min(PAUSE_AFTER_RELAPSES) } else { PAUSE_MIN };
    }

    /// What was learnt is of another network, or was the gateway's doing: it counts no more.
    pub(super) fn forget(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that a test moves on, and what it is about.
    struct Watched {
        now: Instant,
        way: WayBack,
    }

    impl Watched {
        fn new() -> Self {
            let now = Instant::now();
            let mut way = WayBack::new(now);
            way.begin(now);
            Self { now, way }
        }

        /// How many seconds it takes until UDP is asked.
        fn secs_until_due(&mut self) -> u64 {
            let mut secs = 0;
            while !self.way.is_due(self.now) {
                self.now += Duration::from_secs(1);
                secs += 1;
            }
            secs
        }

        fn answered(&mut self) -> bool {
            self.way.answered(self.now)
        }
    }

    #[test]
    fn two_answers_in_a_row_lead_back_to_udp_and_answers_far_apart_do_not() {
        let mut it = Watched::new();
        assert!(!it.answered(), "nobody has asked");
        assert_eq!(it.secs_until_due(), 3);
        assert!(!it.answered());
        assert_eq!(it.secs_until_due(), 1, "the second question follows at once");
        assert_eq!(it.secs_until_due(), 3, "it had no answer");
        assert!(!it.answered(), "so this is the first again");
        assert_eq!(it.secs_until_due(), 1);
        assert!(it.answered());
    }

    #[test]
    fn udp_that_stays_silent_is_asked_ever_more_rarely() {
        let mut it = Watched::new();
        let waits: Vec<u64> = (0..6).map(|_| it.secs_until_due()).collect();
        assert_eq!(waits, [3, 3, 6, 12, 24, 30]);
    }

    #[test]
    fn udp_that_comes_and_goes_is_trusted_later_each_time_and_another_network_forgets_that() {
        let mut it = Watched::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            it.way.begin(it.now);
            waits.push(it.secs_until_due());
            assert!(!it.answered());
            it.secs_until_due();
            assert!(it.answered());
            it.now += Duration::from_secs(10);
            it.way.note_death(it.now);
        }
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 192, 240]);
        it.way.forget(it.now);
        it.way.begin(it.now);
        assert_eq!(it.secs_until_due(), 3);
        assert!(!it.answered());
        it.secs_until_due();
        assert!(it.answered());
        it.now += RELAPSE;
        it.way.note_death(it.now);
        assert_eq!(it.way.pause, PAUSE_MIN, "it was good for a minute");
    }
}
