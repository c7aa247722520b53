//! A plan is read, or every problem has labels inside the text.
#![no_main]

use kiln::base::{Code, Problem};
use kiln::plan::{Source, SourceMap, read};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let source = Source {
        name: "plan.toml".into(),
        text: text.into(),
        folder: "/plans".into(),
    };
    let map = SourceMap::gather(source, &mut |_| {
        Err(Problem::new(Code::of("fuzz"), "there is no other file"))
    });
    let Err(problems) = read(&map, &[], &kiln::stages::all()) else {
        return;
    };
    assert!(!problems.is_empty());
    for problem in problems {
        for (span, _) in problem.labels {
            assert!(text.get(span.clone()).is_some(), "{span:?}");
        }
    }
});
