//! Runs a bundle on a device: sends the files that the device lacks, runs them with the vendor's
//! runner, and reads the figures.
//!
//! Everything lies in the folder `runner` of the device: `genie-t2t-run` and its libraries, which
//! the user has put there, and `bundles/NAME/` for each bundle. A file is known by its sha256, on
//! the device itself, and takes its name only once it is whole.

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
/// The bundle's configuration, but for the length of the answer.
const OWN_CONFIG: &str = "kiln-config.json";
/// What a file is called until it is whole.
const PART: &str = ".kiln-part";
/// Looks, sums and renames.
const QUICK: Duration = Duration::from_secs(120);
/// Loads a bundle and answers.
const LONG: Duration = Duration::from_secs(1800);
/// Said where the bundle has no prompt, as in its README.
const QUESTION: &str = "What is gravity?";

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

/// Whether a bundle's file is needed to run it.
fn is_needed(name: &str) -> bool {
    [CONFIG, EXTENSIONS, TOKENIZER, PROMPT].contains(&name) || name.ends_with(".bin")
}

/// Whether [`Device::measure`] reads a bundle's file.
pub fn is_read(name: &str) -> bool {
    is_needed(name) || name == SUMS
}

/// A file that must be on the device.
struct Wanted {
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
        // One at a time on a device, whoever asks: two would measure each other.
        job.partial(&format!("device {link}"))?;
        let wanted = self.wanted(bundle, job)?;
        let folder = format!("{}/bundles/{bundle}", self.runner);
        let there = self.look(&link, &folder, &wanted, job)?;
        self.send(&link, &folder, &wanted, &there, job)?;
        let said = link.run(
            &self.run_script(&folder, wanted.contains_key(PROMPT)),
            LONG,
            job,
        )?;
        profile::read(&said).map_err(|what| {
            Problem::new(
                Code::MeasureDevice,
                format!("{link}: `{bundle}` was not measured: {what}"),
            )
            .help(format!(
                "on the device, {folder} holds the bundle, and kiln-answer.txt what {RUNNER} \
                     said; the bundle must be for this chip, and the libraries in {} as new as \
                     its README says",
                self.runner
            ))
        })
    }

    /// What the device must have of the bundle, by name.
    fn wanted(&self, bundle: &str, job: &Job) -> Result<BTreeMap<String, Wanted>> {
        let read = |name: &str| job.read(&format!("{bundle}/{name}"));
        let sums = read(SUMS)?;
        let sums = String::from_utf8_lossy(&sums);
        let sums: BTreeMap<&str, &str> = sums
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(swap)
            .collect();
        let mut wanted = BTreeMap::new();
        for (input, ingredient) in job.inputs() {
            let Some(name) = input
                .strip_prefix(bundle)
                .and_then(|name| name.strip_prefix('/'))
            else {
                continue;
            };
            if !is_needed(name) {
                continue;
            }
            let sha256 = sums.get(name).ok_or_else(|| {
                Problem::new(
                    Code::MeasureBundle,
                    format!("{SUMS} of `{bundle}` does not tell of `{name}`"),
                )
            })?;
            let (local, bytes) = (job.path(input)?, ingredient.digest.size_bytes);
            wanted.insert(
                name.to_string(),
                Wanted {
                    local,
                    bytes,
                    sha256: sha256.to_string(),
                },
            );
        }
        let config = self.config(&read(CONFIG)?)?;
        let local = job.scratch()?.join(format!("{bundle}.{OWN_CONFIG}"));
        fs::write(&local, &config).context(Code::Io, || format!("write {}", local.display()))?;
        let sha256 = Sha256::digest(&config)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        wanted.insert(
            OWN_CONFIG.into(),
            Wanted {
                local,
                bytes: config.len() as u64,
                sha256,
            },
        );
        Ok(wanted)
    }

    /// The bundle's configuration with an end to the answer.
    fn config(&self, text: &[u8]) -> Result<Vec<u8>> {
        let mut config: Value = serde_json::from_slice(text)
            .context(Code::MeasureBundle, || format!("read {CONFIG}"))?;
        let dialog = config.get_mut("dialog").and_then(Value::as_object_mut);
        let dialog = dialog
            .ok_or_else(|| Problem::new(Code::MeasureBundle, format!("{CONFIG} has no dialog")))?;
        dialog.insert("max-num-tokens".into(), self.answer_tokens.into());
        serde_json::to_vec(&config).context(Code::MeasureBundle, || format!("spell {CONFIG}"))
    }

    /// The names of the files that are there already, whole.
    fn look(
        &self,
        link: &Transport,
        folder: &str,
        wanted: &BTreeMap<String, Wanted>,
        job: &Job,
    ) -> Result<Vec<String>> {
        let names: Vec<String> = wanted.keys().map(|name| quoted(name)).collect();
        let script = format!(
            "if [ ! -x {runner}/{RUNNER} ]; then echo 'kiln nothing'; else\nmkdir -p {folder} && \
             cd {folder} || exit 1\nrm -f ./*{PART}\nsha256sum -- {names} 2>/dev/null\nfi",
            runner = quoted(&self.runner),
            folder = quoted(folder),
            names = names.join(" "),
        );
        let said = link.run(&script, QUICK, job)?;
        if said.lines().any(|line| line == "kiln nothing") {
            return Err(self.no_runner(link));
        }
        let sums: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(swap)
            .collect();
        let is_there = |(name, file): &(&String, &Wanted)| {
            sums.get(name.as_str()) == Some(&file.sha256.as_str())
        };
        Ok(wanted
            .iter()
            .filter(is_there)
            .map(|(name, _)| name.clone())
            .collect())
    }

    fn send(
        &self,
        link: &Transport,
        folder: &str,
        wanted: &BTreeMap<String, Wanted>,
        there: &[String],
        job: &Job,
    ) -> Result<()> {
        let lacking = || wanted.iter().filter(|(name, _)| !there.contains(name));
        let total = lacking().map(|(_, file)| file.bytes).sum();
        let mut done = 0;
        for (name, file) in lacking() {
            job.progress(done, total, "B");
            let part = format!("{name}{PART}");
            link.send(&file.local, file.bytes, &format!("{folder}/{part}"), job)?;
            let script = format!(
                "cd {folder} || exit 1\ncase \"$(sha256sum {part})\" in {sum}*) mv -f {part} \
                 {name} && echo 'kiln whole';; esac",
                folder = quoted(folder),
                part = quoted(&part),
                name = quoted(name),
                sum = quoted(&file.sha256),
            );
            if !link
                .run(&script, QUICK, job)?
                .lines()
                .any(|line| line == "kiln whole")
            {
                return Err(Problem::new(
                    Code::MeasureDevice,
                    format!("{link}: {folder}/{name} did not arrive as it was sent"),
                )
                .help(
                    "run the same command again; the device may have no room: `df` in its shell \
                     says so",
                ));
            }
            done += file.bytes;
        }
        Ok(())
    }

    /// Runs the bundle, and looks at the process and the battery meanwhile. A process that has
    /// ended has no `VmHWM`.
    fn run_script(&self, folder: &str, has_prompt: bool) -> String {
        let ask = if has_prompt {
            format!("--prompt_file {PROMPT}")
        } else {
            format!("-p {}", quoted(QUESTION))
        };
        format!(
            "cd {folder} || exit 1\nrm -f kiln-profile.json kiln-answer.txt\nbattery() {{ for of \
             in current_now voltage_now status; do\nv=; {{ read -r v < \
             /sys/class/power_supply/battery/$of; }} 2>/dev/null; printf ' %s' \
             \"${{v:-?}}\"\ndone; echo; }}\nLD_LIBRARY_PATH={runner} ADSP_LIBRARY_PATH={runner} \
             {runner}/{RUNNER} -c {OWN_CONFIG} {ask} --profile kiln-profile.json > \
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
             kiln may not hand on. If they lie elsewhere, say so by `runner = \"/...\"`"
        ))
    }
}

fn swap<'a>((sum, name): (&'a str, &'a str)) -> (&'a str, &'a str) {
    (name, sum)
}
