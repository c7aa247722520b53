//! `README.md` of a bundle: what is in it, and the commands that run it on a phone.

use super::genie::Bundle;

/// The text. `build` is the version of the libraries that compiled the binaries: `v2.51.0.260929181845`.
pub fn text(bundle: &Bundle, build: &str) -> String {
    let Bundle { params, model, soc, context, binaries, .. } = bundle;
    let (name, arch, chip) = (&params.name, soc.arch, soc.name);
    let version = build.trim_start_matches('v').split('.').take(2).collect::<Vec<_>>().join(".");
    let ask = if params.prompt.is_some() { "--prompt_file prompt.txt" } else { "-p 'What is gravity?'" };
    let template = match (params.prompt.is_some(), bundle.tokenizer.chat_template().is_some()) {
        (true, _) => "The prompt is `prompt.txt`: Genie feeds it as it is.",
        (_, true) => {
            "Genie feeds a prompt as it is. This model wants messages in the form of its chat template, which stands in\n\
             `tokenizer_config.json`."
        }
        _ => "Genie feeds a prompt as it is.",
    };
    let list: String = binaries.iter().map(|file| format!("| `{file}` | context binary for the HTP |\n")).collect();
    let prompt_row = if params.prompt.is_some() { "| `prompt.txt` | a prompt |\n" } else { "" };
    format!(
        "# {name} for the HTP of {chip}\n\
         \n\
         A `{architecture}` model of {layers} layers, for a context of {context} tokens, compiled for {chip} (HTP v{arch}) by\n\
         QAIRT {build}.\n\
         \n\
         | file | what it is |\n\
         |---|---|\n\
         {list}\
         | `genie_config.json` | the dialog: context, sampler, tokenizer, binaries |\n\
         | `htp_backend_ext_config.json` | settings of the HTP backend |\n\
         | `tokenizer.json` | the model's own tokenizer |\n\
         | `tokenizer_config.json` | its special tokens and chat template, for Hugging Face's libraries; Genie does not read it |\n\
         {prompt_row}\
         | `metadata.json` | what each graph takes and gives, digests, what is known of the weights |\n\
         | `SHA256SUMS` | `sha256sum --check SHA256SUMS` |\n\
         \n\
         ## On a phone\n\
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
         {template}\n\
         \n\
         Time to first token, tokens per second, memory and power on a phone: not measured.\n",
        architecture = model.architecture,
        layers = model.block_count,
    )
}
