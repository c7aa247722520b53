//! `kiln doctor`: says what this machine has and lacks, and the command that mends it.

use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::Serialize;

use super::machine::{budget_bytes, memory_bytes};
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Result, bytes, count};
use crate::plan::PlannedStage;
use crate::stages;
use crate::store::{CompleteCache, Disk, Lookup};

/// Which plan's files to look for.
#[derive(clap::Args)]
#[command(mut_arg("path", |path| path.required(false)))]
pub struct Args {
    #[command(flatten)]
    plan: Option<PlanArgs>,
}

/// Examines the machine.
pub fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let mut findings = examine(&Machine::this(&common.cache));
    if let Some(plan) = &args.plan {
        let registry = stages::all();
        let plan = plan.load(&registry)?;
        for stage in plan.stages.iter().filter(|stage| stage.kind == "fetch") {
            findings.push(fetched(stage, &registry, &common.cache)?);
        }
        findings.extend(
            plan.stages
                .iter()
                .filter_map(|stage| of_this_machine(stage, &registry)),
        );
    }
    if common.json {
        findings.iter().for_each(|finding| {
            common.print(&format!("{}\n", serde_json::json!({ "finding": finding })))
        });
    } else {
        common.print(&table(&findings));
    }
    Ok(if findings.iter().any(|finding| finding.mend.is_some()) {
        Exit::ToolMissing
    } else {
        Exit::Done
    })
}

/// One line of the report.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    what: String,
    found: String,
    /// The command or deed that mends it, where something is not as it must be.
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

    /// `mend` is asked for unless `good`.
    fn must(mut self, good: bool, mend: &str) -> Self {
        self.mend = (!good).then(|| mend.into());
        self
    }
}

/// What was seen of a machine; `None` where it is not there or does not say.
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

/// What the Qualcomm libraries are built for: their wheel is `manylinux_2_35_x86_64`.
const SYSTEM: &str = "x86_64 linux";
const GLIBC: (u32, u32) = (2, 35);
/// Below this a build of the smallest plan, with its wheels, is not worth beginning.
const DISK_BYTES: u64 = 4_000_000_000;

impl Machine {
    fn this(cache: &Path) -> Self {
        let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
        let folder = nearest(cache);
        Machine {
            system: format!("{arch} {os}"),
            glibc: says("getconf", &["GNU_LIBC_VERSION"]),
            python: says("python3", &["--version"]),
            pip: says("python3", &["-m", "pip", "--version"]),
            cores: available_parallelism().map_or(1, |cores| cores.get()),
            memory_bytes: memory_bytes(),
            disk_bytes: rustix::fs::statvfs(folder)
                .ok()
                .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
            cache: cache.display().to_string(),
            cache_error: tempfile::tempfile_in(folder)
                .err()
                .map(|error| error.to_string()),
        }
    }
}

/// `path`, or the folder above it that exists.
fn nearest(path: &Path) -> &Path {
    let above = path.ancestors().find(|folder| folder.is_dir());
    above.unwrap_or(Path::new("."))
}

/// The first line that a command says, if it runs and succeeds.
fn says(command: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(command)
        .args(args)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .map(|line| line.trim().into())
}

/// Whether what a `fetch` stage brings is in the cache. What is not there is no lack: a build
/// fetches it.
fn fetched(stage: &PlannedStage, registry: &Registry, cache: &Path) -> Result<Finding> {
    let mut found = String::from("to be fetched");
    // Looking must not make a cache.
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
                let size = result
                    .outputs
                    .values()
                    .map(|part| part.content.digest.size_bytes)
                    .sum();
                found = format!("in the cache, {}", bytes(size));
            }
        }
    }
    Ok(Finding::new(&stage.id.0, found))
}

