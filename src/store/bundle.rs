//! Results and their blobs as one file for another cache: an uncompressed tar, which is read as if
//! an enemy had written it.
//!
//! First `layout`, then blobs, then results, each under its path in the cache and sorted by it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::disk::{Disk, MAX_TEXT_BYTES, read_entry};
use super::layout::LAYOUT;
use super::{ActionCache, ActionResult, BlobStore, Complete, Found};
use crate::action::ActionKey;
use crate::base::{Code, Context, Digest, Problem, Result, new_file_in, open_file, read_file};

const BUFFER_BYTES: usize = 1 << 18;

/// What was written into a bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Exported {
    /// Results.
    pub results: usize,
    /// Blobs.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
}

/// What was taken out of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Imported {
    /// Results that were put.
    pub results: usize,
    /// Blobs that were put.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Results that were there already.
    pub known_results: usize,
    /// Blobs that were there already.
    pub known_blobs: usize,
    /// Results that were left out, because a blob of theirs is neither here nor before them in the
    /// bundle.
    pub incomplete_results: usize,
}

impl Disk {
    /// Writes the results of `keys` and all their blobs to the file `path`, whole or not at all.
    /// The same cache gives the same bytes.
    pub fn export(&self, keys: &BTreeSet<ActionKey>, path: &Path) -> Result<Exported> {
        let failed = || format!("write {}", path.display());
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut file = new_file_in(folder, ".kiln-tmp-").context(Code::BundleIo, failed)?;
        let exported = self.write_bundle(keys, file.as_file_mut())?;
        file.as_file().sync_all().context(Code::BundleIo, failed)?;
        file.persist(path).context(Code::BundleIo, failed)?;
        Ok(exported)
    }

    fn write_bundle(&self, keys: &BTreeSet<ActionKey>, file: &mut File) -> Result<Exported> {
        let mut blobs = BTreeSet::new();
        for key in keys {
            let result = self
                .get(key)?
                .ok_or_else(|| gone(&format!("the result of {key}")))?;
            self.check_windows(&result)?;
            blobs.extend(result.outputs.values().map(|part| part.content.blob()));
        }
        let mut tar = Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        add(&mut tar, "layout", LAYOUT.len() as u64, LAYOUT.as_bytes())?;
        for blob in &blobs {
            let failed = || format!("read the blob {blob}");
            let path = self
                .path(blob)?
                .ok_or_else(|| gone(&format!("the blob {blob}")))?;
            let file = File::open(path).context(Code::BundleIo, failed)?;
            add(
                &mut tar,
                &member_path("blobs", &blob.hex(), ""),
                blob.size_bytes,
                file,
            )?;
        }
        for key in keys {
            let path = self.action_path(key);
            let text = read_file(&path, MAX_TEXT_BYTES)
                .context(Code::BundleIo, || format!("read {}", path.display()))?;
            add(
                &mut tar,
                &member_path("actions", &key.0.hex(), ".json"),
                text.len() as u64,
                &text[..],
            )?;
        }
        let finish = |tar: Builder<BufWriter<&mut File>>| tar.into_inner()?.flush();
        finish(tar).context(Code::BundleIo, || "end the bundle".into())?;
        let blob_bytes = blobs.iter().map(|blob| blob.size_bytes).sum();
        Ok(Exported {
            results: keys.len(),
            blobs: blobs.len(),
            blob_bytes,
        })
    }

    /// Puts what the bundle `path` holds and this cache has not. Nothing gets in under a name that
    /// is not its own; what was put before a problem stays.
    pub fn import(&self, path: &Path) -> Result<Imported> {
        let file =
            open_file(path).context(Code::BundleIo, || format!("open {}", path.display()))?;
        let ended = Cell::new(false);
        let source = Watched {
            source: BufReader::with_capacity(BUFFER_BYTES, file),
            ended: &ended,
        };
        let imported = self.read_bundle(&mut Archive::new(source));
        if ended.get() {
            let message = format!(
                "{} is cut short: it ends before its end mark",
                path.display()
            );
            return Err(Problem::new(Code::BundleCut, message).help(
                "bring the whole file over and import it again; what was whole is in the cache \
                 already",
            ));
        }
        imported.map_err(|problem| problem.within(format!("failed to import {}", path.display())))
    }

    fn read_bundle(&self, archive: &mut Archive<Watched>) -> Result<Imported> {
        let failed = || "read the bundle".into();
        let mut imported = Imported::default();
        let mut is_first = true;
        // Raw: names that other entries spell, and files with holes, are not interpreted, but
        // refused as what they are.
        for entry in archive.entries().context(Code::BundleIo, failed)?.raw(true) {
            let entry = entry
                .context(Code::BundleIo, failed)
                .map_err(|problem| problem.help(ORIGIN))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !matches!(entry.header().entry_type(), EntryType::Regular) {
                return Err(foreign(format!(
                    "`{}` is no regular file",
                    name.escape_debug()
                )));
            }
            match Member::of(&name, entry.size()) {
                Some(Member::Layout) if is_first => check_layout(entry)?,
                _ if is_first => {
                    return Err(foreign(format!("it begins with `{}`", name.escape_debug())));
                }
                Some(Member::Blob(digest)) => self.import_blob(&digest, entry, &mut imported)?,
                Some(Member::Result(hex)) => self.import_result(&hex, entry, &mut imported)?,
                _ => return Err(foreign(format!("it holds `{}`", name.escape_debug()))),
            }
            is_first = false;
        }
        if is_first {
            Err(foreign("it is empty".into()))
        } else {
            Ok(imported)
        }
    }

