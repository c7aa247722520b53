//! The cache folder: blobs, results and notes as files. `docs/cache.md` describes the layout and
//! what a crash leaves behind.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;
use rustix::fs::{Access, access, syncfs};
use tempfile::{NamedTempFile, TempDir};

use super::folder::{ActionLock, LockedFolder};
use super::layout::{self, CacheDir, PROCESS_PREFIX};
use super::stamp::Stamp;
use super::usage::UsageLock;
use super::{
    ActionCache, ActionResult, BlobList, BlobStore, LocalStore, Note, Notes, blob_dirs, map, window,
};
use crate::action::{ActionKey, Blob, BlobSink, Content};
use crate::base::{
    Code, Context, Digest, Hasher, Problem, Result, hash_bytes, new_file_in, open_file, read_file,
};

/// Blobs of at least this size are synced one by one, so that little is left to sync at the end.
const MIN_SYNC_BYTES: u64 = 1 << 20;
/// Files of at least this size are hashed one at a time.
const MIN_EXCLUSIVE_HASH_BYTES: u64 = 64 << 20;
/// The help of a problem with the disk.
const UNREADABLE: &str =
    "`kiln cache verify --repair` removes what cannot be read; what made it runs again";

/// Limit for the file of a result or a note: far more than a stage with thousands of parts needs.
pub(super) const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Bytes that are written and hashed at a time.
const WRITE_BYTES: usize = 1 << 18;

/// At least this many blobs are looked for by several threads.
const MIN_PARALLEL_BLOBS: usize = 1024;

/// A cache in a folder. Any number of processes may use it at the same time.
pub struct Disk {
    root: PathBuf,
    /// This process's folder in `tmp/`. Created by the first write, so that reading leaves no
    /// trace.
    process_folder: OnceLock<LockedFolder>,
    checked: Checked,
    /// The windows whose bytes this process has checked.
    checked_windows: Mutex<HashSet<Content>>,
    /// Held while a large file is hashed.
    hashing: Mutex<()>,
    blob_dirs: OnceLock<Digest>,
    pub(super) usage: UsageLock,
}

/// The hashes of the blobs that this process has checked, with the stamps of their files.
type Checked = Arc<Mutex<HashMap<[u8; 32], Stamp>>>;

impl Disk {
    /// Opens the cache at `root`, and creates it if there is none. Refuses a folder that contains
    /// other files. Also opens a read-only cache: see [`is_read_only`](Self::is_read_only).
    pub fn open(root: &Path) -> Result<Disk> {
        let root = layout::open_root(root)?;
        let usage = UsageLock::share(&root.join("blobs"))?;
        Ok(Disk {
            root,
            process_folder: OnceLock::new(),
            checked: Checked::default(),
            checked_windows: Mutex::default(),
            hashing: Mutex::default(),
            blob_dirs: OnceLock::new(),
            usage,
        })
    }

    /// Makes everything durable that was put so far.
    pub fn sync(&self) -> Result<()> {
        let failed = || format!("sync the cache {}", self.root.display());
        let folder = File::open(&self.root).context(Code::StoreIo, failed)?;
        syncfs(folder).context(Code::StoreIo, failed)
    }

    /// Whether this process may read the cache but not write to it.
    pub fn is_read_only(&self) -> bool {
        access(self.root.join("tmp"), Access::WRITE_OK).is_err()
    }

    /// Removes the temporary files of dead processes.
    pub fn remove_abandoned(&self) -> Result<()> {
        LockedFolder::remove_abandoned(&self.root.join("tmp"), PROCESS_PREFIX)
    }

