//! Floor 3: blobs and results, by digest.
