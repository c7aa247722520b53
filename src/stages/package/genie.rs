//! Writes the files that Genie reads: `genie_config.json` and the settings of its HTP backend.

use serde_json::{Value, json};

use super::Params;
use crate::artifact::bundle::{EXTENSIONS, TOKENIZER};
use crate::base::{Code, Problem, Result};
use crate::model::decoder::shards::{Place, Processor};
use crate::model::decoder::{DecoderSpec, RopeScaling, Rotary, inputs, not_supported};
use crate::model::tokenizer::Tokenizer;
use crate::qnn::Soc;

/// The contents of a bundle.
pub(super) struct Bundle<'a> {
    pub(super) params: &'a Params,
    pub(super) model: &'a DecoderSpec,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) soc: Soc,
    /// The context length in tokens.
    pub(super) context: u32,
    /// The file names of the context binaries, in order.
    pub(super) binaries: &'a [String],
    /// The processors that compute embedding and head.
    pub(super) place: Place,
    /// The file name of the embedding table, if there is one.
    pub(super) table: Option<String>,
}

impl Bundle<'_> {
    /// Whether Genie can run it: Genie samples tokens from the output of the last binary, so that
    /// the head must be in it.
    pub(super) fn is_for_genie(&self) -> bool {
        self.place.head == Processor::Npu
    }

    /// `genie_config.json`. Paths are relative to the folder in which Genie runs.
    pub(super) fn config(&self) -> Result<Value> {
        let Bundle {
            params,
            model,
            tokenizer,
            ..
        } = self;
        let eos = match tokenizer.stop_tokens() {
            [] => {
                return Err(Problem::new(
                    Code::PackageEos,
                    "the model has no end-of-sequence token",
                )
                .help("a GGUF has it in `tokenizer.ggml.eos_token_id`"));
            }
            [token] => json!(token),
            tokens => json!(tokens),
        };
        // Genie puts this token before a text that does not begin with it; -1 for none.
        let bos = match tokenizer.bos_token() {
            Some(token) => json!(token),
            None => json!(-1),
        };
        let rotary = inputs::rotary(model)?;
        let mut config = json!({
            "dialog": {
                "version": 1,
                "type": "basic",
                "context": {
                    "version": 1,
                    "size": self.context,
                    "n-vocab": model.vocab,
                    "bos-token": bos,
                    "eos-token": eos,
                },
                "sampler": {
                    "version": 1,
                    "seed": params.seed,
                    "temp": params.temp,
                    "top-k": params.top_k,
                    "top-p": params.top_p,
                },
                "tokenizer": { "version": 1, "path": TOKENIZER },
                "engine": {
                    "version": 1,
                    "n-threads": 3,
                    "backend": {
                        "version": 1,
                        "type": "QnnHtp",
                        "QnnHtp": {
                            "version": 1,
                            "use-mmap": true,
                            "spill-fill-bufsize": 0,
                            "mmap-budget": 0,
                            "poll": false,
                            "cpu-mask": "0xe0",
                            "kv-dim": model.head_dim,
                            "allow-async-init": false,
                        },
                        "extensions": EXTENSIONS,
                    },
                    "model": {
                        "version": 1,
                        "type": "binary",
                        "binary": { "version": 1, "ctx-bins": self.binaries },
                    },
                },
            },
        });
        add_rotary(&mut config["dialog"]["engine"], rotary)?;
        if self.place.embedding == Processor::Cpu {
            // libGenie was tested with a table of this type and a graph in fp16.
            let mut embedding = json!({
                "version": 1,
                "type": "callback",
                "size": model.hidden,
                "datatype": "float32",
            });
            if let Some(table) = &self.table {
                embedding["type"] = json!("lut");
                embedding["lut-path"] = json!(table);
            }
            config["dialog"]["embedding"] = embedding;
        }
        Ok(config)
    }

    /// `htp_backend_ext_config.json`.
    pub(super) fn extensions(&self) -> Value {
        let Soc { model, arch, .. } = self.soc;
        json!({
            "devices": [{
                "soc_model": model,
                "dsp_arch": format!("v{arch}"),
                "cores": [{ "core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100 }],
            }],
            "memory": { "mem_type": "shared_buffer" },
            "context": { "weight_sharing_enabled": true },
        })
    }

    /// `tokenizer_config.json`: special tokens and chat template for Hugging Face's libraries.
    /// Genie does not read it.
    pub(super) fn tokenizer_config(&self) -> Result<Value> {
        let Bundle { tokenizer, .. } = self;
        let text = |id: Option<u32>| match id {
            Some(id) => Ok::<_, Problem>(Some(tokenizer.decode(&[id])?)),
            None => Ok(None),
        };
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context,
            "clean_up_tokenization_spaces": false,
            "add_bos_token": tokenizer.bos_token().is_some(),
            "eos_token": text(tokenizer.stop_tokens().first().copied())?,
        });
        config["bos_token"] = json!(text(tokenizer.bos_token())?);
        if let Some(template) = tokenizer.chat_template() {
            config["chat_template"] = json!(template);
        }
        Ok(config)
    }
}

