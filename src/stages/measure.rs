//! `measure`: measures speed, memory and power of a bundle on a device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::bundle::check_for_genie;
use crate::artifact::device::{DeviceFigures, FIGURES};
use crate::base::{CanonJson, Code, Problem, Result};
use crate::device::{Device, Transport, is_read};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The device: `adb:SERIAL` or `ssh:HOST`. If empty, nothing is measured.
    #[serde(default)]
    device: String,
    /// Absolute path of the folder on the device with `genie-t2t-run` and its libraries. By default
    /// `/data/local/tmp/genie` on Android, `/opt/genie` on Linux, `C:/kiln/genie` on Windows.
    #[serde(default)]
    #[schemars(regex(pattern = r"^([A-Za-z]:)?/[A-Za-z0-9/._+-]*$"))]
    runner: Option<String>,
    /// Maximum number of tokens of the answer that is timed.
    #[serde(default = "default_answer_tokens")]
    #[schemars(range(min = 1))]
    answer_tokens: u32,
}

/// Whether `path` is absolute, on any platform, and has no special characters of a shell.
fn is_plain_path(path: &str) -> bool {
    let path = match path.split_once(':') {
        Some((drive, rest)) if drive.len() == 1 && drive.as_bytes()[0].is_ascii_alphabetic() => {
            rest
        }
        Some(_) => return false,
        None => path,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    path.starts_with('/') && path.chars().all(is_plain) && path.len() <= 200
}

fn default_answer_tokens() -> u32 {
    128
}

/// One bundle, and the device that runs it, if there is one.
#[derive(Serialize, Deserialize)]
pub struct Measurement {
    /// The stage that packaged the bundle, which names its folder on the device.
    bundle: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
}

/// The stage.
pub struct Measure;

impl TypedStage for Measure {
    type Params = Params;
    type Order = Measurement;
    const SPEC: StageSpec = StageSpec {
        kind: "measure",
        version: 2,
        summary: "speed, memory and power of a bundle on a device",
        output: "device-figures",
        inputs: &[InputSpec {
            name: "bundle",
            meaning: "The bundle that is run.",
            accepts: &["bundle"],
            required: true,
            many: false,
        }],
        params: &["device", "runner", "answer_tokens"],
        keyed: &[],
        reaches_outside: true,
        measures: true,
    };

    /// A device and its folder are plain names: both go into commands.
    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut wrong = |path: &str, what: String, help: &str| {
            let problem = Problem::new(Code::PlanParameter, what).help(help);
            problems.push(ParamProblem {
                path: path.into(),
                problem,
            });
        };
        if !params.device.is_empty()
            && let Err(expected) = Transport::parse(&params.device)
        {
            let what = format!("`device` is {:?}", params.device);
            wrong("device", what, expected);
        }
        if let Some(runner) = &params.runner
            && !is_plain_path(runner)
        {
            let help = "an absolute path on the device, of letters, digits, `.`, `_`, `+`, `-` and `/`, \
                 on Windows after `C:`";
            wrong("runner", format!("`runner` is {runner:?}"), help);
        }
        problems
    }

    /// A device does not give the same figures twice.
    fn is_volatile(params: &Params) -> bool {
        !params.device.is_empty()
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Measurement>>> {
        let [(bundle, manifest)] = inputs.many("bundle") else {
            inputs.one("bundle")?;
            return Ok(vec![]);
        };
        let Params {
            device,
            runner,
            answer_tokens,
        } = params;
        let device = (!device.is_empty()).then_some(Device {
            device,
            runner,
            answer_tokens,
        });
        let is_measured = device.is_some();
        let measurement = Measurement {
            bundle: bundle.clone(),
            device,
        };
        let mut order = Order::new("", measurement);
        if is_measured {
            check_for_genie(manifest)?;
            for (name, part) in &manifest.parts {
                if is_read(name.as_str()) {
                    order = order.input(format!("{bundle}/{name}"), part);
                }
            }
        }
        Ok(vec![order])
    }

    fn run(order: Measurement, job: &Job) -> Result<Outputs> {
        let figures = match order.device {
            Some(device) => device.measure(&order.bundle, job)?,
            None => DeviceFigures::default(),
        };
        let text = CanonJson::of(&figures)?.to_string();
        let part = job.write(text.as_bytes(), CanonJson::default())?;
        Ok([(PartName::new(FIGURES)?, part)].into())
    }
}
