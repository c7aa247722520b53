//! Floor 4: where actions run: a thread, or a child process.
