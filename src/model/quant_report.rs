//! The quantization report of a model: encoding, size and error of each tensor. This is the error
//! of the stored weights; `fidelity.rs` measures the predictions that a model computes with them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::weight::{ErrorFacts, stored};
use crate::base::{self, CanonJson, Code, Digest, Problem, Result};

/// A tensor of the quantization report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `[rows, columns]` or `[n]`.
    pub shape: Vec<u64>,
    /// Total bytes of its blobs.
    pub bytes: u64,
    /// Source type, scheme and error.
    #[serde(flatten)]
    pub error: ErrorFacts,
}

impl Entry {
    /// Number of values.
    fn values(&self) -> u64 {
        let mut values: u64 = 1;
        for extent in &self.shape {
            values = values.saturating_mul(*extent);
        }
        values
    }
}

/// All tensors of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantReport {
    /// Version of this format. This field is the first of the canonical text, so it identifies a
    /// file.
    quantization_report: u32,
    /// By GGUF name.
    pub tensors: BTreeMap<String, Entry>,
}

impl QuantReport {
    /// The current version.
    const VERSION: u32 = 1;

    /// The first bytes of the canonical text.
    pub const MAGIC: &'static [u8] = b"{\"quantization_report\":";

    /// The report of parts named `NAME/codes`, `NAME/scales`, `NAME/values` ..., with their facts
    /// and sizes.
    pub fn of<'a>(parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, weight) in stored(parts)? {
            let weight = weight.map_err(|message| bad_tensor(&name, &message))?;
            let bytes = weight.size_bytes();
            let Some(error) = weight.error else {
                return Err(bad_tensor(
                    &name,
                    "no part has its error against the source",
                ));
            };
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
        let report: QuantReport = match serde_json::from_slice(text) {
            Ok(report) => report,
            Err(error) => {
                let message = format!("this is not a quantization report: {error}");
                return Err(Problem::new(Code::WeightsReport, message));
            }
        };
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

    /// A table with one line per tensor, layers in numeric order.
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
        for (name, entry) in tensors {
            let error = &entry.error;
            let bits = bits_per_weight(entry.bytes, entry.values());
            let max_error = match error.exact {
                true => "-".to_string(),
                false => format!("{:.2e}", error.max_error),
            };
            text += &format!(
                "{name:<28} {:<8} {:<12} {:>10} {bits:>11.2}  {:<5} {:>9} {max_error:>10} {:>8}\n",
                error.source,
                error.scheme,
                base::bytes(entry.bytes),
                if error.exact { "yes" } else { "no" },
                figure(error.sqnr_db, |db| format!("{db:.2}")),
                figure(error.clipped, |share| format!("{:.3} %", 100.0 * share)),
            );
        }
        text
    }
}

fn bad_tensor(name: &str, message: &str) -> Problem {
    Problem::new(Code::WeightsReport, format!("`{name}`: {message}"))
}

fn bits_per_weight(bytes: u64, values: u64) -> f64 {
    bytes as f64 * 8.0 / values.max(1) as f64
}

/// A formatted number, or a dash if there is none.
fn figure(value: Option<f64>, format_number: impl Fn(f64) -> String) -> String {
    match value {
        Some(value) => format_number(value),
        None => "-".into(),
    }
}

/// Totals of the tensors with the same source type and scheme.
#[derive(Default)]
struct Group {
    tensors: usize,
    exact: usize,
    values: u64,
    bytes: u64,
    /// The lowest SQNR in dB and its tensor.
    worst: Option<(f64, String)>,
    /// The largest share of clipped values.
    clipped: Option<f64>,
}

impl Group {
    fn add(&mut self, name: &str, entry: &Entry) {
        let error = &entry.error;
        self.tensors += 1;
        self.exact += usize::from(error.exact);
        self.values = self.values.saturating_add(entry.values());
        self.bytes = self.bytes.saturating_add(entry.bytes);
        if let Some(db) = error.sqnr_db {
            match &self.worst {
                Some((worst, _)) if *worst <= db => {}
                _ => self.worst = Some((db, name.to_string())),
            }
        }
        if let Some(share) = error.clipped {
            self.clipped = Some(share.max(self.clipped.unwrap_or(share)));
        }
    }
}

impl fmt::Display for QuantReport {
    /// A table with one line per source type and scheme.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(&str, &str), Group> = BTreeMap::new();
        for (name, entry) in &self.tensors {
            let key = (entry.error.scheme.as_str(), entry.error.source.as_str());
            groups.entry(key).or_default().add(name, entry);
        }
        writeln!(
            f,
            "{:<12} {:<8} {:>7} {:>7} {:>10} {:>11}  worst SQNR",
            "scheme", "source", "tensors", "exact", "bytes", "bits/weight"
        )?;
        for ((scheme, source), group) in &groups {
            let bits = bits_per_weight(group.bytes, group.values);
            let worst = match &group.worst {
                Some((db, name)) => format!("{db:.2} dB, {name}"),
                None => "-".into(),
            };
            let clipped = match group.clipped {
                Some(share) => format!("; at most {:.3} % clipped", 100.0 * share),
                None => String::new(),
            };
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
            output_sqnr_db: None,
            max_error: if exact { 0.0 } else { 0.0125 },
            clipped: if exact { None } else { Some(0.00125) },
        };
        let mut tensors = BTreeMap::new();
        for (name, error) in [
            ("blk.10.attn_q.weight", error("native", true, None)),
            ("blk.2.attn_q.weight", error("native", true, None)),
            ("blk.2.ffn_up.weight", error("lpbq-32", false, Some(26.25))),
        ] {
            let entry = Entry {
                shape: vec![64, 32],
                bytes: 1152,
                error,
            };
            tensors.insert(name.to_string(), entry);
        }
        QuantReport {
            quantization_report: QuantReport::VERSION,
            tensors,
        }
    }

    #[test]
    fn the_summary_and_the_table() {
        assert_eq!(
            report().to_string(),
            "scheme       source   tensors   exact      bytes bits/weight  worst SQNR\n\
             lpbq-32      Q4_0           1       0     1.2 kB        4.50  26.25 dB, \
             blk.2.ffn_up.weight; at most 0.125 % clipped\n\
             native       Q4_0           2       2     2.3 kB        4.50  -\n"
        );
        let table = report().table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("blk.2.attn_q.weight "), "{table}");
        assert!(lines[2].starts_with("blk.2.ffn_up.weight "), "{table}");
        assert!(lines[3].starts_with("blk.10.attn_q.weight "), "{table}");
        assert!(
            table.contains("1.2 kB        4.50  no        26.25    1.25e-2  0.125 %"),
            "{table}"
        );
    }

    #[test]
    fn the_text_begins_with_the_magic_and_reads_back() {
        let text = CanonJson::of(&report()).unwrap().to_string();
        assert!(text.as_bytes().starts_with(QuantReport::MAGIC), "{text}");
        assert_eq!(QuantReport::read(text.as_bytes()).unwrap(), report());
        let newer = b"{\"quantization_report\":2,\"tensors\":{}}";
        let message = QuantReport::read(newer).unwrap_err().message;
        assert!(message.contains("version 2"), "{message}");
        assert!(QuantReport::read(b"{\"quantization_report\":1}").is_err());
    }
}