    fn import_blob(
        &self,
        digest: &Digest,
        mut entry: Entry<'_, Watched>,
        imported: &mut Imported,
    ) -> Result<()> {
        if self.missing(&[*digest])?.is_empty() {
            imported.known_blobs += 1;
            return Ok(());
        }
        let failed = || format!("copy the blob {digest}");
        let mut sink = self.create()?;
        let copied = io::copy(&mut entry, &mut sink).context(Code::BundleIo, failed)?;
        if copied != digest.size_bytes {
            return Err(foreign(format!(
                "the blob {digest} ends after {copied} bytes"
            )));
        }
        let found = sink.finish()?.digest;
        if found != *digest {
            return Err(Problem::new(
                Code::BundleDigest,
                format!("the blob {digest} has the bytes of {found}"),
            )
            .help("the file is damaged or forged: export it again"));
        }
        imported.blobs += 1;
        imported.blob_bytes += digest.size_bytes;
        Ok(())
    }

    fn import_result(
        &self,
        hex: &str,
        mut entry: Entry<'_, Watched>,
        imported: &mut Imported,
    ) -> Result<()> {
        if entry.size() > MAX_TEXT_BYTES {
            return Err(foreign(format!(
                "the result {hex} has {} bytes, at most {MAX_TEXT_BYTES}",
                entry.size()
            )));
        }
        let mut text = vec![];
        entry
            .read_to_end(&mut text)
            .context(Code::BundleIo, || format!("read the result {hex}"))?;
        let result = read_entry(text, hex)
            .ok_or_else(|| foreign(format!("{hex} is no result that kiln wrote")))?;
        let blobs: Vec<Digest> = result
            .outputs
            .values()
            .map(|part| part.content.blob())
            .collect();
        if !self.missing(&blobs)?.is_empty() {
            imported.incomplete_results += 1;
        } else if let Found::Hit(_) = (Complete {
            actions: self,
            blobs: self,
        })
        .find(&result.key())?
        {
            imported.known_results += 1;
        } else {
            self.check_windows(&result)?;
            self.put(&result)?;
            imported.results += 1;
        }
        Ok(())
    }

    /// Refuses a result whose windows do not hold what it says.
    fn check_windows(&self, result: &ActionResult) -> Result<()> {
        result
            .windows()
            .try_for_each(|content| self.content(content).map(drop))
    }
}

/// What a bundle may hold.
enum Member {
    Layout,
    Blob(Digest),
    Result(String),
}

impl Member {
    /// What the path says; `None` where the cache has no such file.
    fn of(path: &str, size_bytes: u64) -> Option<Member> {
        if path == "layout" {
            return Some(Member::Layout);
        }
        let (_, file) = path.rsplit_once('/')?;
        let hex = file.strip_suffix(".json").unwrap_or(file);
        let digest: Digest = format!("b3:{hex}/{size_bytes}").parse().ok()?;
        let hex = digest.hex();
        match path {
            _ if path == member_path("blobs", &hex, "") => Some(Member::Blob(digest)),
            _ if path == member_path("actions", &hex, ".json") => Some(Member::Result(hex)),
            _ => None,
        }
    }
}

fn member_path(room: &str, hex: &str, ending: &str) -> String {
    format!("{room}/{}/{hex}{ending}", &hex[..2])
}

/// Adds a file as nobody's, of no time.
fn add(tar: &mut Builder<impl Write>, path: &str, size_bytes: u64, data: impl Read) -> Result<()> {
    let add = || -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(size_bytes);
        header.set_mode(0o444);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append(&header, data)
    };
    add().context(Code::BundleIo, || format!("write {path} into the bundle"))
}

fn check_layout(entry: Entry<'_, Watched>) -> Result<()> {
    let mut found = vec![];
    entry
        .take(64)
        .read_to_end(&mut found)
        .context(Code::BundleIo, || "read the layout".into())?;
    if found == LAYOUT.as_bytes() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&found);
    Err(foreign(format!(
        "its layout says {:?}, this kiln knows {:?}",
        found.trim(),
        LAYOUT.trim()
    )))
}

const ORIGIN: &str = "only files that `kiln cache export` wrote can be imported";

fn foreign(message: String) -> Problem {
    Problem::new(Code::BundleForeign, message).help(ORIGIN)
}

fn gone(what: &str) -> Problem {
    Problem::new(Code::StoreGone, format!("{what} is gone from the cache"))
        .help("build the plan again; what made it runs again")
}

/// A file that tells when somebody wanted more than it has: a whole bundle ends with a mark, and is
/// not read to the end of the file.
struct Watched<'a> {
    source: BufReader<File>,
    ended: &'a Cell<bool>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        Ok(count)
    }
}
