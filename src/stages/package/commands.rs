//! The section of a bundle's `README.md` with the commands that run it on a device.

use super::genie::Bundle;
use crate::artifact::bundle::Platform;
use crate::model::decoder::shards::Processor;

/// The libraries of Genie and the HTP backend, without the stub for the architecture.
const LIBRARIES: &str = "Genie QnnHtp QnnHtpNetRunExtensions QnnHtpPrepare QnnSystem";

/// The section. `build` is the version of the libraries that compiled the binaries.
pub(super) fn commands(bundle: &Bundle, build: &str) -> String {
    let platform = bundle.params.platform;
    let title = match platform {
        Platform::Android => "On a phone",
        Platform::Windows => "On Windows",
        Platform::Linux => "On Linux",
    };
    let licence = "Qualcomm's runtime is not part of this bundle: its licence does not let us hand \
                   it on.";
    if !bundle.is_for_genie() {
        return format!(
            "## {title}\n\n{licence} It comes with the QAIRT SDK (Qualcomm\nAI Engine Direct).\n"
        );
    }
    let mut numbers: Vec<&str> = build.trim_start_matches('v').split('.').collect();
    numbers.truncate(2);
    let version = numbers.join(".");
    let how = match platform {
        Platform::Android => on_android(bundle, &version),
        Platform::Windows => on_windows(bundle, &version),
        Platform::Linux => on_linux(bundle, &version),
    };
    format!("## {title}\n\n{licence} {how}\n{}\n", about_prompts(bundle))
}

/// Whether Genie can start from token ids.
fn feeds_ids(bundle: &Bundle) -> bool {
    bundle.place.embedding == Processor::Npu || bundle.table.is_some()
}

/// The arguments of `genie-t2t-run` with the prompt, for a shell and for PowerShell.
fn prompt_args(bundle: &Bundle) -> &'static str {
    match &bundle.params.prompt {
        _ if !feeds_ids(bundle) => "-e PROMPT_ROWS -t ALL_ROWS",
        Some(_) => "--prompt_file prompt.txt",
        None => "-p 'What is gravity?'",
    }
}

/// How a prompt must look.
fn about_prompts(bundle: &Bundle) -> String {
    let mut text = String::from(
        match (&bundle.params.prompt, bundle.tokenizer.chat_template()) {
            _ if !feeds_ids(bundle) => {
                "PROMPT_ROWS and ALL_ROWS are files that you make with \
                 `cpu/prefill-embedding.onnx`: the rows of the prompt's tokens, and those of\nall \
                 tokens of the vocabulary, in f32. This command was not tried."
            }
            (Some(_), _) => "The prompt is `prompt.txt`: Genie feeds it as it is.",
            (None, Some(_)) => {
                "Genie feeds a prompt as it is. This model wants messages in the form of its chat \
                 template, which stands in\n`tokenizer_config.json`."
            }
            _ => "Genie feeds a prompt as it is.",
        },
    );
    if feeds_ids(bundle) && bundle.tokenizer.bos_token().is_some() {
        text += "\nGenie puts the first token of a text (BOS) before it: leave it out.";
    }
    text
}

fn on_android(bundle: &Bundle, version: &str) -> String {
    let (name, arch, args) = (&bundle.params.name, bundle.arch, prompt_args(bundle));
    format!(
        "It comes with the QAIRT SDK (Qualcomm
AI Engine Direct), which must be {version} or later. With a phone on adb:

```sh
QAIRT=/path/to/qairt/{version}          # the SDK
ON=/data/local/tmp/{name}
sha256sum --check SHA256SUMS
adb shell mkdir -p $ON
adb push . $ON
adb push $QAIRT/bin/aarch64-android/genie-t2t-run $ON
for lib in {LIBRARIES} QnnHtpV{arch}Stub; do
    adb push $QAIRT/lib/aarch64-android/lib$lib.so $ON
done
adb push $QAIRT/lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so $ON
adb shell \"cd $ON && chmod +x genie-t2t-run && \\
    LD_LIBRARY_PATH=$ON ADSP_LIBRARY_PATH=$ON ./genie-t2t-run -c genie_config.json {args}\"
```
"
    )
}

