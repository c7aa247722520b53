//! Provenance: the record as an in-toto statement in the terms of SLSA, which other tools read and
//! sign. <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>, <https://slsa.dev/spec/v1.0/provenance>

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::build_record::BuildRecord;
use super::outline::Inside;
use crate::action::{Content, Manifest, Registry};
use crate::base::{Code, Digest, Problem, Result, without_secrets};
use crate::engine::Built;
use crate::plan::{Plan, PlannedStage, StageId};
use crate::store::{Disk, Sha256};

/// What a reader must know to read `externalParameters`; the number changes with their meaning.
const BUILD_TYPE: &str = "urn:kiln:build-plan:1";

/// What the call says besides the plan.
#[derive(Serialize)]
pub struct Terms {
    set: BTreeMap<String, String>,
    date: Option<String>,
    #[serde(skip)]
    inside: Inside,
}

impl Terms {
    /// Of a plan in `folder` with the variables `set`. The only time is `epoch`, the value of
    /// SOURCE_DATE_EPOCH, so that the same build says the same.
    pub fn of(
        folder: &Path,
        set: impl Iterator<Item = (String, String)>,
        epoch: Option<OsString>,
    ) -> Result<Terms> {
        let inside = Inside::of(folder);
        let told = |value: &str| without_secrets(&inside.url(value)).into_owned();
        let set = set.map(|(name, value)| (name, told(&value))).collect();
        // <https://reproducible-builds.org/specs/source-date-epoch/>
        let date = epoch.map(|epoch| {
            let seconds = epoch.to_str().and_then(|seconds| seconds.parse().ok());
            seconds.and_then(utc).ok_or_else(|| {
                let message =
                    format!("SOURCE_DATE_EPOCH is {epoch:?}, expected seconds since 1970");
                Problem::new(Code::CallSourceDateEpoch, message)
                    .help("unset it, or set it: $(date +%s)")
            })
        });
        Ok(Terms {
            set,
            date: date.transpose()?,
            inside,
        })
    }
}

/// What dependencies are found in.
pub struct Sources<'a> {
    /// The plan that was built.
    pub plan: &'a Plan,
    /// Every stage kind.
    pub kinds: &'a Registry,
    /// The build.
    pub built: &'a Built,
    /// Where its bytes are.
    pub store: &'a Disk,
}

/// The statement that a build gave what `record` says.
pub fn statement(record: &BuildRecord, terms: &Terms, sources: &Sources) -> Result<Value> {
    let subject = |(path, artifact): (String, super::build_record::Artifact)| json!({"name": path, "digest": digests(&artifact.blake3, &artifact.sha256)});
    let subjects: Vec<Value> = record.files().into_iter().map(subject).collect();
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
                "externalParameters": {"plan": record.plan, "digest": record.digest, "set": terms.set},
                "resolvedDependencies": dependencies(record, terms, sources)?,
            },
            "runDetails": run,
        },
    }))
}

fn digests(blake3: &Digest, sha256: &Sha256) -> Value {
    json!({"blake3": blake3.hex(), "sha256": sha256})
}

/// What came from outside, then the files of tools that were used.
fn dependencies(record: &BuildRecord, terms: &Terms, sources: &Sources) -> Result<Vec<Value>> {
    let mut found = vec![];
    let sha256 = |content: &Content| Sha256::of(content, sources.store, sources.store);
    for stage in sources
        .plan
        .stages
        .iter()
        .filter(|stage| reaches_outside(stage, sources))
    {
        let Some(url) = ["url", "parts"]
            .iter()
            .find_map(|key| stage.params.get(key))
        else {
            continue;
        };
        let urls = url
            .as_array()
            .map_or_else(|| vec![url], |urls| urls.iter().collect());
        let urls: Vec<String> = urls
            .into_iter()
            .filter_map(Value::as_str)
            .map(|url| terms.inside.url(url))
            .collect();
        let uri = urls
            .iter()
            .map(|url| without_secrets(url))
            .collect::<Vec<_>>()
            .join(" ");
        let mut dependency = json!({"name": stage.id, "uri": uri});
        if stage.params["unpack"] == true {
            // The archive itself is gone; its pin is its digest.
            let pin = stage.params["sha256"]
                .as_str()
                .unwrap_or_default()
                .to_ascii_lowercase();
            dependency["digest"] = json!({"sha256": pin});
        } else if let Some((_, part)) =
            manifest(&stage.id, sources)?.and_then(|manifest| manifest.only().ok())
        {
            dependency["digest"] = digests(&part.content.digest, &sha256(&part.content)?);
        }
        found.push(dependency);
    }
    for (tool, files) in &record.tools {
        let producer = sources
            .plan
            .stages
            .iter()
            .find_map(|stage| stage.tools.get(tool));
        let Some(manifest) = producer.map_or(Ok(None), |producer| manifest(producer, sources))?
        else {
            continue;
        };
        for (file, digest) in files {
            let Some(part) = manifest
                .parts
                .values()
                .find(|part| part.content.digest == *digest)
            else {
                continue;
            };
            found.push(json!({"name": format!("{tool}/{file}"), "digest": digests(digest, &sha256(&part.content)?)}));
        }
    }
    Ok(found)
}

fn reaches_outside(stage: &PlannedStage, sources: &Sources) -> bool {
    sources
        .kinds
        .get(&stage.kind)
        .is_some_and(|kind| kind.spec().reaches_outside)
}

fn manifest<'a>(id: &StageId, sources: &Sources<'a>) -> Result<Option<&'a Manifest>> {
    sources
        .built
        .completed
        .get(id)
        .map(|completed| Ok(&completed.details()?.manifest))
        .transpose()
}

/// Seconds since 1970 as RFC 3339 has them, in this era of four-digit years.
fn utc(seconds: u64) -> Option<String> {
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let year = (1970..10_000).find(|year| {
        let length = if is_leap(*year) { 366 } else { 365 };
        let is_this = days < length;
        days -= if is_this { 0 } else { length };
        is_this
    })?;
    let february = if is_leap(year) { 29 } else { 28 };
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
