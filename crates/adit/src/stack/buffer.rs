//! How much memory a connection is promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What all connections together are promised, beyond the least each of them gets.
const BUDGET_BYTES: usize = 1 << 30;
/// The share of what is left that goes to a new connection.
const SHARE: usize = 64;
/// Enough for 330 Mbit/s over 100 ms.
const MOST_BYTES: usize = 4 << 20;
/// What came and was not read; what was written; and what of that `smoltcp` has.
const BUFFERS: usize = 3;
/// Large enough for the allocator to leave it to the kernel, which gives memory only for pages in use.
const LEAST_BYTES: usize = 256 << 10;

/// The memory promised to the connections of a stack. Pages that no byte has touched cost nothing: a promise is an
/// upper bound, and what an idle connection takes is what it once held at the same time.
#[derive(Debug, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// A promise, for each of the buffers of a connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Promise {
    budget: Arc<AtomicUsize>,
    bytes: usize,
}

impl Budget {
    pub(super) fn promise(&self) -> Promise {
        let left = BUDGET_BYTES.saturating_sub(self.0.load(Relaxed));
        let bytes = (left / BUFFERS / SHARE).clamp(LEAST_BYTES, MOST_BYTES);
        self.0.fetch_add(BUFFERS * bytes, Relaxed);
        Promise { budget: Arc::clone(&self.0), bytes }
    }
}

impl Promise {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A buffer of the promised size, all zeros.
    pub(super) fn buffer(&self) -> Vec<u8> {
        vec![0; self.bytes]
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.budget.fetch_sub(BUFFERS * self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_get_much_and_many_get_little_and_all_of_it_comes_back() {
        let budget = Budget::default();
        assert_eq!(budget.promise().bytes, MOST_BYTES);
        let promises: Vec<_> = (0..4_000).map(|_| budget.promise()).collect();
        assert_eq!((promises[0].bytes, promises[3_999].bytes), (MOST_BYTES, LEAST_BYTES));
        assert!(promises.windows(2).all(|pair| pair[1].bytes <= pair[0].bytes));
        assert!(budget.0.load(Relaxed) < BUDGET_BYTES + 4_000 * BUFFERS * LEAST_BYTES);
        drop(promises);
        assert_eq!(budget.0.load(Relaxed), 0);
    }
}
