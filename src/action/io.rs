//! What a running action may use: its declared inputs, new blobs, and its own scratch folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Action, ActionInput, Blob, Content, Part};
use crate::base::{CanonJson, Code, Context, Digest, Problem, Result, hash_bytes};

/// What a [`Job`] is based on; each executor has its own implementation.
pub trait Workspace: Sync {
    /// The bytes of a content that the action declares.
    fn open(&self, content: &Content) -> Result<Blob>;

    /// A file with exactly the bytes of `content`, for libraries that need a path. It must not be
    /// written to.
    fn path(&self, content: &Content) -> Result<PathBuf>;

    /// A new blob to write.
    fn create(&self) -> Result<Box<dyn BlobSink>>;

    /// A temporary folder for this attempt.
    fn scratch(&self) -> Result<&Path>;

    /// A folder for partial downloads of `subject`, locked for this attempt. Kept until an action
    /// that uses it succeeds. Its name depends on the subject and not on the action's key, so that
    /// the same download with another pin finds it.
    fn partial(&self, subject: &Digest) -> Result<PathBuf>;

    /// Reports progress in `unit`s ("B", "windows"); a `total` of 0 means unknown.
    fn progress(&self, done: u64, total: u64, unit: &str);

    /// Whether the build is being stopped; long loops must check it.
    fn cancelled(&self) -> bool;
}

/// A blob being written. It has no name before it is complete.
pub trait BlobSink: Write + Send {
    /// Makes the blob durable and returns its digest.
    fn finish(self: Box<Self>) -> Result<Content>;
}

/// A running action.
pub struct Job<'a> {
    action: &'a Action,
    workspace: &'a dyn Workspace,
}

impl<'a> Job<'a> {
    /// An action that runs in `workspace`.
    pub fn new(action: &'a Action, workspace: &'a dyn Workspace) -> Self {
        Job { action, workspace }
    }

    /// The input called `name`.
    pub fn input(&self, name: &str) -> Result<&'a ActionInput> {
        match self.action.inputs.get(name) {
            Some(input) => Ok(input),
            None => {
                let message = format!("the action has no input `{name}`");
                Err(Problem::new(Code::InputMissing, message))
            }
        }
    }

    /// See [`Action::origin`].
    pub fn origin(&self) -> Result<&'a str> {
        match &self.action.origin {
            Some(origin) => Ok(origin),
            None => Err(Problem::new(
                Code::OriginMissing,
                "the action does not say where to fetch from",
            )),
        }
    }

    /// All inputs, sorted by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&'a str, &'a ActionInput)> {
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

    /// Whether the action declares files of a tool.
    pub fn has_tool(&self, tool: &str) -> bool {
        self.action.tools.contains_key(tool)
    }

    /// A folder with the declared files of a tool under their own names (symbolic links).
    pub fn tool_folder(&self, tool: &str) -> Result<PathBuf> {
        let Some(files) = self.action.tools.get(tool) else {
            let message = format!("the action declares no tool `{tool}`");
            return Err(Problem::new(Code::ToolMissing, message));
        };
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

    /// An input as an output, unchanged.
    pub fn pass(&self, name: &str) -> Result<Part> {
        let input = self.input(name)?;
        Ok(Part {
            content: input.content(),
            facts: input.facts.clone(),
        })
    }

    /// A temporary folder for this attempt.
    pub fn scratch(&self) -> Result<&Path> {
        self.workspace.scratch()
    }

    /// A folder for partial downloads of `subject` (a URL), kept until an action that uses it
    /// succeeds.
    pub fn partial(&self, subject: &str) -> Result<PathBuf> {
        self.workspace.partial(&hash_bytes(subject.as_bytes()))
    }

    /// Reports progress.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.workspace.progress(done, total, unit);
    }

    /// Fails if the build is being stopped.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.workspace.cancelled() {
            return Err(Problem::cancelled());
        }
        Ok(())
    }
}
