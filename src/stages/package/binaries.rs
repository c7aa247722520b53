//! Checks the context binaries of a bundle: one, or one per shard. They must fit each other, the
//! model, and the form that Genie requires.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;

use crate::action::{Job, Manifest};
use crate::artifact::context::{BINARY, binaries, binary_inputs};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::{Cache, HostInput, LOGITS, Shapes};
use crate::model::decoder::shards::{OuterModule, Processor};
use crate::model::facts::ContextFacts;
use crate::qnn::Soc;

/// One context binary.
pub(super) struct Binary {
    /// The name of the input.
    pub(super) input: String,
    /// The facts that its stage has written.
    pub(super) facts: ContextFacts,
    /// Its `info.json`.
    pub(super) info: Info,
    /// The graphs in `info.json`, unparsed.
    pub(super) graphs: Value,
}

/// The fields of `info.json` that are needed here.
#[derive(Deserialize)]
pub(super) struct Info {
    /// Version of the libraries that compiled it.
    pub(super) build_id: String,
    soc_model: u32,
    /// Hexagon architecture of its chip: 75 for v75.
    pub(super) arch: u32,
    graphs: Vec<Graph>,
}

#[derive(Deserialize)]
struct Graph {
    name: String,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<u32>,
}

/// The part names and facts of the binaries of `context`, in order.
pub(super) fn read_facts(context: &Manifest) -> Result<Vec<(String, ContextFacts)>> {
    let mut facts = vec![];
    for (name, part) in binaries(context)? {
        facts.push((name, part.facts.read()?));
    }
    Ok(facts)
}

/// Checks the facts of the binaries: Genie runs a prompt with a prefill graph and then decodes
/// token by token, and needs both graphs in every binary.
pub(super) fn check_facts(binaries: &[(String, ContextFacts)]) -> Result<()> {
    let Some((first, facts)) = binaries.first() else {
        return Err(wrong("there is no context binary"));
    };
    let (Some(prefill), Some(decode)) = (facts.graphs.get("prefill"), facts.graphs.get("decode"))
    else {
        let roles: Vec<&str> = facts.graphs.keys().map(String::as_str).collect();
        return Err(wrong(format!(
            "`{first}` has {}, and Genie needs prefill and decode",
            roles.join(", ")
        ))
        .help("`graphs = [\"prefill\", \"decode\"]` in the `context-bin` stage"));
    };
    if decode.tokens != 1 || prefill.context != decode.context {
        return Err(wrong(format!(
            "`{first}` decodes {} tokens in a context of {}, and its prefill has a context of {}",
            decode.tokens, decode.context, prefill.context
        )));
    }
    // If the past of prefill has as many tokens as prefill itself, libGenie 2.51 copies the KV
    // caches unchanged to decode, whose caches are longer.
    if prefill.context == prefill.tokens.saturating_mul(2) {
        let (context, tokens) = (prefill.context, prefill.tokens);
        return Err(wrong(format!(
            "the context of {context} is twice the prefill of {tokens}: there libGenie corrupts \
             its caches"
        ))
        .help("choose another `prefill` or `context` in the `graph` stage"));
    }
    for (name, other) in binaries {
        if other.soc != facts.soc
            || other.weight_sharing != facts.weight_sharing
            || graph_sizes(other) != graph_sizes(facts)
        {
            return Err(wrong(format!(
                "`{name}` has another chip, other graphs or another context than `{first}`"
            )));
        }
    }
    Ok(())
}

/// Role, tokens and context of each graph.
fn graph_sizes(facts: &ContextFacts) -> Vec<(&str, u32, u32)> {
    let mut sizes = vec![];
    for (role, graph) in &facts.graphs {
        sizes.push((role.as_str(), graph.tokens, graph.context));
    }
    sizes
}

impl Binary {
    /// Reads all binaries below `context/` in the inputs of `job`, in order.
    pub(super) fn read_all(job: &Job) -> Result<Vec<Binary>> {
        let mut binaries = vec![];
        for input in binary_inputs(job) {
            binaries.push(Binary::read(job, input)?);
        }
        Ok(binaries)
    }

    fn read(job: &Job, input: &str) -> Result<Binary> {
        let name = format!(
            "{}info.json",
            input.strip_suffix(BINARY).unwrap_or_default()
        );
        let value: Value = serde_json::from_slice(&job.read(&name)?)
            .context(Code::PackageInfo, || format!("read `{name}`"))?;
        let graphs = value.get("graphs").cloned().unwrap_or_default();
        let info =
            Info::deserialize(value).context(Code::PackageInfo, || format!("read `{name}`"))?;
        Ok(Binary {
            input: input.into(),
            facts: job.input(input)?.facts.read()?,
            info,
            graphs,
        })
    }

