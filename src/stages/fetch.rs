//! `fetch`: one file from outside, pinned by its SHA-256. The only stage that may touch the
//! network.
//!
//! Without a pin the file is fetched and its digest shown, and the stage fails; the bytes wait for
//! the pin.

mod http;
mod machine;
mod parts;
mod pip;
mod proxy;
mod received;
mod sniff;
mod source;
mod trust;
mod url;
mod wheel;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::action::{
    BlobSink, Given, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, Proof, StageSpec,
    TypedStage,
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
    /// Instead of `url`: the URLs of the pieces of one file, in order; or one URL with `{1..22}` in
    /// place of the number of the piece.
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
    /// For a `file:` without `sha256`: take the file as it is, and read it again when it changes.
    #[serde(default)]
    tracked: bool,
}

/// One file to fetch, wherever it comes from: that is the order's origin, since the same bytes may
/// lie at many places.
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
        summary: "one file from outside, pinned by its SHA-256",
        output: "file",
        inputs: &[],
        params: &["url", "parts", "name", "sha256", "unpack", "tracked"],
        keyed: &[],
        reaches_outside: true,
        measures: false,
    };

    fn check(params: &Params, _given: &[Given]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        match (&params.url, &params.parts) {
            (Some(url), None) => problems.extend(params.check_url(url)),
            (None, Some(parts)) => problems.extend(params.check_parts(parts)),
            (Some(_), Some(_)) => {
                problems.push(at(
                    "parts",
                    wrong(
                        "`url` and `parts` exclude each other",
                        "leave one of them out",
                    ),
                ));
            }
            (None, None) => problems.push(at(
                "",
                wrong(
                    "neither `url` nor `parts` says where to fetch from",
                    "give one of them",
                ),
            )),
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
        let source = params.url.as_deref().map(Source::parse).transpose()?;
        Ok(match source {
            Some(Source::File { path }) if params.tracked => vec![path],
            _ => vec![],
        })
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Target>>> {
        let tracked = Fetch::files(&params)?
            .first()
            .map(|path| inputs.file(path))
            .transpose()?;
        let Params {
            url,
            parts,
            name,
            sha256,
            unpack,
            ..
        } = params;
        let (file, origin) = match parts {
            Some(parts) => (name.unwrap_or_default(), Origin::Parts(parts.urls()?)),
            None => {
                let url = url.unwrap_or_default();
                (Source::parse(&url)?.asks_for()?, Origin::Whole(url))
            }
        };
        let target = Target {
            file,
            sha256: sha256.to_ascii_lowercase(),
            unpack,
            tracked,
        };
        Ok(vec![Order::new("", target).origin(origin.text()?)])
    }

    fn proof(target: &Target) -> Proof {
        match target.tracked {
            Some(digest) => Proof::Digest(digest),
            // The pin is of the wheel, of which only the libraries are there.
            None if target.unpack => Proof::Own,
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

    fn check_parts(&self, parts: &Parts) -> Vec<ParamProblem> {
        let mut problems: Vec<ParamProblem> = parts
            .urls()
            .err()
            .map(|problem| at("parts", problem))
            .into_iter()
            .collect();
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

/// Fetches `target` as seen from `machine`.
pub fn run_on(machine: &Machine, target: &Target, job: &Job) -> Result<Outputs> {
    let origin = Origin::of(job)?;
    let urls = origin.urls();
    // In one order, so that two fetches which share parts never wait for each other.
    for url in urls.iter().collect::<BTreeSet<_>>() {
        job.partial(url)?;
    }
    let mut files = vec![];
    for (index, url) in urls.iter().enumerate() {
        let source = Source::parse(url)?;
        let file = match &origin {
            Origin::Whole(_) => bring(machine, &source, &job.partial(url)?, &target.sha256, job)?,
            // The pin is of all parts together.
            Origin::Parts(_) => {
                job.progress(index as u64, urls.len() as u64, "parts");
                bring(machine, &source, &job.partial(url)?, "", job).map_err(|problem| {
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
    let outputs = deliver(&origin, &files, target, job);
    // What waits for its pin stays; what is no use goes, so that it is asked for again.
    if outputs
        .as_ref()
        .is_err_and(|problem| [Code::FetchDigest, Code::FetchOtherFile].contains(&problem.code))
    {
        for url in urls {
            clear(&job.partial(url)?)?;
        }
    }
    outputs
}

/// The file that `source` means, or the wheel around it; `pin` is the sha256 that is hoped for, or
/// empty.
fn bring(
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

/// A blob to which one file after the other is added.
struct Joined<'a, 'j> {
    job: &'a Job<'j>,
    sink: Box<dyn BlobSink>,
    hasher: Sha256,
    /// How it begins.
    head: Vec<u8>,
}

impl<'a, 'j> Joined<'a, 'j> {
    fn new(job: &'a Job<'j>) -> Result<Self> {
        Ok(Joined {
            job,
            sink: job.create()?,
            hasher: Sha256::new(),
            head: vec![],
        })
    }

    /// Adds what `source` means of the `file` that was fetched for it.
    fn add(&mut self, source: &Source, file: &Path) -> Result<()> {
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

    fn copy(&mut self, from: impl Read) -> Result<()> {
        each_chunk(from, self.job, |chunk| {
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

/// The outputs that `files` hold, once they are known to be the pinned ones.
fn deliver(
    origin: &Origin,
    files: &[(Source, PathBuf)],
    target: &Target,
    job: &Job,
) -> Result<Outputs> {
    if let (true, [(_, wheel)]) = (target.unpack, files) {
        target
            .accept(&sha256_of(wheel, job)?, job)
            .map_err(|problem| {
                let start = head(wheel, sniff::HEAD_BYTES as u64).unwrap_or_default();
                sniff::told(problem, &target.file, &start)
            })?;
        return unpacked(wheel, job);
    }
    let name = match (origin, files) {
        (Origin::Whole(_), [(Source::Pypi { member: None, .. }, wheel)]) => {
            base_name(&wheel.to_string_lossy())
        }
        (Origin::Whole(_), [(source, _)]) => source.file_name()?,
        _ => target.file.clone(),
    };
    let mut joined = Joined::new(job)?;
    for (source, file) in files {
        joined.add(source, file)?;
    }
    let copied = joined.finish();
    if target.tracked.is_none() {
        target
            .accept(&copied.sha256, job)
            .map_err(|problem| instead(problem, &name, &copied.head, files))?;
    }
    let part = copied.part()?;
    match (target.tracked, files) {
        (Some(tracked), [(_, file), ..]) if tracked != part.content.digest => {
            let message = format!("{} changed while it was read", file.display());
            Err(Problem::new(Code::InputChanged, message)
                .help("nothing was made from it; run the same command again when it is at rest"))
        }
        _ => Ok([(PartName::new(name)?, part)].into()),
    }
}

/// `problem` of the file `name`, which begins with `start` and is made of `files`; told as what came
/// instead, if something did.
fn instead(problem: Problem, name: &str, start: &[u8], files: &[(Source, PathBuf)]) -> Problem {
    if files.len() > 1 {
        for (index, (_, file)) in files.iter().enumerate() {
            let start = head(file, sniff::HEAD_BYTES as u64).unwrap_or_default();
            if let Some(told) = sniff::told_of_piece(&problem, name, index + 1, &start) {
                return told;
            }
        }
    }
    sniff::told(problem, name, start)
}

/// Every shared library in the wheel at `path`.
fn unpacked(path: &Path, job: &Job) -> Result<Outputs> {
    let mut wheel = Wheel::open(path)?;
    let mut outputs = Outputs::new();
    for (name, index) in wheel.libraries()? {
        let mut library = Joined::new(job)?;
        library.copy(wheel.member(index)?)?;
        outputs.insert(name, library.finish().part()?);
    }
    Ok(outputs)
}

impl Target {
    /// Refuses bytes of another digest than the pinned one, and all bytes if none is pinned.
    fn accept(&self, found: &str, job: &Job) -> Result<()> {
        let origin = Origin::of(job)?;
        let url = match &origin {
            Origin::Whole(url) => url,
            Origin::Parts(_) => &self.file,
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

/// A blob that is written but has no name yet, and the sha256 of its bytes.
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
    each_chunk(open(path)?, job, |chunk| {
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

/// Hands every chunk of `from` to `take`.
fn each_chunk(
    mut from: impl Read,
    job: &Job,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const CHUNK_BYTES: usize = 1 << 18;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        job.check_cancelled()?;
        match from
            .read(&mut buffer)
            .context(Code::FetchRead, || "read what was fetched".into())?
        {
            0 => return Ok(()),
            count => take(&buffer[..count])?,
        }
    }
}

fn open(path: &Path) -> Result<File> {
    open_file(path).context(Code::FetchFile, || format!("open {}", path.display()))
}

/// Empties `folder` but leaves it there: it is locked for us.
fn clear(folder: &Path) -> Result<()> {
    let remove = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        }
    };
    let cleared = fs::read_dir(folder).and_then(|mut entries| entries.try_for_each(remove));
    cleared.context(Code::Io, || format!("clear {}", folder.display()))
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