    /// The folder of this process, on the file system of the cache. Creating it also removes the
    /// temporary files of dead processes.
    fn process_folder(&self) -> Result<&Path> {
        if let Some(folder) = self.process_folder.get() {
            return Ok(folder.path());
        }
        self.remove_abandoned()?;
        let folder = match LockedFolder::create(&self.root.join("tmp"), PROCESS_PREFIX) {
            Ok(folder) => folder,
            Err(problem) if self.is_read_only() => return Err(read_only(&self.root, problem)),
            Err(problem) => return Err(problem),
        };
        // Another thread may have been faster; then its folder is used.
        if let Err(spare) = self.process_folder.set(folder) {
            spare.remove()?;
        }
        match self.process_folder.get() {
            Some(folder) => Ok(folder.path()),
            None => Ok(&self.root),
        }
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        CacheDir::Blobs.path(&self.root, &digest.hex())
    }

    pub(super) fn action_path(&self, key: &ActionKey) -> PathBuf {
        CacheDir::Actions.path(&self.root, &key.0.hex())
    }

    fn note_path(&self, key: &Digest) -> PathBuf {
        CacheDir::Notes.path(&self.root, &key.hex())
    }

    /// The state of all blob folders at the first call.
    fn blob_dirs(&self) -> Digest {
        *self
            .blob_dirs
            .get_or_init(|| blob_dirs::digest(&self.root.join("blobs")))
    }

    /// `digest`, if the store does not have this blob.
    fn if_missing(&self, digest: &Digest) -> Result<Option<Digest>> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(file) if file.len() == digest.size_bytes => Ok(None),
            Ok(_) => Ok(Some(*digest)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(*digest)),
            Err(error) => Err(error).context(Code::StoreIo, || {
                format!("look for the blob {}", path.display())
            }),
        }
    }

    /// The file of a blob, with the right bytes: they are hashed when this process first opens
    /// it, and again if the file's stamp has changed since.
    fn file(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.blob_path(digest);
        let failed = || format!("read the blob {}", path.display());
        let file = match open_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.context(Code::StoreIo, failed)?,
        };
        let stamp = Stamp::of(&file.metadata().context(Code::StoreIo, failed)?);
        if !self.is_checked(digest, stamp) {
            // Threads that open the same large file hash it once. They wait here and not in rayon's
            // pool, whose threads may be the ones that wait.
            let guard = match digest.size_bytes {
                MIN_EXCLUSIVE_HASH_BYTES.. => Some(lock(&self.hashing)),
                _ => None,
            };
            if !self.is_checked(digest, stamp) {
                let found = match hash_file(&file).context(Code::StoreIo, failed) {
                    Ok(found) => found,
                    Err(problem) => return Err(problem.help(UNREADABLE)),
                };
                if found.hash != digest.hash {
                    return Err(self.corrupt(digest, &found));
                }
                self.mark_checked(digest, stamp);
            }
            drop(guard);
        }
        if stamp.has_size(digest.size_bytes) {
            Ok(Some(file))
        } else {
            Ok(None)
        }
    }

    fn is_checked(&self, digest: &Digest, stamp: Stamp) -> bool {
        lock(&self.checked).get(&digest.hash) == Some(&stamp)
    }

    /// Records that the file of a blob, with this stamp, has the right bytes.
    pub(super) fn mark_checked(&self, digest: &Digest, stamp: Stamp) {
        lock(&self.checked).insert(digest.hash, stamp);
    }

    /// Removes a blob with wrong bytes, so that it counts as missing.
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
        if let Some(folder) = self.process_folder.take() {
            // If it fails, a later process removes the folder.
            let _ = folder.remove();
        }
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

/// Hashes by reading, so that a failing disk is an error and not a fault in mapped memory.
fn hash_file(mut file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let size = file.metadata()?.len().clamp(1 << 12, 1 << 18);
    let mut buffer = vec![0; size as usize];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Replaces the file at `path` atomically, using the folder `tmp` on the same file system. Does not
/// sync.
fn replace_file(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let mut file = new_file_in(tmp, ".tmp").context(Code::StoreIo, failed)?;
    file.write_all(bytes).context(Code::StoreIo, failed)?;
    persist(file, path).context(Code::StoreIo, failed)?;
    Ok(())
}

/// Renames `file` to `path`, whose folder is created if it does not exist.
fn persist(file: NamedTempFile, path: &Path) -> io::Result<File> {
    match file.persist(path) {
        Err(failed) if failed.error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            Ok(failed.file.persist(path)?)
        }
        persisted => Ok(persisted?),
    }
}

