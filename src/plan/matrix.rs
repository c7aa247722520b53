//! Which stages exist once per value of which axes, and where each of these instances stands.

use std::collections::{BTreeMap, BTreeSet};

use super::common::{ACROSS, spec_of, strings};
use super::source::{Node, Span, Table, Tree};
use super::source_map::SourceMap;
use super::vars::{Coordinates, Vars};
use crate::action::{Registry, StageSpec};
use crate::base::{Code, Problem, hint};

/// Cap on the stages of a plan, tools and all instances included; far above any plan that a person
/// writes.
pub const MAX_STAGES: usize = 1000;

/// One `[stage.NAME]` as it is written, with no `${name}` filled in.
pub struct Written {
    pub name: String,
    pub at: Span,
    pub table: Table,
}

type Axes = BTreeSet<usize>;

/// For each stage of a plan, the axes that it exists along.
pub struct Matrix {
    axes: Vec<Axes>,
    extents: Vec<usize>,
}

/// What a stage takes, and which axes it gathers over.
#[derive(Default)]
struct Takes {
    /// By index; the union over all values of the axes that the stage itself uses.
    stages: BTreeSet<usize>,
    across: Vec<(usize, Span)>,
}

impl Matrix {
    /// Finds out which axes each of `stages` needs: those that its own text uses, and those of the
    /// stages that it takes from, but for those that it is `across`.
    pub fn of(
        stages: &[Written],
        vars: &mut Vars,
        map: &SourceMap,
        registry: &Registry,
        problems: &mut Vec<Problem>,
    ) -> Matrix {
        let index: BTreeMap<&str, usize> = stages
            .iter()
            .enumerate()
            .map(|(at, stage)| (&*stage.name, at))
            .collect();
        let extents: Vec<usize> = (0..vars.axes().count())
            .map(|axis| vars.extent(axis))
            .collect();
        let mut matrix = Matrix {
            axes: vec![],
            extents,
        };
        let mut takes: Vec<Takes> = vec![];
        for stage in stages {
            let node = Node {
                tree: Tree::Table(stage.table.clone()),
                span: stage.at.clone(),
            };
            matrix.axes.push(vars.axes_in(&node));
            let mut taken = Takes::default();
            for here in matrix.places(takes.len()) {
                let mut node = node.clone();
                // Complaints come when the stage itself is filled in.
                vars.fill(&mut node, &here, map, &mut vec![]);
                let Tree::Table(table) = &node.tree else {
                    continue;
                };
                let spec = spec_of(table, registry);
                taken
                    .stages
                    .extend(references(table, spec).filter_map(|name| index.get(name)));
                taken.across = across(stage, table, spec, vars, problems);
            }
            takes.push(taken);
        }
        matrix.spread(&takes);
        for (stage, taken) in stages.iter().zip(&takes) {
            for (axis, at) in &taken.across {
                if !taken
                    .stages
                    .iter()
                    .any(|producer| matrix.axes[*producer].contains(axis))
                {
                    let name = vars.axes().nth(*axis).unwrap_or_default();
                    let message = format!(
                        "nothing that `{}` takes exists once per `{name}`",
                        stage.name
                    );
                    problems.push(
                        Problem::new(Code::PlanMatrix, message).at(at.clone(), "gathers nothing"),
                    );
                }
            }
        }
        matrix
    }

    /// Carries the axes of givers on to takers, until nothing changes: axes only ever come, so this
    /// ends.
    fn spread(&mut self, takes: &[Takes]) {
        let mut changed = true;
        while changed {
            changed = false;
            for (consumer, Takes { stages, across }) in takes.iter().enumerate() {
                let is_new = |axis: &usize| across.iter().all(|(across, _)| across != axis);
                let all: Axes = stages
                    .iter()
                    .flat_map(|producer| &self.axes[*producer])
                    .copied()
                    .filter(is_new)
                    .collect();
                let own: Axes = self.axes[consumer].iter().copied().filter(is_new).collect();
                let all: Axes = &all | &own;
                changed |= all != self.axes[consumer];
                self.axes[consumer] = all;
            }
        }
    }

    /// How many instances each stage has.
    pub fn counts(&self) -> impl Iterator<Item = usize> {
        self.axes.iter().map(|axes| {
            axes.iter()
                .map(|axis| self.extents[*axis])
                .fold(1, usize::saturating_mul)
        })
    }

    /// Where the instances of a stage stand, the last axis going fastest; none if there are more
    /// than a plan can have.
    pub fn places(&self, stage: usize) -> Vec<Coordinates> {
        let Some(axes) = self.axes.get(stage) else {
            return vec![];
        };
        let mut places = vec![Coordinates::new()];
        for axis in axes {
            if places.len().saturating_mul(self.extents[*axis]) > MAX_STAGES {
                return vec![];
            }
            let with = |place: &Coordinates, value| {
                let mut place = place.clone();
                place.insert(*axis, value);
                place
            };
            places = places
                .iter()
                .flat_map(|place| (0..self.extents[*axis]).map(move |v| with(place, v)))
                .collect();
        }
        places
    }
}

/// The stages that the slots of `table` name.
fn references<'t>(table: &'t Table, spec: Option<&StageSpec>) -> impl Iterator<Item = &'t str> {
    let slots = spec.map_or([].as_slice(), |spec| spec.inputs);
    slots
        .iter()
        .filter_map(|slot| table.get(slot.name))
        .flat_map(|entry| strings(&entry.node))
}

/// The axes that the stage `table` is `across`, and where it says so.
fn across(
    stage: &Written,
    table: &Table,
    spec: Option<&StageSpec>,
    vars: &Vars,
    problems: &mut Vec<Problem>,
) -> Vec<(usize, Span)> {
    let Some(entry) = table.get(ACROSS) else {
        return vec![];
    };
    let name = &stage.name;
    if let Some(spec) = spec.filter(|spec| spec.inputs.iter().all(|slot| !slot.many)) {
        let message = format!(
            "`{name}` cannot be `across` an axis: `{}` takes one stage in each input",
            spec.kind
        );
        let problem = Problem::new(Code::PlanMatrix, message).at(entry.key_span.clone(), "here");
        problems.push(problem.help(format!("remove `{ACROSS}`")));
        return vec![];
    }
    let Tree::List(items) = &entry.node.tree else {
        let message = format!(
            "`{name}.{ACROSS}` is {}, expected a list of axes",
            entry.node.what()
        );
        let problem = Problem::new(Code::PlanWrongType, message);
        problems.push(problem.at(entry.node.span.clone(), "expected a list of axes"));
        return vec![];
    };
    let mut axes = vec![];
    for item in items {
        let wanted = item.string().unwrap_or_default();
        match vars.axes().position(|axis| axis == wanted) {
            Some(axis) => axes.push((axis, item.span.clone())),
            None => problems.push(
                Problem::new(
                    Code::PlanMatrix,
                    format!("`{name}.{ACROSS}`: there is no axis `{wanted}`"),
                )
                .at(item.span.clone(), "here")
                .help(hint(wanted, "axes", vars.axes())),
            ),
        }
    }
    axes
}
