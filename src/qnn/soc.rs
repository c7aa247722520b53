//! The chips that kiln builds for, and those whose speed the compiler estimates.

use crate::base::{Code, Problem, Result};

/// A system on chip, with its numbers in the HTP backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soc {
    /// Its name in plans.
    pub name: &'static str,
    /// Other names of it: chips with the same model, and names of the market.
    pub aliases: &'static [&'static str],
    /// `QnnHtpDevice_..socModel`; a context binary records it.
    pub model: u32,
    /// Hexagon architecture: 75 for v75.
    pub arch: u32,
    /// Its tightly coupled memory (VTCM), in MiB.
    pub vtcm_mb: u32,
    /// What its HTP computes with.
    pub numbers: Numbers,
}

/// What an HTP computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbers {
    /// Codes only.
    Codes,
    /// fp16 too, with weights that have one scale for each row.
    Fp16,
    /// fp16 with weights in blocks, as a GGUF has them, too.
    Blocks,
}

use Numbers::{Blocks, Codes, Fp16};

/// A row of [`SOCS`]; the names after the first are aliases.
const fn soc(
    model: u32,
    arch: u32,
    vtcm_mb: u32,
    numbers: Numbers,
    name: &'static str,
    aliases: &'static [&'static str],
) -> Soc {
    Soc {
        name,
        aliases,
        model,
        arch,
        vtcm_mb,
        numbers,
    }
}

/// The chips, by architecture. libQnnHtp 2.51 knows each model; `tests/qnn/libraries.rs` compares
/// the other columns with what it makes and takes. No public table names the model 114.
const SOCS: [Soc; 56] = [
    soc(30, 68, 4, Fp16, "sm8350", &["snapdragon-888"]),
    soc(37, 68, 4, Codes, "sc8280xp", &["snapdragon-8cx-gen-3"]),
    soc(35, 68, 2, Codes, "sm7325", &[]),
    soc(93, 68, 2, Codes, "qcm6490", &["qcs6490"]),
    soc(39, 68, 8, Blocks, "sa8295p", &[]),
    soc(62, 68, 8, Fp16, "sa8540", &[]),
    soc(63, 68, 8, Fp16, "aic100", &[]),
    soc(36, 69, 8, Blocks, "sm8450", &["snapdragon-8-gen-1"]),
    soc(42, 69, 8, Blocks, "sm8475", &["snapdragon-8-plus-gen-1"]),
    soc(53, 69, 8, Blocks, "sxr2230p", &["snapdragon-xr2-gen-2"]),
    soc(41, 69, 2, Blocks, "sm7450", &["snapdragon-7-gen-1"]),
    soc(54, 69, 4, Codes, "sm7475", &["snapdragon-7-plus-gen-2"]),
    soc(43, 73, 8, Blocks, "sm8550", &["snapdragon-8-gen-2"]),
    soc(66, 73, 8, Blocks, "qcs8550", &[]),
    soc(89, 73, 8, Blocks, "qcm8538", &[]),
    soc(
        60,
        73,
        8,
        Blocks,
        "sc8380xp",
        &["snapdragon-x-elite", "snapdragon-x-plus"],
    ),
    soc(
        120,
        73,
        8,
        Blocks,
        "sc8340xp",
        &["snapdragon-x-plus-8-core"],
    ),
    soc(119, 73, 8, Blocks, "iqx5121", &[]),
    soc(52, 73, 8, Blocks, "sa8775p", &["sa8255p", "sa8650p"]),
    soc(77, 73, 8, Blocks, "qcs9075", &["qcs9100"]),
    soc(68, 73, 4, Codes, "sm8635", &["snapdragon-8s-gen-3"]),
    soc(85, 73, 8, Codes, "sm8735", &["snapdragon-8s-gen-4"]),
    soc(70, 73, 4, Codes, "sm7675", &["snapdragon-7-plus-gen-3"]),
    soc(86, 73, 4, Codes, "sm7750", &["snapdragon-7-gen-4"]),
    soc(91, 73, 4, Codes, "sm7775", &[]),
    soc(64, 73, 2, Codes, "sm7550", &[]),
    soc(73, 73, 2, Codes, "sm7635", &[]),
    soc(61, 73, 2, Codes, "sm7435", &[]),
    soc(74, 73, 2, Codes, "sm6650", &[]),
    soc(76, 73, 2, Codes, "sm6475", &[]),
    soc(50, 73, 2, Codes, "sm6450", &[]),
    soc(78, 73, 2, Codes, "qcm6690", &[]),
    soc(46, 73, 2, Codes, "ssg2115p", &["sar2130p"]),
    soc(58, 73, 2, Codes, "ssg2125p", &[]),
    soc(45, 73, 2, Codes, "sxr1230p", &[]),
    soc(57, 75, 8, Blocks, "sm8650", &["snapdragon-8-gen-3"]),
    soc(82, 75, 8, Blocks, "qcs8300", &["qcs8275"]),
    soc(90, 75, 8, Blocks, "qcs8625", &[]),
    soc(67, 75, 8, Blocks, "sa8620p", &["sa7255p"]),
    soc(69, 79, 8, Blocks, "sm8750", &["snapdragon-8-elite"]),
    soc(75, 79, 8, Blocks, "sxr2330p", &[]),
    soc(104, 79, 8, Blocks, "cq8725s", &[]),
    soc(105, 79, 8, Blocks, "cq8750s", &[]),
    soc(87, 81, 8, Blocks, "sm8850", &["snapdragon-8-elite-gen-5"]),
    soc(92, 81, 8, Blocks, "sm8850l", &[]),
    soc(97, 81, 8, Blocks, "sm8845", &[]),
    soc(109, 81, 8, Blocks, "qcs8845", &[]),
    soc(88, 81, 8, Blocks, "sc8480xp", &["snapdragon-x2-elite"]),
    soc(94, 81, 8, Blocks, "sc8440xp", &[]),
    soc(72, 81, 16, Blocks, "sa8797p", &[]),
    soc(95, 81, 4, Codes, "sar2230p", &[]),
    soc(96, 81, 4, Codes, "sw6100", &[]),
    soc(103, 85, 12, Blocks, "sm8975", &[]),
    soc(112, 85, 8, Blocks, "sm8975l", &[]),
    soc(113, 85, 8, Blocks, "sm8950", &[]),
    soc(114, 85, 16, Blocks, "soc-114", &[]),
];

