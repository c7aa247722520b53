//! The cache folder: blobs and results of actions as files. `docs/cache.md` has the layout and what
//! each crash leaves behind.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rustix::fs::{Access, access, syncfs};
use tempfile::{NamedTempFile, TempDir};

use super::folder::{ActionLock, LockedFolder};
use super::layout::{self, OWN, Room};
use super::stamp::Stamp;
use super::usage::Usage;
use super::{
    ActionCache, ActionResult, BlobList, BlobStore, LocalStore, Note, Notes, blob_dirs, map, window,
};
use crate::action::{ActionKey, Blob, BlobSink, Content};
use crate::base::{
    Code, Context, Digest, Hasher, Problem, Result, hash_bytes, new_file_in, open_file, read_file,
};

/// A blob of this size is synced by itself, so that little is left to sync at the end.
const WORTH_A_SYNC_BYTES: u64 = 1 << 20;
/// Files of this size are hashed one at a time.
const WORTH_A_LOCK_BYTES: u64 = 64 << 20;
/// The way out where the disk gives an error instead of bytes.
const UNREADABLE: &str =
    "`kiln cache verify --repair` removes what cannot be read; what made it runs again";

/// Cap on a result and on a note: far above that of a stage of thousands of parts.
pub(super) const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Bytes that are written and hashed at a time.
const WRITE_BYTES: usize = 1 << 18;

/// So many blobs are looked for by several threads.
const WORTH_THREADS: usize = 1024;

/// Blobs and results below one folder. Any number of processes may use it at once.
pub struct Disk {
    root: PathBuf,
    /// This process's folder in `tmp/`, once it writes something: who only reads leaves no trace.
    own: OnceLock<LockedFolder>,
    checked: Checked,
    /// The windows that this process knows to hold what is said of them.
    windows: Mutex<HashSet<Content>>,
    checking: Mutex<()>,
    blob_dirs: OnceLock<Digest>,
    pub(super) usage: Usage,
}

/// The blobs that this process knows to be whole, and the stamps of the files it read.
type Checked = Arc<Mutex<HashMap<[u8; 32], Stamp>>>;

impl Disk {
    /// Opens the cache at `root`, making it if there is none; a folder of other things is refused.
    /// One that is there and read-only is opened too: see [`is_read_only`](Self::is_read_only).
    pub fn open(root: &Path) -> Result<Disk> {
        let root = layout::claim(root)?;
        let usage = Usage::share(&root.join("blobs"))?;
        let (own, blob_dirs, windows) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Ok(Disk {
            own,
            root,
            checked: Checked::default(),
            windows,
            checking: Mutex::default(),
            blob_dirs,
            usage,
        })
    }

    /// Makes everything durable that was put so far.
    pub fn settle(&self) -> Result<()> {
        let sync = || -> io::Result<()> { Ok(syncfs(File::open(&self.root)?)?) };
        sync().context(Code::StoreIo, || {
            format!("sync the cache {}", self.root.display())
        })
    }

    /// Whether this process may read the cache but not write to it.
    pub fn is_read_only(&self) -> bool {
        access(self.root.join("tmp"), Access::WRITE_OK).is_err()
    }

    /// Removes what dead processes left.
    pub fn sweep(&self) -> Result<()> {
        LockedFolder::sweep(&self.root.join("tmp"), OWN)
    }

    /// The folder of this process, on the same disk as all else. Whoever makes one removes what
    /// dead processes left.
    fn own(&self) -> Result<&Path> {
        if self.own.get().is_none() {
            let tmp = self.root.join("tmp");
            self.sweep()?;
            let made =
                LockedFolder::create(&tmp, OWN).map_err(|problem| match self.is_read_only() {
                    true => read_only(&self.root, problem),
                    false => problem,
                })?;
            // Another thread may have been faster.
            if let Err(spare) = self.own.set(made) {
                spare.remove()?;
            }
        }
        Ok(self.own.get().map_or(&self.root, LockedFolder::path))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        Room::Blobs.path(&self.root, &digest.hex())
    }

    pub(super) fn action_path(&self, key: &ActionKey) -> PathBuf {
        Room::Actions.path(&self.root, &key.0.hex())
    }

    /// The state of all folders of blobs when this process first asked.
    fn blob_dirs(&self) -> Digest {
        *self
            .blob_dirs
            .get_or_init(|| blob_dirs::look(&self.root.join("blobs")))
    }

    fn note_path(&self, question: &Digest) -> PathBuf {
        Room::Notes.path(&self.root, &question.hex())
    }

