//! The chips that kiln builds for, and those whose speed the compiler estimates.

use crate::base::{Code, Problem, Result};

/// A system on chip, with its numbers in the HTP backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soc {
    /// Its name in plans.
    pub name: &'static str,
    /// `QnnHtpDevice_..socModel`; a context binary records it.
    pub model: u32,
    /// Hexagon architecture: 75 for v75.
    pub arch: u32,
    /// Whether its HTP has fp16. Without, it computes on codes only.
    pub has_f16: bool,
}

/// The chips to build for. libQnnHtp 2.51 accepts each pair of model and architecture. sm8350 (v68)
/// is not supported: its HTP rejects block-quantized weights.
const SOCS: [Soc; 6] = [
    Soc {
        name: "sm8450",
        model: 36,
        arch: 69,
        has_f16: true,
    },
    Soc {
        name: "sm8550",
        model: 43,
        arch: 73,
        has_f16: true,
    },
    Soc {
        name: "sm8635",
        model: 68,
        arch: 73,
        has_f16: false,
    },
    Soc {
        name: "sm8650",
        model: 57,
        arch: 75,
        has_f16: true,
    },
    Soc {
        name: "sm8750",
        model: 69,
        arch: 79,
        has_f16: true,
    },
    Soc {
        name: "sm8850",
        model: 87,
        arch: 81,
        has_f16: true,
    },
];

/// The chips for which libQnnHtp 2.51 estimates time and traffic, and which take f16: no phone and
/// no laptop. kiln builds for none of them. No public table names the last one.
const ESTIMATED: [Soc; 3] = [
    Soc {
        name: "qcs9075",
        model: 77,
        arch: 73,
        has_f16: true,
    },
    Soc {
        name: "sa8797p",
        model: 72,
        arch: 81,
        has_f16: true,
    },
    Soc {
        name: "soc-114",
        model: 114,
        arch: 85,
        has_f16: true,
    },
];

impl Soc {
    /// The chip called `name`, to build for.
    pub fn named(name: &str) -> Result<Soc> {
        Soc::find(name, &SOCS)
    }

    /// The chip called `name`, to estimate for.
    pub fn estimated(name: &str) -> Result<Soc> {
        Soc::find(name, &ESTIMATED)
    }

    /// Refuses `what`, which needs fp16, for a chip without it.
    pub fn require_f16(self, what: &str) -> Result<()> {
        if self.has_f16 {
            return Ok(());
        }
        let message = format!(
            "{what} needs fp16, which the HTP of {} does not have",
            self.name
        );
        Err(Problem::new(Code::QnnNoF16, message).help(
            "`activations = \"u16\"` and `float = \"never\"` in the `graph` stage: all values in \
             codes",
        ))
    }

    fn find(name: &str, socs: &[Soc]) -> Result<Soc> {
        let names: Vec<&str> = socs.iter().map(|soc| soc.name).collect();
        let mut help = format!("known are {}", names.join(", "));
        let mut suggestion = None;
        for &soc in socs {
            if soc.name == name {
                return Ok(soc);
            }
            // One typing error. A larger distance is another family of chips.
            let distance = strsim::osa_distance(soc.name, &name.to_ascii_lowercase());
            if distance == 1 && suggestion.is_none() {
                suggestion = Some(soc.name);
            }
        }
        if let Some(near) = suggestion {
            help = format!("did you mean `{near}`? {help}");
        }
        Err(Problem::new(Code::PlanSoc, format!("unknown SoC `{name}`")).help(help))
    }

    /// The names of the chips to build for.
    pub fn names() -> [&'static str; SOCS.len()] {
        SOCS.map(|soc| soc.name)
    }

    /// The names of the chips to estimate for.
    pub fn estimated_names() -> [&'static str; ESTIMATED.len()] {
        ESTIMATED.map(|soc| soc.name)
    }

    /// The chip that a context binary was built for.
    pub fn of_model(model: u32) -> Option<Soc> {
        SOCS.into_iter().find(|soc| soc.model == model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_chip_gets_a_suggestion() {
        assert_eq!(Soc::named("sm8650").unwrap().arch, 75);
        let help = Soc::named("sm865O").unwrap_err().help.unwrap();
        assert!(help.contains("did you mean `sm8650`"), "{help}");
        for other in ["sa8775p", "sc8380xp", "qcs6490"] {
            let help = Soc::named(other).unwrap_err().help.unwrap();
            assert!(!help.contains("did you mean"), "{other}");
        }
    }

    #[test]
    fn an_estimated_chip_is_no_target() {
        for name in Soc::estimated_names() {
            assert_eq!(Soc::estimated(name).unwrap().name, name);
            assert_eq!(Soc::named(name).unwrap_err().code, Code::PlanSoc);
        }
        let help = Soc::estimated("sm8650").unwrap_err().help.unwrap();
        assert_eq!(help, "known are qcs9075, sa8797p, soc-114");
    }
}