/// The chips for which libQnnHtp 2.51 estimates time and traffic, and which take fp16: no phone and
/// no laptop.
const ESTIMATED: [&str; 3] = ["qcs9075", "sa8797p", "soc-114"];

impl Soc {
    /// The chip called `name`, to build for.
    pub fn named(name: &str) -> Result<Soc> {
        let lower = name.to_ascii_lowercase();
        let mut near = None;
        for soc in SOCS {
            for known in soc.names() {
                if known == name {
                    return Ok(soc);
                }
                // One typing error. A larger distance is another family of chips.
                if near.is_none() && strsim::osa_distance(known, &lower) <= 1 {
                    near = Some(known);
                }
            }
        }
        Err(unknown(
            name,
            match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    "the section `context-bin` of docs/plan-format.md has a table of them".into()
                }
            },
        ))
    }

    /// The chip called `name`, to estimate for.
    pub fn estimated(name: &str) -> Result<Soc> {
        match Soc::named(name) {
            Ok(soc) if ESTIMATED.contains(&soc.name) => Ok(soc),
            _ => Err(unknown(name, format!("known are {}", ESTIMATED.join(", ")))),
        }
    }

    /// Its name and its other names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Whether its HTP has fp16. Without, it computes on codes only.
    pub fn has_f16(self) -> bool {
        self.numbers >= Numbers::Fp16
    }

    /// Refuses `what`, which needs fp16, for a chip without it.
    pub fn require_f16(self, what: &str) -> Result<()> {
        if self.has_f16() {
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

    /// All chips to build for.
    pub fn all() -> impl Iterator<Item = Soc> {
        SOCS.into_iter()
    }

    /// The names of the chips to estimate for.
    pub fn estimated_names() -> [&'static str; ESTIMATED.len()] {
        ESTIMATED
    }

    /// The chip that a context binary was built for.
    pub fn of_model(model: u32) -> Option<Soc> {
        SOCS.into_iter().find(|soc| soc.model == model)
    }
}

fn unknown(name: &str, help: String) -> Problem {
    Problem::new(Code::PlanSoc, format!("unknown SoC `{name}`")).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_misspelled_chip_gets_a_suggestion() {
        assert_eq!(Soc::named("sm8650").unwrap().arch, 75);
        for (name, near) in [
            ("sm865O", "sm8650"),
            ("SM8650", "sm8650"),
            ("snapdragon-x-elit", "snapdragon-x-elite"),
        ] {
            let help = Soc::named(name).unwrap_err().help.unwrap();
            assert_eq!(help, format!("did you mean `{near}`?"));
        }
        let help = Soc::named("kirin").unwrap_err().help.unwrap();
        assert!(help.contains("a table of them"), "{help}");
    }

    #[test]
    fn names_and_models_are_unique() {
        let (mut names, mut models) = (BTreeSet::new(), BTreeSet::new());
        for soc in Soc::all() {
            assert!(models.insert(soc.model), "{}", soc.model);
            for name in soc.names() {
                assert!(names.insert(name), "{name}");
                assert_eq!(Soc::named(name).unwrap(), soc);
            }
        }
    }

    #[test]
    fn few_chips_have_an_estimate() {
        for name in Soc::estimated_names() {
            assert_eq!(Soc::estimated(name).unwrap().name, name);
        }
        let help = Soc::estimated("sm8650").unwrap_err().help.unwrap();
        assert_eq!(help, "known are qcs9075, sa8797p, soc-114");
    }
}
