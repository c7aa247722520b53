//! Toy stage kinds for tests of plans. They check their parameters like real kinds and never run.

use std::collections::BTreeMap;

use kiln::action::{
    Erased, InputSpec, Inputs, Job, Order, Outputs, ParamProblem, Registry, StageSpec, TypedStage,
};
use kiln::base::{Code, Problem, Result};
use schemars::JsonSchema;
use serde::Deserialize;

/// `fetch` writes `clay`; `throw` turns `clay` into `pot`; `fire` turns `pot` into `ware` and needs
/// the tool `oven`; `judge` turns several `ware` into `verdict`.
pub fn registry() -> Registry {
    Registry::new(vec![
        Box::new(Erased::new(Fetch)),
        Box::new(Erased::new(Throw)),
        Box::new(Erased::new(Fire)),
        Box::new(Erased::new(Judge)),
    ])
}

const fn spec(
    kind: &'static str,
    output: &'static str,
    inputs: &'static [InputSpec],
    params: &'static [&'static str],
) -> StageSpec {
    StageSpec {
        kind,
        version: 1,
        summary: "",
        output,
        inputs,
        params,
        keyed: &[],
        reaches_outside: false,
        measures: false,
    }
}

const fn slot(name: &'static str, accepts: &'static [&'static str], many: bool) -> InputSpec {
    InputSpec {
        name,
        meaning: "",
        accepts,
        required: true,
        many,
    }
}

macro_rules! never_runs {
    () => {
        type Order = ();

        fn expand(_: Self::Params, _: &Inputs) -> Result<Vec<Order<()>>> {
            Err(Problem::new(Code::of("test"), "not for running"))
        }

        fn run(_: (), _: &Job) -> Result<Outputs> {
            Err(Problem::new(Code::of("test"), "not for running"))
        }
    };
}

struct Fetch;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchParams {
    #[allow(dead_code)]
    url: String,
    #[serde(default)]
    sha256: String,
    #[allow(dead_code)]
    #[serde(default)]
    unpack: bool,
}

impl TypedStage for Fetch {
    type Params = FetchParams;
    const SPEC: StageSpec = StageSpec {
        reaches_outside: true,
        ..spec("fetch", "clay", &[], &["url", "sha256", "unpack"])
    };
    never_runs!();

    fn check(params: &FetchParams, _: &[kiln::action::InputStage]) -> Vec<ParamProblem> {
        if params.sha256.chars().all(|c| c.is_ascii_hexdigit()) {
            return vec![];
        }
        let problem =
            Problem::new(Code::PlanParameter, "not hexadecimal").help("64 hexadecimal digits");
        vec![ParamProblem {
            path: "sha256".into(),
            problem,
        }]
    }
}

struct Throw;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrowParams {
    #[allow(dead_code)]
    #[serde(default)]
    height: u32,
    #[allow(dead_code)]
    #[serde(default)]
    wall: f64,
    #[allow(dead_code)]
    #[serde(default, rename = "override")]
    overrides: Vec<Glaze>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Glaze {
    #[allow(dead_code)]
    part: String,
    #[allow(dead_code)]
    glaze: Colour,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    Celadon,
    OxBlood,
}

impl TypedStage for Throw {
    type Params = ThrowParams;
    const SPEC: StageSpec = spec(
        "throw",
        "pot",
        &[slot("clay", &["clay"], false)],
        &["height", "wall", "override"],
    );
    never_runs!();
}

struct Fire;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FireParams {
    #[allow(dead_code)]
    cone: u32,
}

impl TypedStage for Fire {
    type Params = FireParams;
    const SPEC: StageSpec = spec(
        "fire",
        "ware",
        &[slot("pot", &["pot", "ware"], false)],
        &["cone"],
    );
    never_runs!();

    fn tools(_: &FireParams, _: &[kiln::action::InputStage]) -> Vec<&'static str> {
        vec!["oven"]
    }
}

struct Judge;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeParams {
    #[allow(dead_code)]
    #[serde(default)]
    marks: BTreeMap<String, u32>,
}

const BEST: InputSpec = InputSpec {
    name: "best",
    meaning: "",
    accepts: &["ware"],
    required: false,
    many: false,
};

impl TypedStage for Judge {
    type Params = JudgeParams;
    const SPEC: StageSpec = StageSpec {
        keyed: &[("marks", "wares")],
        ..spec(
            "judge",
            "verdict",
            &[slot("wares", &["ware"], true), BEST],
            &["marks"],
        )
    };
    never_runs!();
}