    fn is_missing(&self, digest: &Digest) -> Result<bool> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(file) => Ok(file.len() != digest.size_bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error).context(Code::StoreIo, || {
                format!("look for the blob {}", path.display())
            }),
        }
    }

    /// The file of a blob, once its bytes are known to be the right ones: they are hashed when this
    /// process first hands them out, and again if the file's stamp has changed since.
    fn file(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.blob_path(digest);
        let failed = || format!("read the blob {}", path.display());
        let file = match open_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.context(Code::StoreIo, failed)?,
        };
        let stamp = Stamp::of(&file.metadata().context(Code::StoreIo, failed)?);
        let is_checked = || lock(&self.checked).get(&digest.hash) == Some(&stamp);
        // Two that want the same large file at once hash it once. Not on the threads of rayon's
        // pool: those may be the ones that wait.
        let _turn = (digest.size_bytes >= WORTH_A_LOCK_BYTES && !is_checked())
            .then(|| lock(&self.checking));
        if !is_checked() {
            let found = hash_file(&file)
                .context(Code::StoreIo, failed)
                .map_err(|problem| problem.help(UNREADABLE))?;
            if found.hash != digest.hash {
                return Err(self.corrupt(digest, &found));
            }
            self.mark_checked(digest, stamp);
        }
        Ok(stamp.is_of_size(digest.size_bytes).then_some(file))
    }

    /// Notes that the file of a blob, of this stamp, has the right bytes.
    pub(super) fn mark_checked(&self, digest: &Digest, stamp: Stamp) {
        lock(&self.checked).insert(digest.hash, stamp);
    }

    /// Takes a blob with wrong bytes out of the way, so that it counts as missing from now on.
    fn corrupt(&self, digest: &Digest, found: &Digest) -> Problem {
        let path = self.blob_path(digest);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                format!("and cannot be removed: {error}")
            }
            _ => "and was removed".into(),
        };
        let message = format!(
            "the blob {} is corrupt, {removed}: expected {digest}, found {found}",
            path.display()
        );
        Problem::new(Code::StoreCorrupt, message).help(
            "run the same command again: what made this blob runs again; `kiln cache verify` \
             looks for others",
        )
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What stays behind is swept by the next process.
        let _ = self.own.take().map(LockedFolder::remove);
    }
}

fn read_only(root: &Path, problem: Problem) -> Problem {
    let message = format!(
        "the cache {} is read-only, and something new was to be put into it",
        root.display()
    );
    let causes = [vec![problem.message], problem.causes].concat();
    let problem = Problem::new(Code::StoreReadOnly, message);
    Problem { causes, ..problem }.help(
        "what is in it can be used as it is; to build what is not, name a cache of your own with \
         --cache or KILN_CACHE: `kiln cache export` and `import` bring over what is known",
    )
}

/// Hashes by reading, so that a bad disk is an error and not a fault in mapped memory.
fn hash_file(mut file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let size = file.metadata()?.len();
    let mut buffer =
        vec![0; usize::try_from(size).map_or(1 << 18, |size| size.clamp(1 << 12, 1 << 18))];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Puts a file at `path` as a whole, by way of the folder `tmp` on the same disk. Not synced.
fn replace_file(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = new_file_in(tmp, ".tmp")?;
        file.write_all(bytes)?;
        persist(file, path)?;
        Ok(())
    };
    write().context(Code::StoreIo, || format!("write {}", path.display()))
}

fn persist(file: NamedTempFile, path: &Path) -> io::Result<File> {
    match file.persist(path) {
        Err(failed) if failed.error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            Ok(failed.file.persist(path)?)
        }
        done => Ok(done?),
    }
}

/// A lock that outlives a panic of another thread: each change of what it guards is a single step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalStore for Disk {
    fn root(&self) -> &Path {
        &self.root
    }

    fn scratch(&self) -> Result<TempDir> {
        TempDir::new_in(self.own()?).context(Code::StoreIo, || "make a scratch folder".into())
    }

    fn partial(&self, subject: &Digest) -> Result<Option<LockedFolder>> {
        LockedFolder::take(&self.root.join("partial").join(subject.hex()))
    }
}

impl BlobStore for Disk {
    fn has_all(&self, list: &BlobList) -> Result<bool> {
        blob_dirs::has_all(list, self, self, || self.blob_dirs())
    }

    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let look = |digest: &Digest| Ok(self.is_missing(digest)?.then_some(*digest));
        let missing: Result<Vec<Option<Digest>>> = match digests.len() {
            ..WORTH_THREADS => digests.iter().map(look).collect(),
            _ => digests
                .par_iter()
                .with_min_len(WORTH_THREADS / 4)
                .map(look)
                .collect(),
        };
        Ok(missing?.into_iter().flatten().collect())
    }

    fn open(&self, digest: &Digest) -> Result<Option<Blob>> {
        self.file(digest)?
            .map(|file| map::map(&file))
            .transpose()
            .context(Code::StoreIo, || format!("map the blob {digest}"))
    }

    fn content(&self, content: &Content) -> Result<Option<Blob>> {
        if lock(&self.windows).contains(content) {
            return window::cut(self, content);
        }
        let bytes = window::checked(self, content)?;
        if bytes.is_some() && content.window.is_some() {
            lock(&self.windows).insert(*content);
        }
        Ok(bytes)
    }

    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        Ok(self.file(digest)?.map(|_| self.blob_path(digest)))
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        let mode = Permissions::from_mode(0o444);
        let file = tempfile::Builder::new()
            .permissions(mode)
            .tempfile_in(self.own()?);
        let file = file.context(Code::StoreIo, || "begin a blob".into())?;
        let out = BufWriter::with_capacity(
            1 << 16,
            Hashing {
                file,
                hasher: Hasher::default(),
            },
        );
        Ok(Box::new(Sink {
            out,
            root: self.root.clone(),
            checked: Arc::clone(&self.checked),
        }))
    }
}

