//! Receiver indices: the random numbers by which a message finds its session.
//!
//! One [`IndexWriter`] (the engine's) and any number of readers share an [`IndexTable`]:
//! - atomic: the pointer to each shard; readers load it and never wait
//! - the reserved set is the writer's alone; a reserved index is invisible until it is published

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

const SHARDS: usize = 256;

/// The published indices, for readers.
#[derive(Debug)]
pub struct IndexTable<T> {
    shards: [Shard<T>; SHARDS],
}

/// The entries whose index has the same top byte, sorted by index.
type Shard<T> = ArcSwap<Vec<(u32, Arc<T>)>>;

impl<T> IndexTable<T> {
    /// What was published under `index`.
    #[inline]
    pub fn get(&self, index: u32) -> Option<Arc<T>> {
        let shard = self.shard(index)?.load();
        let at = shard.binary_search_by_key(&index, |entry| entry.0).ok()?;
        shard.get(at).map(|entry| entry.1.clone())
    }

    fn shard(&self, index: u32) -> Option<&Shard<T>> {
        self.shards.get((index >> 24) as usize)
    }

    fn edit(&self, index: u32, edit: impl FnOnce(&mut Vec<(u32, Arc<T>)>, Result<usize, usize>)) {
        if let Some(shard) = self.shard(index) {
            let mut entries = Vec::clone(&shard.load());
            let at = entries.binary_search_by_key(&index, |entry| entry.0);
            edit(&mut entries, at);
            shard.store(Arc::new(entries));
        }
    }
}

/// The only writer of an [`IndexTable`]: it hands out indices, fills them and frees them.
#[derive(Debug)]
pub struct IndexWriter<T> {
    table: Arc<IndexTable<T>>,
    reserved: BTreeSet<u32>,
}

impl<T> Default for IndexWriter<T> {
    fn default() -> Self {
        let shards = core::array::from_fn(|_| ArcSwap::from_pointee(Vec::new()));
        Self { table: Arc::new(IndexTable { shards }), reserved: BTreeSet::new() }
    }
}

impl<T> IndexWriter<T> {
    /// The table, to share with readers.
    pub fn table(&self) -> &Arc<IndexTable<T>> {
        &self.table
    }

    /// Takes an index that nobody has, drawn from `random`. It stays taken until [`Self::remove`].
    pub fn reserve(&mut self, random: &mut dyn FnMut() -> u32) -> u32 {
        const DRAWS: u32 = 64;
        let mut index = random();
        for _ in 0..DRAWS {
            if self.reserved.insert(index) {
                return index;
            }
            index = random();
        }
        // Only a source that repeats itself gets here; a neighbour is free long before 2^32 are taken.
        while !self.reserved.insert(index) {
            index = index.wrapping_add(1);
        }
        index
    }

    /// Shows `value` to readers under a reserved index, replacing what was there.
    /// False, and nothing happens, when the index is not reserved.
    pub fn publish(&mut self, index: u32, value: Arc<T>) -> bool {
        let reserved = self.reserved.contains(&index);
        if reserved {
            self.table.edit(index, |entries, at| match at {
                Ok(at) => entries.splice(at..at.saturating_add(1), [(index, value)]).for_each(drop),
                Err(at) => entries.insert(at, (index, value)),
            });
        }
        reserved
    }

    /// Frees an index, published or only reserved. False when it was free already.
    pub fn remove(&mut self, index: u32) -> bool {
        let reserved = self.reserved.remove(&index);
        if reserved && self.table.get(index).is_some() {
            self.table.edit(index, |entries, at| {
                if let Ok(at) = at {
                    entries.remove(at);
                }
            });
        }
        reserved
    }

    /// How many indices are taken.
    pub fn taken(&self) -> usize {
        self.reserved.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};
    use std::collections::BTreeMap;

    fn published<T>(writer: &IndexWriter<T>) -> usize {
        writer.table.shards.iter().map(|shard| shard.load().len()).sum()
    }

    #[test]
    fn an_index_is_invisible_until_published_and_after_removal() {
        let mut writer = IndexWriter::default();
        let index = writer.reserve(&mut || 0xab00_0001);
        assert!(writer.table().get(index).is_none());
        assert!(writer.publish(index, Arc::new("session")));
        assert_eq!(writer.table().get(index).as_deref(), Some(&"session"));
        assert!(writer.table().get(index ^ 1).is_none());
        assert!(writer.remove(index));
        assert!(writer.table().get(index).is_none());
    }

    #[test]
    fn an_index_is_freed_exactly_once() {
        let mut writer = IndexWriter::default();
        let value = Arc::new(());
        let index = writer.reserve(&mut || 7);
        writer.publish(index, value.clone());
        assert_eq!(Arc::strong_count(&value), 2);
        assert!(writer.remove(index));
        assert!(!writer.remove(index));
        assert_eq!((writer.taken(), published(&writer)), (0, 0));
        assert_eq!(Arc::strong_count(&value), 1, "a freed session is dropped at once");
    }

