//! Provenance: the record as an in-toto statement with an SLSA predicate, for other tools to read
//! and sign. <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>,
//! <https://slsa.dev/spec/v1.0/provenance>

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::build_record::BuildRecord;
use super::outline::PlanFolder;
use crate::action::{Manifest, Registry};
use crate::base::{Code, Digest, Problem, Result, without_secrets};
use crate::engine::Built;
use crate::plan::{Plan, PlannedStage, StageId};
use crate::store::{Disk, Sha256};

/// Identifies the format of `externalParameters`. The number changes with their meaning.
const BUILD_TYPE: &str = "urn:kiln:build-plan:1";

/// Parameters of the build that are not in the plan.
#[derive(Serialize)]
pub struct Terms {
    set: BTreeMap<String, String>,
    date: Option<String>,
    #[serde(skip)]
    folder: PlanFolder,
}

impl Terms {
    /// The terms of a plan in `folder` with the variables `set`. The time of the build is `epoch`,
    /// the value of SOURCE_DATE_EPOCH, so that equal builds have equal provenance.
    /// <https://reproducible-builds.org/specs/source-date-epoch/>
    pub fn of(
        folder: &Path,
        set: impl Iterator<Item = (String, String)>,
        epoch: Option<OsString>,
    ) -> Result<Terms> {
        let folder = PlanFolder::new(folder);
        let mut shown = BTreeMap::new();
        for (name, value) in set {
            let value = without_secrets(&folder.relative_url(&value)).into_owned();
            shown.insert(name, value);
        }
        let date = match epoch {
            Some(epoch) => Some(parse_epoch(&epoch)?),
            None => None,
        };
        Ok(Terms {
            set: shown,
            date,
            folder,
        })
    }
}

/// The value of SOURCE_DATE_EPOCH in RFC 3339.
fn parse_epoch(epoch: &OsStr) -> Result<String> {
    if let Some(text) = epoch.to_str()
        && let Ok(seconds) = text.parse()
        && let Some(date) = utc(seconds)
    {
        return Ok(date);
    }
    let message = format!("SOURCE_DATE_EPOCH is {epoch:?}, expected seconds since 1970");
    Err(Problem::new(Code::CallSourceDateEpoch, message).help("unset it, or set it: $(date +%s)"))
}

/// Where the dependencies of a build are found.
pub struct Sources<'a> {
    /// The plan that was built.
    pub plan: &'a Plan,
    /// The stage kinds.
    pub kinds: &'a Registry,
    /// The build.
    pub built: &'a Built,
    /// The store with its blobs.
    pub store: &'a Disk,
}

/// The statement that the build produced the files of `record`.
pub fn statement(record: &BuildRecord, terms: &Terms, sources: &Sources) -> Result<Value> {
    let mut subjects = vec![];
    for (path, artifact) in record.files() {
        let digest = digests(&artifact.blake3, &artifact.sha256);
        subjects.push(json!({"name": path, "digest": digest}));
    }
    let mut run = json!({
        "builder": {
            "id": concat!("pkg:generic/kiln@", env!("CARGO_PKG_VERSION")),
            "version": {"kiln": env!("CARGO_PKG_VERSION")},
        },
    });
    if let Some(date) = &terms.date {
        run["metadata"] = json!({"startedOn": date, "finishedOn": date});
    }
    Ok(json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "plan": record.plan,
                    "digest": record.digest,
                    "set": terms.set,
                },
                "resolvedDependencies": dependencies(record, terms, sources)?,
            },
            "runDetails": run,
        },
    }))
}

fn digests(blake3: &Digest, sha256: &Sha256) -> Value {
    json!({"blake3": blake3.hex(), "sha256": sha256})
}

/// What stages fetched, then the files of tools that were used.
fn dependencies(record: &BuildRecord, terms: &Terms, sources: &Sources) -> Result<Vec<Value>> {
    let mut dependencies = vec![];
    for stage in &sources.plan.stages {
        if reaches_outside(stage, sources) {
            dependencies.extend(fetched(stage, terms, sources)?);
        }
    }
    for (tool, files) in &record.tools {
        let mut stages = sources.plan.stages.iter();
        let Some(producer) = stages.find_map(|stage| stage.tools.get(tool)) else {
            continue;
        };
        let Some(manifest) = find_manifest(producer, sources)? else {
            continue;
        };
        for (file, digest) in files {
            let mut parts = manifest.parts.values();
            let Some(part) = parts.find(|part| part.content.digest == *digest) else {
                continue;
            };
            let sha256 = Sha256::of(&part.content, sources.store, sources.store)?;
            let name = format!("{tool}/{file}");
            dependencies.push(json!({"name": name, "digest": digests(digest, &sha256)}));
        }
    }
    Ok(dependencies)
}

/// What a stage with `url` or `parts` fetched.
fn fetched(stage: &PlannedStage, terms: &Terms, sources: &Sources) -> Result<Option<Value>> {
    let params = &stage.params;
    let Some(url) = params.get("url").or(params.get("parts")) else {
        return Ok(None);
    };
    let urls = match url {
        Value::Array(urls) => urls.as_slice(),
        url => std::slice::from_ref(url),
    };
    let mut shown = vec![];
    for url in urls {
        if let Some(url) = url.as_str() {
            let url = terms.folder.relative_url(url);
            shown.push(without_secrets(&url).into_owned());
        }
    }
    let mut dependency = json!({"name": stage.id, "uri": shown.join(" ")});
    if params["unpack"] == true {
        // The archive itself is not stored; its digest is the pin.
        let pin = params["sha256"].as_str().unwrap_or_default();
        dependency["digest"] = json!({"sha256": pin.to_ascii_lowercase()});
    } else if let Some(manifest) = find_manifest(&stage.id, sources)?
        && let Ok((_, part)) = manifest.only()
    {
        let sha256 = Sha256::of(&part.content, sources.store, sources.store)?;
        dependency["digest"] = digests(&part.content.digest, &sha256);
    }
    Ok(Some(dependency))
}

fn reaches_outside(stage: &PlannedStage, sources: &Sources) -> bool {
    match sources.kinds.get(&stage.kind) {
        Some(kind) => kind.spec().reaches_outside,
        None => false,
    }
}

/// The manifest of a stage, if the build has the stage.
fn find_manifest<'a>(id: &StageId, sources: &Sources<'a>) -> Result<Option<&'a Manifest>> {
    match sources.built.completed.get(id) {
        Some(completed) => Ok(Some(&completed.details()?.manifest)),
        None => Ok(None),
    }
}

/// Seconds since 1970 in RFC 3339. `None` from the year 10,000 on.
fn utc(seconds: u64) -> Option<String> {
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    while days >= days_of(year) {
        days -= days_of(year);
        year += 1;
        if year == 10_000 {
            return None;
        }
    }
    let february = if days_of(year) == 366 { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    Some(format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    ))
}

/// The number of days of a year.
fn days_of(year: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    if is_leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds).as_deref(), Some(expected));
        }
        assert_eq!(utc(u64::MAX), None);
    }
}
