//! All texts of a plan: its own and those it includes. A place is a range of bytes of all of them,
//! one after the other, so that one range says both file and line.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use super::source::{Node, Source, Span, Table, Tree};
use crate::base::{Code, Problem, Result, masked, shown_line};

/// Cap on the text of a plan with all it includes: far above any plan that a person writes, far
/// below what could hurt.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Cap on the files of a plan, and so on how deep they include each other.
const MAX_FILES: usize = 100;

/// A plan's own text, which comes first, and all that it includes.
#[derive(Debug)]
pub struct SourceMap {
    files: Vec<File>,
    /// Every file after those that it includes.
    order: Vec<FileId>,
    /// Why some text is not there, or not TOML.
    problems: Vec<Problem>,
}

/// Which file of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(usize);

#[derive(Debug)]
struct File {
    source: Source,
    /// Its text as it is shown, byte for byte at the same place.
    shown: String,
    base: usize,
    tree: Table,
    /// The file that includes it, and where.
    by: Option<(FileId, Span)>,
}

impl SourceMap {
    /// The plan `source` with all it includes, which `load` reads by its path. What goes wrong is
    /// told by [`read`](super::read).
    pub fn gather(source: Source, load: &mut dyn FnMut(&Path) -> Result<String>) -> Self {
        let mut map = SourceMap {
            files: vec![],
            order: vec![],
            problems: vec![],
        };
        map.add(source, None, load);
        map
    }

