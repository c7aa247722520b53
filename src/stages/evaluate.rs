//! `evaluate`: how close a candidate comes to the reference, token by token.
//!
//! A graph runs in ONNX Runtime. A context binary runs on the HTP simulator; what it leaves to the
//! CPU runs in ONNX Runtime.
//!
//! One order per window, one for the greedy continuation where the reference has one, and one for
//! the ranges of the graph's inner tensors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::evaluation::MASK;
use crate::artifact::reference::windows;
use crate::artifact::tools::QNN;
use crate::base::{CanonJson, Code, Problem, Result};
use crate::run::{Candidate, decoder, score_greedy, score_ranges, score_window};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number of the reference's windows that are run. By default all.
    #[schemars(range(min = 1))]
    windows: Option<usize>,
    /// Number of the greedy tokens that are checked by decode steps. The others are checked by
    /// prefills.
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
    /// The largest values of inner tensors over one window, and how far masked scores are below
    /// visible ones.
    Ranges,
}

/// The stage.
pub struct Evaluate;

impl TypedStage for Evaluate {
    type Params = Params;
    type Order = Measure;
    const SPEC: StageSpec = StageSpec {
        kind: "evaluate",
        version: 2,
        summary: "how close a candidate comes to the reference, token by token",
        output: "evaluation",
        inputs: &[
            InputSpec {
                name: "reference",
                meaning: "The reference to compare with; that of another file evaluates the file \
                          itself.",
                accepts: &["reference"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "graph",
                meaning: "The candidate as graphs, run in ONNX Runtime. Either `graph` or \
                          `context` is given.",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "context",
                meaning: "The candidate as a binary built with `weight_sharing = false`, run on \
                          the HTP simulator.",
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

    fn check(_: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if InputStage::fills(given, "graph") == InputStage::fills(given, "context") {
            let problem = Problem::new(
                Code::PlanParameter,
                "an evaluation is of either a `graph` or a `context`",
            )
            .help("give one of them; evaluate the other in a stage of its own");
            problems.push(ParamProblem {
                path: String::new(),
                problem,
            });
        }
        problems
    }

    fn tools(_: &Params, given: &[InputStage]) -> Vec<&'static str> {
        if InputStage::fills(given, "graph") {
            vec!["ort"]
        } else {
            vec![QNN, "ort?"]
        }
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Measure>>> {
        let reference = inputs.one("reference")?;
        let candidate = Candidate::of(inputs)?;
        let mut orders = vec![];
        for (folder, (tokens, logits)) in windows(reference, params.windows)? {
            let order = candidate
                .order(folder, Measure::Window)
                .input("tokens", tokens)
                .input("logits", logits);
            orders.push(order);
            if orders.len() == 1 && candidate.has_ranges {
                let order = candidate.order("ranges", Measure::Ranges);
                orders.push(order.input("tokens", tokens));
            }
        }
        if let Some(greedy) = reference.get("greedy.json") {
            let measure = Measure::Greedy {
                decode_steps: params.decode_steps,
            };
            let order = candidate.full_order("greedy", measure);
            orders.push(order.input("greedy", greedy));
        }
        Ok(orders)
    }

    fn run(measure: Measure, job: &Job) -> Result<Outputs> {
        let mut outputs = Outputs::new();
        let score = match measure {
            Measure::Window => {
                CanonJson::of(&score_window(job, &mut decoder(job)?, "tokens", "logits")?)?
            }
            Measure::Greedy { decode_steps } => {
                CanonJson::of(&score_greedy(job, &mut decoder(job)?, decode_steps)?)?
            }
            Measure::Ranges => {
                let (ranges, masks) = score_ranges(job)?;
                outputs.insert(
                    PartName::new(MASK)?,
                    write_json(job, &CanonJson::of(&masks)?)?,
                );
                CanonJson::of(&ranges)?
            }
        };
        outputs.insert(PartName::new("score.json")?, write_json(job, &score)?);
        Ok(outputs)
    }
}

fn write_json(job: &Job, json: &CanonJson) -> Result<Part> {
    job.write(json.to_string().as_bytes(), CanonJson::default())
}
