//! A plan is read, or every mistake in it is named at a place inside the text.
#![no_main]

use kiln::plan::{Source, read};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let source = Source { name: "plan.toml".into(), text: text.into(), folder: "/plans".into() };
    let Err(problems) = read(&source, &[], &kiln::stages::all()) else { return };
    assert!(!problems.is_empty());
    for (span, _) in problems.iter().flat_map(|problem| &problem.labels) {
        assert!(text.get(span.clone()).is_some(), "{span:?}");
    }
});
