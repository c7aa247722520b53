//! Genie's settings of RoPE, from which it computes cosines and sines.

use serde_json::{Value, json};

use crate::base::Result;
use crate::model::decoder::inputs::{RotaryTable, RotaryTables};
use crate::model::decoder::{DecoderSpec, RopeScaling, Rotary, not_supported};

/// Genie in messages.
const GENIE: &str = "kiln's configuration of Genie";

/// Refuses a decoder whose RoPE Genie cannot compute.
pub(super) fn check(model: &DecoderSpec) -> Result<()> {
    for (_, rotary) in RotaryTables::of(model)?.iter() {
        encoding(rotary, model.context_length)?;
    }
    Ok(())
}

/// Adds the settings of `tables` to those of the engine, for graphs of this `context`.
pub(super) fn add(engine: &mut Value, tables: &RotaryTables, context: u32) -> Result<()> {
    let mut encodings = vec![];
    for (table, rotary) in tables.iter() {
        let mut encoding = encoding(rotary, context)?;
        if table != RotaryTable::Global {
            encoding["prefix"] = json!(table.prefix());
        }
        encodings.push(encoding);
    }
    engine["model"]["positional-encoding"] = match &encodings[..] {
        [plain] if plain.get(SCALING).is_none() => {
            let htp = &mut engine["backend"]["QnnHtp"];
            htp["pos-id-dim"] = plain[DIM].clone();
            htp["rope-theta"] = plain[THETA].clone();
            return Ok(());
        }
        [one] => one.clone(),
        _ => json!(encodings),
    };
    Ok(())
}

const DIM: &str = "rope-dim";
const THETA: &str = "rope-theta";
const SCALING: &str = "rope-scaling";

/// The settings of one table.
fn encoding(rotary: &Rotary, context: u32) -> Result<Value> {
    let theta = f64::from(rotary.base);
    let mut encoding = json!({ "type": "rope", DIM: rotary.dims / 2, THETA: theta });
    if theta.fract() == 0.0 && theta < 1e15 {
        encoding[THETA] = json!(theta as u64);
    }
    if let Some(scaling) = scaling(rotary, context)? {
        encoding[SCALING] = scaling;
    }
    Ok(encoding)
}

/// How frequencies, cosines and sines are scaled, if they are.
fn scaling(rotary: &Rotary, context: u32) -> Result<Option<Value>> {
    let Rotary {
        layout: _,
        dims: _,
        base: _,
        scaling,
        magnitude,
    } = rotary;
    if magnitude.is_some() {
        return Ok(Some(longrope(rotary, context)?));
    }
    Ok(match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear(factor) => Some(json!({ "rope-type": "linear", "factor": factor })),
        RopeScaling::Divided(divisors) => match llama3_factor(rotary, divisors) {
            Some(factor) => Some(json!({
                "rope-type": "llama3",
                "factor": factor,
                "low-freq-factor": LLAMA3_LOW,
                "high-freq-factor": LLAMA3_HIGH,
                "original-max-position-embeddings": LLAMA3_CONTEXT,
            })),
            None => Some(longrope(rotary, context)?),
        },
        RopeScaling::LongRope { .. } | RopeScaling::Yarn { .. } => Some(longrope(rotary, context)?),
    })
}

/// LongRoPE with the divisors of `rotary`, which can express any. Both lists are equal: the graph
/// is made for one context.
///
/// Genie multiplies cosines and sines by `sqrt(1 + ln(factor) / ln(original))`, as Hugging Face
/// does, so the factor follows from the magnitude.
fn longrope(rotary: &Rotary, context: u32) -> Result<Value> {
    let original = match rotary.scaling {
        RopeScaling::LongRope {
            original_context, ..
        }
        | RopeScaling::Yarn {
            original_context, ..
        } => original_context,
        _ => LLAMA3_CONTEXT,
    };
    let magnitude = f64::from(rotary.magnitude.unwrap_or(1.0));
    if magnitude < 1.0 {
        return Err(not_supported(
            GENIE,
            format!("RoPE whose cosines and sines are multiplied by {magnitude}, less than 1"),
        ));
    }
    let divisors = rotary.divisors(context);
    Ok(json!({
        "rope-type": "longrope",
        "factor": libm::pow(f64::from(original), magnitude * magnitude - 1.0),
        "original-max-position-embeddings": original,
        "short-factor": divisors,
        "long-factor": divisors,
    }))
}

/// The constants of Llama 3.1 and later. A GGUF has only the divisors that follow from them.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: u32 = 8192;

