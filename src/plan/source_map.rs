//! The texts of a plan: its own and those of the files that it includes. A place is a range of
//! bytes in the concatenated texts, so that one range identifies both the file and the position in
//! it.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use super::source::{Node, Source, Span, Table, Tree};
use crate::base::{Code, Problem, Result, masked, shown_line};

/// Cap on the text of a plan with all files that it includes. It is far above any plan that a
/// person writes.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Cap on the files of a plan, and so on the depth of includes.
const MAX_FILES: usize = 100;

/// The text of a plan and the texts of all files that it includes.
#[derive(Debug)]
pub struct SourceMap {
    /// The plan's own file is the first.
    files: Vec<File>,
    /// Each file after the files that it includes.
    order: Vec<FileId>,
    /// Files that cannot be read or are not valid TOML.
    problems: Vec<Problem>,
}

/// A file of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(usize);

#[derive(Debug)]
struct File {
    source: Source,
    /// Its text without secrets, for error messages. It has the same length.
    masked: String,
    /// Where its text begins in the concatenated texts.
    base: usize,
    tree: Table,
    /// The file that includes it, and where.
    included_by: Option<(FileId, Span)>,
}

impl SourceMap {
    /// The plan `source` with all files that it includes. `load` reads a file. Problems are
    /// reported by [`read`](super::read).
    pub fn gather(source: Source, load: &mut dyn FnMut(&Path) -> Result<String>) -> Self {
        let mut map = SourceMap {
            files: vec![],
            order: vec![],
            problems: vec![],
        };
        map.add(source, None, load);
        map
    }

