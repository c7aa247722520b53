//! A log of a build is read, or refused; what is read can be shown and made into reports.
#![no_main]

use kiln::events::{Board, Junit, LogReader, Plain, Report, TimedListener, Trace};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut board, mut plain) = (Board::default(), Plain::new(std::io::sink()));
    let (mut junit, mut trace) = (Junit::default(), Trace::default());
    for logged in LogReader::new(bytes).flatten() {
        let views: [&mut dyn TimedListener; 4] = [&mut board, &mut plain, &mut junit, &mut trace];
        views
            .into_iter()
            .for_each(|view| view.on_event_at(logged.at_ms, &logged.event));
        board.lines(logged.at_ms, 80, 24);
    }
    junit.file().unwrap();
    trace.file().unwrap();
});
