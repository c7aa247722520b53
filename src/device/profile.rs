//! Reads the figures of a run from the output of the device, which may be anything.

use serde::Deserialize;
use serde_json::Value;

use super::transport::sanitized_tail;
use crate::artifact::device::{Figure, Figures};

/// The plausible power of a phone. Below, the kernel reports the current in the wrong unit (mA
/// instead of µA).
const PLAUSIBLE_W: std::ops::Range<f64> = 0.1..100.0;

/// Prefix of each sample of the battery.
pub(super) const BATTERY: &str = "kiln battery";
/// Prefix of each sample of the battery before the run.
pub(super) const IDLE: &str = "kiln idle";
/// Prefix of the version of Windows' own driver of the NPU.
pub(super) const DRIVER: &str = "kiln driver";
/// Prefix of the program's exit code.
pub(super) const EXIT: &str = "kiln exit";

/// Reads the output of the script: samples, the program's exit code, and then its profile or the
/// last lines of its output.
pub(super) fn read(output: &str) -> Result<Figures, String> {
    let (samples, rest) = output
        .split_once(EXIT)
        .ok_or("the program's exit code is missing")?;
    let (code, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    if code.trim() != "0" {
        return Err(format!(
            "genie-t2t-run failed with exit code {}: {}",
            sanitized_tail(code),
            sanitized_tail(rest)
        ));
    }
    let profile: Profile = match serde_json::from_str(rest) {
        Ok(profile) => profile,
        Err(error) => return Err(format!("its profile is not one: {error}")),
    };
    let mut figures = profile.figures().ok_or("its profile has no query")?;
    figures.peak_memory_bytes = Figure(peak_memory_bytes(samples));
    figures.power_w = Figure(power_w(samples));
    Ok(figures)
}

/// The version of Windows' own driver of the NPU, with which QNN's libraries may load binaries.
pub(super) fn driver(output: &str) -> Option<String> {
    let mut lines = output.lines();
    let version = lines.find_map(|line| line.strip_prefix(DRIVER))?.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._- ".contains(c);
    (!version.is_empty() && version.len() <= 100 && version.chars().all(is_plain))
        .then(|| version.into())
}

/// The part of the output of `genie-t2t-run --profile` that is read.
#[derive(Deserialize)]
struct Profile {
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    events: Vec<Value>,
}

impl Profile {
    /// The figures of the last query; `None` if there is no query.
    fn figures(&self) -> Option<Figures> {
        let query = self.last_event("GenieDialog_query")?;
        let answer_tokens = metric(query, "num-generated-tokens", "");
        let ms_per_token = match (ms_metric(query, "token-generation-time"), answer_tokens) {
            (Some(ms), Some(tokens @ 1.0..)) => Some(ms / tokens),
            _ => None,
        };
        let load_ms = match self.last_event("GenieDialog_create") {
            Some(create) => ms_metric(create, "init-time"),
            None => None,
        };
        Some(Figures {
            time_to_first_token_ms: Figure(ms_metric(query, "time-to-first-token")),
            ms_per_token: Figure(ms_per_token),
            tokens_per_second: Figure(metric(query, "token-generation-rate", "toks/sec")),
            load_ms: Figure(load_ms),
            prompt_tokens: Figure(metric(query, "num-prompt-tokens", "")),
            answer_tokens: Figure(answer_tokens),
            ..Figures::default()
        })
    }

    fn last_event(&self, kind: &str) -> Option<&Value> {
        let mut last = None;
        for component in &self.components {
            for event in &component.events {
                if event["type"] == kind {
                    last = Some(event);
                }
            }
        }
        last
    }
}

/// A number that is not negative; `None` if it is missing or has another unit than `unit`.
fn metric(event: &Value, name: &str, unit: &str) -> Option<f64> {
    let metric = event.get(name)?;
    let value = metric.get("value")?.as_f64()?;
    if metric.get("unit")?.as_str()? != unit || !value.is_finite() || value < 0.0 {
        return None;
    }
    Some(value)
}

/// A time in ms, which the profile has in µs.
fn ms_metric(event: &Value, name: &str) -> Option<f64> {
    Some(metric(event, name, "us")? / 1000.0)
}

/// The peak resident memory. The first sample is skipped, as it may be of the shell before it
/// executes the program.
fn peak_memory_bytes(samples: &str) -> Option<f64> {
    let mut kilobytes = vec![];
    for line in samples.lines() {
        if let Some(line) = line.strip_prefix("VmHWM:")
            && let Some(number) = line.trim().strip_suffix("kB")
            && let Ok(number) = number.trim().parse::<u32>()
        {
            kilobytes.push(number);
        }
    }
    let peak = kilobytes.iter().skip(1).max()?;
    Some(f64::from(*peak) * 1024.0)
}

/// The mean power during the run, less the mean before it if there are samples of that: a laptop
/// draws more than the model does. `None` while the battery is being charged: its current is then
/// not that of the device.
fn power_w(samples: &str) -> Option<f64> {
    let mut power = mean_w(samples, BATTERY)?;
    if samples.lines().any(|line| line.starts_with(IDLE)) {
        power -= mean_w(samples, IDLE)?;
    }
    PLAUSIBLE_W.contains(&power).then_some(power)
}

/// The mean of the samples with a prefix.
fn mean_w(samples: &str, prefix: &str) -> Option<f64> {
    let mut watts = vec![];
    for line in samples.lines() {
        let Some(sample) = line.strip_prefix(prefix) else {
            continue;
        };
        let mut words = sample.split_whitespace();
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
    mean.is_finite().then_some(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_is_the_largest_sample_after_the_first() {
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
    fn power_is_the_mean_of_the_samples_of_the_battery() {
        let samples = "kiln battery -1000000 4000000 Discharging\nVmHWM: 1 kB\nkiln battery \
                       500000 4000000 Discharging";
        assert_eq!(power_w(samples), Some(3.0));
        let idle = "kiln idle -500000 4000000 Discharging\n";
        assert_eq!(power_w(&format!("{idle}{samples}")), Some(1.0));
        for nothing in [
            "",
            "kiln idle 1000000 4000000 Discharging",
            "kiln idle ? ? ?\nkiln battery 1000000 4000000 Discharging",
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
    fn the_driver_has_a_plain_version() {
        let driver = |text: &str| driver(&format!("VmHWM: 1 kB\n{text}\nkiln exit 0\n"));
        assert_eq!(driver("kiln driver 1.0.3510.0"), Some("1.0.3510.0".into()));
        for bad in ["", "kiln driver ", "kiln driver \x1b[2J"] {
            assert_eq!(driver(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bad_profile_is_an_error() {
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
