use sha2::{Digest, Sha256};

/// A file that a seed determines: incompressible, of any length, readable from any offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub seed: u64,
    pub bytes: u64,
}

const WORD: u64 = 8;

impl Content {
    /// Fills `buffer` with the bytes from `offset` on and returns how many there were.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let length = self.bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut at = offset;
        let mut filled = 0;
        while filled < length {
            let word = scrambled(self.seed, at / WORD).to_le_bytes();
            let skip = (at % WORD) as usize;
            let take = (word.len() - skip).min(length - filled);
            buffer[filled..filled + take].copy_from_slice(&word[skip..skip + take]);
            filled += take;
            at += take as u64;
        }
        length
    }

    /// The SHA-256 of the whole file, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 65_536];
        let mut offset = 0;
        while let length @ 1.. = self.read_at(offset, &mut buffer) {
            hash.update(&buffer[..length]);
            offset += length as u64;
        }
        hexadecimal(&hash.finalize())
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Word `index` of SplitMix64 (Steele, Lea, Flood 2014), which can be entered anywhere.
fn scrambled(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_read_from_any_offset_equals_that_part_of_the_whole() {
        let content = Content { seed: 7, bytes: 100 };
        let mut whole = [0; 200];
        assert_eq!(content.read_at(0, &mut whole), 100);
        for offset in 0..=100 {
            let mut part = [0; 13];
            let length = content.read_at(offset as u64, &mut part);
            assert_eq!(part[..length], whole[offset..offset + length]);
            assert_eq!(length, 13.min(100 - offset));
        }
        assert_eq!(content.read_at(101, &mut whole), 0);
    }

    #[test]
    fn the_first_word_is_the_generators_published_one() {
        let mut word = [0; 8];
        Content { seed: 1_234_567, bytes: 8 }.read_at(0, &mut word);
        assert_eq!(u64::from_le_bytes(word), 6_457_827_717_110_365_317);
    }

    #[test]
    fn an_empty_file_has_the_hash_of_nothing_and_seeds_differ() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Content { seed: 1, bytes: 0 }.sha256(), nothing);
        assert_ne!(Content { seed: 1, bytes: 9 }.sha256(), Content { seed: 2, bytes: 9 }.sha256());
    }
}