/// Locks a mutex, also after a panic of another thread: each change of the data is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalStore for Disk {
    fn root(&self) -> &Path {
        &self.root
    }

    fn scratch(&self) -> Result<TempDir> {
        TempDir::new_in(self.process_folder()?)
            .context(Code::StoreIo, || "make a scratch folder".into())
    }

    fn partial(&self, subject: &Digest) -> Result<Option<LockedFolder>> {
        LockedFolder::try_lock(&self.root.join("partial").join(subject.hex()))
    }
}

impl BlobStore for Disk {
    /// After a check that found all blobs, the state of the blob folders is noted. While it is the
    /// same, no blob was added or removed. A damaged blob is found when it is read.
    fn has_all(&self, list: &BlobList) -> Result<bool> {
        if list.text().len() < blob_dirs::MIN_NOTE_BYTES {
            return Ok(self.missing(&list.digests()?)?.is_empty());
        }
        let state = self.blob_dirs().to_string();
        let key = blob_dirs::note_key(list);
        if let Some(note) = self.read(&key)?
            && note.text == state
        {
            return Ok(true);
        }
        let has_all = self.missing(&list.digests()?)?.is_empty();
        if has_all {
            self.write(&key, &state)?;
        }
        Ok(has_all)
    }

    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if digests.len() < MIN_PARALLEL_BLOBS {
            let mut missing = vec![];
            for digest in digests {
                missing.extend(self.if_missing(digest)?);
            }
            return Ok(missing);
        }
        let missing: Result<Vec<Option<Digest>>> = digests
            .par_iter()
            .with_min_len(MIN_PARALLEL_BLOBS / 4)
            .map(|digest| self.if_missing(digest))
            .collect();
        Ok(missing?.into_iter().flatten().collect())
    }

    fn open(&self, digest: &Digest) -> Result<Option<Blob>> {
        let Some(file) = self.file(digest)? else {
            return Ok(None);
        };
        let blob = map::map(&file).context(Code::StoreIo, || format!("map the blob {digest}"))?;
        Ok(Some(blob))
    }

    fn content(&self, content: &Content) -> Result<Option<Blob>> {
        let Some(blob) = self.open(&content.blob())? else {
            return Ok(None);
        };
        let bytes = window::cut(&blob, content)?;
        if content.window.is_some() && !lock(&self.checked_windows).contains(content) {
            window::check(&bytes, content)?;
            lock(&self.checked_windows).insert(*content);
        }
        Ok(Some(bytes))
    }

    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        match self.file(digest)? {
            Some(_) => Ok(Some(self.blob_path(digest))),
            None => Ok(None),
        }
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        let mode = Permissions::from_mode(0o444);
        let file = tempfile::Builder::new()
            .permissions(mode)
            .tempfile_in(self.process_folder()?);
        let file = file.context(Code::StoreIo, || "begin a blob".into())?;
        let hasher = Hasher::default();
        Ok(Box::new(Sink {
            out: BufWriter::with_capacity(1 << 16, HashingFile { file, hasher }),
            root: self.root.clone(),
            checked: Arc::clone(&self.checked),
        }))
    }
}

