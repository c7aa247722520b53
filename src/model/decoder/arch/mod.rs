//! From the metadata of a file to a decoder that is understood in full: what would be computed
//! otherwise than its file says is refused. One file an architecture, and one line in
//! [`ARCHITECTURES`].

mod check;
mod keys;
mod llama;
mod qwen2;
#[cfg(test)]
mod toy;
mod vocabulary;

use self::keys::Keys;
use super::DecoderSpec;
use crate::base::{Code, Problem, Result};
use crate::model::facts::ModelFacts;
use crate::model::gguf::{Gguf, Metadata, quoted};

/// An architecture.
#[derive(Debug)]
struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    name: &'static str,
    /// Reads the decoder of a file. What is wrong with the file is told to the [`Keys`].
    decoder: fn(&mut Keys) -> DecoderSpec,
}

/// Every architecture.
static ARCHITECTURES: &[&Architecture] = &[&llama::LLAMA, &qwen2::QWEN2];

/// What the model of `gguf` is, once its keys, its tensors and its vocabulary fit each other.
pub fn model_facts(gguf: &Gguf) -> Result<ModelFacts> {
    decoder(gguf, ARCHITECTURES).map(ModelFacts::from)
}

/// What is odd about the model of `gguf`, which `facts` describe, and changes nothing that is made
/// of it.
pub fn model_warnings(gguf: &Gguf, facts: &ModelFacts) -> Vec<String> {
    vocabulary::unused_ids(&gguf.metadata, facts.vocab)
}

/// The decoder in `gguf`, whose architecture is one of `known`.
fn decoder(gguf: &Gguf, known: &[&'static Architecture]) -> Result<DecoderSpec> {
    let architecture = named(&gguf.metadata, known)?;
    let mut keys = Keys::new(gguf, architecture.name);
    let spec = (architecture.decoder)(&mut keys);
    keys.finish(&spec)?;
    check::check(gguf, &spec)?;
    vocabulary::check(&gguf.metadata, spec.vocab)?;
    Ok(spec)
}

/// The one of `known` that `metadata` name.
fn named(metadata: &Metadata, known: &[&'static Architecture]) -> Result<&'static Architecture> {
    let name: &str = metadata.require("general.architecture")?;
    let found = known.iter().find(|architecture| architecture.name == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|architecture| architecture.name).collect();
        Problem::new(
            Code::ModelArchitecture,
            format!("architecture {} is not supported", quoted(name)),
        )
        .help(format!("kiln knows {}", known.join(" and ")))
    })
}

/// Most lines of a list in a message.
const SHOWN: usize = 20;

/// One problem that lists `lines`; none if there are none.
fn refuse_all(code: Code, what: &str, lines: Vec<String>) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    Err(Problem {
        causes: shortened(lines),
        ..Problem::new(code, what)
    })
}

/// As many of `lines` as a person reads.
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
    use crate::model::decoder::tensors::tensors;
    use crate::model::facts::RopeRows;
    use crate::model::gguf::{Entry, Header, Value};
    use crate::model::quant::GgmlType;

    /// A file of two layers with these keys beside the common ones, whose tensors are those of
    /// `spec`.
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
        let entry = |index: usize| Entry {
            name: &all[index].name,
            shape: &all[index].shape,
            ggml: GgmlType::by_name("F32").unwrap(),
        };
        let header = Header {
            alignment: 32,
            pairs: keys.iter().chain(extra).copied().collect(),
            tensors: (0..all.len()).map(entry).collect(),
        };
        let mut bytes = vec![];
        header.write(&mut bytes).unwrap();
        for tensor in &header.tensors {
            let data = tensor.bytes().unwrap();
            bytes.resize(bytes.len() + (data + header.padding(data)) as usize, 0);
        }
        bytes
    }

    /// What `toy.rs` says of its decoder.
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
    fn an_architecture_of_known_parts_is_one_file_and_one_line() {
        let spec = expected();
        let bytes = file(&[SCALE], &spec);
        assert_eq!(read(&bytes).unwrap(), spec);
        let problem = model_facts(&Gguf::parse(&bytes).unwrap()).unwrap_err();
        assert_eq!(problem.message, "architecture `toy` is not supported");
    }

    #[test]
    fn only_a_key_that_an_architecture_reads_may_change_what_is_computed() {
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
    fn the_rows_of_llama_are_interleaved_and_those_of_qwen2_are_not() {
        let layouts = ARCHITECTURES.iter().map(|architecture| {
            let mut spec = DecoderSpec::tiny();
            for layer in &mut spec.layers {
                layer.attention.qkv_bias = true;
            }
            let bytes = file(&[], &spec);
            let gguf = Gguf::parse(&bytes).unwrap();
            let mut keys = Keys::new(&gguf, "toy");
            let spec = (architecture.decoder)(&mut keys);
            let layout = spec.layers[0].attention.rotary.as_ref().unwrap().layout;
            (architecture.name, layout)
        });
        assert_eq!(
            layouts.collect::<Vec<_>>(),
            [
                ("llama", RopeRows::Interleaved),
                ("qwen2", RopeRows::HalfSplit)
            ]
        );
    }
}
