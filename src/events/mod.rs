//! Floor 4: what is told of a build, and its listeners.
