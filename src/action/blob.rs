//! Bytes in memory: a mapped file, or a range of one. Cheap to clone.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// The memory with the bytes of a blob.
pub trait BlobMemory: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Removes bytes from physical memory, if they can be loaded again when they are read.
    fn evict(&self, range: Range<usize>);
}

/// Immutable bytes shared by reference; dereferences to `[u8]`.
#[derive(Clone)]
pub struct Blob {
    memory: Arc<dyn BlobMemory>,
    range: Range<usize>,
}

impl Blob {
    /// All of `bytes`, which stay in memory.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Blob::from_memory(Resident(bytes))
    }

    /// All of `memory`.
    pub fn from_memory(memory: impl BlobMemory + 'static) -> Self {
        let range = 0..memory.bytes().len();
        Blob {
            memory: Arc::new(memory),
            range,
        }
    }

    /// The bytes in `range`, or `None` if it is out of bounds.
    pub fn slice(&self, range: Range<u64>) -> Option<Blob> {
        let base = self.range.start;
        let start = base.checked_add(usize::try_from(range.start).ok()?)?;
        let end = base.checked_add(usize::try_from(range.end).ok()?)?;
        if start > end || end > self.range.end {
            return None;
        }
        Some(Blob {
            memory: Arc::clone(&self.memory),
            range: start..end,
        })
    }

    /// Evicts the bytes in `range`, which will not be read again soon. So reading a large blob from
    /// end to end needs little memory.
    pub fn evict(&self, range: Range<usize>) {
        let clamp = |at: usize| self.range.start.saturating_add(at).min(self.range.end);
        self.memory.evict(clamp(range.start)..clamp(range.end));
    }

    /// Calls `read` for each chunk of `chunk_bytes` bytes; keeps one chunk in memory at a time.
    pub fn stream<E>(
        &self,
        chunk_bytes: usize,
        mut read: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        for chunk in self.chunks(chunk_bytes.max(1)) {
            read(chunk)?;
            self.evict(start..start + chunk.len());
            start += chunk.len();
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

/// Bytes that stay in memory.
struct Resident<T>(T);

impl<T: AsRef<[u8]> + Send + Sync> BlobMemory for Resident<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn evict(&self, _: Range<usize>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_checked_against_their_bounds() {
        let blob = Blob::new(b"0123456789".to_vec());
        let window = blob.slice(2..8).unwrap();
        assert_eq!(&*window, b"234567");
        assert_eq!(&*window.slice(1..3).unwrap(), b"34");
        assert!(window.slice(5..7).is_none());
        assert!(window.slice(u64::MAX..u64::MAX).is_none());
    }

    #[test]
    fn a_stream_evicts_what_was_read() {
        #[derive(Clone, Default)]
        struct Evicted(Arc<std::sync::Mutex<Vec<Range<usize>>>>);
        impl BlobMemory for Evicted {
            fn bytes(&self) -> &[u8] {
                b"0123456789"
            }

            fn evict(&self, range: Range<usize>) {
                self.0.lock().unwrap().push(range);
            }
        }
        let (evicted, mut chunks) = (Evicted::default(), vec![]);
        let window = Blob::from_memory(evicted.clone()).slice(2..9).unwrap();
        let read = |chunk: &[u8]| {
            chunks.push(chunk.to_vec());
            Ok::<(), ()>(())
        };
        window.stream(3, read).unwrap();
        assert_eq!(chunks, [b"234".to_vec(), b"567".to_vec(), b"8".to_vec()]);
        assert_eq!(*evicted.0.lock().unwrap(), [2..5, 5..8, 8..9]);
        assert_eq!(window.stream(3, |_| Err("full")), Err("full"));
    }
}
