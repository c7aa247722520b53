//! Reads a decoder from the metadata of a GGUF. Anything in the file that kiln would compute
//! differently is an error. An architecture is one file and one line in [`ARCHITECTURES`].

mod check;
mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod keys;
mod llama;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
#[cfg(test)]
mod toy;
mod vocabulary;

use self::keys::Keys;
use super::{DecoderSpec, ModelFacts};
use crate::base::{Code, Problem, Result};
use crate::model::gguf::{Gguf, Metadata, quoted};

/// An architecture.
#[derive(Debug)]
struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    name: &'static str,
    /// Reads the decoder of a file. Errors are collected in the [`Keys`].
    decoder: fn(&mut Keys) -> DecoderSpec,
}

/// Every architecture.
static ARCHITECTURES: &[&Architecture] = &[
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &granite::GRANITE,
    &llama::LLAMA,
    &olmo2::OLMO2,
    &phi3::PHI3,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &smollm3::SMOLLM3,
];

/// Architectures that people ask for and kiln cannot build, and why.
static REFUSED: &[(&[&str], &str)] = &[
    (
        &[
            "deepseek2",
            "ernie4_5-moe",
            "gpt-oss",
            "granitemoe",
            "lfm2moe",
            "llama4",
            "qwen2moe",
            "qwen3moe",
        ],
        "it is a mixture of experts: a graph for the NPU would have to compute all experts of \
         every token",
    ),
    (
        &[
            "falcon-h1",
            "granitehybrid",
            "lfm2",
            "mamba",
            "mamba2",
            "qwen35",
            "qwen3next",
            "rwkv7",
        ],
        "it has layers with a state of their own (convolutions, linear attention), for which \
         neither kiln nor Genie's caches have a place",
    ),
    (
        &["gemma3n", "gemma4"],
        "it has embeddings for each layer, and layers that share their keys and values",
    ),
    (
        &["mistral3"],
        "its queries are multiplied by a factor that depends on their position",
    ),
    (
        &["qwen2vl", "qwen3vl"],
        "its rotary embedding has three axes: it is for images, too",
    ),
];

/// The facts of the model in `gguf`. Its keys, tensors and vocabulary are checked.
pub fn model_facts(gguf: &Gguf) -> Result<ModelFacts> {
    decoder(gguf, ARCHITECTURES).map(ModelFacts::from)
}

/// Warnings about the model of `gguf`, which `facts` describe. They do not affect any artifact.
pub fn model_warnings(gguf: &Gguf, facts: &ModelFacts) -> Vec<String> {
    vocabulary::unused_ids(&gguf.metadata, facts.vocab)
}

/// The decoder in `gguf`, whose architecture must be one of `supported`.
fn decoder(gguf: &Gguf, supported: &[&'static Architecture]) -> Result<DecoderSpec> {
    let architecture = find_architecture(&gguf.metadata, supported)?;
    let mut keys = Keys::new(gguf, architecture.name);
    let spec = (architecture.decoder)(&mut keys);
    keys.finish(&spec)?;
    check::check(gguf, &spec)?;
    vocabulary::check(&gguf.metadata, spec.vocab)?;
    Ok(spec)
}

/// The architecture that `metadata` name.
fn find_architecture(
    metadata: &Metadata,
    supported: &[&'static Architecture],
) -> Result<&'static Architecture> {
    let name: &str = metadata.require("general.architecture")?;
    let mut names = vec![];
    for architecture in supported {
        if architecture.name == name {
            return Ok(architecture);
        }
        names.push(architecture.name);
    }
    let mut message = format!("architecture {} is not supported", quoted(name));
    for (refused, why) in REFUSED {
        if refused.contains(&name) {
            message.push_str(": ");
            message.push_str(why);
        }
    }
    Err(Problem::new(Code::ModelArchitecture, message)
        .help(format!("kiln supports {}", names.join(", "))))
}

/// Most lines of a list in a message.
const SHOWN: usize = 20;

/// A problem that lists `lines`; `Ok` if there are none.
fn refuse_all(code: Code, what: &str, lines: Vec<String>) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    Err(Problem {
        causes: shortened(lines),
        ..Problem::new(code, what)
    })
}

