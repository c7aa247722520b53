//! The parameter `key_centre`, and the centres of a model's keys that follow from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::centre::{CENTRING, KeyCentre, KeyCentres, Keys};
use crate::action::Job;
use crate::artifact::weight::Weight;
use crate::base::{Code, Context, Problem, Result};
use crate::model::calibration::{KEY_MEANS, KeyMeans};
use crate::model::decoder::tensors::{LayerTensor, Role};
use crate::model::decoder::{DecoderSpec, not_supported};

/// What is subtracted from every rotated key of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyCentring {
    /// The mean of the rotated key bias over the positions of the context.
    Bias,
    /// The mean of the rotated keys in the `calibration`.
    Calibration,
    /// Nothing.
    None,
}

impl KeyCentring {
    /// The centring of `model` for the parameter `param`; `None` if no key is centred.
    pub(super) fn resolve(
        param: Option<KeyCentring>,
        model: &DecoderSpec,
    ) -> Result<Option<KeyCentring>> {
        match param {
            None if model.has_qkv_bias() => Ok(Some(KeyCentring::Bias)),
            None | Some(KeyCentring::None) => Ok(None),
            Some(KeyCentring::Bias) if !model.has_qkv_bias() => Err(Problem::new(
                Code::GraphKeyCentre,
                "`key_centre = \"bias\"`: this model has no key biases",
            )
            .help("leave it out, or centre by a `calibration`")),
            Some(KeyCentring::Bias | KeyCentring::Calibration) => Ok(param),
        }
    }

    /// How the keys of each layer are centred.
    pub(super) fn centres(
        centring: Option<KeyCentring>,
        context: u32,
        model: &DecoderSpec,
        job: &Job,
    ) -> Result<KeyCentres> {
        let means: Option<KeyMeans> = match centring {
            None | Some(KeyCentring::None) => return Ok(KeyCentres::new()),
            Some(KeyCentring::Bias) => None,
            Some(KeyCentring::Calibration) => Some(
                serde_json::from_slice(&job.read(KEY_MEANS)?)
                    .context(Code::GraphCalibration, || format!("read {KEY_MEANS}"))?,
            ),
        };
        let mut centres = KeyCentres::new();
        for layer in 0..model.block_count() {
            let attention = &model.layer(layer)?.attention;
            let bias = if attention.qkv_bias {
                Some(key_bias(job, layer)?)
            } else {
                None
            };
            let Some(rotary) = &attention.rotary else {
                return Err(not_supported(CENTRING, "layers without RoPE"));
            };
            let keys = Keys::new(model, rotary, context)?;
            let centre = match &means {
                None => KeyCentre::by_bias(&keys, context, &bias.unwrap_or_default())?,
                Some(means) => {
                    let Some(means) = means.get(&layer) else {
                        let message = format!("the calibration has no keys of layer {layer}");
                        return Err(Problem::new(Code::GraphCalibration, message)
                            .help("calibrate a graph of the same model"));
                    };
                    KeyCentre::new(&keys, context, bias.as_deref(), means)?
                }
            };
            centres.insert(layer, centre);
        }
        Ok(centres)
    }
}

/// The key bias of `layer`, in the order of the rows of its matrix.
fn key_bias(job: &Job, layer: u32) -> Result<Vec<f32>> {
    let bias = Role::Layer(layer, LayerTensor::Key).bias();
    let bias = Weight::read(job, &format!("weights/{bias}"))?;
    let mut values = vec![0.0; bias.columns];
    bias.row(0, &mut values);
    Ok(values)
}
