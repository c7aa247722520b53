//! `README.md` of a bundle: what is in it, what of the model it leaves to the CPU, and the commands
//! that run it on a phone.

use super::genie::Bundle;
use crate::model::decoder::inputs::{HostInput, LOGITS};
use crate::model::shards::{End, Processor};

/// The text. `build` is the version of the libraries that compiled the binaries:
/// `v2.51.0.260929181845`.
pub fn text(bundle: &Bundle, build: &str) -> String {
    let Bundle {
        params,
        model,
        soc,
        context,
        ..
    } = bundle;
    let (name, arch, chip) = (&params.name, soc.arch, soc.name);
    let (architecture, layers) = (&model.architecture, model.block_count());
    let (files, on_cpu, on_a_phone) = (files(bundle), on_cpu(bundle), on_a_phone(bundle, build));
    let trained = model.context_length;
    let too_long = match *context > trained {
        true => format!(
            "The model was made for {trained} tokens: what it says beyond them may be worthless.\n"
        ),
        false => String::new(),
    };
    format!(
        "# {name} for the HTP of {chip}\n\nA `{architecture}` model of {layers} layers, for a \
         context of {context} tokens, compiled for {chip} (HTP v{arch}) by\nQAIRT \
         {build}.\n{too_long}\n| file | what it is \
         |\n|---|---|\n{files}\n{on_cpu}{on_a_phone}\nTime to first token, tokens per second, \
         memory and power on a phone: not measured.\n"
    )
}

/// The rows of the table of files.
fn files(bundle: &Bundle) -> String {
    let row = |(file, what): (&str, &str)| format!("| `{file}` | {what} |\n");
    let binaries = bundle
        .binaries
        .iter()
        .map(|file| (file.as_str(), "context binary for the HTP"));
    let ends = bundle.place.on_cpu().map(|end| match end {
        End::Embedding => (
            "cpu/prefill-embedding.onnx`, `cpu/decode-embedding.onnx",
            "the embedding, for the CPU",
        ),
        End::Head => (
            "cpu/prefill-head.onnx`, `cpu/decode-head.onnx",
            "the head, for the CPU",
        ),
    });
    let table = bundle.table.iter().map(|file| {
        (
            file.as_str(),
            "the rows of all tokens in f32, for Genie to look up",
        )
    });
    let weights = bundle.place.on_cpu().next().map(|_| {
        (
            "cpu/weights/",
            "the weights of those graphs (ONNX external data)",
        )
    });
    let others = [
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
    ];
    let prompt = bundle
        .params
        .prompt
        .is_some()
        .then_some(("prompt.txt", "a prompt"));
    let last = [
        (
            "metadata.json",
            "what each graph takes and gives, digests, what is known of the weights",
        ),
        ("SHA256SUMS", "`sha256sum --check SHA256SUMS`"),
    ];
    binaries
        .chain(table)
        .chain(ends)
        .chain(weights)
        .chain(others)
        .chain(prompt)
        .chain(last)
        .map(row)
        .collect()
}

/// What is the host's work, and what Genie makes of that.
fn on_cpu(bundle: &Bundle) -> String {
    let place = bundle.place;
    let ends: Vec<&str> = place.on_cpu().map(End::name).collect();
    if ends.is_empty() {
        return String::new();
    }
    let [hidden, vocab] = [bundle.model.hidden, bundle.model.vocab];
    let binaries = bundle.binaries.iter().map(|file| format!("`{file}`"));
    let graph = |end: End| {
        place
            .on_cpu()
            .any(|other| other == end)
            .then(|| format!("`cpu/ROLE-{}.onnx`", end.name()))
    };
    let way: Vec<String> = graph(End::Embedding)
        .into_iter()
        .chain(binaries)
        .chain(graph(End::Head))
        .collect();
    let row = |end: End| {
        let (value, ids) = (end.value(), HostInput::TokenIds.name());
        match end {
            End::Embedding => {
                format!("| embedding | `{ids}` i32 [1, T] | `{value}` f32 [1, T, {hidden}] |\n")
            }
            End::Head => format!(
                "| head | `{value}` f32 [1, 1, T, {hidden}] | `{LOGITS}` f32 [1, 1, T, {vocab}] \
                 |\n"
            ),
        }
    };
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
         `decode`, runs\n\n{}\n\nand what one gives, the next takes under the same name, in the \
         type that `metadata.json` says.\n\n| | takes | gives |\n|---|---|---|\n{}\n{genie}\n\n",
        ends.join(" and the "),
        way.join(" -> "),
        place.on_cpu().map(row).collect::<String>(),
    )
}

/// The commands.
fn on_a_phone(bundle: &Bundle, build: &str) -> String {
    if !bundle.is_for_genie() {
        return "## On a phone\n\nQualcomm's runtime is not part of this bundle: its licence does \
                not let us hand it on. It comes with the QAIRT SDK (Qualcomm\nAI Engine \
                Direct).\n"
            .into();
    }
    let Bundle { params, soc, .. } = bundle;
    let (name, arch) = (&params.name, soc.arch);
    let version = build
        .trim_start_matches('v')
        .split('.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".");
    let feeds_ids = bundle.place.embedding == Processor::Npu || bundle.table.is_some();
    let ask = match &params.prompt {
        _ if !feeds_ids => "-e PROMPT_ROWS -t ALL_ROWS",
        Some(_) => "--prompt_file prompt.txt",
        None => "-p 'What is gravity?'",
    };
    let template = match (&params.prompt, bundle.tokenizer.chat_template()) {
        _ if !feeds_ids => {
            "PROMPT_ROWS and ALL_ROWS are files that you make with `cpu/prefill-embedding.onnx`: \
             the rows of the prompt's tokens, and those of\nall tokens of the vocabulary, in f32. \
             This command was not tried."
        }
        (Some(_), _) => "The prompt is `prompt.txt`: Genie feeds it as it is.",
        (None, Some(_)) => {
            "Genie feeds a prompt as it is. This model wants messages in the form of its chat \
             template, which stands in\n`tokenizer_config.json`."
        }
        _ => "Genie feeds a prompt as it is.",
    };
    format!(
        "## On a phone\n\
         \n\
         Qualcomm's runtime is not part of this bundle: its licence does not let us hand it on. It comes with the QAIRT SDK (Qualcomm\n\
         AI Engine Direct), which must be {version} or later. With a phone on adb:\n\
         \n\
         ```sh\n\
         QAIRT=/path/to/qairt/{version}          # the SDK\n\
         ON=/data/local/tmp/{name}\n\
         adb shell mkdir -p $ON\n\
         adb push . $ON\n\
         adb push $QAIRT/bin/aarch64-android/genie-t2t-run $ON\n\
         for lib in Genie QnnHtp QnnHtpNetRunExtensions QnnHtpPrepare QnnHtpV{arch}Stub QnnSystem; do\n\
         \x20   adb push $QAIRT/lib/aarch64-android/lib$lib.so $ON\n\
         done\n\
         adb push $QAIRT/lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so $ON\n\
         adb shell \"cd $ON && chmod +x genie-t2t-run && \\\n\
         \x20   LD_LIBRARY_PATH=$ON ADSP_LIBRARY_PATH=$ON ./genie-t2t-run -c genie_config.json {ask}\"\n\
         ```\n\
         \n\
         {template}\n"
    )
}
