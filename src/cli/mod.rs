//! Floor 6: puts everything together; one file a subcommand.
