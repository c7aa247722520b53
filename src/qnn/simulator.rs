//! A context binary at work on the HTP simulator.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Backend, Context, GraphInfo, Soc, System};
use crate::base::{Code, Problem, Result};

/// A loaded context binary. libQnnHtp simulates the chip on x86-64, slowly: seconds a layer.
pub struct Simulator {
    context: Context,
    graphs: Vec<GraphInfo>,
}

impl Simulator {
    /// Loads `binary`, which must not share weights between graphs, with the libraries in `folder`.
    pub fn load(folder: &Path, binary: &[u8]) -> Result<Self> {
        let info = System::open(folder)?.binary_info(binary)?;
        let soc = Soc::of_model(info.soc_model).ok_or_else(|| {
            Problem::new(
                Code::QnnSoc,
                format!(
                    "the context binary is for an unknown SoC, model {}",
                    info.soc_model
                ),
            )
        })?;
        let context = Context::from_binary(&Backend::htp(folder, soc)?, binary)?;
        Ok(Simulator {
            context,
            graphs: info.graphs,
        })
    }

    /// Its graphs, sorted by name.
    pub fn graphs(&self) -> &[GraphInfo] {
        &self.graphs
    }

    /// The graph called `name`.
    pub fn graph(&self, name: &str) -> Result<&GraphInfo> {
        self.graphs
            .iter()
            .find(|graph| graph.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = self
                    .graphs
                    .iter()
                    .map(|graph| graph.name.as_str())
                    .collect();
                Problem::new(
                    Code::QnnGraph,
                    format!("the context binary has no graph `{name}`"),
                )
                .help(format!("it has {}", known.join(", ")))
            })
    }

    /// Runs a graph: all its inputs by name, as little-endian bytes; gives all its outputs alike.
    pub fn execute(
        &self,
        graph: &str,
        inputs: &BTreeMap<String, Vec<u8>>,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        self.context.execute(self.graph(graph)?, inputs)
    }
}
