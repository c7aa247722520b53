//! Reads the figures of a run from the output of the device, which may be anything.

use serde::Deserialize;
use serde_json::Value;

use super::transport::stderr_tail;
use crate::artifact::device::{Figure, Figures};

/// Below, a current is not in the unit that the kernel promises (some give mA for µA); above,
/// nothing is held in a hand.
const PLAUSIBLE_W: std::ops::Range<f64> = 0.1..100.0;

/// What stands before each sample of the battery, and before the program's exit code.
pub(super) const BATTERY: &str = "kiln battery";
pub(super) const EXIT: &str = "kiln exit";

/// Reads what the script printed: samples, the program's exit code, and its profile, or the last lines
/// of its output.
pub(super) fn read(said: &str) -> Result<Figures, String> {
    let (samples, rest) = said
        .split_once(EXIT)
        .ok_or("the program's exit code is missing")?;
    let (code, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    if code.trim() != "0" {
        return Err(format!(
            "genie-t2t-run failed with exit code {}: {}",
            stderr_tail(code),
            stderr_tail(rest)
        ));
    }
    let profile: Profile =
        serde_json::from_str(rest).map_err(|error| format!("its profile is not one: {error}"))?;
    let mut figures = profile.figures().ok_or("its profile tells of no query")?;
    figures.peak_memory_bytes = Figure(peak_memory_bytes(samples));
    figures.power_w = Figure(power_w(samples));
    Ok(figures)
}

/// What `genie-t2t-run --profile` writes, as far as it is read.
#[derive(Deserialize)]
struct Profile {
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    events: Vec<Value>,
}

impl Profile {
    fn figures(&self) -> Option<Figures> {
        let events = || {
            self.components
                .iter()
                .flat_map(|component| &component.events)
        };
        let last = |kind: &str| events().rfind(|event| event["type"] == kind);
        let query = last("GenieDialog_query")?;
        let generated = metric(query, "num-generated-tokens", "");
        let generating_us = metric(query, "token-generation-time", "us");
        let per_token = |(us, tokens): (f64, f64)| (tokens >= 1.0).then(|| us / 1000.0 / tokens);
        let ms = |us: Option<f64>| Figure(us.map(|us| us / 1000.0));
        Some(Figures {
            time_to_first_token_ms: ms(metric(query, "time-to-first-token", "us")),
            ms_per_token: Figure(generating_us.zip(generated).and_then(per_token)),
            tokens_per_second: Figure(metric(query, "token-generation-rate", "toks/sec")),
            load_ms: ms(
                last("GenieDialog_create").and_then(|create| metric(create, "init-time", "us"))
            ),
            prompt_tokens: Figure(metric(query, "num-prompt-tokens", "")),
            answer_tokens: Figure(generated),
            ..Figures::default()
        })
    }
}

/// A figure in the unit that is expected of it.
fn metric(event: &Value, name: &str, unit: &str) -> Option<f64> {
    let metric = event.get(name)?;
    let value = metric.get("value")?.as_f64()?;
    (metric.get("unit")?.as_str()? == unit && value.is_finite() && value >= 0.0).then_some(value)
}

/// The first sample may be of the shell that is about to become the program.
fn peak_memory_bytes(samples: &str) -> Option<f64> {
    let kilobytes = |line: &str| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u32>()
            .ok()
    };
    let peak = samples.lines().filter_map(kilobytes).skip(1).max()?;
    Some(f64::from(peak) * 1024.0)
}

/// A battery that is being charged says what the charger gives, not what the device takes.
fn power_w(samples: &str) -> Option<f64> {
    let mut watts = vec![];
    for line in samples
        .lines()
        .filter_map(|line| line.strip_prefix(BATTERY))
    {
        let mut words = line.split_whitespace();
        let (microamperes, microvolts, state) = (words.next()?, words.next()?, words.next()?);
        if state != "Discharging" {
            return None;
        }
        let (amperes, volts) = (
            microamperes.parse::<i32>().ok()?,
            microvolts.parse::<u32>().ok()?,
        );
        watts.push(f64::from(amperes.unsigned_abs()) * 1e-6 * f64::from(volts) * 1e-6);
    }
    let mean = watts.iter().sum::<f64>() / watts.len() as f64;
    PLAUSIBLE_W.contains(&mean).then_some(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_largest_sample_but_the_first() {
        assert_eq!(
            peak_memory_bytes("VmHWM:\t  900 kB\nVmHWM:\t 700 kB\nx\nVmHWM: 800 kB"),
            Some(800.0 * 1024.0)
        );
        for nothing in [
            "",
            "VmHWM: 900 kB",
            "VmHWM: 1 kB\nVmHWM: -2 kB",
            "VmHWM: 1 kB\nVmHWM: 99999999999999999999 kB",
        ] {
            assert_eq!(peak_memory_bytes(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn power_is_a_mean_of_what_the_battery_gives() {
        let samples = "kiln battery -1000000 4000000 Discharging\nVmHWM: 1 kB\nkiln battery \
                       500000 4000000 Discharging";
        assert_eq!(power_w(samples), Some(3.0));
        for nothing in [
            "",
            "kiln battery -1000000 4000000 Charging",
            "kiln battery 0 4000000 Not charging",
            "kiln battery ? ? ?",
            "kiln battery 1000 4000000 Discharging",
            "kiln battery 1000000 4000000 Discharging\nkiln battery 1000000 4000000 Full",
        ] {
            assert_eq!(power_w(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_profile_that_is_none_gives_no_figures() {
        let figures = |profile: &str| read(&format!("kiln exit 0\n{profile}\n"));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"components":[]}"#,
            r#"{"components":[{"events":[1]}]}"#,
            &"[".repeat(100_000),
        ] {
            assert!(figures(bad).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        let empty = r#"{"components":[{"events":[{"type":"GenieDialog_query","time-to-first-token":{"value":1,"unit":"ms"},
            "num-generated-tokens":{"value":0,"unit":""},"token-generation-time":{"value":9,"unit":"us"},
            "token-generation-rate":{"value":-1,"unit":"toks/sec"}}]}]}"#;
        assert_eq!(
            figures(empty),
            Ok(Figures {
                answer_tokens: Figure(Some(0.0)),
                ..Figures::default()
            })
        );
        assert!(
            read("kiln exit 139\nSegmentation fault")
                .unwrap_err()
                .contains("139: Segmentation fault")
        );
    }
}
