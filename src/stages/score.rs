//! `score`: how close a candidate comes to the reference, token by token.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `reference` | | the `reference` stage to compare with; that of another file, to judge the file itself |
//! | `graph` | | the ONNX graphs, run in ONNX Runtime; or |
//! | `context` | | the context binary, run on the HTP simulator (built without weight sharing); what it leaves to the CPU, in ONNX Runtime |
//! | `windows` | all | how many of the reference's windows to score |
//! | `decode_steps` | 2 | how many of the greedy tokens to check by true decode steps; the others by one prefill |
//!
//! One order a window, one for the greedy continuation where the reference has one, and one for the
//! ranges of the graph's inner tensors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec, TypedStage,
};
use crate::artifact::reference::windows;
use crate::artifact::score::MASK;
use crate::artifact::tools::QNN;
use crate::base::{CanonJson, Problem, Result};
use crate::run::{Candidate, decoder, score_greedy, score_ranges, score_window};

/// See the module's table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How many of the reference's windows are scored; all of them by default.
    #[schemars(range(min = 1))]
    windows: Option<usize>,
    /// How many of the greedy tokens are checked by true decode steps; the others by one prefill.
    #[serde(default = "default_decode_steps")]
    decode_steps: usize,
}

fn default_decode_steps() -> usize {
    2
}

/// What an order measures.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "measure", rename_all = "kebab-case")]
pub enum Measure {
    /// Every token of one window.
    Window,
    /// The greedy continuation.
    Greedy {
        /// Tokens checked by true decode steps.
        decode_steps: usize,
    },
    /// The largest values of inner tensors over one window, and how far masked scores lie below
    /// visible ones.
    Ranges,
}

/// The stage.
pub struct Score;

impl TypedStage for Score {
    type Params = Params;
    type Order = Measure;
    const SPEC: StageSpec = StageSpec {
        kind: "score",
        version: 2,
        summary: "how close a candidate comes to the reference, token by token",
        gives: "score",
        inputs: &[
            InputSpec {
                name: "reference",
                accepts: &["reference"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "graph",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "context",
                accepts: &["context-bin"],
                required: false,
                many: false,
            },
        ],
        params: &["windows", "decode_steps"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn check(_: &Params, slots: &[&str]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if slots.contains(&"graph") == slots.contains(&"context") {
            let problem = Problem::new(
                "kiln::plan::parameter",
                "a score is of either a `graph` or a `context`",
            )
            .help("give one of them; score the other in a stage of its own");
            problems.push(ParamProblem {
                path: String::new(),
                problem,
            });
        }
        problems
    }

    fn tools(_: &Params, slots: &[&str]) -> Vec<&'static str> {
        if slots.contains(&"graph") {
            vec!["ort"]
        } else {
            vec![QNN, "ort?"]
        }
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Measure>>> {
        let reference = inputs.one("reference")?;
        let candidate = Candidate::of(inputs)?;
        let order = |name: &str, measure: Measure| candidate.order(name, measure);

        let mut orders = vec![];
        for (folder, (tokens, logits)) in windows(reference, params.windows)? {
            orders.push(
                order(folder, Measure::Window)
                    .input("tokens", tokens)
                    .input("logits", logits),
            );
            if orders.len() == 1 && candidate.has_ranges {
                orders.push(order("ranges", Measure::Ranges).input("tokens", tokens));
            }
        }
        if let Some(greedy) = reference.get("greedy.json") {
            let measure = Measure::Greedy {
                decode_steps: params.decode_steps,
            };
            orders.push(
                candidate
                    .reading("greedy", measure, |_| true)
                    .input("greedy", greedy),
            );
        }
        Ok(orders)
    }

    fn run(measure: Measure, job: &Job) -> Result<Outputs> {
        let mut outputs = Outputs::new();
        let mut write = |name: &str, value: &CanonJson| {
            let part = job.write(value.to_string().as_bytes(), CanonJson::default())?;
            Ok(outputs.insert(PartName::new(name)?, part))
        };
        let score = match measure {
            Measure::Window => {
                CanonJson::of(&score_window(job, &mut decoder(job)?, "tokens", "logits")?)?
            }
            Measure::Greedy { decode_steps } => {
                CanonJson::of(&score_greedy(job, &mut decoder(job)?, decode_steps)?)?
            }
            Measure::Ranges => {
                let (ranges, masks) = score_ranges(job)?;
                write(MASK, &CanonJson::of(&masks)?)?;
                CanonJson::of(&ranges)?
            }
        };
        write("score.json", &score)?;
        Ok(outputs)
    }
}
