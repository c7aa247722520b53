//! Expands stages along the axes of `[matrix]`: which stages exist once per value of which axes.

use std::collections::{BTreeMap, BTreeSet};

use super::common::{ACROSS, spec_of, strings};
use super::source::{Node, Span, Table, Tree};
use super::source_map::SourceMap;
use super::vars::{Coordinates, Vars};
use crate::action::{Registry, StageSpec};
use crate::base::{Code, Problem, hint};

/// Cap on the stages of a plan, including tools and all instances. It is far above any plan that a
/// person writes.
pub const MAX_STAGES: usize = 1000;

/// One `[stage.NAME]` before any `${name}` is filled in.
pub(super) struct StageTable {
    pub name: String,
    pub at: Span,
    pub table: Table,
}

type Axes = BTreeSet<usize>;

/// The axes of each stage of a plan. Stages and axes are identified by index.
pub(super) struct Matrix {
    /// By stage.
    axes: Vec<Axes>,
    /// Number of values, by axis.
    extents: Vec<usize>,
}

/// What a stage depends on.
#[derive(Default)]
struct Dependencies {
    /// The union over all instances of the stage.
    producers: BTreeSet<usize>,
    /// The axes in its `across`, and where they are written.
    across: Vec<(usize, Span)>,
}

impl Dependencies {
    fn is_across(&self, axis: usize) -> bool {
        self.across.iter().any(|(across, _)| *across == axis)
    }
}

impl Matrix {
    /// Computes the axes of `stages`: those that its own text uses and those of its producers,
    /// except the axes in its `across`.
    pub(super) fn of(
        stages: &[StageTable],
        vars: &mut Vars,
        map: &SourceMap,
        registry: &Registry,
        problems: &mut Vec<Problem>,
    ) -> Matrix {
        let mut index_of: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, stage) in stages.iter().enumerate() {
            index_of.insert(&stage.name, index);
        }
        let axis_count = vars.axes().count();
        let mut matrix = Matrix {
            axes: vec![],
            extents: (0..axis_count).map(|axis| vars.extent(axis)).collect(),
        };
        let mut dependencies: Vec<Dependencies> = vec![];
        for (index, stage) in stages.iter().enumerate() {
            let template = Node {
                tree: Tree::Table(stage.table.clone()),
                span: stage.at.clone(),
            };
            matrix.axes.push(vars.axes_in(&template));
            let mut own = Dependencies::default();
            for coordinates in matrix.instances(index) {
                let mut node = template.clone();
                // The problems are reported later, when the stage itself is filled in.
                vars.fill(&mut node, &coordinates, map, &mut vec![]);
                let Tree::Table(table) = &node.tree else {
                    continue;
                };
                let spec = spec_of(table, registry);
                for name in references(table, spec) {
                    own.producers.extend(index_of.get(name));
                }
                own.across = read_across(stage, table, spec, vars, problems);
            }
            dependencies.push(own);
        }
        matrix.propagate(&dependencies);
        matrix.check_across(stages, &dependencies, vars, problems);
        matrix
    }

    /// Adds the axes of producers to their consumers until nothing changes. It ends, because axes
    /// are only added.
    fn propagate(&mut self, dependencies: &[Dependencies]) {
        let mut changed = true;
        while changed {
            changed = false;
            for (consumer, own) in dependencies.iter().enumerate() {
                let mut axes = self.axes[consumer].clone();
                for producer in &own.producers {
                    axes.extend(&self.axes[*producer]);
                }
                axes.retain(|axis| !own.is_across(*axis));
                changed |= axes != self.axes[consumer];
                self.axes[consumer] = axes;
            }
        }
    }

    /// Reports each axis in an `across` that no producer of the stage has.
    fn check_across(
        &self,
        stages: &[StageTable],
        dependencies: &[Dependencies],
        vars: &Vars,
        problems: &mut Vec<Problem>,
    ) {
        for (stage, own) in stages.iter().zip(dependencies) {
            for (axis, at) in &own.across {
                let has_axis = |producer: &usize| self.axes[*producer].contains(axis);
                if own.producers.iter().any(has_axis) {
                    continue;
                }
                let axis = vars.axes().nth(*axis).unwrap_or_default();
                let message = format!("no input of `{}` exists once per `{axis}`", stage.name);
                let problem = Problem::new(Code::PlanMatrix, message);
                problems.push(problem.at(at.clone(), "nothing to gather"));
            }
        }
    }

    /// The number of instances of all stages. It saturates.
    pub(super) fn instance_count(&self) -> usize {
        let mut total: usize = 0;
        for axes in &self.axes {
            let mut count: usize = 1;
            for axis in axes {
                count = count.saturating_mul(self.extents[*axis]);
            }
            total = total.saturating_add(count);
        }
        total
    }

    /// The coordinates of the instances of a stage; the last axis varies fastest. Empty if there
    /// are more than a plan can have.
    pub(super) fn instances(&self, stage: usize) -> Vec<Coordinates> {
        let Some(axes) = self.axes.get(stage) else {
            return vec![];
        };
        let mut instances = vec![Coordinates::new()];
        for axis in axes {
            let extent = self.extents[*axis];
            if instances.len().saturating_mul(extent) > MAX_STAGES {
                return vec![];
            }
            let mut extended = vec![];
            for coordinates in &instances {
                for value in 0..extent {
                    let mut coordinates = coordinates.clone();
                    coordinates.insert(*axis, value);
                    extended.push(coordinates);
                }
            }
            instances = extended;
        }
        instances
    }
}

/// The stages that the inputs of `table` name.
fn references<'t>(table: &'t Table, spec: Option<&StageSpec>) -> Vec<&'t str> {
    let mut names = vec![];
    let Some(spec) = spec else {
        return names;
    };
    for slot in spec.inputs {
        if let Some(entry) = table.get(slot.name) {
            names.extend(strings(&entry.node));
        }
    }
    names
}

/// The axes in the `across` of a stage, and where they are written.
fn read_across(
    stage: &StageTable,
    table: &Table,
    spec: Option<&StageSpec>,
    vars: &Vars,
    problems: &mut Vec<Problem>,
) -> Vec<(usize, Span)> {
    let Some(entry) = table.get(ACROSS) else {
        return vec![];
    };
    let name = &stage.name;
    if let Some(spec) = spec
        && !spec.inputs.iter().any(|slot| slot.many)
    {
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
        let axis = item.string().unwrap_or_default();
        if let Some(index) = vars.axes().position(|name| name == axis) {
            axes.push((index, item.span.clone()));
            continue;
        }
        let message = format!("`{name}.{ACROSS}`: there is no axis `{axis}`");
        let problem = Problem::new(Code::PlanMatrix, message).at(item.span.clone(), "here");
        problems.push(problem.help(hint(axis, "axes", vars.axes())));
    }
    axes
}