/// The first [`SHOWN`] of `lines`, and a line with the number of the others.
fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let count = lines.len();
    if count > SHOWN {
        lines.truncate(SHOWN);
        lines.push(format!("and {} more", count - SHOWN));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decoder::RopeRows;
    use crate::model::decoder::tensors::tensors;
    use crate::model::gguf::{Entry, Header, Value};
    use crate::model::quant::GgmlType;

    /// A file of two layers with the common keys and `extra`, and the tensors of `spec`.
    fn file(extra: &[(&str, Value)], spec: &DecoderSpec) -> Vec<u8> {
        let keys = [
            ("general.architecture", Value::Str("toy")),
            ("toy.block_count", Value::U32(2)),
            ("toy.context_length", Value::U32(64)),
            ("toy.embedding_length", Value::U32(8)),
            ("toy.feed_forward_length", Value::U32(12)),
            ("toy.attention.head_count", Value::U32(2)),
            ("toy.attention.head_count_kv", Value::U32(1)),
            ("toy.attention.layer_norm_rms_epsilon", Value::F32(0.0625)),
        ];
        let all = tensors(spec);
        let mut header = Header {
            alignment: 32,
            pairs: [&keys, extra].concat(),
            tensors: vec![],
        };
        for tensor in &all {
            header.tensors.push(Entry {
                name: &tensor.name,
                shape: &tensor.shape,
                ggml: GgmlType::by_name("F32").unwrap(),
            });
        }
        let mut bytes = vec![];
        header.write(&mut bytes).unwrap();
        for tensor in &header.tensors {
            let data = tensor.bytes().unwrap();
            bytes.resize(bytes.len() + (data + header.padding(data)) as usize, 0);
        }
        bytes
    }

    /// The decoder of `toy.rs`.
    fn expected() -> DecoderSpec {
        let mut spec = DecoderSpec {
            architecture: "toy".into(),
            ..DecoderSpec::tiny()
        };
        spec.head.tied = false;
        for layer in &mut spec.layers {
            layer.attention.qkv_bias = true;
            layer.attention.score_scale = Some(0.25);
        }
        spec.layers[1].attention.rotary = None;
        spec
    }

    fn read(bytes: &[u8]) -> Result<DecoderSpec> {
        decoder(&Gguf::parse(bytes).unwrap(), &[&toy::TOY])
    }

    const SCALE: (&str, Value) = ("toy.attention.scale", Value::F32(0.25));

    #[test]
    fn an_architecture_of_supported_parts_is_one_file_and_one_line() {
        let spec = expected();
        let bytes = file(&[SCALE], &spec);
        assert_eq!(read(&bytes).unwrap(), spec);
        let problem = model_facts(&Gguf::parse(&bytes).unwrap()).unwrap_err();
        assert_eq!(problem.message, "architecture `toy` is not supported");
    }

    #[test]
    fn an_unread_key_that_changes_the_computation_is_an_error() {
        let window = ("toy.attention.sliding_window", Value::U32(4096));
        let problem = read(&file(&[SCALE, window], &expected())).unwrap_err();
        assert_eq!(
            problem.causes,
            ["a sliding window (`attention.sliding_window` 4096) is not supported"]
        );
        let problem = read(&file(&[], &expected())).unwrap_err();
        assert_eq!(problem.causes.len(), 1, "{problem}");
        assert!(
            problem.causes[0].contains("`toy.attention.scale` is missing"),
            "{problem}"
        );
    }

    #[test]
    fn the_tensors_of_an_architecture_are_those_of_its_decoder() {
        let mut other = expected();
        other.layers[0].attention.qkv_bias = false;
        let problem = read(&file(&[SCALE], &other)).unwrap_err();
        assert_eq!(
            problem.causes,
            ["q", "k", "v"].map(|what| {
                let rows = if what == "q" { 8 } else { 4 };
                format!("`blk.0.attn_{what}.bias`: expected shape [{rows}], not there")
            })
        );
    }

    #[test]
    fn each_architecture_has_its_order_of_rows() {
        let mut layouts = vec![];
        for architecture in ARCHITECTURES {
            let mut spec = DecoderSpec::tiny();
            for layer in &mut spec.layers {
                layer.attention.qkv_bias = true;
            }
            let bytes = file(&[], &spec);
            let gguf = Gguf::parse(&bytes).unwrap();
            let mut keys = Keys::new(&gguf, "toy");
            let spec = (architecture.decoder)(&mut keys);
            let layout = spec.layers[0].attention.rotary.as_ref().unwrap().layout;
            layouts.push((architecture.name, layout));
        }
        assert_eq!(
            layouts,
            [
                ("gemma2", RopeRows::HalfSplit),
                ("gemma3", RopeRows::HalfSplit),
                ("granite", RopeRows::Interleaved),
                ("llama", RopeRows::Interleaved),
                ("olmo2", RopeRows::HalfSplit),
                ("phi3", RopeRows::HalfSplit),
                ("qwen2", RopeRows::HalfSplit),
                ("qwen3", RopeRows::HalfSplit),
                ("smollm3", RopeRows::Interleaved),
            ]
        );
    }
}
