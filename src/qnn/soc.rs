//! The chips that kiln builds for.

use crate::base::{Code, Problem, Result};

/// A system on chip, as the HTP backend knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soc {
    /// As plans name it.
    pub name: &'static str,
    /// `QnnHtpDevice_..socModel`; a context binary records it.
    pub model: u32,
    /// Hexagon architecture: 75 for v75.
    pub arch: u32,
}

/// Each pair of model and architecture was accepted by libQnnHtp 2.51.
/// sm8350 (v68) is absent: its HTP refuses block-quantized weights.
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
        SOCS.into_iter()
            .find(|soc| soc.name == name)
            .ok_or_else(|| {
                let known = format!("known are {}", Soc::names().join(", "));
                // A slip of one key; other letters are another family of chips.
                let near = SOCS
                    .iter()
                    .find(|soc| strsim::osa_distance(soc.name, &name.to_ascii_lowercase()) == 1);
                Problem::new(Code::PlanSoc, format!("unknown SoC `{name}`")).help(match near {
                    Some(soc) => format!("did you mean `{}`? {known}", soc.name),
                    None => known,
                })
            })
    }

    /// What the chips are called.
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
    fn a_misspelled_chip_gets_its_neighbour() {
        assert_eq!(Soc::named("sm8650").unwrap().arch, 75);
        let help = Soc::named("sm865O").unwrap_err().help.unwrap();
        assert!(help.contains("did you mean `sm8650`"), "{help}");
        for other in ["sa8775p", "sc8380xp", "qcs6490"] {
            assert!(
                !Soc::named(other)
                    .unwrap_err()
                    .help
                    .unwrap()
                    .contains("did you mean"),
                "{other}"
            );
        }
    }
}
