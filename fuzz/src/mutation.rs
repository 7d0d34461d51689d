//! Seeded mutation of inputs, for fuzzing without coverage guidance.

/// A small generator (xorshift64*): the same seed gives the same inputs on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const INTERESTING: &[u8] =
    &[0, 1, 2, 3, 4, 0x0f, 0x10, 0x20, 0x21, 0x24, 0x40, 0x45, 0x60, 0x7f, 0x80, 0xfe, 0xff];

const MAX_LEN: usize = 70_000;

impl Rng {
    /// A generator; a seed of zero is replaced because it would only give zeros.
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() >> 33) as usize % bound.max(1)
    }
}

/// Changes `input` a little; `other` is an input to take pieces from.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(input.len());
        match rng.below(9) {
            0 | 1 => change(input, at, |byte| *byte ^= 1 << rng.below(8)),
            2 => change(input, at, |byte| *byte = rng.next_u64() as u8),
            3 => change(input, at, |byte| *byte = INTERESTING[rng.below(INTERESTING.len())]),
            4 => input.truncate(at),
            5 => input.insert(at, rng.next_u64() as u8),
            6 => {
                let len = rng.below(16).min(input.len() - at);
                input.drain(at..at + len);
            }
            7 => {
                let from = rng.below(other.len());
                let len = (1 + rng.below(64)).min(other.len() - from);
                input.splice(at..at, other[from..from + len].iter().copied());
            }
            _ => {
                let start = at - at % 4;
                let len = rng.below(5).min(input.len() - start);
                input[start..start + len].fill(INTERESTING[rng.below(INTERESTING.len())]);
            }
        }
    }
    input.truncate(MAX_LEN);
}

fn change(input: &mut [u8], at: usize, edit: impl FnOnce(&mut u8)) {
    if let Some(byte) = input.get_mut(at) {
        edit(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let inputs = |seed| {
            let mut rng = Rng::new(seed);
            let mut input = b"some input".to_vec();
            for _ in 0..100 {
                mutate(&mut rng, &mut input, b"another one");
            }
            input
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn empty_inputs_can_be_mutated_and_grow() {
        let mut rng = Rng::new(1);
        let grew = (0..200).any(|_| {
            let mut input = Vec::new();
            mutate(&mut rng, &mut input, &[]);
            !input.is_empty()
        });
        assert!(grew);
    }
}
