//! `kiln cache gc`: removes results that neither the last build of a plan nor a lock file needs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::super::machine::parse_bytes;
use super::super::{Common, Exit};
use crate::action::ActionKey;
use crate::base::{Code, Problem, Result, bytes, count};
use crate::engine::Record;
use crate::records::BuildRecord;
use crate::store::{Disk, Garbage, LocalStore, Rules, Totals};

/// How much to remove, and what to keep.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Remove the oldest of these results until the blobs have at most this size, for example 20GB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_size: Option<u64>,
    /// Remove those of these results that are older than this, for example 30d or 12h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    max_age: Option<Duration>,
    /// Also keep the results that this lock file lists
    #[arg(long, value_name = "FILE")]
    lock: Vec<PathBuf>,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Rules that keep only the results of the last builds.
pub(super) fn without_limits(store: &Disk) -> Result<Rules> {
    let kept = Record::all(store.root())?.into_iter().collect();
    Ok(Rules {
        kept,
        max_age: None,
        max_bytes: None,
        now: SystemTime::now(),
    })
}

impl Args {
    fn rules(&self, store: &Disk) -> Result<Rules> {
        let mut rules = Rules {
            max_age: self.max_age,
            max_bytes: self.max_size,
            ..without_limits(store)?
        };
        for lock in &self.lock {
            rules.kept.extend(locked_keys(lock)?);
        }
        Ok(rules)
    }
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<Exit> {
    let store = Disk::open(&common.cache)?;
    let garbage = if args.dry_run {
        store.garbage(&args.rules(&store)?)?
    } else {
        // Locks the cache before the records are read: a build that is just ending writes another.
        let alone = store.lock_exclusively()?;
        alone.collect(&args.rules(alone.store())?)?
    };
    common.print(&if common.json {
        let mut line = json!(garbage);
        line["dry_run"] = json!(args.dry_run);
        format!("{line}\n")
    } else {
        garbage_text(&garbage, args.dry_run)
    });
    Ok(Exit::Done)
}

fn garbage_text(garbage: &Garbage, dry_run: bool) -> String {
    let removed = if dry_run { "would remove" } else { "removed" };
    let mut text = format!("{removed:<12}  {}", tally_text(&garbage.goes));
    if garbage.partial_bytes > 0 {
        text += &format!("; {} of incomplete downloads", bytes(garbage.partial_bytes));
    }
    let stays = tally_text(&garbage.stays);
    let kept = tally_text(&garbage.kept);
    text += &format!("\nremaining     {stays}\n");
    text += &format!("needed        {kept}, by last builds and lock files\n");
    if garbage.over_bytes > 0 {
        text += &format!(
            "--max-size is exceeded by {}: the rest is needed\n",
            bytes(garbage.over_bytes)
        );
    }
    text
}

fn tally_text(tally: &Totals) -> String {
    format!(
        "{}, {}, {}",
        count(tally.results, "result"),
        count(tally.blobs, "blob"),
        bytes(tally.bytes)
    )
}

/// The keys in the lock file `path`.
fn locked_keys(path: &Path) -> Result<Vec<ActionKey>> {
    let keys: Vec<ActionKey> = BuildRecord::read_lock(path)?.actions().collect();
    if keys.is_empty() {
        let message = format!(
            "{} lists no results, so that it would keep nothing",
            path.display()
        );
        return Err(Problem::new(Code::CallLock, message)
            .help("a lock has a table [stage.NAME.actions] with the key of each part"));
    }
    Ok(keys)
}

/// Parses `30d`, `12h`, `45min` or `90s`.
fn parse_age(text: &str) -> Result<Duration, String> {
    match age_seconds(text) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err("expected a number with d, h, min or s: 30d".into()),
    }
}

fn age_seconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_parsed() {
        assert_eq!(parse_age("30d"), Ok(Duration::from_secs(2_592_000)));
        assert_eq!(parse_age("5 min"), Ok(Duration::from_secs(300)));
        for bad in [
            "",
            "30",
            "d",
            "1.5d",
            "-1d",
            "3 weeks",
            "999999999999999999d",
        ] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }
}
