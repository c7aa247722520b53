//! Removes the creation time from a DLC, so that its bytes are reproducible.

use std::io::Cursor;

use zip::ZipArchive;

use crate::base::{Code, Context, Problem, Result};

/// The text that libQnnIr and libQnnSystem write before each time.
const KEY: &[u8] = b"\"timestamp\": \"";
/// Replaces every time: the first that a zip file can store. It has the length of the original.
const EPOCH: &[u8] = b"1980-01-01 00:00:00 UTC";

/// Overwrites every time stamp in the metadata records of a DLC.
///
/// A DLC is a zip file whose entries are not compressed and whose checksums are zero, so nothing
/// else needs to change. Only `dlc.metadata*` records are searched: weights may have any bytes.
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
        let Some(record) = dlc.get_mut(start as usize..end as usize) else {
            return Err(Problem::new(
                Code::QnnDlc,
                format!("record `{name}` of a DLC leaves the file: {start}..{end}"),
            ));
        };
        if overwrite_times(record) == 0 {
            return Err(Problem::new(
                Code::QnnDlc,
                format!("record `{name}` of a DLC has no time stamp where one was"),
            )
            .help("these libraries write DLCs in another way than QAIRT 2.51, the supported one"));
        }
    }
    Ok(())
}

/// Overwrites the time stamps in `record`, and returns their number.
fn overwrite_times(record: &mut [u8]) -> usize {
    let width = KEY.len() + EPOCH.len();
    let mut count = 0;
    for start in 0..(record.len() + 1).saturating_sub(width) {
        let (key, time) = record[start..start + width].split_at_mut(KEY.len());
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
    fn only_times_in_metadata_are_overwritten() {
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
    fn other_files_are_rejected() {
        assert_eq!(
            without_time(&mut b"clay".to_vec()).unwrap_err().code,
            Code::QnnDlc
        );
    }
}
