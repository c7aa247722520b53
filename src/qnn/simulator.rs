//! Runs a context binary on the HTP simulator.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Backend, Context, GraphInfo, Soc, System};
use crate::base::{Code, Problem, Result};

/// A loaded context binary. libQnnHtp simulates the chip on x86-64; a layer takes seconds.
pub struct Simulator {
    context: Context,
    graphs: Vec<GraphInfo>,
}

impl Simulator {
    /// Loads `binary`, which must not share weights between graphs, with the libraries in `folder`.
    pub fn load(folder: &Path, binary: &[u8]) -> Result<Self> {
        let info = System::open(folder)?.binary_info(binary)?;
        let soc = Soc::of_model(info.soc_model);
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
        let mut names = vec![];
        for graph in &self.graphs {
            if graph.name == name {
                return Ok(graph);
            }
            names.push(graph.name.as_str());
        }
        Err(Problem::new(
            Code::QnnGraph,
            format!("the context binary has no graph `{name}`"),
        )
        .help(format!("it has {}", names.join(", "))))
    }

    /// Runs a graph. Inputs and outputs are little-endian bytes by name; all inputs are required.
    pub fn execute(
        &self,
        graph: &str,
        inputs: &BTreeMap<String, Vec<u8>>,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        self.context.execute(self.graph(graph)?, inputs)
    }
}