/// Adds what Genie needs to compute cosines and sines to its settings of the engine.
fn add_rotary(engine: &mut Value, rotary: &Rotary) -> Result<()> {
    let Rotary {
        layout: _,
        dims,
        base,
        scaling,
        magnitude,
    } = rotary;
    let theta = f64::from(*base);
    let theta = if theta.fract() == 0.0 && theta < 1e15 {
        json!(theta as u64)
    } else {
        json!(theta)
    };
    if let Some(magnitude) = magnitude {
        return Err(not_supported(
            GENIE,
            format!("RoPE whose cosines and sines are multiplied by {magnitude}"),
        ));
    }
    let scaling = match scaling {
        RopeScaling::None => {
            let htp = &mut engine["backend"]["QnnHtp"];
            htp["pos-id-dim"] = json!(dims / 2);
            htp["rope-theta"] = theta;
            return Ok(());
        }
        RopeScaling::Linear(factor) => json!({ "rope-type": "linear", "factor": factor }),
        RopeScaling::Divided(divisors) => match llama3_factor(rotary, divisors) {
            Some(factor) => json!({
                "rope-type": "llama3",
                "factor": factor,
                "low-freq-factor": LLAMA3_LOW,
                "high-freq-factor": LLAMA3_HIGH,
                "original-max-position-embeddings": LLAMA3_CONTEXT,
            }),
            // With a factor of 1, Genie does not scale cosines and sines.
            None => json!({
                "rope-type": "longrope",
                "factor": 1.0,
                "original-max-position-embeddings": LLAMA3_CONTEXT,
                "short-factor": divisors,
                "long-factor": divisors,
            }),
        },
        RopeScaling::Yarn { .. } => return Err(not_supported(GENIE, "RoPE with YaRN")),
    };
    engine["model"]["positional-encoding"] = json!({
        "type": "rope",
        "rope-dim": dims / 2,
        "rope-theta": theta,
        "rope-scaling": scaling,
    });
    Ok(())
}

/// Genie in messages.
const GENIE: &str = "kiln's configuration of Genie";

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
    use crate::model::decoder::RopeRows;

    fn engine(scaling: RopeScaling) -> Result<Value> {
        let mut rotary = Rotary::plain(RopeRows::HalfSplit, 8, 500000.0);
        rotary.scaling = scaling;
        let mut engine = json!({ "backend": { "QnnHtp": {} }, "model": {} });
        add_rotary(&mut engine, &rotary)?;
        Ok(engine)
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
        assert_eq!(other["long-factor"], json!([1.0, 1.5, third, 32.0]));
    }

    #[test]
    fn what_genie_cannot_compute_is_refused() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32768,
        };
        let problem = engine(yarn).unwrap_err();
        assert_eq!(
            problem.message,
            "kiln's configuration of Genie does not support RoPE with YaRN"
        );
    }
}
