//! What a running action may touch: its declared inputs, a sink for blobs, and its own scratch
//! folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Action, Blob, Content, Ingredient, Part};
use crate::base::{CanonJson, Code, Context, Digest, Problem, Result, hash_bytes};

/// The world behind a [`Job`]; each executor has its own.
pub trait Workspace: Sync {
    /// The bytes of a content that the action declares.
    fn open(&self, content: &Content) -> Result<Blob>;

    /// A file that holds exactly the bytes of `content`, for libraries that want a path.
    /// It must not be written to.
    fn path(&self, content: &Content) -> Result<PathBuf>;

    /// A new blob to write.
    fn create(&self) -> Result<Box<dyn BlobSink>>;

    /// A folder of this attempt alone; gone afterwards.
    fn scratch(&self) -> Result<&Path>;

    /// A folder of its own for `subject`, locked for this attempt, that stays until an action that
    /// asked for it succeeds: half-finished downloads. Named by its subject, not by the
    /// action's key, so that the same download under another pin finds it.
    fn partial(&self, subject: &Digest) -> Result<PathBuf>;

    /// Tells how far the work has come, in `unit`s ("B", "windows"); a `total` of 0 is not known.
    fn progress(&self, done: u64, total: u64, unit: &str);

    /// Whether the build is being stopped; long loops ask now and then.
    fn cancelled(&self) -> bool;
}

/// A blob being written. It has a name only once it is whole.
pub trait BlobSink: Write + Send {
    /// Makes the blob durable and yields its digest.
    fn finish(self: Box<Self>) -> Result<Content>;
}

/// An action at work.
pub struct Job<'a> {
    action: &'a Action,
    workspace: &'a dyn Workspace,
}

impl<'a> Job<'a> {
    /// Binds `action` to the world it runs in.
    pub fn new(action: &'a Action, workspace: &'a dyn Workspace) -> Self {
        Job { action, workspace }
    }

    /// The input called `name`.
    pub fn input(&self, name: &str) -> Result<&'a Ingredient> {
        self.action.inputs.get(name).ok_or_else(|| {
            Problem::new(
                Code::InputMissing,
                format!("the action has no input `{name}`"),
            )
        })
    }

    /// Where what the action asks for comes from.
    pub fn origin(&self) -> Result<&'a str> {
        let origin = self.action.origin.as_deref();
        origin.ok_or_else(|| {
            Problem::new(
                Code::OriginMissing,
                "the action does not say where to fetch from",
            )
        })
    }

    /// All inputs, sorted by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&'a str, &'a Ingredient)> {
        self.action
            .inputs
            .iter()
            .map(|(name, input)| (name.as_str(), input))
    }

    /// The bytes of an input.
    pub fn read(&self, name: &str) -> Result<Blob> {
        self.workspace.open(&self.input(name)?.content())
    }

    /// A file with the bytes of an input.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        self.workspace.path(&self.input(name)?.content())
    }

    /// A folder with the declared files of a tool under their own names (symbolic links).
    pub fn tool_folder(&self, tool: &str) -> Result<PathBuf> {
        let files = self.action.tools.get(tool).ok_or_else(|| {
            Problem::new(
                Code::ToolMissing,
                format!("the action declares no tool `{tool}`"),
            )
        })?;
        let folder = self.workspace.scratch()?.join("tools").join(tool);
        std::fs::create_dir_all(&folder)
            .context(Code::Io, || format!("make {}", folder.display()))?;
        for (name, content) in files {
            let link = folder.join(name);
            if !link.exists() {
                let target = self.workspace.path(content)?;
                std::os::unix::fs::symlink(&target, &link).context(Code::Io, || {
                    format!("link {} to {}", link.display(), target.display())
                })?;
            }
        }
        Ok(folder)
    }

    /// A new blob to write.
    pub fn create(&self) -> Result<Box<dyn BlobSink>> {
        self.workspace.create()
    }

    /// Writes `bytes` as a part with `facts`.
    pub fn write(&self, bytes: &[u8], facts: CanonJson) -> Result<Part> {
        let mut sink = self.create()?;
        sink.write_all(bytes)
            .context(Code::Io, || "write a blob".into())?;
        Ok(Part {
            content: sink.finish()?,
            facts,
        })
    }

    /// An input handed on as an output, unchanged.
    pub fn pass(&self, name: &str) -> Result<Part> {
        let input = self.input(name)?;
        Ok(Part {
            content: input.content(),
            facts: input.facts.clone(),
        })
    }

    /// A folder of this attempt alone; gone afterwards.
    pub fn scratch(&self) -> Result<&Path> {
        self.workspace.scratch()
    }

    /// A folder that stays with `subject` (a URL) until an action that asked for it succeeds.
    pub fn partial(&self, subject: &str) -> Result<PathBuf> {
        self.workspace.partial(&hash_bytes(subject.as_bytes()))
    }

    /// Tells how far the work has come.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.workspace.progress(done, total, unit);
    }

    /// A problem, once the build is being stopped.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.workspace.cancelled() {
            return Err(Problem::cancelled());
        }
        Ok(())
    }
}
