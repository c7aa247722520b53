//! The context binaries of a bundle: one, or several that follow one another. They must fit each
//! other, the model, and the form that Genie asks of graphs.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;

use crate::action::{Job, Manifest};
use crate::artifact::context::{BINARY, binaries, binary_inputs};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::{Cache, HostInput, LOGITS, Shapes};
use crate::model::facts::ContextFacts;
use crate::model::shards::{End, Processor};
use crate::qnn::Soc;

/// One context binary.
pub struct Binary {
    /// The input that it is.
    pub input: String,
    /// What its stage says of it.
    pub facts: ContextFacts,
    /// What it says of itself.
    pub info: Info,
    /// The same of its graphs, as it was written.
    pub graphs: Value,
}

/// Of `info.json`, what is read.
#[derive(Deserialize)]
pub struct Info {
    /// Version of the libraries that made it.
    pub build_id: String,
    soc_model: u32,
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

/// The binaries of `context` in order, by their part names, and what is known of them without
/// opening them.
pub fn known(context: &Manifest) -> Result<Vec<(String, ContextFacts)>> {
    binaries(context)?
        .into_iter()
        .map(|(name, part)| Ok((name, part.facts.read()?)))
        .collect()
}

/// Genie takes a prompt by a prefill graph and then decodes token by token, through all binaries
/// alike.
pub fn check_facts(binaries: &[(String, ContextFacts)]) -> Result<()> {
    let Some((first, facts)) = binaries.first() else {
        return Err(wrong("there is no context binary"));
    };
    let (Some(prefill), Some(decode)) = (facts.graphs.get("prefill"), facts.graphs.get("decode"))
    else {
        let held: Vec<&str> = facts.graphs.keys().map(String::as_str).collect();
        return Err(wrong(format!(
            "`{first}` holds {}, and Genie needs prefill and decode",
            held.join(", ")
        ))
        .help("`graphs = [\"prefill\", \"decode\"]` in the `context-bin` stage"));
    };
    if decode.tokens != 1 || prefill.context != decode.context {
        return Err(wrong(format!(
            "`{first}` decodes {} tokens in a context of {}, and its prefill has a context of {}",
            decode.tokens, decode.context, prefill.context
        )));
    }
    // libGenie 2.51 takes the caches over as they are where prefill has as much past as it is long,
    // though decode's are longer.
    if prefill.context == prefill.tokens.saturating_mul(2) {
        let (context, tokens) = (prefill.context, prefill.tokens);
        return Err(wrong(format!(
            "the context of {context} is twice the prefill of {tokens}: there libGenie muddles \
             its caches"
        ))
        .help("choose another `prefill` or `context` in the `graph` stage"));
    }
    let sizes = |facts: &ContextFacts| -> Vec<(String, u32, u32)> {
        facts
            .graphs
            .iter()
            .map(|(role, graph)| (role.clone(), graph.tokens, graph.context))
            .collect()
    };
    let alike = |other: &ContextFacts| {
        other.soc == facts.soc
            && other.weight_sharing == facts.weight_sharing
            && sizes(other) == sizes(facts)
    };
    match binaries.iter().find(|(_, other)| !alike(other)) {
        Some((name, _)) => Err(wrong(format!(
            "`{name}` has another chip, other graphs or another context than `{first}`"
        ))),
        None => Ok(()),
    }
}

impl Binary {
    /// All that are inputs of `job` below `context/`, in order.
    pub fn read_all(job: &Job) -> Result<Vec<Binary>> {
        binary_inputs(job)
            .into_iter()
            .map(|input| Binary::read(job, input))
            .collect()
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
    pub fn soc(&self) -> Result<Soc> {
        Soc::named(&self.facts.soc)
    }

    /// Tokens that attention sees.
    pub fn context(&self) -> Result<u32> {
        let graph = self
            .facts
            .graphs
            .get("decode")
            .ok_or_else(|| wrong("there is no decode graph"))?;
        Ok(graph.context)
    }
}

/// Holds what the binaries say of themselves against the model and Genie's form; gives the first.
pub fn check_graphs<'a>(binaries: &'a [Binary], model: &DecoderSpec) -> Result<&'a Binary> {
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
                binary.input, soc.name
            )));
        }
    }
    for role in first.facts.graphs.keys() {
        let mut layers = BTreeSet::new();
        for binary in binaries {
            let graph = binary.graph(role)?;
            graph.check_sizes(&binary.shapes(role, model)?)?;
            let mut caches =
                graph
                    .inputs
                    .iter()
                    .filter_map(|tensor| match HostInput::named(&tensor.name) {
                        Some(HostInput::Past(Cache::Key, layer)) => Some(layer),
                        _ => None,
                    });
            if let Some(layer) = caches.find(|layer| !layers.insert(*layer)) {
                return Err(wrong(format!(
                    "two binaries hold layer {layer} of the {role} graph"
                )));
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
                .check_width(End::Embedding.value(), model.hidden)?,
        }
        match place.head {
            Processor::Npu => last.graph(role)?.check_width(LOGITS, model.vocab)?,
            Processor::Cpu => last
                .graph(role)?
                .check_width(End::Head.value(), model.hidden)?,
        }
    }
    Ok(first)
}

impl Binary {
    /// The shapes of what its graph `role` is fed.
    fn shapes(&self, role: &str, model: &DecoderSpec) -> Result<Shapes> {
        let facts = self.facts.graphs.get(role);
        let (tokens, context) = facts.map_or((0, 0), |facts| (facts.tokens, facts.context));
        Shapes::new(model, tokens.into(), context.into())
    }

    fn graph(&self, role: &str) -> Result<&Graph> {
        let name = self.facts.graphs.get(role).map(|graph| graph.name.as_str());
        let graph = self
            .info
            .graphs
            .iter()
            .find(|graph| Some(graph.name.as_str()) == name);
        graph.ok_or_else(|| {
            wrong(format!(
                "`{}` has no {role} graph `{}`",
                self.input,
                name.unwrap_or_default()
            ))
        })
    }
}

impl Graph {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let mut all = self.inputs.iter().chain(&self.outputs);
        all.find(|tensor| tensor.name == name)
            .ok_or_else(|| wrong(format!("`{}` has no `{name}`", self.name)))
    }

    /// Whether the last dimension of the tensor `name` is `width`.
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

    /// Genie reads head and context from these shapes and from its configuration: they must say the
    /// same.
    fn check_sizes(&self, shapes: &Shapes) -> Result<()> {
        for Tensor { name, shape } in &self.inputs {
            let Some(input) = HostInput::named(name) else {
                continue;
            };
            for (at, expected) in shapes.of(input).into_iter().enumerate() {
                if shape.get(at).map(|found| u64::from(*found)) != Some(expected) {
                    return Err(self.other_shape(name, shape, expected));
                }
            }
        }
        Ok(())
    }
}

fn wrong(message: impl Into<String>) -> Problem {
    Problem::new(Code::PackageContext, message)
}