/// The factor from which the `divisors` of a Llama 3 follow; `None` if they are others.
///
/// A wavelength below `context / high` is not divided, one above `context / low` is divided by the
/// factor, and between them is a mix (`convert_hf_to_gguf.py` of llama.cpp).
fn llama3_factor(rotary: &Rotary, divisors: &[f32]) -> Option<f32> {
    let factor = divisors.last().copied()?;
    let context = f64::from(LLAMA3_CONTEXT);
    for (i, divisor) in divisors.iter().enumerate() {
        let exponent = 2.0 * i as f64 / f64::from(rotary.dims);
        let wavelength = std::f64::consts::TAU * libm::pow(f64::from(rotary.base), exponent);
        let expected = if wavelength < context / LLAMA3_HIGH {
            1.0
        } else if wavelength > context / LLAMA3_LOW {
            f64::from(factor)
        } else {
            let mix = (context / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
            ((1.0 - mix) / f64::from(factor) + mix).recip()
        };
        if (f64::from(*divisor) - expected).abs() > 1e-5 * expected {
            return None;
        }
    }
    Some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decoder::{DecoderSpec, RopeRows, Window};

    /// The settings for a model with these rotary embeddings of layers, of which the second has a
    /// sliding window.
    fn engine_of(rotaries: [&Rotary; 2]) -> Result<Value> {
        let mut spec = DecoderSpec::tiny();
        spec.head_dim = 8;
        for (layer, rotary) in spec.layers.iter_mut().zip(rotaries) {
            layer.attention.rotary = Some(rotary.clone());
        }
        spec.layers[1].attention.window = Window::Sliding(64);
        let mut engine = json!({ "backend": { "QnnHtp": {} }, "model": {} });
        add(&mut engine, &RotaryTables::of(&spec)?, 64)?;
        Ok(engine)
    }

    fn rotary(scaling: RopeScaling) -> Rotary {
        let mut rotary = Rotary::plain(RopeRows::HalfSplit, 8, 500000.0);
        rotary.magnitude = Some(scaling.magnitude()).filter(|magnitude| *magnitude != 1.0);
        rotary.scaling = scaling;
        rotary
    }

    fn engine(scaling: RopeScaling) -> Result<Value> {
        let rotary = rotary(scaling);
        engine_of([&rotary, &rotary])
    }

    #[test]
    fn plain_rotary_is_two_numbers() {
        assert_eq!(
            engine(RopeScaling::None).unwrap(),
            json!({ "backend": { "QnnHtp": { "pos-id-dim": 4, "rope-theta": 500000 } }, "model": {} })
        );
    }

    /// The divisors of Llama 3.2 with heads of 8 columns: wavelengths of 6, 167, 4443 and 118144.
    #[test]
    fn divisors_of_llama_3_are_recognized() {
        let mix = (8192.0 / 4442.882938158366 - 1.0) / 3.0;
        let third = (1.0 / ((1.0 - mix) / 32.0 + mix)) as f32;
        let encoding = |divisors: [f32; 4]| {
            let engine = engine(RopeScaling::Divided(divisors.to_vec())).unwrap();
            assert_eq!(engine["backend"]["QnnHtp"], json!({}));
            engine["model"]["positional-encoding"].clone()
        };
        assert_eq!(
            encoding([1.0, 1.0, third, 32.0]),
            json!({
                "type": "rope",
                "rope-dim": 4,
                "rope-theta": 500000,
                "rope-scaling": {
                    "rope-type": "llama3",
                    "factor": 32.0,
                    "low-freq-factor": 1.0,
                    "high-freq-factor": 4.0,
                    "original-max-position-embeddings": 8192,
                },
            })
        );
        let other = &encoding([1.0, 1.5, third, 32.0])["rope-scaling"];
        assert_eq!(other["rope-type"], "longrope");
        assert_eq!(
            other["long-factor"],
            json!([1.0, 1.5, f64::from(third), 32.0])
        );
    }

    #[test]
    fn layers_with_a_window_have_settings_of_their_own() {
        let global = rotary(RopeScaling::Linear(8.0));
        let local = Rotary::plain(RopeRows::HalfSplit, 8, 10000.0);
        let engine = engine_of([&global, &local]).unwrap();
        assert_eq!(
            engine["model"]["positional-encoding"],
            json!([
                {
                    "type": "rope",
                    "rope-dim": 4,
                    "rope-theta": 500000,
                    "rope-scaling": { "rope-type": "linear", "factor": 8.0 },
                },
                { "type": "rope", "rope-dim": 4, "rope-theta": 10000, "prefix": "swa_" },
            ])
        );
    }

    /// `sqrt(1 + ln(factor) / ln(original))` is the magnitude.
    #[test]
    fn the_factor_of_longrope_follows_from_the_magnitude() {
        let mut rotary = rotary(RopeScaling::LongRope {
            short: vec![1.0; 4],
            long: vec![1.0, 2.0, 3.0, 4.0],
            original_context: 16,
        });
        rotary.magnitude = Some(1.5);
        let engine = engine_of([&rotary, &rotary]).unwrap();
        let scaling = &engine["model"]["positional-encoding"]["rope-scaling"];
        assert_eq!(scaling["long-factor"], json!([1.0, 2.0, 3.0, 4.0]));
        assert_eq!(scaling["short-factor"], scaling["long-factor"]);
        let factor = scaling["factor"].as_f64().unwrap();
        let magnitude = (1.0 + factor.ln() / 16f64.ln()).sqrt();
        assert!((magnitude - 1.5).abs() < 1e-12, "{magnitude}");
        rotary.magnitude = Some(0.75);
        let problem = engine_of([&rotary, &rotary]).unwrap_err();
        assert_eq!(
            problem.message,
            "kiln's configuration of Genie does not support RoPE whose cosines and sines are \
             multiplied by 0.75, less than 1"
        );
    }
}
