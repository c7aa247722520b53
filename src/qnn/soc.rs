//! The chips that kiln builds for.

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
}

/// The supported chips. libQnnHtp 2.51 accepts each pair of model and architecture. sm8350 (v68) is
/// not supported: its HTP rejects block-quantized weights.
const SOCS: [Soc; 5] = [
    Soc {
        name: "sm8450",
        model: 36,
        arch: 69,
    },
    Soc {
        name: "sm8550",
        model: 43,
        arch: 73,
    },
    Soc {
        name: "sm8650",
        model: 57,
        arch: 75,
    },
    Soc {
        name: "sm8750",
        model: 69,
        arch: 79,
    },
    Soc {
        name: "sm8850",
        model: 87,
        arch: 81,
    },
];

impl Soc {
    /// The chip called `name`.
    pub fn named(name: &str) -> Result<Soc> {
        let mut help = format!("known are {}", Soc::names().join(", "));
        let mut suggestion = None;
        for soc in SOCS {
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

    /// The names of the chips.
    pub fn names() -> [&'static str; SOCS.len()] {
        SOCS.map(|soc| soc.name)
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
}
