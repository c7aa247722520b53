//! `kiln doctor`: checks this machine, and shows how to fix what is missing.

use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::Serialize;

use super::machine::{budget_bytes, memory_bytes};
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Result, bytes, count};
use crate::plan::PlannedStage;
use crate::qnn::{how_to_get, release_in_wheel};
use crate::stages;
use crate::store::{CompleteCache, Disk, Lookup};

/// The plan whose files are checked, too.
#[derive(clap::Args)]
#[command(mut_arg("path", |path| path.required(false)))]
pub(super) struct Args {
    #[command(flatten)]
    plan: Option<PlanArgs>,
}

/// Prints all findings. The exit code is 4 if something is missing.
pub(super) fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let mut findings = check_machine(&Machine::detect(&common.cache));
    if let Some(plan) = &args.plan {
        let registry = stages::all();
        let plan = plan.load(&registry)?;
        for stage in &plan.stages {
            findings.extend(check_device(stage));
            match check_local_files(stage, &registry) {
                Some(finding) => findings.push(finding),
                None if stage.kind == "fetch" => {
                    findings.push(check_download(stage, &registry, &common.cache)?);
                }
                None => {}
            }
        }
    }
    if common.json {
        for finding in &findings {
            common.print(&format!("{}\n", serde_json::json!({ "finding": finding })));
        }
    } else {
        common.print(&findings_text(&findings));
    }
    for finding in &findings {
        if finding.mend.is_some() {
            return Ok(Exit::ToolMissing);
        }
    }
    Ok(Exit::Done)
}

/// One line of the report.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    what: String,
    found: String,
    /// How to fix it; `None` if it is as required.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn new(what: &str, found: impl Into<String>) -> Self {
        Finding {
            what: what.into(),
            found: found.into(),
            mend: None,
        }
    }

    /// Adds `fix` unless `is_good`.
    fn require(mut self, is_good: bool, fix: &str) -> Self {
        if !is_good {
            self.mend = Some(fix.into());
        }
        self
    }
}

/// The properties of a machine; `None` for a program that is not installed or a value that is
/// unknown.
#[derive(Clone, Debug, Default)]
struct Machine {
    system: String,
    glibc: Option<String>,
    python: Option<String>,
    pip: Option<String>,
    cores: usize,
    memory_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    cache: String,
    cache_error: Option<String>,
}

/// What a finding about the runtime on devices is of.
const DEVICE: &str = "device";

/// The platform of Qualcomm's libraries: their wheel is `manylinux_2_35_x86_64`.
const SYSTEM: &str = "x86_64 linux";
const GLIBC: (u32, u32) = (2, 35);
/// Free space that a build of the smallest plan needs, including its wheels.
const MIN_DISK_BYTES: u64 = 4_000_000_000;

impl Machine {
    /// The properties of this machine.
    fn detect(cache: &Path) -> Self {
        let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
        let folder = existing_ancestor(cache);
        let mut machine = Machine {
            system: format!("{arch} {os}"),
            glibc: first_line_of("getconf", &["GNU_LIBC_VERSION"]),
            python: first_line_of("python3", &["--version"]),
            pip: first_line_of("python3", &["-m", "pip", "--version"]),
            cores: 1,
            memory_bytes: memory_bytes(),
            disk_bytes: None,
            cache: cache.display().to_string(),
            cache_error: None,
        };
        if let Ok(cores) = available_parallelism() {
            machine.cores = cores.get();
        }
        if let Ok(disk) = rustix::fs::statvfs(folder) {
            machine.disk_bytes = Some(disk.f_bavail.saturating_mul(disk.f_frsize));
        }
        if let Err(error) = tempfile::tempfile_in(folder) {
            machine.cache_error = Some(error.to_string());
        }
        machine
    }
}

/// `path`, or its nearest parent folder that exists.
fn existing_ancestor(path: &Path) -> &Path {
    let mut ancestors = path.ancestors();
    ancestors
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("."))
}

/// The first line that a command prints; `None` if it fails.
fn first_line_of(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command).args(args).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().into())
}

/// The release of QNN that a device needs for what the tool `qnn` compiles; `None` for other stages
/// and for an SDK, whose release only its libraries tell.
fn check_device(stage: &PlannedStage) -> Option<Finding> {
    let url = stage.params.get("url")?.as_str()?;
    let wheel = url.strip_prefix("pypi:onnxruntime-qnn==")?;
    let (wheel, _) = wheel.split_once('#').unwrap_or((wheel, ""));
    let finding = match release_in_wheel(wheel) {
        Some(qnn) => Finding::new(DEVICE, format!("needs the runtime of QNN {qnn} or later")),
        None => {
            let found = format!("unknown: kiln does not know onnxruntime-qnn {wheel}");
            Finding::new(DEVICE, found).require(false, &how_to_get())
        }
    };
    Some(finding)
}