impl ActionCache for Disk {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        let path = self.action_path(key);
        match read_file(&path, MAX_TEXT_BYTES) {
            Ok(text) => Ok(parse_result(text, &key.0.hex())),
            // Something else than a file, or a file that is far too long, is no result.
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

    fn lock(&self, key: &ActionKey) -> Result<Option<ActionLock>> {
        // Fails in a read-only cache, with a better message.
        self.process_folder()?;
        match self.partial(&key.0)? {
            Some(folder) => Ok(Some(folder.into())),
            None => Ok(None),
        }
    }

    // Not synced: a result that a power cut loses or damages counts as absent, and costs one
    // action.
    fn put(&self, result: &ActionResult) -> Result<()> {
        let path = self.action_path(&result.key());
        let body = serde_json::to_string(result)
            .context(Code::StoreIo, || format!("serialize {}", path.display()))?;
        let text = format!(
            "{}\n{body}\n{}\n",
            hash_bytes(body.as_bytes()),
            result.action
        );
        replace_file(self.process_folder()?, &path, text.as_bytes())
    }
}

/// The result in the file at `path`; `None` if it cannot be read or is no result.
pub(super) fn read_result(path: &Path) -> Option<ActionResult> {
    let text = read_file(path, MAX_TEXT_BYTES).ok()?;
    parse_result(text, path.file_stem()?.to_str()?)
}

/// The file of a result has three lines: the digest of the second line, the result as JSON, and the
/// action, whose hash is `key_hex`. `None` for any other text.
pub(super) fn parse_result(text: Vec<u8>, key_hex: &str) -> Option<ActionResult> {
    let text = String::from_utf8(text).ok()?;
    let (digest, rest) = text.split_once('\n')?;
    let (body, action) = rest.split_once('\n')?;
    let action = action.strip_suffix('\n')?;
    if digest.parse::<Digest>().ok()? != hash_bytes(body.as_bytes()) {
        return None;
    }
    let mut result: ActionResult = serde_json::from_str(body).ok()?;
    result.action = action.into();
    if result.key().0.hex() != key_hex {
        return None;
    }
    Some(result)
}

impl Notes for Disk {
    fn read(&self, key: &Digest) -> Result<Option<Note>> {
        match read_file(&self.note_path(key), MAX_TEXT_BYTES) {
            Ok(bytes) => Ok(parse_note(bytes)),
            Err(_) => Ok(None),
        }
    }

    // Not synced: a note that a power cut damages counts as absent.
    fn write(&self, key: &Digest, text: &str) -> Result<()> {
        let note = format!("{}\n{text}", hash_bytes(text.as_bytes()));
        let written = match self.process_folder() {
            Ok(tmp) => replace_file(tmp, &self.note_path(key), note.as_bytes()),
            Err(problem) => Err(problem),
        };
        match written {
            Err(_) if self.is_read_only() => Ok(()),
            written => written,
        }
    }
}

/// The file of a note is the digest of the text on one line, then the text.
fn parse_note(bytes: Vec<u8>) -> Option<Note> {
    let mut digest = String::from_utf8(bytes).ok()?;
    let text = digest.split_off(digest.find('\n')? + 1);
    let note = Note::new(text);
    if digest.trim_end() != note.digest.to_string() {
        return None;
    }
    Some(note)
}

/// A blob being written.
struct Sink {
    out: BufWriter<HashingFile>,
    root: PathBuf,
    checked: Checked,
}

struct HashingFile {
    file: NamedTempFile,
    hasher: Hasher,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // In steps, so that the bytes are hashed while they are in the cache of this core.
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
        let HashingFile { file, hasher } = match self.out.into_inner() {
            Ok(file) => file,
            Err(error) => return Err(error.into_error()),
        };
        let digest = hasher.finish();
        // Syncs the file, not its folder: a blob whose name a power cut loses counts as missing.
        // `Disk::sync` syncs the small ones together.
        if digest.size_bytes >= MIN_SYNC_BYTES {
            file.as_file().sync_all()?;
        }
        // Also replaces a blob that exists already, since that one may be corrupt.
        let path = CacheDir::Blobs.path(&self.root, &digest.hex());
        let file = persist(file, &path)?;
        lock(&self.checked).insert(digest.hash, Stamp::of(&file.metadata()?));
        Ok(digest)
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        let digest = self
            .put()
            .context(Code::StoreIo, || "put a blob into the cache".into())?;
        Ok(digest.into())
    }
}