    /// Adds `source`, and the files that it includes.
    fn add(
        &mut self,
        source: Source,
        included_by: Option<(FileId, Span)>,
        load: &mut dyn FnMut(&Path) -> Result<String>,
    ) {
        let base = match self.files.last() {
            // A byte between two texts, so that the end of one is not the beginning of the next.
            Some(last) => last.base + last.source.text.len() + 1,
            None => 0,
        };
        let size = base + source.text.len();
        if size > MAX_TEXT_BYTES {
            let message = format!("the plan has {size} bytes, at most {MAX_TEXT_BYTES} are read");
            let mut problem =
                Problem::new(Code::PlanTooLarge, message).help("split it into several plans");
            if let Some((_, at)) = included_by {
                problem = problem.at(at, "with this file");
            }
            self.problems.push(problem);
            return;
        }
        let tree = match source.parse(base) {
            Ok(tree) => tree,
            Err(mistakes) => {
                self.problems.extend(mistakes);
                Table::default()
            }
        };
        let id = FileId(self.files.len());
        let includes = match tree.get("include") {
            Some(entry) => self.paths(&entry.node),
            None => vec![],
        };
        self.files.push(File {
            masked: masked(&source.text),
            source,
            base,
            tree,
            included_by,
        });
        for (path, at) in includes {
            match self.load(id, &path, &at, load) {
                Ok(source) => self.add(source, Some((id, at)), load),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.order.push(id);
    }

    /// The paths in the value of `include`.
    fn paths(&mut self, node: &Node) -> Vec<(String, Span)> {
        let Tree::List(items) = &node.tree else {
            self.not_paths(node);
            return vec![];
        };
        let mut paths = vec![];
        for item in items {
            match item.string() {
                Some(path) => paths.push((path.to_string(), item.span.clone())),
                None => self.not_paths(item),
            }
        }
        paths
    }

    fn not_paths(&mut self, node: &Node) {
        let message = format!("`include` has {}, expected a list of paths", node.what());
        let problem = Problem::new(Code::PlanWrongType, message)
            .at(node.span.clone(), "expected a list of paths")
            .help("for example `include = [\"common.toml\"]`");
        self.problems.push(problem);
    }

    /// Reads the file that `includer` includes as `path`.
    fn load(
        &self,
        includer: FileId,
        path: &str,
        at: &Span,
        load: &mut dyn FnMut(&Path) -> Result<String>,
    ) -> Result<Source> {
        let includer_source = &self.files[includer.0].source;
        let full_path = includer_source.folder.join(path);
        self.check_included_once(includer, &full_path, at)?;
        if self.files.len() == MAX_FILES {
            let message = format!("the plan includes more than {} files", MAX_FILES - 1);
            return Err(
                Problem::new(Code::PlanTooLarge, message).at(at.clone(), "no further than this")
            );
        }
        let name = match Path::new(&includer_source.name).parent() {
            Some(folder) => folder.join(path),
            None => path.into(),
        };
        let text = load(&full_path).map_err(|problem| problem.at(at.clone(), "included here"))?;
        let folder = full_path.parent().unwrap_or(Path::new(""));
        Ok(Source {
            name: normal(&name).display().to_string(),
            text,
            folder: folder.to_path_buf(),
        })
    }

    /// Fails if the file at `path` is already part of the plan.
    fn check_included_once(&self, includer: FileId, path: &Path, at: &Span) -> Result<()> {
        let path = normal(path);
        let is_same = |file: &&File| normal(&file.source.path()) == path;
        let Some(other) = self.files.iter().find(is_same) else {
            return Ok(());
        };
        let name = &other.source.name;
        if let Some((_, first)) = &other.included_by
            && !self.includes(other, includer)
        {
            let message = format!("`{name}` is included twice");
            return Err(Problem::new(Code::PlanInclude, message)
                .at(at.clone(), "here")
                .at(first.clone(), "and here")
                .help("keep one of them: all files of a plan see what a file defines"));
        }
        let message = format!("`{name}` includes itself");
        Err(Problem::new(Code::PlanInclude, message)
            .at(at.clone(), "here")
            .help("move what both need into a file of its own"))
    }

    /// Whether `file` is `id` or includes it, directly or through other files.
    fn includes(&self, file: &File, id: FileId) -> bool {
        let mut next = Some(id);
        while let Some(FileId(index)) = next {
            if std::ptr::eq(&self.files[index], file) {
                return true;
            }
            let included_by = self.files[index].included_by.as_ref();
            next = included_by.map(|(includer, _)| *includer);
        }
        false
    }

    /// Whether `includer` includes `id`, directly or through other files, so that its values
    /// replace those of `id`.
    pub(super) fn overrides(&self, includer: FileId, id: FileId) -> bool {
        includer != id && self.includes(&self.files[includer.0], id)
    }

    /// Files that cannot be read or are not valid TOML.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The files, each after the files that it includes.
    pub(super) fn trees(&self) -> impl Iterator<Item = (FileId, &Table)> {
        self.order.iter().map(|id| (*id, &self.files[id.0].tree))
    }

    /// Whether `id` is the plan itself.
    pub(super) fn is_outermost(&self, id: FileId) -> bool {
        id == FileId(0)
    }

    /// The text at `span`.
    pub(super) fn text(&self, span: &Span) -> &str {
        match self.place(span) {
            Some((source, at)) => source.text.get(at).unwrap_or_default(),
            None => "",
        }
    }

    /// The absolute form of `url`, a relative `file:` URL written at `span`. It refers to the
    /// folder of its file, so that a plan means the same in any working directory. `None` for other
    /// URLs.
    pub(super) fn located(&self, url: &str, span: &Span) -> Option<String> {
        let path = url.strip_prefix("file:")?;
        if path.starts_with('/') {
            return None;
        }
        let (source, _) = self.place(span)?;
        Some(format!("file:{}", source.folder.join(path).display()))
    }

    /// The file that a place is in, and the place in that file.
    pub fn place(&self, span: &Range<usize>) -> Option<(&Source, Range<usize>)> {
        let file = self.file(span)?;
        Some((&file.source, span.start - file.base..span.end - file.base))
    }

    fn file(&self, span: &Range<usize>) -> Option<&File> {
        for file in &self.files {
            let end = file.base + file.source.text.len();
            if file.base <= span.start && span.end <= end {
                return Some(file);
            }
        }
        None
    }
}

impl Source {
    fn path(&self) -> PathBuf {
        self.folder
            .join(Path::new(&self.name).file_name().unwrap_or_default())
    }
}

/// `path` without `.`, and without `FOLDER/..`.
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

/// Shows lines of the file that a place is in.
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
            file.masked
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
