//! The output of `measure`: figures of a bundle on a device.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The stage's only part.
pub const FIGURES: &str = "figures.json";

/// How a figure that was not measured is serialized.
pub const NOT_MEASURED: &str = "not measured";

/// One figure; `None` is "not measured".
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figure(pub Option<f64>);

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(figure) => serializer.serialize_f64(figure),
            None => serializer.serialize_str(NOT_MEASURED),
        }
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Number(figure) => Figure(Some(figure)),
            Either::Text(text) if text == NOT_MEASURED => Figure(None),
            Either::Text(text) => {
                let message = format!("{text:?} is neither a number nor {NOT_MEASURED:?}");
                return Err(serde::de::Error::custom(message));
            }
        })
    }
}

/// `figures.json`: how a bundle runs on a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceFigures {
    /// `adb:SERIAL` or `ssh:HOST`; none if no device was given.
    pub device: Option<String>,
    /// The version of the NPU driver that Windows has itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// What was measured there.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the prompt to the first token of the answer.
    pub time_to_first_token_ms: Figure,
    /// Of the answer without its first token, as Genie counts.
    pub ms_per_token: Figure,
    /// Tokens of the answer per second.
    pub tokens_per_second: Figure,
    /// The largest resident memory of Genie's process.
    pub peak_memory_bytes: Figure,
    /// Mean power that the whole device drew from its battery, measured without a charger.
    pub power_w: Figure,
    /// Time to load the bundle.
    pub load_ms: Figure,
    /// Tokens of the prompt.
    pub prompt_tokens: Figure,
    /// Tokens of the answer.
    pub answer_tokens: Figure,
}
