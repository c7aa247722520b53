//! `validate`: reports and missed limits.

use crate::support::workspace::Folder;
use kiln::action::{Content, InputStage, Inputs, Manifest, ParamProblem, Part, PartName, Registry};
use kiln::base::{CanonJson, Code, Problem, Result};
use serde_json::{Value, json};

/// An evaluation of `tokens` tokens: for every second token the candidate's log-likelihood is
/// `shift` nats lower, and the top token differs once.
fn evaluation(folder: &Folder, tokens: usize, shift: f64, ranges: Value) -> Manifest {
    let token = |index: usize| {
        let shift = if index.is_multiple_of(2) { shift } else { 0.0 };
        json!({"reference_nll": 2.0, "nll": 2.0 + shift, "kld": shift / 10.0, "delta_p": 0.0,
            "same_top": index > 0})
    };
    let window = json!({"non_finite": 0, "tokens": (0..tokens).map(token).collect::<Vec<_>>()});
    let greedy = json!({"text": " Paris.", "expected": [5, 6, 7], "prefilled": [5, 6, 7],
        "decoded": [6, 8], "ended": false, "smallest_gap": 0.5, "non_finite": 0});
    let part = |name: &str, value: Value| {
        (
            PartName::new(name).unwrap(),
            folder.part(value.to_string().as_bytes(), Value::Null),
        )
    };
    let parts = [
        part("window-000/score.json", window),
        part("greedy/score.json", greedy),
        part("ranges/score.json", ranges),
        part(
            "ranges/mask.json",
            json!({"0": {"least": 985.0, "bound": 12.0}, "1": {"least": 35.0, "bound": 20.0}}),
        ),
    ];
    Manifest {
        parts: parts.into(),
    }
}

/// Two weights as `requant` writes them: one exact, one with 26.25 dB.
fn weights(folder: &Folder) -> Manifest {
    let encoding = json!({"kind": "block", "codes": "int4", "block": 32, "scales": "f16"});
    let facts = |scheme: &str, error: Value| {
        let mut facts =
            json!({"shape": [4, 32], "encoding": encoding, "part": "codes", "error": error});
        facts["error"]["source"] = json!("Q4_0");
        facts["error"]["scheme"] = json!(scheme);
        facts
    };
    let exact = facts("native", json!({"exact": true, "max_error": 0.0}));
    let rounded = facts(
        "lpbq-32",
        json!({"exact": false, "max_error": 0.01, "sqnr_db": 26.25, "clipped": 0.001}),
    );
    let scales = json!({"shape": [4, 32], "encoding": encoding, "part": "scales"});
    let part = |name: &str, size: usize, facts: Value| {
        (
            PartName::new(name).unwrap(),
            folder.part(&vec![0; size], facts),
        )
    };
    let parts = [
        part("blk.0.ffn_up.weight/codes", 64, exact),
        part("blk.0.ffn_up.weight/scales", 8, scales.clone()),
        part("blk.0.ffn_down.weight/codes", 64, rounded),
        part("blk.0.ffn_down.weight/scales", 8, scales),
    ];
    Manifest {
        parts: parts.into(),
    }
}

fn validate(
    folder: &Folder,
    (name, evaluation): (&str, Manifest),
    params: Value,
) -> Result<Manifest> {
    let npu = folder.part(&[0; 500], Value::Null);
    let generation = json!({"prompt": [1], "tokens": [5, 6, 8], "text": " Paris!",
        "expected": [5, 6, 7], "ended": false, "expected_text": " Paris."});
    let generation = folder.part(generation.to_string().as_bytes(), Value::Null);
    let only = |name: &str, part: Part| Manifest {
        parts: [(PartName::new(name).unwrap(), part)].into(),
    };
    let stages = [
        (name, "evaluation", evaluation),
        ("genie", "generation", only("generation.json", generation)),
        ("npu", "context-bin", only("model.bin", npu)),
        ("weights", "weights", weights(folder)),
    ];
    let mut inputs = Inputs::default();
    for (stage, artifact, manifest) in stages {
        inputs.artifacts.insert(stage.into(), artifact);
        let slot = inputs.slots.entry("inputs".into()).or_default();
        slot.push((stage.into(), manifest));
    }
    let kinds: Registry = kiln::stages::all();
    folder.run_stage(kinds.get("validate").unwrap(), params, &inputs)
}

fn check(params: Value) -> std::result::Result<String, Problem> {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let ranges = json!({"blk.0.down": 12.5, "blk.1.down": 20000.0, "blk.1.key": 3.0,
        "blk.1.scores": 500.0, "blk.1.other": 1e9});
    let manifest = validate(
        &folder,
        ("onnx", evaluation(&folder, 100, 0.02, ranges)),
        params,
    )?;
    let text = |name: &str| {
        String::from_utf8(folder.bytes(manifest.part(name).unwrap()).to_vec()).unwrap()
    };
    let report: Value = serde_json::from_str(&text("report.json")).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(
        report["candidates"]["onnx"]["ranges"]["down"]["tensor"],
        "blk.1.down"
    );
    Ok(text("report.txt"))
}

#[test]
fn met_limits_produce_a_report() {
    let limits = json!({"ppl_ratio": 0.02, "kld": 0.01, "kld_99": 0.01, "same_top": 0.99,
        "greedy": 2, "perplexity": 10.0});
    let report = check(
        json!({"limits": {"onnx": limits, "npu": {"size_bytes": 500}, "genie": {"greedy": 2}}}),
    )
    .unwrap();
    assert!(report.contains("1.01005 +- 0.00102"), "{report}");
    assert!(report.contains("2 of 3 greedy tokens equal"), "{report}");
    assert!(report.contains("passed: 0 of 13 limits missed"), "{report}");
    let generation = "genie: 2 of 3 tokens in Genie as the reference's\n    \" Paris!\"\n    \" \
                Paris.\" was expected\n";
    assert!(report.contains(generation), "{report}");
    let storage = "    lpbq-32      Q4_0           1       0       72 B        4.50  26.25 dB, \
                   blk.0.ffn_down.weight; at most 0.100 % clipped";
    assert!(report.contains(storage), "{report}");
}

