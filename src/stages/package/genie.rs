//! Writes the files that Genie reads: `genie_config.json` and the settings of its HTP backend.

use serde_json::{Value, json};

use super::{Params, rotary};
use crate::artifact::bundle::{EXTENSIONS, GRAMMAR, Platform, TOKENIZER};
use crate::base::{Code, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::RotaryTables;
use crate::model::decoder::shards::{Place, Processor};
use crate::model::tokenizer::Tokenizer;
use crate::qnn::Soc;

/// The contents of a bundle.
pub(super) struct Bundle<'a> {
    pub(super) params: &'a Params,
    pub(super) model: &'a DecoderSpec,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) soc: Soc,
    /// Hexagon architecture of the chip: 75 for v75.
    pub(super) arch: u32,
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
        // Genie puts this token before every prompt, also before one that begins with it; -1 for
        // none.
        let bos = match tokenizer.bos_token() {
            Some(token) => json!(token),
            None => json!(-1),
        };
        let tables = RotaryTables::of(model)?;
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
                            // Genie does not map files on Windows.
                            "use-mmap": params.platform != Platform::Windows,
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
        let dialog = &mut config["dialog"];
        if let Some(penalty) = &params.penalty {
            dialog["sampler"]["token-penalty"] = json!({
                "version": 1,
                "penalize-last-n": penalty.last,
                "repetition-penalty": penalty.repetition,
                "presence-penalty": penalty.presence,
                "frequency-penalty": penalty.frequency,
            });
        }
        if !params.stop.is_empty() {
            dialog["stop-sequence"] = json!(params.stop);
        }
        if let Some(tokens) = params.max_tokens {
            dialog["max-num-tokens"] = json!(tokens);
        }
        if let Some(grammar) = &params.grammar {
            dialog["context"]["grammar"] = json!({
                "backend": "xgrammar",
                "type": grammar.form,
                "file": GRAMMAR,
                "tokenizer-json": TOKENIZER,
            });
        }
        rotary::add(&mut config["dialog"]["engine"], &tables, self.context)?;
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
        let (model, arch) = (self.soc.model, self.arch);
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