fn on_linux(bundle: &Bundle, version: &str) -> String {
    let (arch, args) = (bundle.arch, prompt_args(bundle));
    format!(
        "Its libraries for ARM64 are in the
QAIRT SDK (Qualcomm AI Engine Direct) and in the package `onnxruntime-qnn` of PyPI, `genie-t2t-run` is
in the SDK only. They must be of QAIRT {version} or later. On the device, in this folder:

```sh
QAIRT=/path/to/qairt/{version}          # the SDK
TARGET=aarch64-oe-linux-gcc11.2     # the folder of the SDK for this system
sha256sum --check SHA256SUMS
cp $QAIRT/bin/$TARGET/genie-t2t-run .
for lib in {LIBRARIES} QnnHtpV{arch}Stub; do
    cp $QAIRT/lib/$TARGET/lib$lib.so .
done
cp $QAIRT/lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so .
LD_LIBRARY_PATH=$PWD ADSP_LIBRARY_PATH=$PWD ./genie-t2t-run -c genie_config.json {args}
```
"
    )
}

/// PowerShell. Windows loads the code for the HTP only with its catalogue of signatures (`.cat`).
fn on_windows(bundle: &Bundle, version: &str) -> String {
    let (arch, args) = (bundle.arch, prompt_args(bundle));
    let names: Vec<String> = LIBRARIES
        .split(' ')
        .map(|name| format!("'{name}'"))
        .collect();
    let names = names.join(", ");
    let prompt = match &bundle.params.prompt {
        Some(_) => "open('prompt.txt', encoding='utf-8').read()",
        None => "'What is gravity?'",
    };
    let without_sdk = if feeds_ids(bundle) {
        format!(
            "
Or without the SDK, with Python for ARM64: `qai-appbuilder` carries the runtime for v73 and v81.

```powershell
py -m pip install 'qai-appbuilder>={version}'
$env:PYTHONUTF8 = '1'
@\"
from qai_appbuilder import GenieContext
def show(text):
    print(text, end='', flush=True)
    return True
GenieContext('genie_config.json').Query({prompt}, show)
\"@ | py -
```
"
        )
    } else {
        String::new()
    };
    format!(
        "Its libraries for ARM64 are in the
QAIRT SDK (Qualcomm AI Engine Direct) and in the `win_arm64` wheels of the packages `onnxruntime-qnn` and
`qai-appbuilder` of PyPI, `genie-t2t-run.exe` is in the SDK only. They must be of QAIRT {version} or later;
where Windows has its own NPU driver (HNRD), the driver must be, too. Copy this folder to the laptop.
There, in PowerShell, in this folder:

```powershell
foreach ($line in Get-Content SHA256SUMS) {{
    $sum, $file = $line -split '  ', 2
    if ((Get-FileHash -Algorithm SHA256 -LiteralPath $file).Hash -ne $sum) {{ \"$file is damaged\" }}
}}
$QAIRT = 'C:\\path\\to\\qairt\\{version}'      # the SDK
foreach ($name in {names}, 'QnnHtpV{arch}Stub') {{
    Copy-Item \"$QAIRT\\lib\\aarch64-windows-msvc\\$name.dll\" .
}}
Copy-Item \"$QAIRT\\lib\\hexagon-v{arch}\\unsigned\\libQnnHtpV{arch}Skel.so\" .
Copy-Item \"$QAIRT\\lib\\hexagon-v{arch}\\unsigned\\libqnnhtpv{arch}.cat\" .
Copy-Item \"$QAIRT\\bin\\aarch64-windows-msvc\\genie-t2t-run.exe\" .
$env:ADSP_LIBRARY_PATH = $PWD.Path
.\\genie-t2t-run.exe -c genie_config.json {args}
```
{without_sdk}
These commands were not tried: there was no such laptop.
"
    )
}