#[test]
fn each_limit_can_be_missed() {
    for (limit, missed) in [
        (
            json!({"limits": {"onnx": {"ppl_ratio": 0.01}}}),
            "perplexity ratio",
        ),
        (json!({"limits": {"onnx": {"kld": 9e-4}}}), "mean KL"),
        (json!({"limits": {"onnx": {"kld_99": 1e-3}}}), "99 % KL"),
        (json!({"limits": {"onnx": {"same_top": 0.995}}}), "same top"),
        (json!({"limits": {"onnx": {"greedy": 3}}}), "greedy"),
        (
            json!({"limits": {"onnx": {"perplexity": 7.0}}}),
            "perplexity of the reference",
        ),
        (
            json!({"limits": {"onnx": {"range": 15000}}}),
            "range of down",
        ),
        (
            json!({"limits": {"onnx": {"scores_range": 100}}}),
            "range of scores",
        ),
        (
            json!({"limits": {"onnx": {"mask": 40}}}),
            "masked scores below visible ones",
        ),
        (
            json!({"limits": {"npu": {"size_bytes": 499}}}),
            "size in bytes",
        ),
        (
            json!({"limits": {"weights": {"exact": true}}}),
            "tensors that are not exact",
        ),
        (
            json!({"limits": {"genie": {"greedy": 3}}}),
            "tokens in Genie as the reference's",
        ),
        (
            json!({"limits": {"weights": {"sqnr_db": 26.5}}}),
            "SQNR of the worst tensor",
        ),
    ] {
        let problem = check(limit).unwrap_err();
        assert_eq!(problem.code, Code::ValidateMissed);
        let missed_lines: Vec<&str> = problem
            .message
            .lines()
            .filter(|line| line.starts_with("MISSED"))
            .collect();
        assert!(
            matches!(&missed_lines[..], [line] if line.contains(missed)),
            "{missed}: {}",
            problem.message
        );
    }
}

#[test]
fn an_answer_that_ends_early_meets_the_greedy_limit() {
    let passes = |ended: bool| {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let mut manifest = evaluation(&folder, 100, 0.0, json!({}));
        let greedy = json!({"text": " Paris.<|im_end|>", "expected": [5, 6], "prefilled": [5, 6],
            "decoded": [6], "ended": ended, "smallest_gap": 0.5, "non_finite": 0});
        let part = folder.part(greedy.to_string().as_bytes(), Value::Null);
        manifest
            .parts
            .insert(PartName::new("greedy/score.json").unwrap(), part);
        validate(
            &folder,
            ("onnx", manifest),
            json!({"limits": {"onnx": {"greedy": 16}}}),
        )
        .is_ok()
    };
    assert!(passes(true));
    assert!(!passes(false));
}

#[test]
fn the_report_is_kept_on_failure() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let scores = ("onnx", evaluation(&folder, 100, 0.02, json!({})));
    let problem = validate(&folder, scores, json!({"limits": {"onnx": {"kld": 0.0}}})).unwrap_err();
    let report = problem.left["report.txt"];
    let part = Part {
        content: Content {
            digest: report,
            window: None,
        },
        facts: CanonJson::default(),
    };
    let report = String::from_utf8(folder.bytes(&part).to_vec()).unwrap();
    assert!(problem.message.ends_with(&report), "{report}");
    assert!(report.contains("FAILED: 1 of 3 limits missed"), "{report}");
}

#[test]
fn an_inapplicable_limit_is_rejected() {
    let kinds = kiln::stages::all();
    let inputs =
        [("onnx", "evaluation"), ("npu", "context-bin")].map(|(stage, artifact)| InputStage {
            slot: "inputs".into(),
            stage: stage.into(),
            artifact,
            ..InputStage::default()
        });
    let params = json!({"limits": {"onnx": {"kld": -1.0}, "npu": {"kld": 1e-3, "size_bytes": 5}}});
    let problems = kinds.get("validate").unwrap().check(&params, &inputs);
    let row = |found: ParamProblem| (found.path, found.problem.message, found.problem.help);
    let problems: Vec<_> = problems.unwrap_err().into_iter().map(row).collect();
    let help = Some("it has: size_bytes".to_string());
    assert_eq!(
        problems,
        [
            (
                "limits/onnx/kld".into(),
                "expected a number of at least 0, found -1.0".into(),
                Some("Of an evaluation: mean KL divergence in nats, at most.".into())
            ),
            (
                "limits/npu/kld".into(),
                "`context-bin` has no limit `kld`".into(),
                help
            ),
        ]
    );
}

#[test]
fn non_finite_logits_fail_validation() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let mut manifest = evaluation(&folder, 10, 0.0, json!({}));
    let mut window: Value =
        serde_json::from_slice(&folder.bytes(manifest.part("window-000/score.json").unwrap()))
            .unwrap();
    window["non_finite"] = json!(1);
    let part = folder.part(window.to_string().as_bytes(), Value::Null);
    manifest
        .parts
        .insert(PartName::new("window-000/score.json").unwrap(), part);
    let problem = validate(&folder, ("npu-score", manifest), json!({})).unwrap_err();
    assert!(
        problem
            .message
            .contains("MISSED npu-score        logits not finite"),
        "{}",
        problem.message
    );
}
