//! Runs a bundle on a device: sends the files that are missing there, runs the bundle with
//! Qualcomm's `genie-t2t-run`, and reads the figures.
//!
//! All files are in the folder `runner` of the device: `genie-t2t-run` and its libraries, which the
//! user copies there, and `bundles/NAME/` for each bundle. The device computes the sha256 of a
//! file, before it gets its final name and again in each later run.

mod profile;
mod transport;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::action::Job;
use crate::artifact::bundle::{CONFIG, EXTENSIONS, PROMPT, SUMS, TOKENIZER};
use crate::artifact::device::Figures;
use crate::base::{Code, Context, Problem, Result, quoted};

pub use transport::Transport;

/// The program that runs a bundle.
const RUNNER: &str = "genie-t2t-run";
/// The bundle's configuration, with a limit for the length of the answer.
const LIMITED_CONFIG: &str = "kiln-config.json";
/// Suffix of a file until it is complete.
const PART: &str = ".kiln-part";
/// What scripts print if there is no runner, and if a file is complete.
const NO_RUNNER: &str = "kiln no runner";
const COMPLETE: &str = "kiln complete";
/// Time limit for computing sums and renaming files.
const SHORT_LIMIT: Duration = Duration::from_secs(120);
/// Time limit for loading a bundle and generating the answer.
const RUN_LIMIT: Duration = Duration::from_secs(1800);
/// The prompt if the bundle has none, as in its README.
const DEFAULT_PROMPT: &str = "What is gravity?";

/// A device, and how bundles are run there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// `adb:SERIAL` or `ssh:HOST`.
    pub device: String,
    /// The folder of the device with the program and its libraries.
    pub runner: String,
    /// Tokens of the answer, at most.
    pub answer_tokens: u32,
}

/// Whether a file of the bundle is needed to run it.
fn is_needed(name: &str) -> bool {
    [CONFIG, EXTENSIONS, TOKENIZER, PROMPT].contains(&name) || name.ends_with(".bin")
}

/// Whether [`Device::measure`] reads a file of the bundle.
pub fn is_read(name: &str) -> bool {
    is_needed(name) || name == SUMS
}

/// A file that must be on the device.
struct DeviceFile {
    local: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Device {
    /// Runs the bundle of stage `bundle`, whose files are inputs of the job.
    pub fn measure(&self, bundle: &str, job: &Job) -> Result<Figures> {
        let link = Transport::parse(&self.device).map_err(|help| {
            Problem::new(
                Code::MeasureDevice,
                format!("{:?} is no device", self.device),
            )
            .help(help)
        })?;
        // Locks the device: two jobs at a time would slow down each other.
        job.partial(&format!("device {link}"))?;
        let files = self.required_files(bundle, job)?;
        let folder = format!("{}/bundles/{bundle}", self.runner);
        let missing = self.find_missing(&link, &folder, &files, job)?;
        send_files(&link, &folder, &missing, job)?;
        let script = self.run_script(&folder, files.contains_key(PROMPT));
        let output = link.run(&script, RUN_LIMIT, job)?;
        profile::read(&output).map_err(|what| {
            Problem::new(
                Code::MeasureDevice,
                format!("{link}: `{bundle}` was not measured: {what}"),
            )
            .help(format!(
                "on the device, {folder} has the bundle, and kiln-answer.txt the output of \
                     {RUNNER}; the bundle must be for this chip, and the libraries in {} as new as \
                     its README requires",
                self.runner
            ))
        })
    }

    /// The files that the device needs to run the bundle, by name.
    fn required_files(&self, bundle: &str, job: &Job) -> Result<BTreeMap<String, DeviceFile>> {
        let text = job.read(&format!("{bundle}/{SUMS}"))?;
        let text = String::from_utf8_lossy(&text);
        let sums = parse_sums(&text);
        let mut files = BTreeMap::new();
        for (input, ingredient) in job.inputs() {
            let Some((stage, name)) = input.split_once('/') else {
                continue;
            };
            if stage != bundle || !is_needed(name) {
                continue;
            }
            let Some(sha256) = sums.get(name) else {
                return Err(Problem::new(
                    Code::MeasureBundle,
                    format!("{SUMS} of `{bundle}` does not list `{name}`"),
                ));
            };
            let file = DeviceFile {
                local: job.path(input)?,
                bytes: ingredient.digest.size_bytes,
                sha256: sha256.to_string(),
            };
            files.insert(name.to_string(), file);
        }
        let config = self.limited_config(&job.read(&format!("{bundle}/{CONFIG}"))?)?;
        let local = job.scratch()?.join(format!("{bundle}.{LIMITED_CONFIG}"));
        fs::write(&local, &config).context(Code::Io, || format!("write {}", local.display()))?;
        let mut sha256 = String::new();
        for byte in Sha256::digest(&config) {
            sha256 += &format!("{byte:02x}");
        }
        let file = DeviceFile {
            local,
            bytes: config.len() as u64,
            sha256,
        };
        files.insert(LIMITED_CONFIG.into(), file);
        Ok(files)
    }

    /// The bundle's configuration `text`, with the maximum length of the answer.
    fn limited_config(&self, text: &[u8]) -> Result<Vec<u8>> {
        let mut config: Value = serde_json::from_slice(text)
            .context(Code::MeasureBundle, || format!("read {CONFIG}"))?;
        let Some(Value::Object(dialog)) = config.get_mut("dialog") else {
            let message = format!("{CONFIG} has no dialog");
            return Err(Problem::new(Code::MeasureBundle, message));
        };
        dialog.insert("max-num-tokens".into(), self.answer_tokens.into());
        serde_json::to_vec(&config).context(Code::MeasureBundle, || format!("serialize {CONFIG}"))
    }

    /// Those of `files` that are not on the device with the right sha256.
    fn find_missing<'a>(
        &self,
        link: &Transport,
        folder: &str,
        files: &'a BTreeMap<String, DeviceFile>,
        job: &Job,
    ) -> Result<Vec<(&'a str, &'a DeviceFile)>> {
        let names: Vec<String> = files.keys().map(|name| quoted(name)).collect();
        let script = format!(
            "if [ ! -x {runner}/{RUNNER} ]; then echo '{NO_RUNNER}'; else\nmkdir -p {folder} && \
             cd {folder} || exit 1\nrm -f ./*{PART}\nsha256sum -- {names} 2>/dev/null\nfi",
            runner = quoted(&self.runner),
            folder = quoted(folder),
            names = names.join(" "),
        );
        let output = link.run(&script, SHORT_LIMIT, job)?;
        if output.lines().any(|line| line == NO_RUNNER) {
            return Err(self.no_runner(link));
        }
        let sums = parse_sums(&output);
        let mut missing = vec![];
        for (name, file) in files {
            let name = name.as_str();
            if sums.get(name) != Some(&file.sha256.as_str()) {
                missing.push((name, file));
            }
        }
        Ok(missing)
    }