    fn add(
        &mut self,
        source: Source,
        by: Option<(FileId, Span)>,
        load: &mut dyn FnMut(&Path) -> Result<String>,
    ) {
        // A byte between two texts, so that the end of one is not the beginning of the next.
        let base = self
            .files
            .last()
            .map_or(0, |last| last.base + last.source.text.len() + 1);
        let size = base + source.text.len();
        if size > MAX_TEXT_BYTES {
            let message = format!("the plan has {size} bytes, at most {MAX_TEXT_BYTES} are read");
            let problem =
                Problem::new(Code::PlanTooLarge, message).help("split it into several plans");
            return self.problems.push(match by {
                Some((_, at)) => problem.at(at, "with this file"),
                None => problem,
            });
        }
        let tree = source.tree(base).unwrap_or_else(|mistakes| {
            self.problems.extend(mistakes);
            Table::default()
        });
        let id = FileId(self.files.len());
        let wanted = tree.get("include").map(|entry| entry.node.clone());
        self.files.push(File {
            shown: masked(&source.text),
            source,
            base,
            tree,
            by,
        });
        for (path, at) in wanted.map(|node| self.paths(&node)).unwrap_or_default() {
            match self.load(id, &path, &at, load) {
                Ok(source) => self.add(source, Some((id, at)), load),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.order.push(id);
    }

    /// The value of `include`.
    fn paths(&mut self, node: &Node) -> Vec<(String, Span)> {
        let items = match &node.tree {
            Tree::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut paths = vec![];
        for item in items {
            match item.string().filter(|_| matches!(node.tree, Tree::List(_))) {
                Some(path) => paths.push((path.to_string(), item.span.clone())),
                None => self.problems.push(
                    Problem::new(
                        Code::PlanWrongType,
                        format!("`include` has {}", item.what()),
                    )
                    .at(item.span.clone(), "expected a list of paths")
                    .help("for example `include = [\"common.toml\"]`"),
                ),
            }
        }
        paths
    }

    /// The file that `by` includes as `path`.
    fn load(
        &self,
        by: FileId,
        path: &str,
        at: &Span,
        load: &mut dyn FnMut(&Path) -> Result<String>,
    ) -> Result<Source> {
        let includer = &self.files[by.0].source;
        let whole = includer.folder.join(path);
        let same = |file: &&File| normal(&file.source.path()) == normal(&whole);
        if let Some(there) = self.files.iter().find(same) {
            let message = format!("`{}` is included twice", there.source.name);
            let problem = Problem::new(Code::PlanInclude, message).at(at.clone(), "here");
            return Err(match &there.by {
                Some((_, first)) if !self.includes(there, by) => problem
                    .at(first.clone(), "and here")
                    .help("keep one of them: what a file gives, all others see"),
                _ => Problem {
                    message: format!("`{}` includes itself", there.source.name),
                    ..problem
                }
                .help("move what both need into a file of its own"),
            });
        }
        if self.files.len() == MAX_FILES {
            let message = format!("the plan includes more than {} files", MAX_FILES - 1);
            return Err(
                Problem::new(Code::PlanTooLarge, message).at(at.clone(), "no further than this")
            );
        }
        let named = Path::new(&includer.name)
            .parent()
            .map_or_else(|| path.into(), |folder| folder.join(path));
        let text = load(&whole).map_err(|problem| problem.at(at.clone(), "included here"))?;
        let folder = whole.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        Ok(Source {
            name: normal(&named).display().to_string(),
            text,
            folder,
        })
    }

    /// Whether `file` is `id`, or includes it by way of whatever others.
    fn includes(&self, file: &File, id: FileId) -> bool {
        let mut next = Some(id);
        while let Some(FileId(index)) = next {
            if std::ptr::eq(&self.files[index], file) {
                return true;
            }
            next = self.files[index].by.as_ref().map(|(by, _)| *by);
        }
        false
    }

    /// Whether `includer` includes `id` by way of whatever others, so that its own values go before
    /// those of `id`.
    pub(super) fn overrides(&self, includer: FileId, id: FileId) -> bool {
        includer != id && self.includes(&self.files[includer.0], id)
    }

    /// Why the plan cannot be looked into, if it cannot.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The files, each after those that it includes.
    pub(super) fn trees(&self) -> impl Iterator<Item = (FileId, &Table)> {
        self.order.iter().map(|id| (*id, &self.files[id.0].tree))
    }

    /// Whether `id` is the plan itself.
    pub(super) fn is_outermost(&self, id: FileId) -> bool {
        id == FileId(0)
    }

    /// The bytes at `span` as they are written.
    pub(super) fn text(&self, span: &Span) -> &str {
        self.place(span)
            .and_then(|(source, at)| source.text.get(at))
            .unwrap_or_default()
    }

    /// `url`, written at `span`. A relative `file:` URL starts from the folder of its file, so that
    /// a plan means the same wherever it is built from.
    pub(super) fn located(&self, url: &str, span: &Span) -> Option<String> {
        let path = url
            .strip_prefix("file:")
            .filter(|path| !path.starts_with('/'))?;
        let (source, _) = self.place(span)?;
        Some(format!("file:{}", source.folder.join(path).display()))
    }

    /// The file that a place lies in, and where it lies there.
    pub fn place(&self, span: &Range<usize>) -> Option<(&Source, Range<usize>)> {
        let file = self.file(span)?;
        Some((&file.source, span.start - file.base..span.end - file.base))
    }

    fn file(&self, span: &Range<usize>) -> Option<&File> {
        let holds = |file: &&File| {
            file.base <= span.start && span.end <= file.base + file.source.text.len()
        };
        self.files.iter().find(holds)
    }
}

impl Source {
    fn path(&self) -> PathBuf {
        self.folder
            .join(Path::new(&self.name).file_name().unwrap_or_default())
    }
}

/// `path` without `.`, and without `..` where it has a folder to go back from.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(out.components().next_back(), Some(Component::Normal(_))) =>
            {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The lines of the one file that a place lies in.
impl SourceCode for SourceMap {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let at = span.offset()..span.offset() + span.len();
        let file = self.file(&at).ok_or(MietteError::OutOfBounds)?;
        let lines =
            file.shown
                .read_span(&(at.start - file.base, at.len()).into(), before, after)?;
        let shown = (lines.span().offset() + file.base, lines.span().len()).into();
        let (name, line, column) = (shown_line(&file.source.name), lines.line(), lines.column());
        Ok(Box::new(MietteSpanContents::new_named(
            name,
            lines.data(),
            shown,
            line,
            column,
            lines.line_count(),
        )))
    }
}
