//! Writes the `README.md` of a bundle: its files, and what the CPU must compute.

use super::commands::commands;
use super::genie::Bundle;
use crate::model::decoder::inputs::{HostInput, LOGITS};
use crate::model::decoder::shards::{OuterModule, Processor};

/// The text of `README.md`. `build` is the version of the libraries that compiled the binaries:
/// `v2.51.0.260929181845`.
pub(super) fn text(bundle: &Bundle, build: &str) -> String {
    let Bundle {
        params,
        model,
        soc,
        arch,
        context,
        ..
    } = bundle;
    let (name, chip) = (&params.name, soc.name());
    let (architecture, layers) = (&model.architecture, model.block_count());
    let (rows, cpu, commands) = (
        file_rows(bundle),
        cpu_section(bundle),
        commands(bundle, build),
    );
    let trained = model.context_length;
    let too_long = if *context > trained {
        format!(
            "The model was made for {trained} tokens: what it says beyond them may be worthless.\n"
        )
    } else {
        String::new()
    };
    format!(
        "# {name} for the HTP of {chip}\n\nA `{architecture}` model of {layers} layers, for a \
         context of {context} tokens, compiled for {chip} (HTP v{arch}) by\nQAIRT \
         {build}.\n{too_long}\n| file | what it is \
         |\n|---|---|\n{rows}\n{cpu}{commands}\nTime to first token, tokens per second, memory \
         and power on a device: not measured.\n"
    )
}

/// The rows of the table of files.
fn file_rows(bundle: &Bundle) -> String {
    let on_cpu: Vec<OuterModule> = bundle.place.on_cpu().collect();
    let mut files = vec![];
    for file in bundle.binaries {
        files.push((file.as_str(), "context binary for the HTP"));
    }
    if let Some(file) = &bundle.table {
        files.push((file, "the rows of all tokens in f32, for Genie to look up"));
    }
    for end in &on_cpu {
        files.push(match end {
            OuterModule::Embedding => (
                "cpu/prefill-embedding.onnx`, `cpu/decode-embedding.onnx",
                "the embedding, for the CPU",
            ),
            OuterModule::Head => (
                "cpu/prefill-head.onnx`, `cpu/decode-head.onnx",
                "the head, for the CPU",
            ),
        });
    }
    if !on_cpu.is_empty() {
        files.push((
            "cpu/weights/",
            "the weights of those graphs (ONNX external data)",
        ));
    }
    files.extend([
        (
            "genie_config.json",
            "the dialog: context, sampler, tokenizer, binaries",
        ),
        ("htp_backend_ext_config.json", "settings of the HTP backend"),
        ("tokenizer.json", "the model's own tokenizer"),
        (
            "tokenizer_config.json",
            "its special tokens and chat template, for Hugging Face's libraries; Genie does not \
             read it",
        ),
    ]);
    if bundle.params.prompt.is_some() {
        files.push(("prompt.txt", "a prompt"));
    }
    if bundle.params.grammar.is_some() {
        files.push(("grammar.txt", "the grammar that answers follow"));
    }
    files.extend([
        (
            "metadata.json",
            "what each graph takes and gives, digests, what is known of the weights",
        ),
        ("SHA256SUMS", "the SHA-256 sums of the other files"),
    ]);
    let mut rows = String::new();
    for (file, description) in files {
        rows += &format!("| `{file}` | {description} |\n");
    }
    rows
}

/// The section about embedding and head, if the CPU computes them.
fn cpu_section(bundle: &Bundle) -> String {
    let place = bundle.place;
    let names: Vec<&str> = place.on_cpu().map(OuterModule::name).collect();
    if names.is_empty() {
        return String::new();
    }
    let [hidden, vocab] = [bundle.model.hidden, bundle.model.vocab];
    let mut files: Vec<String> = bundle.binaries.to_vec();
    if place.embedding == Processor::Cpu {
        files.insert(
            0,
            format!("cpu/ROLE-{}.onnx", OuterModule::Embedding.name()),
        );
    }
    if place.head == Processor::Cpu {
        files.push(format!("cpu/ROLE-{}.onnx", OuterModule::Head.name()));
    }
    let mut rows = String::new();
    for end in place.on_cpu() {
        let (value, ids) = (end.value(), HostInput::TokenIds.name());
        rows += &match end {
            OuterModule::Embedding => {
                format!("| embedding | `{ids}` i32 [1, T] | `{value}` f32 [1, T, {hidden}] |\n")
            }
            OuterModule::Head => format!(
                "| head | `{value}` f32 [1, 1, T, {hidden}] | `{LOGITS}` f32 [1, 1, T, {vocab}] \
                 |\n"
            ),
        };
    }
    let genie = match (place.head, &bundle.table) {
        (Processor::Cpu, _) => {
            "Genie draws tokens from the logits of the last binary, and this bundle's gives none: \
             it is for another host than Genie, which\nmay read context, tokens and binaries from \
             `genie_config.json` all the same. No such host was tried on a phone."
        }
        (Processor::Npu, Some(_)) => {
            "Genie does it by itself: it looks the rows up in the table that `genie_config.json` \
             names, and runs no ONNX graph."
        }
        (Processor::Npu, None) => {
            "Genie runs no ONNX graph. It takes a prompt's rows in f32 by \
             `GenieDialog_embeddingQuery`, with a function that gives the rows of\nthe tokens that \
             it draws; or it looks them up in a table, which `embedding_table = true` in the \
             `package` stage adds."
        }
    };
    format!(
        "## On the CPU\n\nThe binaries leave the {} of the model to the CPU, as ONNX graphs \
         (opset 21) with their weights beside them. A call of T tokens,\nROLE being `prefill` or \
         `decode`, runs\n\n`{}`\n\nand what one gives, the next takes under the same name, in the \
         type that `metadata.json` says.\n\n| | takes | gives |\n|---|---|---|\n{rows}\n{genie}\n\n",
        names.join(" and the "),
        files.join("` -> `"),
    )
}
