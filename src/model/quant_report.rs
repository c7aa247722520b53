//! The quantization report of a model: how each tensor is held, what that takes, and how far it is from the file
//! it came from. That is the fidelity of storage. What a model computes with it is measured
//! elsewhere (`fidelity.rs`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::weight::{ErrorFacts, stored};
use crate::base::{self, CanonJson, Code, Digest, Problem, Result};

/// One line of the quantization report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `[rows, columns]` or `[n]`.
    pub shape: Vec<u64>,
    /// Bytes of all its blobs.
    pub bytes: u64,
    /// Where it comes from, by which scheme, and how far from there it is.
    #[serde(flatten)]
    pub error: ErrorFacts,
}

impl Entry {
    fn values(&self) -> u64 {
        self.shape
            .iter()
            .fold(1, |product, &n| product.saturating_mul(n))
    }
}

/// All tensors of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantReport {
    /// Version of this format; its name comes first in the canonical text, so that a file can be
    /// told by it.
    quantization_report: u32,
    /// By the names of the GGUF.
    pub tensors: BTreeMap<String, Entry>,
}

impl QuantReport {
    /// The present version.
    const VERSION: u32 = 1;

    /// How the canonical text begins.
    pub const MAGIC: &'static [u8] = b"{\"quantization_report\":";

    /// The quantization report of parts called `NAME/codes`, `NAME/scales`, `NAME/values` ..., with their facts
    /// and sizes.
    pub fn of<'a>(parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, weight) in stored(parts)? {
            let wrong = |why: &str| Problem::new(Code::WeightsReport, format!("`{name}`: {why}"));
            let weight = weight.map_err(|why| wrong(&why))?;
            let bytes = weight.size_bytes();
            let error = weight
                .error
                .ok_or_else(|| wrong("no part says how far it is from its source"))?;
            let entry = Entry {
                shape: weight.shape,
                bytes,
                error,
            };
            tensors.insert(name, entry);
        }
        Ok(QuantReport {
            quantization_report: Self::VERSION,
            tensors,
        })
    }

    /// Reads the canonical text.
    pub fn read(text: &[u8]) -> Result<Self> {
        let report: QuantReport = serde_json::from_slice(text).map_err(|error| {
            Problem::new(
                Code::WeightsReport,
                format!("this is not a quantization report: {error}"),
            )
        })?;
        if report.quantization_report != Self::VERSION {
            let message = format!(
                "a quantization report of version {}; this kiln reads version {}",
                report.quantization_report,
                Self::VERSION
            );
            return Err(Problem::new(Code::WeightsReport, message));
        }
        Ok(report)
    }

    /// Every tensor on a line, layers in the order of their numbers.
    pub fn table(&self) -> String {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(name, _)| base::natural_order(name));
        let mut text = format!(
            "{:<28} {:<8} {:<12} {:>10} {:>11}  {:<5} {:>9} {:>10} {:>8}\n",
            "tensor",
            "source",
            "scheme",
            "bytes",
            "bits/weight",
            "exact",
            "SQNR dB",
            "max error",
            "clipped"
        );
        for (
            name,
            Entry {
                shape: _,
                bytes,
                error,
            },
        ) in &tensors
        {
            let bits = *bytes as f64 * 8.0 / self.tensors[*name].values().max(1) as f64;
            text += &format!(
                "{name:<28} {:<8} {:<12} {:>10} {bits:>11.2}  {:<5} {:>9} {:>10} {:>8}\n",
                error.source,
                error.scheme,
                base::bytes(*bytes),
                if error.exact { "yes" } else { "no" },
                figure(error.sqnr_db, |db| format!("{db:.2}")),
                figure((!error.exact).then_some(error.max_error), |max| format!(
                    "{max:.2e}"
                )),
                figure(error.clipped, |share| format!("{:.3} %", 100.0 * share)),
            );
        }
        text
    }
}

/// What is not there is a dash.
fn figure(value: Option<f64>, format_number: impl Fn(f64) -> String) -> String {
    value.map_or("-".into(), format_number)
}