    #[test]
    fn only_a_reserved_index_is_published() {
        let mut writer = IndexWriter::default();
        assert!(!writer.publish(5, Arc::new(1)));
        assert!(writer.table().get(5).is_none());
        let index = writer.reserve(&mut || 5);
        assert!(writer.publish(index, Arc::new(1)) && writer.publish(index, Arc::new(2)));
        assert_eq!(writer.table().get(5).as_deref(), Some(&2));
        assert_eq!(published(&writer), 1);
    }

    #[test]
    fn a_random_source_that_repeats_itself_still_gets_distinct_indices() {
        let mut writer = IndexWriter::<()>::default();
        let indices: BTreeSet<u32> = (0..1_000).map(|_| writer.reserve(&mut || u32::MAX - 2)).collect();
        assert_eq!(indices.len(), 1_000);
    }

    #[test]
    fn back_to_back_reservations_leave_the_table_as_it_was() {
        let mut writer = IndexWriter::default();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let kept = writer.reserve(&mut || rng.next_u32());
        writer.publish(kept, Arc::new(0));
        for round in 0..10_000 {
            let index = writer.reserve(&mut || rng.next_u32());
            if round % 2 == 0 {
                writer.publish(index, Arc::new(round));
            }
            assert!(writer.remove(index));
            assert_eq!(writer.taken(), 1);
        }
        assert_eq!(published(&writer), 1);
        assert!(writer.table().get(kept).is_some());
    }

    /// Pearson's statistic over 256 equally likely buckets.
    fn chi_square(buckets: &[u32; 256]) -> f64 {
        let expected = f64::from(buckets.iter().sum::<u32>()) / 256.0;
        buckets.iter().map(|&seen| (f64::from(seen) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn indices_are_unique_and_every_byte_of_them_is_uniform() {
        let mut writer = IndexWriter::<()>::default();
        let mut rng = ChaCha8Rng::seed_from_u64(0x1d);
        let indices: Vec<u32> = (0..100_000).map(|_| writer.reserve(&mut || rng.next_u32())).collect();
        assert_eq!(indices.iter().collect::<BTreeSet<_>>().len(), indices.len());
        // 255 degrees of freedom: mean 255, standard deviation 22.6. Both tails are suspect.
        let plausible = 255.0 - 5.0 * 22.6..255.0 + 5.0 * 22.6;
        for byte in 0..4 {
            let mut buckets = [0; 256];
            indices.iter().for_each(|index| buckets[usize::from(index.to_le_bytes()[byte])] += 1);
            assert!(plausible.contains(&chi_square(&buckets)), "byte {byte}: {}", chi_square(&buckets));
        }
        let mut counted = [0; 256];
        (0..100_000_u32).for_each(|index| counted[usize::from(index.to_le_bytes()[1])] += 1);
        assert!(!plausible.contains(&chi_square(&counted)), "the test would not notice a counter");
    }

    #[test]
    fn readers_never_see_another_sessions_value() {
        let mut writer = IndexWriter::default();
        let table = writer.table().clone();
        let indices: Vec<u32> = (0..64).map(|i| i << 22 | i).collect();
        let read = || {
            let found = indices.iter().filter_map(|&index| Some((index, table.get(index)?)));
            found.inspect(|(index, value)| assert_eq!(*index, **value)).count()
        };
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for round in 0..200 {
                    for &index in &indices {
                        assert_eq!(writer.reserve(&mut || index), index);
                        writer.publish(index, Arc::new(index));
                        assert!(round == 199 || writer.remove(index));
                    }
                }
            });
            while !writing.is_finished() {
                assert!(read() <= indices.len());
            }
            writing.join().unwrap();
        });
        assert_eq!(read(), indices.len());
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(steps in prop::collection::vec((0..3u8, 0..16u32), 0..200)) {
            let mut writer = IndexWriter::default();
            let mut model: BTreeMap<u32, Option<usize>> = BTreeMap::new();
            for (round, (step, n)) in steps.into_iter().enumerate() {
                let index = n << 22 | n;
                match step {
                    0 if !model.contains_key(&index) => {
                        prop_assert_eq!(writer.reserve(&mut || index), index);
                        model.insert(index, None);
                    }
                    0 => {}
                    1 => {
                        let known = model.get_mut(&index).map(|value| *value = Some(round));
                        prop_assert_eq!(writer.publish(index, Arc::new(round)), known.is_some());
                    }
                    _ => prop_assert_eq!(writer.remove(index), model.remove(&index).is_some()),
                }
                prop_assert_eq!(writer.table().get(index).as_deref().copied(), model.get(&index).copied().flatten());
                prop_assert_eq!(writer.taken(), model.len());
            }
        }
    }
}