impl ActionCache for Disk {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        let path = self.action_path(key);
        match read_file(&path, MAX_TEXT_BYTES) {
            Ok(text) => Ok(read_entry(text, &key.0.hex())),
            // What is no file, or far too long, is no result.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::FileTooLarge
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context(Code::StoreIo, || format!("read {}", path.display())),
        }
    }

    fn turn(&self, key: &ActionKey) -> Result<Option<ActionLock>> {
        // Says so first, if nothing can be written here.
        self.own()?;
        Ok(self.partial(&key.0)?.map(ActionLock::from))
    }

    // Not synced: an entry that a power cut loses or garbles counts as absent, and costs one
    // action.
    fn put(&self, result: &ActionResult) -> Result<()> {
        let path = self.action_path(&result.key());
        let body = serde_json::to_string(result)
            .context(Code::StoreIo, || format!("spell {}", path.display()))?;
        let text = format!(
            "{}\n{body}\n{}\n",
            hash_bytes(body.as_bytes()),
            result.action
        );
        replace_file(self.own()?, &path, text.as_bytes())
    }
}

/// An entry is three lines: the digest of the second, the result as JSON, and the action, whose
/// hash is the `name` that the entry stands under. Anything else is no entry.
pub(super) fn read_entry(text: Vec<u8>, name: &str) -> Option<ActionResult> {
    let text = String::from_utf8(text).ok()?;
    let (check, rest) = text.split_once('\n')?;
    let (body, action) = rest.split_once('\n')?;
    let action = action.strip_suffix('\n')?;
    if check.parse::<Digest>().ok()? != hash_bytes(body.as_bytes()) {
        return None;
    }
    let result: ActionResult = serde_json::from_str(body).ok()?;
    Some(ActionResult {
        action: action.into(),
        ..result
    })
    .filter(|result| result.key().0.hex() == name)
}

impl Notes for Disk {
    fn read(&self, question: &Digest) -> Result<Option<Note>> {
        // One that cannot be read is as good as lost.
        Ok(read_file(&self.note_path(question), MAX_TEXT_BYTES)
            .ok()
            .and_then(read_note))
    }

    // Not synced, like results: one that a power cut garbles is no note.
    fn write(&self, question: &Digest, text: &str) -> Result<()> {
        let note = format!("{}\n{text}", hash_bytes(text.as_bytes()));
        let wrote = self
            .own()
            .and_then(|own| replace_file(own, &self.note_path(question), note.as_bytes()));
        match wrote {
            // Such a cache forgets.
            Err(_) if self.is_read_only() => Ok(()),
            wrote => wrote,
        }
    }
}

/// A note is the digest of the text, and below it the text.
fn read_note(note: Vec<u8>) -> Option<Note> {
    let mut note = String::from_utf8(note).ok()?;
    let text = note.split_off(note.find('\n')? + 1);
    let found = Note::new(text);
    (note.trim_end() == found.digest.to_string()).then_some(found)
}

/// A blob being written.
struct Sink {
    out: BufWriter<Hashing>,
    root: PathBuf,
    checked: Checked,
}

struct Hashing {
    file: NamedTempFile,
    hasher: Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // While it is still in the cache of this core, it is hashed.
        let count = self.file.write(bytes.get(..WRITE_BYTES).unwrap_or(bytes))?;
        self.hasher.update(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Sink {
    fn put(self) -> io::Result<Digest> {
        let Hashing { file, hasher } = self.out.into_inner().map_err(|error| error.into_error())?;
        let digest = hasher.finish();
        // Only the file: a power cut may lose the name, and then the blob counts as missing. Small
        // ones are synced all together, by `settle`.
        if digest.size_bytes >= WORTH_A_SYNC_BYTES {
            file.as_file().sync_all()?;
        }
        // Also over a blob that is there already: that one may be corrupt.
        let file = persist(file, &Room::Blobs.path(&self.root, &digest.hex()))?;
        lock(&self.checked).insert(digest.hash, Stamp::of(&file.metadata()?));
        Ok(digest)
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        Ok(self
            .put()
            .context(Code::StoreIo, || "put a blob into the cache".into())?
            .into())
    }
}
