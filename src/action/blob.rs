//! Bytes that are at hand: a whole mapped file, or a window of one. Cheap to clone.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Where the bytes of a blob lie.
pub trait Memory: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// Nobody is going to read these soon: they need not stay in memory. They are there all the
    /// same when they are read.
    fn leave(&self, range: Range<usize>);
}

/// Immutable bytes shared by reference; dereferences to `[u8]`.
#[derive(Clone)]
pub struct Blob {
    memory: Arc<dyn Memory>,
    range: Range<usize>,
}

impl Blob {
    /// All of `bytes`, which stay in memory.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Blob::of(Held(bytes))
    }

    /// All of `memory`.
    pub fn of(memory: impl Memory + 'static) -> Self {
        let range = 0..memory.bytes().len();
        Blob {
            memory: Arc::new(memory),
            range,
        }
    }

    /// The part `range` of these bytes, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<u64>) -> Option<Blob> {
        let start = self
            .range
            .start
            .checked_add(usize::try_from(range.start).ok()?)?;
        let end = self
            .range
            .start
            .checked_add(usize::try_from(range.end).ok()?)?;
        (start <= end && end <= self.range.end).then(|| Blob {
            memory: Arc::clone(&self.memory),
            range: start..end,
        })
    }

    /// Says that the part `range` will not be read again soon: who reads a large blob from end to
    /// end has little of it in memory at a time.
    pub fn leave(&self, range: Range<usize>) {
        let inside = |at: usize| self.range.start.saturating_add(at).min(self.range.end);
        self.memory.leave(inside(range.start)..inside(range.end));
    }

    /// Shows all bytes to `see`, `piece_bytes` at a time; no more than that stays in memory.
    pub fn stream<E>(
        &self,
        piece_bytes: usize,
        mut see: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        for piece in self.chunks(piece_bytes.max(1)) {
            see(piece)?;
            self.leave(start..start + piece.len());
            start += piece.len();
        }
        Ok(())
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[self.range.clone()]
    }
}

struct Held<T>(T);

impl<T: AsRef<[u8]> + Send + Sync> Memory for Held<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn leave(&self, _: Range<usize>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_a_window_stays_inside() {
        let blob = Blob::new(b"0123456789".to_vec());
        let window = blob.slice(2..8).unwrap();
        assert_eq!(&*window, b"234567");
        assert_eq!(&*window.slice(1..3).unwrap(), b"34");
        assert!(window.slice(5..7).is_none());
        assert!(window.slice(u64::MAX..u64::MAX).is_none());
    }

    #[test]
    fn a_stream_leaves_what_it_has_shown() {
        #[derive(Clone, Default)]
        struct Left(Arc<std::sync::Mutex<Vec<Range<usize>>>>);
        impl Memory for Left {
            fn bytes(&self) -> &[u8] {
                b"0123456789"
            }

            fn leave(&self, range: Range<usize>) {
                self.0.lock().unwrap().push(range);
            }
        }
        let (left, mut seen) = (Left::default(), vec![]);
        let window = Blob::of(left.clone()).slice(2..9).unwrap();
        let see = |piece: &[u8]| {
            seen.push(piece.to_vec());
            Ok::<(), ()>(())
        };
        window.stream(3, see).unwrap();
        assert_eq!(seen, [b"234".to_vec(), b"567".to_vec(), b"8".to_vec()]);
        assert_eq!(*left.0.lock().unwrap(), [2..5, 5..8, 8..9]);
        assert_eq!(window.stream(3, |_| Err("full")), Err("full"));
    }
}
