//! Floor 4: text in, plan or all its problems out. Pure.
