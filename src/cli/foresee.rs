//! What kiln can make of a model, as the header of its GGUF tells before anything runs.

use serde::Serialize;
use serde_json::{Value, json};

use crate::action::{Inputs, Manifest, Registry};
use crate::artifact::model::described;
use crate::base::{Problem, Result};
use crate::model::decoder::ModelFacts;
use crate::model::gguf::Gguf;

/// Something that can be made of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Product {
    /// ONNX graphs, and the DLCs and context binaries of them.
    Binary,
    /// The model's own predictions, and what is compared with them.
    Scores,
    /// A bundle that Genie loads.
    Bundle,
}

impl Product {
    /// In the words of a summary.
    pub(super) fn name(self) -> &'static str {
        match self {
            Product::Binary => "graph, binary",
            Product::Scores => "reference, scores",
            Product::Bundle => "bundle for Genie",
        }
    }

    /// The stage kind that may refuse the model, with parameters that suit every model.
    fn kind(self) -> (&'static str, Value) {
        match self {
            Product::Binary => ("graph", json!({"prefill": 1, "context": 2})),
            Product::Scores => ("reference", json!({})),
            Product::Bundle => ("package", json!({})),
        }
    }
}

/// Whether kiln can make something.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) product: Product,
    /// Why it cannot be made.
    pub(super) problem: Option<Problem>,
}

/// What can be made of the model in `gguf`.
pub(super) fn verdicts(gguf: &Gguf, facts: &ModelFacts, stages: &Registry) -> Result<Vec<Verdict>> {
    let model = described(facts, &gguf.tokenizer())?;
    let mut verdicts = vec![];
    for product in [Product::Binary, Product::Scores, Product::Bundle] {
        let (kind, params) = product.kind();
        verdicts.push(Verdict {
            product,
            problem: refusal(kind, &params, &model, stages),
        });
    }
    Ok(verdicts)
}

/// Why a stage of this kind must fail with this model; `None` if nothing is known against it.
pub(super) fn refusal(
    kind: &str,
    params: &Value,
    model: &Manifest,
    stages: &Registry,
) -> Option<Problem> {
    let mut inputs = Inputs::default();
    let slot = vec![(String::new(), model.clone())];
    inputs.slots.insert("model".into(), slot);
    stages.get(kind)?.foresee(params, &inputs).err()
}
