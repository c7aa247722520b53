//! A DLC without the time at which it was written.

use std::io::Cursor;

use zip::ZipArchive;

use crate::base::{Code, Context, Problem, Result};

/// What libQnnIr and libQnnSystem write before each time.
const KEY: &[u8] = b"\"timestamp\": \"";
/// What stands for every time: the first that a zip file can hold. As wide as what it replaces.
const EPOCH: &[u8] = b"1980-01-01 00:00:00 UTC";

/// Overwrites every time stamp in the metadata records of a DLC, so that the same graph gives the
/// same bytes.
///
/// A DLC is a zip file whose entries are stored and whose checksums are zero, so nothing else needs
/// to change. Only `dlc.metadata*` records are looked at: weights may hold any bytes.
pub fn without_time(dlc: &mut [u8]) -> Result<()> {
    let mut archive =
        ZipArchive::new(Cursor::new(&*dlc)).context(Code::QnnDlc, || "open a DLC".into())?;
    let mut records = vec![];
    for index in 0..archive.len() {
        let entry = archive
            .by_index_raw(index)
            .context(Code::QnnDlc, || "read a DLC".into())?;
        let name = entry
            .name()
            .context(Code::QnnDlc, || "read a name in a DLC".into())?
            .into_owned();
        if name.starts_with("dlc.metadata") {
            let start = entry.data_start().unwrap_or(0);
            records.push((name, start, start.saturating_add(entry.compressed_size())));
        }
    }
    for (name, start, end) in records {
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let record = range
            .and_then(|(start, end)| dlc.get_mut(start..end))
            .ok_or_else(|| {
                Problem::new(
                    Code::QnnDlc,
                    format!("record `{name}` of a DLC leaves the file: {start}..{end}"),
                )
            })?;
        if overwrite(record) == 0 {
            return Err(Problem::new(
                Code::QnnDlc,
                format!("record `{name}` of a DLC has no time stamp where one was"),
            )
            .help("these libraries write DLCs in another way than QAIRT 2.51, which kiln knows"));
        }
    }
    Ok(())
}

/// The number of time stamps in `record`, which are overwritten.
fn overwrite(record: &mut [u8]) -> usize {
    let width = KEY.len() + EPOCH.len();
    let mut count = 0;
    for at in 0..(record.len() + 1).saturating_sub(width) {
        let (key, time) = record[at..at + width].split_at_mut(KEY.len());
        if key == KEY && time.ends_with(b" UTC") {
            time.copy_from_slice(EPOCH);
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_metadata_loses_its_time() {
        let text = b"{\"timestamp\": \"2026-11-22 23:58:20 UTC\"}";
        let mut zip = zip::ZipWriter::new(Cursor::new(vec![]));
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        for name in ["dlc.metadata2.3.0", "model.params.bin"] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(text).unwrap();
        }
        let mut dlc = zip.finish().unwrap().into_inner();
        without_time(&mut dlc).unwrap();
        let dlc = String::from_utf8_lossy(&dlc).into_owned();
        assert_eq!(dlc.matches("1980-01-01 00:00:00 UTC").count(), 1);
        assert_eq!(dlc.matches("2026-11-22 23:58:20 UTC").count(), 1);
    }

    #[test]
    fn what_is_no_dlc_is_refused() {
        assert_eq!(
            without_time(&mut b"clay".to_vec()).unwrap_err().code,
            Code::QnnDlc
        );
    }
}
