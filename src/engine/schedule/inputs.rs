//! The part of the scheduler that reads the outputs of completed stages.

use super::super::{Effect, StageIndex, StageState};
use super::Scheduler;
use crate::action::{Inputs, Manifest};
use crate::base::{Digest, Result};
use crate::plan::StageId;

impl Scheduler<'_> {
    /// The output digests of a stage's dependencies, in the order of its slots and tools.
    pub(super) fn producers(&self, stage: StageIndex) -> Vec<Digest> {
        let mut digests = vec![];
        for producer in self.planned(stage).dependencies() {
            if let StageState::Completed(completed) = &self.graph[self.index[producer]] {
                digests.push(completed.output());
            }
        }
        digests
    }

    /// The inputs of a stage that are complete, except for local files, which the driver adds.
    pub(super) fn inputs(&self, stage: StageIndex) -> Result<Inputs> {
        let stage = self.planned(stage);
        let mut inputs = Inputs::default();
        for (slot, producers) in &stage.slots {
            let manifests = inputs.slots.entry(slot.clone()).or_default();
            for producer in producers {
                if let Some(manifest) = self.manifest(producer)? {
                    manifests.push((producer.to_string(), manifest));
                }
            }
        }
        for (tool, producer) in &stage.tools {
            if let Some(manifest) = self.manifest(producer)? {
                inputs.tools.insert(tool.clone(), manifest);
            }
        }
        Ok(inputs)
    }

    /// The manifest of a stage, if it is complete.
    fn manifest(&self, stage: &StageId) -> Result<Option<Manifest>> {
        match &self.graph[self.index[stage]] {
            StageState::Completed(completed) => Ok(Some(completed.details()?.manifest.clone())),
            _ => Ok(None),
        }
    }

    /// Asks whether `stage` must fail, if it waits for some of its inputs and has others.
    pub(super) fn foresee(&mut self, stage: StageIndex) {
        if self.stopping || !matches!(self.graph[stage], StageState::Waiting) {
            return;
        }
        match self.inputs(stage) {
            Ok(inputs) if inputs.slots.values().all(Vec::is_empty) => {}
            Ok(inputs) => self.request(Effect::Foresee { stage, inputs }),
            Err(problem) => self.fail_stage(stage, problem),
        }
    }

    /// Asks all stages, since a job must run.
    pub(super) fn foresee_all(&mut self) {
        if !std::mem::replace(&mut self.has_missed, true) {
            for stage in self.graph.node_indices() {
                self.foresee(stage);
            }
        }
    }
}
