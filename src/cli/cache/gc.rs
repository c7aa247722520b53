//! `kiln cache gc`: removes what neither a last build nor a lock keeps.

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

/// How much to remove.
#[derive(clap::Args)]
pub struct Args {
    /// Remove the oldest of what is not kept, until the blobs have at most this size: 20GB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_size: Option<u64>,
    /// Remove what is not kept and older than this: 30d, 12h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    max_age: Option<Duration>,
    /// Keep also what this lock names
    #[arg(long, value_name = "FILE")]
    lock: Vec<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Keeps what the last builds asked, and nothing else.
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
            rules.kept.extend(locked(lock)?);
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
        // Before the records are read: a build that ends right now writes another.
        let alone = store.lock_exclusively()?;
        alone.collect(&args.rules(alone.store())?)?
    };
    common.print(&if common.json {
        let mut line = json!(garbage);
        line["dry_run"] = json!(args.dry_run);
        format!("{line}\n")
    } else {
        text(&garbage, args.dry_run)
    });
    Ok(Exit::Done)
}

fn text(garbage: &Garbage, dry_run: bool) -> String {
    let tally = |tally: &Totals| {
        let Totals {
            results,
            blobs,
            bytes: size,
        } = *tally;
        format!(
            "{}, {}, {}",
            count(results, "result"),
            count(blobs, "blob"),
            bytes(size)
        )
    };
    let mut text = format!(
        "{}  {}",
        if dry_run { "would go" } else { "removed " },
        tally(&garbage.goes)
    );
    if garbage.partial_bytes > 0 {
        text += &format!(
            "; {} of half-finished downloads",
            bytes(garbage.partial_bytes)
        );
    }
    text += &format!("\nstays     {}\n", tally(&garbage.stays));
    text += &format!(
        "kept      {}, by last builds and locks\n",
        tally(&garbage.kept)
    );
    if garbage.over_bytes > 0 {
        text += &format!(
            "--max-size is exceeded by {}: so much is kept\n",
            bytes(garbage.over_bytes)
        );
    }
    text
}

/// The keys that the lock `path` names.
fn locked(path: &Path) -> Result<Vec<ActionKey>> {
    let keys: Vec<ActionKey> = BuildRecord::read_lock(path)?.actions().collect();
    if keys.is_empty() {
        let message = format!(
            "{} names no results, so that it would keep nothing",
            path.display()
        );
        return Err(Problem::new(Code::CallLock, message)
            .help("a lock has a table [stage.NAME.actions] with the key of each part"));
    }
    Ok(keys)
}

/// Reads `30d`, `12h`, `45min` or `90s`.
fn parse_age(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "s" => Some(1),
        "min" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let seconds = || number.parse::<u64>().ok()?.checked_mul(unit?);
    seconds()
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a number with d, h, min or s: 30d".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
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
