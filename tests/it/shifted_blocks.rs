//! The scheme `lpbq-32-shifted`: blocks with the codes -8..7 or -7..8.

use kiln::model::quant::Metric;
use serde_json::json;

use crate::schemes::{SHIFTED, lpbq, moments, round_plain, round_with};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::{Random, TinyGguf, shifted_rows};

#[test]
fn rows_of_shifted_blocks_are_restored_exactly() {
    let columns = 320;
    let values = shifted_rows(&mut Random::of("shifted", 1), 40, columns);
    let h = moments(3, columns);
    for metric in [
        Metric::plain(columns, Some(32)),
        Metric::full(&h, columns, Some(32)).unwrap(),
    ] {
        let rounded = round_with(SHIFTED, metric, columns, &values);
        assert!(rounded.values == values);
        assert_eq!(rounded.sum.clipped, 0);
        assert!(rounded.codes.contains(&8) && rounded.codes.contains(&-8));
    }
    let unshifted = round_plain(lpbq(32), columns, &values);
    assert!(unshifted.values != values, "the test needs both signs");
}

#[test]
fn an_embedding_has_no_sums() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::qwen2().write());
    let scheme = json!({"scheme": "lpbq-32-shifted"});
    let weights = runner
        .run("requant", scheme, &[("tensors", &model)])
        .unwrap();
    let slots = [("model", &model), ("weights", &weights)];
    let problem = runner
        .run("graph", json!({"prefill": 8, "context": 24}), &slots)
        .unwrap_err();
    assert_eq!(
        problem.message,
        "`token_embd.weight` is an embedding: rows cannot be looked up in lpbq x32 shifted"
    );
}
