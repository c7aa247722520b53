//! The text form of a report.

use std::fmt;

use super::checks::{Check, rows};
use super::{Candidate, Limited, Mask, Report};
use crate::artifact::device::{DeviceFigures, NOT_MEASURED};
use crate::artifact::estimate::NOTES;
use crate::artifact::generation::Generation;
use crate::base::bytes;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.found;
        if !found.candidates.is_empty() {
            write_head(f)?;
        }
        for (name, candidate) in &found.candidates {
            write_fidelity(f, name, &candidate.found)?;
        }
        for (name, candidate) in &found.candidates {
            write_inner(f, name, &candidate.found)?;
        }
        for (name, generation) in &found.generated {
            write_generation(f, name, &generation.found)?;
        }
        for (name, layers) in &found.layers {
            let text = indented(&layers.found.to_string());
            write!(
                f,
                "\n{name}: layers on the simulator, given the graph's own inputs\n{text}"
            )?;
        }
        for (name, device) in &found.devices {
            write_device(f, name, device)?;
        }
        for (name, estimate) in &found.estimates {
            let (heading, text) = (estimate.found.heading(), estimate.found.to_string());
            write!(f, "\n{name}: {heading}\n{}", indented(&text))?;
        }
        if !found.estimates.is_empty() {
            write!(f, "\n{NOTES}")?;
        }
        if !found.sizes.is_empty() {
            writeln!(f)?;
        }
        for (name, size) in &found.sizes {
            writeln!(f, "{name}: {}", bytes(size.found.bytes))?;
        }
        for (name, storage) in &found.storage {
            let text = indented(&storage.found.quantization.to_string());
            write!(f, "\n{name}: stored weights compared with the file\n{text}")?;
        }
        writeln!(f)?;
        for check in &self.checks {
            write_check(f, check)?;
        }
        let missed = self.checks.iter().filter(|check| !check.passed).count();
        writeln!(
            f,
            "{}: {missed} of {} limits missed",
            if self.passed { "passed" } else { "FAILED" },
            self.checks.len()
        )
    }
}

fn write_head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "candidates compared with the reference")?;
    writeln!(
        f,
        "{:16} {:>6} {:>10} {:>10} {:>21} {:>10} {:>10} {:>10} {:>9} {:>8}",
        "",
        "tokens",
        "reference",
        "candidate",
        "perplexity ratio",
        "KLD mean",
        "KLD 99 %",
        "KLD max",
        "same top",
        "RMS dp"
    )
}

fn write_fidelity(f: &mut fmt::Formatter<'_>, name: &str, candidate: &Candidate) -> fmt::Result {
    let figures = &candidate.fidelity;
    writeln!(
        f,
        "{name:16} {:>6} {:>10.4} {:>10.4} {:>10.5} +- {:.5} {:>10.2e} {:>10.2e} {:>10.2e} \
         {:>7.2} % {:>6.2} %",
        figures.tokens,
        figures.reference_perplexity,
        figures.perplexity,
        figures.ratio,
        figures.ratio_error,
        figures.kld,
        figures.kld_99,
        figures.kld_max,
        100.0 * figures.same_top,
        100.0 * figures.rms_delta_p,
    )
}

/// The greedy continuation, and the ranges of inner tensors.
fn write_inner(f: &mut fmt::Formatter<'_>, name: &str, candidate: &Candidate) -> fmt::Result {
    if let Some(greedy) = &candidate.greedy {
        let (equal, all, decoded) = (greedy.equal(), greedy.expected.len(), greedy.decoded.len());
        writeln!(
            f,
            "\n{name}: {equal} of {all} greedy tokens equal, the last {decoded} also by decode \
             steps"
        )?;
        let (text, gap) = (&greedy.text, greedy.smallest_gap);
        writeln!(f, "    {text:?} (smallest top-2 gap {gap:.2})")?;
    }
    if !candidate.ranges.is_empty() {
        writeln!(
            f,
            "\n{name}: largest magnitudes, in f32 (fp16 ends at 65504)"
        )?;
    }
    for (kind, range) in &candidate.ranges {
        writeln!(f, "    {kind:10} {:>12.2}  {}", range.largest, range.tensor)?;
    }
    let Some(Mask {
        least,
        layer,
        bound,
        bound_layer,
    }) = candidate.mask
    else {
        return Ok(());
    };
    writeln!(
        f,
        "    masked scores lie {least:.1} below the largest visible one, at least (layer {layer}); \
         not less than"
    )?;
    writeln!(
        f,
        "    {bound:.1} while queries and keys are no longer than these (layer {bound_layer})"
    )
}

fn write_generation(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    generation: &Generation,
) -> fmt::Result {
    let (equal, all) = (generation.equal(), generation.all());
    writeln!(
        f,
        "\n{name}: {equal} of {all} tokens in Genie as the reference's\n    {:?}",
        generation.text
    )?;
    if generation.tokens != generation.expected {
        writeln!(f, "    {:?} was expected", generation.expected_text)?;
    }
    Ok(())
}

fn write_device(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    device: &Limited<DeviceFigures>,
) -> fmt::Result {
    let figures = &device.found.figures;
    match &device.found.device {
        Some(device) => write!(f, "\n{name}: on {device}")?,
        None => write!(f, "\n{name}: no device was given")?,
    }
    if let (Some(prompt), Some(answer)) = (figures.prompt_tokens.0, figures.answer_tokens.0) {
        write!(f, ", a prompt of {prompt} tokens, an answer of {answer}")?;
    }
    if let Some(driver) = &device.found.driver {
        write!(f, ", NPU driver {driver}")?;
    }
    writeln!(f)?;
    for row in rows(figures, &device.limits) {
        let found = match row.found.0 {
            Some(value) => format_number(value),
            None => NOT_MEASURED.into(),
        };
        write!(f, "    {:26} {found:>14}", row.what)?;
        if let Some(limit) = row.limit {
            write!(f, "  (limit {})", format_number(limit))?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn write_check(f: &mut fmt::Formatter<'_>, check: &Check) -> fmt::Result {
    let verdict = if check.passed { "kept  " } else { "MISSED" };
    writeln!(
        f,
        "{verdict} {:16} {:40} {} (limit {})",
        check.of,
        check.what,
        format_number(check.found),
        format_number(check.limit)
    )
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Integers exactly, small numbers with three digits, and others with five decimals.
fn format_number(value: f64) -> String {
    if value == 0.0 || (value.fract() == 0.0 && value < 1e15) {
        format!("{value}")
    } else if value.abs() < 1e-2 {
        format!("{value:.2e}")
    } else {
        format!("{value:.5}")
    }
}
