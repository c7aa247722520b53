//! Bytes that are at hand: a whole mapped file, or a window of one. Cheap to clone.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Immutable bytes shared by reference; dereferences to `[u8]`.
#[derive(Clone)]
pub struct Blob {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Blob {
    /// All of `bytes`.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..bytes.as_ref().len();
        Blob { bytes: Arc::new(bytes), range }
    }

    /// The part `range` of these bytes, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<u64>) -> Option<Blob> {
        let start = self.range.start.checked_add(usize::try_from(range.start).ok()?)?;
        let end = self.range.start.checked_add(usize::try_from(range.end).ok()?)?;
        (start <= end && end <= self.range.end).then(|| Blob { bytes: Arc::clone(&self.bytes), range: start..end })
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
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
}