/// What the tensors of one source under one scheme come to.
#[derive(Default)]
struct Group {
    tensors: usize,
    exact: usize,
    values: u64,
    bytes: u64,
    worst: Option<(f64, String)>,
    clipped: Option<f64>,
}

impl fmt::Display for QuantReport {
    /// A line for each source type and scheme.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(&str, &str), Group> = BTreeMap::new();
        for (name, entry) in &self.tensors {
            let error = &entry.error;
            let group = groups.entry((&error.scheme, &error.source)).or_default();
            group.tensors += 1;
            group.exact += usize::from(error.exact);
            group.values = group.values.saturating_add(entry.values());
            group.bytes = group.bytes.saturating_add(entry.bytes);
            let below = |db: &f64| group.worst.as_ref().is_none_or(|(worst, _)| db < worst);
            if let Some(db) = error.sqnr_db.filter(below) {
                group.worst = Some((db, name.clone()));
            }
            group.clipped = error
                .clipped
                .into_iter()
                .chain(group.clipped)
                .reduce(f64::max);
        }
        writeln!(
            f,
            "{:<12} {:<8} {:>7} {:>7} {:>10} {:>11}  worst SQNR",
            "scheme", "source", "tensors", "exact", "bytes", "bits/weight"
        )?;
        for ((scheme, source), group) in &groups {
            let bits = group.bytes as f64 * 8.0 / group.values.max(1) as f64;
            let worst = group
                .worst
                .as_ref()
                .map_or("-".into(), |(db, name)| format!("{db:.2} dB, {name}"));
            let clipped = group.clipped.map_or(String::new(), |share| {
                format!("; at most {:.3} % clipped", 100.0 * share)
            });
            writeln!(
                f,
                "{scheme:<12} {source:<8} {:>7} {:>7} {:>10} {bits:>11.2}  {worst}{clipped}",
                group.tensors,
                group.exact,
                base::bytes(group.bytes)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> QuantReport {
        let error = |scheme: &str, exact: bool, sqnr_db| ErrorFacts {
            source: "Q4_0".into(),
            scheme: scheme.into(),
            exact,
            sqnr_db,
            max_error: if exact { 0.0 } else { 0.0125 },
            clipped: (!exact).then_some(0.00125),
        };
        let entry = |error| Entry {
            shape: vec![64, 32],
            bytes: 1152,
            error,
        };
        let tensors = [
            ("blk.10.attn_q.weight", error("native", true, None)),
            ("blk.2.attn_q.weight", error("native", true, None)),
            ("blk.2.ffn_up.weight", error("lpbq-32", false, Some(26.25))),
        ];
        let tensors = tensors
            .map(|(name, error)| (name.to_string(), entry(error)))
            .into();
        QuantReport {
            quantization_report: QuantReport::VERSION,
            tensors,
        }
    }

    #[test]
    fn a_line_for_each_kind_and_a_line_for_each_tensor() {
        assert_eq!(
            report().to_string(),
            "scheme       source   tensors   exact      bytes bits/weight  worst SQNR\n\
             lpbq-32      Q4_0           1       0     1.2 kB        4.50  26.25 dB, blk.2.ffn_up.weight; at most 0.125 % clipped\n\
             native       Q4_0           2       2     2.3 kB        4.50  -\n"
        );
        let table = report().table();
        let names: Vec<&str> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            names,
            [
                "blk.2.attn_q.weight",
                "blk.2.ffn_up.weight",
                "blk.10.attn_q.weight"
            ]
        );
        assert!(
            table.contains("1.2 kB        4.50  no        26.25    1.25e-2  0.125 %"),
            "{table}"
        );
    }

    #[test]
    fn the_text_is_known_by_its_first_bytes_and_reads_back() {
        let text = CanonJson::of(&report()).unwrap().to_string();
        assert!(text.as_bytes().starts_with(QuantReport::MAGIC), "{text}");
        assert_eq!(QuantReport::read(text.as_bytes()).unwrap(), report());
        assert!(
            QuantReport::read(b"{\"quantization_report\":2,\"tensors\":{}}")
                .unwrap_err()
                .message
                .contains("version 2")
        );
        assert!(QuantReport::read(b"{\"quantization_report\":1}").is_err());
    }
}
