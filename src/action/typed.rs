//! The interface for authors of stages: parameters and orders are serde types.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::params::validate;
use super::{
    Action, Demand, InputStage, Inputs, Job, Outputs, ParamProblem, Part, Proof, Smaller, Stage,
    StageSpec, ToolFile, WorkOrder,
};
use crate::base::{Code, Context, Problem, Result};

/// A stage with typed parameters. `Erased::new(MyStage)` is a [`Stage`].
pub trait TypedStage: Send + Sync + 'static {
    /// The table of the stage in the plan without input slots and common keys. It has
    /// `deny_unknown_fields`.
    type Params: DeserializeOwned + JsonSchema;
    /// The parameters of one part, which are part of the key.
    type Order: Serialize + DeserializeOwned;
    /// The specification of the kind.
    const SPEC: StageSpec;

    /// Checks what the schema cannot express: patterns, URLs, slots that exclude each other. It also
    /// runs if numbers are outside of the range of the schema.
    fn check(_params: &Self::Params, _inputs: &[InputStage]) -> Vec<ParamProblem> {
        vec![]
    }

    /// The tools that a stage with these parameters and inputs loads. Optional ones end in
    /// [`OPTIONAL_TOOL`](super::OPTIONAL_TOOL).
    fn tools(_params: &Self::Params, _inputs: &[InputStage]) -> Vec<&'static str> {
        vec![]
    }

    /// See [`Stage::files`].
    fn files(_params: &Self::Params) -> Result<Vec<PathBuf>> {
        Ok(vec![])
    }

    /// See [`Stage::is_volatile`].
    fn is_volatile(_params: &Self::Params) -> bool {
        false
    }

    /// See [`Stage::proof`].
    fn proof(_order: &Self::Order) -> Proof {
        Proof::Key
    }

    /// See [`Stage::foresee`].
    fn foresee(_params: &Self::Params, _inputs: &Inputs) -> Result<()> {
        Ok(())
    }

    /// See [`Stage::expand`].
    fn expand(params: Self::Params, inputs: &Inputs) -> Result<Vec<Order<Self::Order>>>;

    /// See [`Stage::run`].
    fn run(order: Self::Order, job: &Job) -> Result<Outputs>;
}

/// A work order with typed parameters.
pub struct Order<T> {
    /// Prefix of its outputs in the manifest. At most one order of a stage has none.
    pub name: String,
    /// The parameters of this part.
    pub params: T,
    /// Its inputs.
    pub inputs: BTreeMap<String, Part>,
    /// The tool files it loads.
    pub tools: Vec<ToolFile>,
    /// See [`Action::origin`].
    pub origin: Option<String>,
    /// What it needs while it runs.
    pub demand: Demand,
    /// See [`WorkOrder::smaller`].
    pub smaller: Vec<Smaller>,
}

impl<T> Order<T> {
    /// An order without inputs.
    pub fn new(name: impl Into<String>, params: T) -> Self {
        Order {
            name: name.into(),
            params,
            inputs: BTreeMap::new(),
            tools: vec![],
            origin: None,
            demand: Demand::default(),
            smaller: vec![],
        }
    }

    /// Adds an input.
    pub fn input(mut self, name: impl Into<String>, part: &Part) -> Self {
        self.inputs.insert(name.into(), part.clone());
        self
    }

    /// Adds files of a tool.
    pub fn tools(mut self, files: Vec<ToolFile>) -> Self {
        self.tools.extend(files);
        self
    }

    /// Sets where its data comes from.
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self
    }

    /// Sets the resources that it needs.
    pub fn demand(mut self, demand: Demand) -> Self {
        self.demand = demand;
        self
    }

    /// Sets alternatives that need fewer resources.
    pub fn smaller(mut self, smaller: Vec<Smaller>) -> Self {
        self.smaller = smaller;
        self
    }
}

/// Makes a [`TypedStage`] a [`Stage`].
pub struct Erased<S> {
    stage: PhantomData<S>,
    schema: OnceLock<Schema>,
}

impl<S: TypedStage> Erased<S> {
    /// `stage` as a [`Stage`].
    pub fn new(_stage: S) -> Self {
        Erased {
            stage: PhantomData,
            schema: OnceLock::new(),
        }
    }
}

impl<S: TypedStage> Stage for Erased<S> {
    fn spec(&self) -> &StageSpec {
        const { &S::SPEC }
    }

    fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| {
            // Inline, so that definitions of different stages cannot have the same name.
            let settings =
                SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
            settings
                .into_generator()
                .into_root_schema_for::<S::Params>()
        })
    }

    fn check(
        &self,
        params: &Value,
        inputs: &[InputStage],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        let mut problems = validate(self.schema().as_value(), params);
        let parsed: std::result::Result<S::Params, _> = serde_path_to_error::deserialize(params);
        let params = match parsed {
            Ok(params) => params,
            Err(_) if !problems.is_empty() => return Err(problems),
            Err(error) => {
                let path: Vec<String> = error.path().iter().map(path_component).collect();
                let message = error.inner().to_string();
                return Err(vec![ParamProblem {
                    path: path.join("/"),
                    problem: Problem::new(Code::PlanParameter, message),
                }]);
            }
        };
        // A value that the schema does not allow is reported once.
        let mut reported: BTreeSet<String> = BTreeSet::new();
        for problem in &problems {
            reported.insert(problem.path.clone());
        }
        for problem in S::check(&params, inputs) {
            if problem.path.is_empty() || !reported.contains(&problem.path) {
                problems.push(problem);
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let tools = S::tools(&params, inputs);
        Ok(tools.into_iter().map(String::from).collect())
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        S::files(&read(S::SPEC.kind, params)?)
    }

    fn is_volatile(&self, params: &Value) -> Result<bool> {
        Ok(S::is_volatile(&read(S::SPEC.kind, params)?))
    }

    fn proof(&self, order: &Value) -> Result<Proof> {
        Ok(S::proof(&read(S::SPEC.kind, order)?))
    }

    fn foresee(&self, params: &Value, inputs: &Inputs) -> Result<()> {
        S::foresee(&read(S::SPEC.kind, params)?, inputs)
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        let params: S::Params = read(S::SPEC.kind, params)?;
        let mut orders = vec![];
        for order in S::expand(params, inputs)? {
            orders.push(WorkOrder {
                params: serde_json::to_value(order.params)
                    .context(Code::Order, || "serialize an order".into())?,
                name: order.name,
                inputs: order.inputs,
                tools: order.tools,
                origin: order.origin,
                demand: order.demand,
                smaller: order.smaller,
            });
        }
        Ok(orders)
    }

    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        S::run(read(S::SPEC.kind, &action.params)?, job)
    }
}

/// A step of a path. Keys may contain dots.
fn path_component(segment: &Segment) -> String {
    match segment {
        Segment::Map { key } | Segment::Enum { variant: key } => key.clone(),
        Segment::Seq { index } => index.to_string(),
        Segment::Unknown => "?".into(),
    }
}

fn read<T: DeserializeOwned>(kind: &str, value: &Value) -> Result<T> {
    T::deserialize(value).context(Code::Order, || {
        format!("read the parameters of a `{kind}` action")
    })
}