/// Whether the files of a `fetch` stage are in the cache. If not, nothing is missing: a build
/// fetches them.
fn check_download(stage: &PlannedStage, registry: &Registry, cache: &Path) -> Result<Finding> {
    let mut found = String::from("not in the cache, a build will fetch it");
    // A check must not create a cache.
    if cache.is_dir()
        && let Some(kind) = registry.get(&stage.kind)
    {
        let disk = Disk::open(cache)?;
        let complete = CompleteCache {
            actions: &disk,
            blobs: &disk,
        };
        for order in kind.expand(&stage.params, &Default::default())? {
            if let Lookup::Hit(result) = complete.look_up(&order.into_action(kind.spec()).key())? {
                let mut size_bytes = 0;
                for part in result.outputs.values() {
                    size_bytes += part.content.digest.size_bytes;
                }
                found = format!("in the cache, {}", bytes(size_bytes));
            }
        }
    }
    Ok(Finding::new(&stage.id.0, found))
}

/// Whether the local files that a stage reads exist; `None` if it reads none.
fn check_local_files(stage: &PlannedStage, registry: &Registry) -> Option<Finding> {
    match registry.get(&stage.kind)?.files(&stage.params) {
        Ok(files) if files.is_empty() => None,
        Ok(files) => {
            let found = format!("local files found: {}", count(files.len(), "path"));
            Some(Finding::new(&stage.id.0, found))
        }
        Err(problem) => {
            let fix = problem.help.as_deref().unwrap_or("put it there");
            Some(Finding::new(&stage.id.0, problem.message).require(false, fix))
        }
    }
}

/// All findings about `machine`, requirements first.
fn check_machine(machine: &Machine) -> Vec<Finding> {
    let glibc = parse_version(machine.glibc.as_deref().unwrap_or_default());
    let cache = match &machine.cache_error {
        None => format!("{}, writable", machine.cache),
        Some(error) => format!("{}: {error}", machine.cache),
    };
    let disk = match machine.disk_bytes {
        Some(free) => bytes(free),
        None => "unknown".into(),
    };
    let memory = match machine.memory_bytes {
        Some(all) => {
            let budget = bytes(budget_bytes(all));
            format!("{}, of which a build uses up to {budget}", bytes(all))
        }
        None => "unknown".into(),
    };
    vec![
        Finding::new("system", machine.system.clone()).require(
            machine.system == SYSTEM,
            "run kiln on x86_64 Linux: Qualcomm's compiler libraries exist only for this platform",
        ),
        Finding::new("glibc", or_not_found(&machine.glibc)).require(
            glibc >= Some(GLIBC),
            "use a system with glibc 2.35 or newer: Debian 12, Ubuntu 22.04, Fedora 36",
        ),
        Finding::new("python3", or_not_found(&machine.python))
            .require(machine.python.is_some(), "apt-get install python3"),
        Finding::new("pip", or_not_found(&machine.pip))
            .require(machine.pip.is_some(), "apt-get install python3-pip"),
        Finding::new("cache", cache).require(
            machine.cache_error.is_none(),
            "choose a folder that you may write to: --cache DIR, or KILN_CACHE=DIR",
        ),
        Finding::new("free disk", disk).require(
            machine.disk_bytes.unwrap_or(MIN_DISK_BYTES) >= MIN_DISK_BYTES,
            "free some disk space, or put the cache on another disk: --cache DIR",
        ),
        Finding::new("memory", memory),
        Finding::new("cores", machine.cores.to_string()),
    ]
}

fn or_not_found(version: &Option<String>) -> &str {
    version.as_deref().unwrap_or("not found")
}

/// `(2, 36)` of `glibc 2.36`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.rsplit(' ').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

fn findings_text(findings: &[Finding]) -> String {
    let mut width = 0;
    for finding in findings {
        width = width.max(finding.what.len());
    }
    let mut text = String::new();
    for Finding { what, found, mend } in findings {
        let state = if mend.is_some() { "MISSING" } else { "ok" };
        text += &format!("{state:<7}  {what:width$}  {found}\n");
        if let Some(fix) = mend {
            let indent = width + 11;
            text += &format!("{:indent$}-> {fix}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Machine {
        Machine {
            system: SYSTEM.into(),
            glibc: Some("glibc 2.36".into()),
            python: Some("Python 3.11.2".into()),
            pip: Some("pip 23.0.1".into()),
            cores: 2,
            memory_bytes: Some(8_000_000_000),
            disk_bytes: Some(MIN_DISK_BYTES),
            cache: "cache".into(),
            cache_error: None,
        }
    }

    fn missing(machine: &Machine) -> Vec<String> {
        let mut missing = vec![];
        for finding in check_machine(machine) {
            if finding.mend.is_some() {
                missing.push(finding.what);
            }
        }
        missing
    }

    #[test]
    fn nothing_is_missing_on_a_healthy_machine() {
        assert_eq!(missing(&healthy()), [""; 0]);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            missing(&Machine {
                glibc: Some("glibc 2.34".into()),
                ..healthy()
            }),
            ["glibc"]
        );
        assert_eq!(
            missing(&Machine {
                glibc: Some("glibc 3.0".into()),
                ..healthy()
            }),
            [""; 0]
        );
        assert_eq!(
            missing(&Machine {
                pip: None,
                disk_bytes: Some(1),
                ..healthy()
            }),
            ["pip", "free disk"]
        );
        let text = findings_text(&check_machine(&Machine::default()));
        assert!(text.contains("MISSING  pip        not found\n"), "{text}");
    }
}