/// Whether the files of this machine that a stage reads are there.
fn of_this_machine(stage: &PlannedStage, registry: &Registry) -> Option<Finding> {
    match registry.get(&stage.kind)?.files(&stage.params) {
        Ok(files) if files.is_empty() => None,
        Ok(files) => Some(Finding::new(
            &stage.id.0,
            format!("has all it reads here: {}", count(files.len(), "path")),
        )),
        Err(problem) => {
            let finding = Finding::new(&stage.id.0, problem.message);
            Some(finding.must(false, problem.help.as_deref().unwrap_or("put it there")))
        }
    }
}

/// Every finding about `machine`, what it must have first.
fn examine(machine: &Machine) -> Vec<Finding> {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "not there".into());
    let glibc = machine
        .glibc
        .as_deref()
        .and_then(version)
        .is_some_and(|glibc| glibc >= GLIBC);
    let cache = match &machine.cache_error {
        None => format!("{}, writable", machine.cache),
        Some(error) => format!("{}: {error}", machine.cache),
    };
    let memory = |all| {
        format!(
            "{}, of which a build may use {}",
            bytes(all),
            bytes(budget_bytes(all))
        )
    };
    let disk_is_enough = machine.disk_bytes.is_none_or(|free| free >= DISK_BYTES);
    vec![
        Finding::new("system", machine.system.clone()).must(
            machine.system == SYSTEM,
            "run kiln on x86_64 Linux: Qualcomm's compiler libraries exist for it alone",
        ),
        Finding::new("glibc", known(&machine.glibc)).must(
            glibc,
            "use a system with glibc 2.35 or newer: Debian 12, Ubuntu 22.04, Fedora 36",
        ),
        Finding::new("python3", known(&machine.python))
            .must(machine.python.is_some(), "apt-get install python3"),
        Finding::new("pip", known(&machine.pip))
            .must(machine.pip.is_some(), "apt-get install python3-pip"),
        Finding::new("cache", cache).must(
            machine.cache_error.is_none(),
            "name a folder that you may write to: --cache DIR, or KILN_CACHE=DIR",
        ),
        Finding::new(
            "free disk",
            machine.disk_bytes.map_or("not known".into(), bytes),
        )
        .must(
            disk_is_enough,
            "make room, or put the cache elsewhere: --cache DIR",
        ),
        Finding::new(
            "memory",
            machine.memory_bytes.map_or("not known".into(), memory),
        ),
        Finding::new("cores", machine.cores.to_string()),
    ]
}

/// `(2, 36)` of `glibc 2.36`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.rsplit(' ').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

fn table(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.what.len())
        .max()
        .unwrap_or(0);
    let line = |Finding { what, found, mend }: &Finding| match mend {
        None => format!("ok       {what:width$}  {found}\n"),
        Some(mend) => format!(
            "LACKING  {what:width$}  {found}\n{:1$}-> {mend}\n",
            "",
            width + 11
        ),
    };
    findings.iter().map(line).collect()
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
            disk_bytes: Some(DISK_BYTES),
            cache: "cache".into(),
            cache_error: None,
        }
    }

    fn lacking(machine: &Machine) -> Vec<String> {
        let findings = examine(machine);
        findings
            .into_iter()
            .filter(|finding| finding.mend.is_some())
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn a_healthy_machine_lacks_nothing() {
        assert_eq!(lacking(&healthy()), [""; 0]);
    }

    #[test]
    fn each_lack_is_named_and_mended() {
        assert_eq!(
            lacking(&Machine {
                glibc: Some("glibc 2.34".into()),
                ..healthy()
            }),
            ["glibc"]
        );
        assert_eq!(
            lacking(&Machine {
                glibc: Some("glibc 3.0".into()),
                ..healthy()
            }),
            [""; 0]
        );
        assert_eq!(
            lacking(&Machine {
                pip: None,
                disk_bytes: Some(1),
                ..healthy()
            }),
            ["pip", "free disk"]
        );
        let bare = examine(&Machine::default());
        assert!(
            table(&bare).contains("LACKING  pip        not there\n"),
            "{}",
            table(&bare)
        );
    }
}
