//! Runs a bundle on a device: sends the files that are missing there, runs the bundle with
//! Qualcomm's `genie-t2t-run`, and reads the figures. The platform of the bundle decides in which
//! language the device's scripts are.
//!
//! All files are in the folder `runner` of the device: `genie-t2t-run` and its libraries, which the
//! user copies there, and `bundles/NAME/` for each bundle. The device computes the sha256 of a
//! file, before it gets its final name and again in each later run.

mod posix;
mod profile;
mod scripts;
mod transport;
mod windows;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::action::Job;
use crate::artifact::bundle::{
    CONFIG, EXTENSIONS, GRAMMAR, METADATA, PROMPT, Platform, SUMS, TOKENIZER,
};
use crate::artifact::device::DeviceFigures;
use crate::base::{Code, Context, Problem, Result};

pub use transport::Transport;

use posix::Posix;
use scripts::{ANSWER, COMPLETE, LIMITED_CONFIG, NO_RUNNER, PART, Scripts};
use windows::Windows;

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
    /// The folder of the device with the program and its libraries, if it is not the default of the
    /// platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Tokens of the answer, at most.
    pub answer_tokens: u32,
}

/// Whether a file of the bundle is needed to run it.
fn is_needed(name: &str) -> bool {
    [CONFIG, EXTENSIONS, TOKENIZER, PROMPT, GRAMMAR].contains(&name) || name.ends_with(".bin")
}

/// Whether [`Device::measure`] reads a file of the bundle.
pub fn is_read(name: &str) -> bool {
    is_needed(name) || [SUMS, METADATA].contains(&name)
}

/// A file that must be on the device.
struct DeviceFile {
    local: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Device {
    /// Runs the bundle of stage `bundle`, whose files are inputs of the job.
    pub fn measure(&self, bundle: &str, job: &Job) -> Result<DeviceFigures> {
        let link = Transport::parse(&self.device).map_err(|help| {
            Problem::new(
                Code::MeasureDevice,
                format!("{:?} is no device", self.device),
            )
            .help(help)
        })?;
        // Locks the device: two jobs at a time would slow down each other.
        job.partial(&format!("device {link}"))?;
        let platform = platform(bundle, job)?;
        if platform == Platform::Windows && matches!(link, Transport::Adb(_)) {
            let message = format!("`{bundle}` is for Windows, and {link} has Android");
            return Err(Problem::new(Code::MeasureDevice, message)
                .help("give `ssh:HOST`, or another `platform` to the `package` stage"));
        }
        let scripts = scripts(platform);
        let runner = match &self.runner {
            Some(runner) => runner,
            None => scripts.default_runner(),
        };
        if runner.contains(':') != (platform == Platform::Windows) {
            let message = format!("`{runner}` is no absolute path on the device of `{bundle}`");
            return Err(Problem::new(Code::MeasureDevice, message)
                .help("`runner` begins with a drive on Windows (`C:/`), elsewhere with `/`"));
        }
        let folder = format!("{runner}/bundles/{bundle}");
        let remote = Remote {
            link: &link,
            scripts,
            runner,
            folder: &folder,
            job,
        };
        let files = self.required_files(bundle, job)?;
        remote.send_files(&remote.find_missing(&files)?)?;
        let prompt = (!files.contains_key(PROMPT)).then_some(DEFAULT_PROMPT);
        let script = scripts.run(runner, &folder, prompt);
        let output = link.run(scripts, &script, RUN_LIMIT, job)?;
        let figures = profile::read(&output).map_err(|what| {
            Problem::new(
                Code::MeasureDevice,
                format!("{link}: `{bundle}` was not measured: {what}"),
            )
            .help(format!(
                "on the device, {folder} has the bundle, and {ANSWER} the output of {}; the bundle \
                 must be for this chip, and the libraries in {runner} as new as its README requires",
                scripts.program()
            ))
        })?;
        Ok(DeviceFigures {
            device: Some(self.device.clone()),
            driver: profile::driver(&output),
            figures,
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
}

/// The scripts for the shell of a platform.
fn scripts(platform: Platform) -> &'static dyn Scripts {
    match platform {
        Platform::Android => &Posix {
            default_runner: "/data/local/tmp/genie",
        },
        Platform::Linux => &Posix {
            default_runner: "/opt/genie",
        },
        Platform::Windows => &Windows,
    }
}

/// The platform of the bundle of stage `bundle`.
fn platform(bundle: &str, job: &Job) -> Result<Platform> {
    #[derive(Deserialize)]
    struct Metadata {
        platform: Platform,
    }
    let name = format!("{bundle}/{METADATA}");
    let metadata: Metadata = serde_json::from_slice(&job.read(&name)?)
        .context(Code::MeasureBundle, || format!("read {name}"))?;
    Ok(metadata.platform)
}

/// The folder of a bundle on a device.
struct Remote<'a> {
    link: &'a Transport,
    scripts: &'a dyn Scripts,
    runner: &'a str,
    folder: &'a str,
    job: &'a Job<'a>,
}

impl Remote<'_> {
    /// Those of `files` that are not on the device with the right sha256.
    fn find_missing<'f>(
        &self,
        files: &'f BTreeMap<String, DeviceFile>,
    ) -> Result<Vec<(&'f str, &'f DeviceFile)>> {
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        let script = self.scripts.probe(self.runner, self.folder, &names);
        let output = self
            .link
            .run(self.scripts, &script, SHORT_LIMIT, self.job)?;
        if output.lines().any(|line| line == NO_RUNNER) {
            return Err(self.no_runner());
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

    fn no_runner(&self) -> Problem {
        let (link, runner, program) = (self.link, self.runner, self.scripts.program());
        Problem::new(
            Code::ToolMissing,
            format!("{link} has no program {runner}/{program} that may be run"),
        )
        .help(format!(
            "put {program} and the libraries that the bundle's README.md names into {runner} on \
             the device, and let the program be executed; they come with Qualcomm's QAIRT SDK, \
             which kiln may not redistribute. If they are elsewhere, set `runner = \"/...\"`"
        ))
    }

    /// Sends `files`. Each gets its final name after the device has checked its sha256.
    fn send_files(&self, files: &[(&str, &DeviceFile)]) -> Result<()> {
        let Remote {
            link,
            scripts,
            folder,
            job,
            ..
        } = *self;
        let total = files.iter().map(|(_, file)| file.bytes).sum();
        let mut done = 0;
        for (name, file) in files {
            job.progress(done, total, "B");
            let remote = format!("{folder}/{name}{PART}");
            link.send(scripts, &file.local, file.bytes, &remote, job)?;
            let script = scripts.accept(folder, name, &file.sha256);
            let output = link.run(scripts, &script, SHORT_LIMIT, job)?;
            if !output.lines().any(|line| line == COMPLETE) {
                return Err(Problem::new(
                    Code::MeasureDevice,
                    format!("{link}: {folder}/{name} did not arrive as it was sent"),
                )
                .help("run the same command again; its disk may be full"));
            }
            done += file.bytes;
        }
        Ok(())
    }
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