    /// The chip that it is for.
    pub(super) fn soc(&self) -> Result<Soc> {
        Soc::named(&self.facts.soc)
    }

    /// The context length in tokens.
    pub(super) fn context(&self) -> Result<u32> {
        match self.facts.graphs.get("decode") {
            Some(graph) => Ok(graph.context),
            None => Err(wrong("there is no decode graph")),
        }
    }
}

/// Compares the graphs of the binaries with the model and the form that Genie requires. Returns the
/// first binary.
pub(super) fn check_graphs<'a>(binaries: &'a [Binary], model: &DecoderSpec) -> Result<&'a Binary> {
    let (Some(first), Some(last)) = (binaries.first(), binaries.last()) else {
        return Err(wrong("there is no context binary"));
    };
    let place = ContextFacts::place(binaries.iter().map(|binary| &binary.facts));
    for binary in binaries {
        let soc = binary.soc()?;
        if binary.info.soc_model != soc.model {
            let found = binary.info.soc_model;
            return Err(wrong(format!(
                "`{}` is for SoC model {found}, not for {}",
                binary.input, soc
            )));
        }
    }
    for role in first.facts.graphs.keys() {
        let mut layers = BTreeSet::new();
        for binary in binaries {
            let graph = binary.graph(role)?;
            graph.check_shapes(&binary.input_shapes(role, model)?)?;
            for tensor in &graph.inputs {
                if let Some(HostInput::Past(Cache::Key, layer)) = HostInput::named(&tensor.name)
                    && !layers.insert(layer)
                {
                    return Err(wrong(format!(
                        "two binaries have layer {layer} of the {role} graph"
                    )));
                }
            }
        }
        if layers.len() != model.layers.len() {
            let found = layers.len();
            return Err(wrong(format!(
                "the {role} graph has {found} layers, the model {}",
                model.block_count()
            )));
        }
        match place.embedding {
            Processor::Npu => drop(first.graph(role)?.tensor(&HostInput::TokenIds.name())?),
            Processor::Cpu => first
                .graph(role)?
                .check_width(OuterModule::Embedding.value(), model.hidden)?,
        }
        match place.head {
            Processor::Npu => last.graph(role)?.check_width(LOGITS, model.vocab)?,
            Processor::Cpu => last
                .graph(role)?
                .check_width(OuterModule::Head.value(), model.hidden)?,
        }
    }
    Ok(first)
}

impl Binary {
    /// The shapes of the host inputs of its graph `role`.
    fn input_shapes(&self, role: &str, model: &DecoderSpec) -> Result<Shapes> {
        let (tokens, context) = match self.facts.graphs.get(role) {
            Some(facts) => (facts.tokens, facts.context),
            None => (0, 0),
        };
        Shapes::new(model, tokens.into(), context.into())
    }

    fn graph(&self, role: &str) -> Result<&Graph> {
        let name = match self.facts.graphs.get(role) {
            Some(facts) => facts.name.as_str(),
            None => "",
        };
        for graph in &self.info.graphs {
            if graph.name == name {
                return Ok(graph);
            }
        }
        Err(wrong(format!(
            "`{}` has no {role} graph `{name}`",
            self.input
        )))
    }
}

impl Graph {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        for tensor in self.inputs.iter().chain(&self.outputs) {
            if tensor.name == name {
                return Ok(tensor);
            }
        }
        Err(wrong(format!("`{}` has no `{name}`", self.name)))
    }

    /// Fails unless the last dimension of the tensor `name` is `width`.
    fn check_width(&self, name: &str, width: u32) -> Result<()> {
        match self.tensor(name)?.shape.as_slice() {
            [.., last] if *last == width => Ok(()),
            shape => Err(self.other_shape(name, shape, width)),
        }
    }

    fn other_shape(&self, name: &str, shape: &[u32], expected: impl Display) -> Problem {
        wrong(format!(
            "`{name}` of `{}` is {shape:?}; {expected} was expected",
            self.name
        ))
    }

    /// Compares the shapes of the inputs with `shapes`. Genie reads head size and context from them
    /// and from its configuration, which must agree.
    fn check_shapes(&self, shapes: &Shapes) -> Result<()> {
        for Tensor { name, shape } in &self.inputs {
            let Some(input) = HostInput::named(name) else {
                continue;
            };
            for (index, expected) in shapes.of(input).into_iter().enumerate() {
                match shape.get(index) {
                    Some(found) if u64::from(*found) == expected => {}
                    _ => return Err(self.other_shape(name, shape, expected)),
                }
            }
        }
        Ok(())
    }
}

fn wrong(message: impl Into<String>) -> Problem {
    Problem::new(Code::PackageContext, message)
}
