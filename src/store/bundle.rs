//! Results and their blobs as one file for another cache: an uncompressed tar, which is read as
//! untrusted input.
//!
//! The order is `layout`, blobs, results. Blobs and results have their paths in the cache and are
//! sorted by them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::disk::{Disk, MAX_TEXT_BYTES, parse_result};
use super::layout::LAYOUT;
use super::{ActionCache, ActionResult, BlobStore, CompleteCache, Lookup};
use crate::action::ActionKey;
use crate::base::atomic::folder_of;
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

/// What was read from a bundle.
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
    /// Results that were skipped, because one of their blobs is neither in the cache nor earlier in
    /// the bundle.
    pub incomplete_results: usize,
}

impl Disk {
    /// Writes the results of `keys` and all their blobs to the file `path`, atomically. The bytes
    /// depend on the results only.
    pub fn export(&self, keys: &BTreeSet<ActionKey>, path: &Path) -> Result<Exported> {
        let failed = || format!("write {}", path.display());
        let mut file =
            new_file_in(folder_of(path), ".kiln-tmp-").context(Code::BundleIo, failed)?;
        let exported = self.write_bundle(keys, file.as_file_mut())?;
        file.as_file().sync_all().context(Code::BundleIo, failed)?;
        file.persist(path).context(Code::BundleIo, failed)?;
        Ok(exported)
    }

    fn write_bundle(&self, keys: &BTreeSet<ActionKey>, file: &mut File) -> Result<Exported> {
        let mut blobs = BTreeSet::new();
        for key in keys {
            let Some(result) = self.get(key)? else {
                return Err(gone(&format!("the result of {key}")));
            };
            self.check_windows(&result)?;
            blobs.extend(result.blobs());
        }
        let mut tar = Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        add(&mut tar, "layout", LAYOUT.len() as u64, LAYOUT.as_bytes())?;
        for blob in &blobs {
            let Some(path) = self.path(blob)? else {
                return Err(gone(&format!("the blob {blob}")));
            };
            let file =
                File::open(path).context(Code::BundleIo, || format!("read the blob {blob}"))?;
            let member = member_path("blobs", &blob.hex(), "");
            add(&mut tar, &member, blob.size_bytes, file)?;
        }
        for key in keys {
            let path = self.action_path(key);
            let text = read_file(&path, MAX_TEXT_BYTES)
                .context(Code::BundleIo, || format!("read {}", path.display()))?;
            let member = member_path("actions", &key.0.hex(), ".json");
            add(&mut tar, &member, text.len() as u64, &text[..])?;
        }
        let failed = || "end the bundle".into();
        let mut out = tar.into_inner().context(Code::BundleIo, failed)?;
        out.flush().context(Code::BundleIo, failed)?;
        Ok(Exported {
            results: keys.len(),
            blobs: blobs.len(),
            blob_bytes: blobs.iter().map(|blob| blob.size_bytes).sum(),
        })
    }

    /// Adds the contents of the bundle `path` to this cache. Every blob and result is checked
    /// against its digest. What was added before a problem stays.
    pub fn import(&self, path: &Path) -> Result<Imported> {
        let file =
            open_file(path).context(Code::BundleIo, || format!("open {}", path.display()))?;
        let reached_end = Cell::new(false);
        let source = EndDetector {
            source: BufReader::with_capacity(BUFFER_BYTES, file),
            reached_end: &reached_end,
        };
        let imported = self.read_bundle(&mut Archive::new(source));
        if reached_end.get() {
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

    fn read_bundle(&self, archive: &mut Archive<EndDetector>) -> Result<Imported> {
        let failed = || "read the bundle".into();
        let mut imported = Imported::default();
        let mut is_first = true;
        // Raw: extension entries (long names, sparse files) are not interpreted, but refused.
        for entry in archive.entries().context(Code::BundleIo, failed)?.raw(true) {
            let entry = match entry.context(Code::BundleIo, failed) {
                Ok(entry) => entry,
                Err(problem) => return Err(problem.help(ORIGIN)),
            };
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !matches!(entry.header().entry_type(), EntryType::Regular) {
                return Err(foreign(format!(
                    "`{}` is no regular file",
                    name.escape_debug()
                )));
            }
            match Member::parse(&name, entry.size()) {
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
        mut entry: Entry<'_, EndDetector>,
        imported: &mut Imported,
    ) -> Result<()> {
        if self.missing(&[*digest])?.is_empty() {
            imported.known_blobs += 1;
            return Ok(());
        }
        let mut sink = self.create()?;
        let copied = io::copy(&mut entry, &mut sink)
            .context(Code::BundleIo, || format!("copy the blob {digest}"))?;
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
        mut entry: Entry<'_, EndDetector>,
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
        let Some(result) = parse_result(text, hex) else {
            return Err(foreign(format!("{hex} is no result that kiln wrote")));
        };
        let blobs: Vec<Digest> = result.blobs().collect();
        if !self.missing(&blobs)?.is_empty() {
            imported.incomplete_results += 1;
            return Ok(());
        }
        let cache = CompleteCache {
            actions: self,
            blobs: self,
        };
        if let Lookup::Hit(_) = cache.look_up(&result.key())? {
            imported.known_results += 1;
            return Ok(());
        }
        self.check_windows(&result)?;
        self.put(&result)?;
        imported.results += 1;
        Ok(())
    }

    /// Refuses a result with windows whose bytes do not have the digest in the result.
    fn check_windows(&self, result: &ActionResult) -> Result<()> {
        for content in result.windows() {
            self.content(content)?;
        }
        Ok(())
    }
}

/// What a bundle may contain.
enum Member {
    Layout,
    Blob(Digest),
    Result(String),
}

impl Member {
    /// The member with this path; `None` if a cache has no such file.
    fn parse(path: &str, size_bytes: u64) -> Option<Member> {
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

fn member_path(dir: &str, hex: &str, suffix: &str) -> String {
    format!("{dir}/{}/{hex}{suffix}", &hex[..2])
}

/// Adds a file, with owner 0 and time 0.
fn add(tar: &mut Builder<impl Write>, path: &str, size_bytes: u64, data: impl Read) -> Result<()> {
    let failed = || format!("write {path} into the bundle");
    let mut header = Header::new_gnu();
    header.set_path(path).context(Code::BundleIo, failed)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size_bytes);
    header.set_mode(0o444);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    tar.append(&header, data).context(Code::BundleIo, failed)
}

fn check_layout(entry: Entry<'_, EndDetector>) -> Result<()> {
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

/// Detects truncated bundles: a complete one ends with a mark, and nothing is read after it.
struct EndDetector<'a> {
    source: BufReader<File>,
    /// Set when a read found the end of the file.
    reached_end: &'a Cell<bool>,
}

impl Read for EndDetector<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.reached_end.set(true);
        }
        Ok(count)
    }
}
