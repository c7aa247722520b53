//! Floor 5: decides what runs when. Names no stage.