    /// The script that runs the bundle and samples the process and the battery meanwhile. A process
    /// that has ended has no `VmHWM`.
    fn run_script(&self, folder: &str, has_prompt: bool) -> String {
        let prompt = if has_prompt {
            format!("--prompt_file {PROMPT}")
        } else {
            format!("-p {}", quoted(DEFAULT_PROMPT))
        };
        format!(
            "cd {folder} || exit 1\nrm -f kiln-profile.json kiln-answer.txt\nbattery() {{ for of \
             in current_now voltage_now status; do\nv=; {{ read -r v < \
             /sys/class/power_supply/battery/$of; }} 2>/dev/null; printf ' %s' \
             \"${{v:-?}}\"\ndone; echo; }}\nLD_LIBRARY_PATH={runner} ADSP_LIBRARY_PATH={runner} \
             {runner}/{RUNNER} -c {LIMITED_CONFIG} {prompt} --profile kiln-profile.json > \
             kiln-answer.txt 2>&1 < /dev/null &\npid=$!\nwhile grep VmHWM /proc/$pid/status \
             2>/dev/null; do\nprintf '{battery}'; battery\nsleep 0.5 2>/dev/null || sleep \
             1\ndone\nwait $pid; code=$?\necho \"{exit} $code\"\nif [ $code = 0 ]; then cat \
             kiln-profile.json; else tail -c 2000 kiln-answer.txt; fi\necho",
            folder = quoted(folder),
            runner = quoted(&self.runner),
            battery = profile::BATTERY,
            exit = profile::EXIT,
        )
    }

    fn no_runner(&self, link: &Transport) -> Problem {
        let Device { runner, .. } = self;
        Problem::new(
            Code::ToolMissing,
            format!("{link} has no program {runner}/{RUNNER} that may be run"),
        )
        .help(format!(
            "put {RUNNER} and the libraries that the bundle's README.md names into {runner} on \
             the device, and `chmod +x` the program; they come with Qualcomm's QAIRT SDK, which \
             kiln may not redistribute. If they are elsewhere, set `runner = \"/...\"`"
        ))
    }
}

/// Sends `files` to `folder`. Each gets its final name after the device has checked its sha256.
fn send_files(
    link: &Transport,
    folder: &str,
    files: &[(&str, &DeviceFile)],
    job: &Job,
) -> Result<()> {
    let total = files.iter().map(|(_, file)| file.bytes).sum();
    let mut done = 0;
    for (name, file) in files {
        job.progress(done, total, "B");
        let part = format!("{name}{PART}");
        link.send(&file.local, file.bytes, &format!("{folder}/{part}"), job)?;
        let script = format!(
            "cd {folder} || exit 1\ncase \"$(sha256sum {part})\" in {sum}*) mv -f {part} {name} \
             && echo '{COMPLETE}';; esac",
            folder = quoted(folder),
            part = quoted(&part),
            name = quoted(name),
            sum = quoted(&file.sha256),
        );
        let output = link.run(&script, SHORT_LIMIT, job)?;
        if !output.lines().any(|line| line == COMPLETE) {
            return Err(Problem::new(
                Code::MeasureDevice,
                format!("{link}: {folder}/{name} did not arrive as it was sent"),
            )
            .help("run the same command again; its disk may be full (`df` in its shell)"));
        }
        done += file.bytes;
    }
    Ok(())
}

/// The sha256 of each file, by name, from the output of `sha256sum`.
fn parse_sums(text: &str) -> BTreeMap<&str, &str> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        if let Some((sum, name)) = line.split_once("  ") {
            sums.insert(name, sum);
        }
    }
    sums
}
