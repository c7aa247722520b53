//! The chips that kiln builds for, and those whose speed the compiler estimates.

use std::borrow::Cow;
use std::fmt;

use crate::base::{Code, Problem, Result};

/// A system on chip that a binary can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soc {
    /// `QnnHtpDevice_..socModel`; a context binary records it.
    pub model: u32,
    /// What is known of it. `None` for a chip that a plan gives by its number.
    pub chip: Option<&'static Chip>,
}

/// A chip of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Chip {
    /// Its name in plans.
    pub name: &'static str,
    /// Other names of it: chips with the same model, and names of the market.
    pub aliases: &'static [&'static str],
    /// Its number in the HTP backend, `socModel`.
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

/// A row of [`CHIPS`]; the names after the first are aliases.
const fn chip(
    model: u32,
    arch: u32,
    vtcm_mb: u32,
    numbers: Numbers,
    name: &'static str,
    aliases: &'static [&'static str],
) -> Chip {
    Chip {
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
static CHIPS: [Chip; 56] = [
    chip(30, 68, 4, Fp16, "sm8350", &["snapdragon-888"]),
    chip(37, 68, 4, Codes, "sc8280xp", &["snapdragon-8cx-gen-3"]),
    chip(35, 68, 2, Codes, "sm7325", &[]),
    chip(93, 68, 2, Codes, "qcm6490", &["qcs6490"]),
    chip(39, 68, 8, Blocks, "sa8295p", &[]),
    chip(62, 68, 8, Fp16, "sa8540", &[]),
    chip(63, 68, 8, Fp16, "aic100", &[]),
    chip(36, 69, 8, Blocks, "sm8450", &["snapdragon-8-gen-1"]),
    chip(42, 69, 8, Blocks, "sm8475", &["snapdragon-8-plus-gen-1"]),
    chip(53, 69, 8, Blocks, "sxr2230p", &["snapdragon-xr2-gen-2"]),
    chip(41, 69, 2, Blocks, "sm7450", &["snapdragon-7-gen-1"]),
    chip(54, 69, 4, Codes, "sm7475", &["snapdragon-7-plus-gen-2"]),
    chip(43, 73, 8, Blocks, "sm8550", &["snapdragon-8-gen-2"]),
    chip(66, 73, 8, Blocks, "qcs8550", &[]),
    chip(89, 73, 8, Blocks, "qcm8538", &[]),
    chip(
        60,
        73,
        8,
        Blocks,
        "sc8380xp",
        &["snapdragon-x-elite", "snapdragon-x-plus"],
    ),
    chip(
        120,
        73,
        8,
        Blocks,
        "sc8340xp",
        &["snapdragon-x-plus-8-core"],
    ),
    chip(119, 73, 8, Blocks, "iqx5121", &[]),
    chip(52, 73, 8, Blocks, "sa8775p", &["sa8255p", "sa8650p"]),
    chip(77, 73, 8, Blocks, "qcs9075", &["qcs9100"]),
    chip(68, 73, 4, Codes, "sm8635", &["snapdragon-8s-gen-3"]),
    chip(85, 73, 8, Codes, "sm8735", &["snapdragon-8s-gen-4"]),
    chip(70, 73, 4, Codes, "sm7675", &["snapdragon-7-plus-gen-3"]),
    chip(86, 73, 4, Codes, "sm7750", &["snapdragon-7-gen-4"]),
    chip(91, 73, 4, Codes, "sm7775", &[]),
    chip(64, 73, 2, Codes, "sm7550", &[]),
    chip(73, 73, 2, Codes, "sm7635", &[]),
    chip(61, 73, 2, Codes, "sm7435", &[]),
    chip(74, 73, 2, Codes, "sm6650", &[]),
    chip(76, 73, 2, Codes, "sm6475", &[]),
    chip(50, 73, 2, Codes, "sm6450", &[]),
    chip(78, 73, 2, Codes, "qcm6690", &[]),
    chip(46, 73, 2, Codes, "ssg2115p", &["sar2130p"]),
    chip(58, 73, 2, Codes, "ssg2125p", &[]),
    chip(45, 73, 2, Codes, "sxr1230p", &[]),
    chip(57, 75, 8, Blocks, "sm8650", &["snapdragon-8-gen-3"]),
    chip(82, 75, 8, Blocks, "qcs8300", &["qcs8275"]),
    chip(90, 75, 8, Blocks, "qcs8625", &[]),
    chip(67, 75, 8, Blocks, "sa8620p", &["sa7255p"]),
    chip(69, 79, 8, Blocks, "sm8750", &["snapdragon-8-elite"]),
    chip(75, 79, 8, Blocks, "sxr2330p", &[]),
    chip(104, 79, 8, Blocks, "cq8725s", &[]),
    chip(105, 79, 8, Blocks, "cq8750s", &[]),
    chip(87, 81, 8, Blocks, "sm8850", &["snapdragon-8-elite-gen-5"]),
    chip(92, 81, 8, Blocks, "sm8850l", &[]),
    chip(97, 81, 8, Blocks, "sm8845", &[]),
    chip(109, 81, 8, Blocks, "qcs8845", &[]),
    chip(88, 81, 8, Blocks, "sc8480xp", &["snapdragon-x2-elite"]),
    chip(94, 81, 8, Blocks, "sc8440xp", &[]),
    chip(72, 81, 16, Blocks, "sa8797p", &[]),
    chip(95, 81, 4, Codes, "sar2230p", &[]),
    chip(96, 81, 4, Codes, "sw6100", &[]),
    chip(103, 85, 12, Blocks, "sm8975", &[]),
    chip(112, 85, 8, Blocks, "sm8975l", &[]),
    chip(113, 85, 8, Blocks, "sm8950", &[]),
    chip(114, 85, 16, Blocks, "soc-114", &[]),
];

/// The chips for which libQnnHtp 2.51 estimates time and traffic, and which take fp16: no phone and
/// no laptop.
const ESTIMATED: [&str; 3] = ["qcs9075", "sa8797p", "soc-114"];

/// What begins the name of a chip that is given by its number: `soc-114`.
const NUMBERED: &str = "soc-";

impl Soc {
    /// The chip called `name`, to build for. `soc-N` is the chip with the model N, known or not.
    pub fn named(name: &str) -> Result<Soc> {
        let lower = name.to_ascii_lowercase();
        let mut near = None;
        for chip in &CHIPS {
            for known in chip.names() {
                if known == name {
                    return Ok(chip.into());
                }
                // One typing error. A larger distance is another family of chips.
                let distance = strsim::osa_distance(known, &lower);
                if distance <= 1 && near.is_none_or(|(least, _)| distance < least) {
                    near = Some((distance, known));
                }
            }
        }
        if let Some(model) = numbered(name) {
            return Ok(Soc::of_model(model));
        }
        Err(unknown(
            name,
            match near {
                Some((_, near)) => format!("did you mean `{near}`?"),
                None => {
                    "the section `context-bin` of docs/plan-format.md has a table of them, and \
                         `soc-N` is the chip whose `socModel` is N"
                        .into()
                }
            },
        ))
    }

    /// The chip whose `socModel` is `model`, for which a context binary was built.
    pub fn of_model(model: u32) -> Soc {
        let chip = CHIPS.iter().find(|chip| chip.model == model);
        Soc { model, chip }
    }

    /// Its name in plans.
    pub fn name(self) -> Cow<'static, str> {
        match self.chip {
            Some(chip) => chip.name.into(),
            None => format!("{NUMBERED}{}", self.model).into(),
        }
    }

    /// Whether its HTP has fp16, as far as is known. Without, it computes on codes only.
    pub fn has_f16(self) -> bool {
        self.computes_with(Numbers::Fp16)
    }

    /// Whether its HTP computes with `numbers`, as far as is known.
    pub fn computes_with(self, numbers: Numbers) -> bool {
        self.chip.is_none_or(|chip| chip.numbers >= numbers)
    }

    /// Refuses `what`, which needs fp16, for a chip without it.
    pub fn require_f16(self, what: &str) -> Result<()> {
        if self.has_f16() {
            return Ok(());
        }
        let message = format!("{what} needs fp16, which the HTP of {self} does not have");
        Err(Problem::new(Code::QnnNoF16, message).help(
            "`activations = \"u16\"` and `float = \"never\"` in the `graph` stage: all values in \
             codes",
        ))
    }
}

impl From<&'static Chip> for Soc {
    fn from(chip: &'static Chip) -> Soc {
        Soc {
            model: chip.model,
            chip: Some(chip),
        }
    }
}

impl fmt::Display for Soc {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Chip {
    /// All chips of the table.
    pub fn all() -> &'static [Chip] {
        &CHIPS
    }

    /// The chip called `name`, to estimate for.
    pub fn estimated(name: &str) -> Result<&'static Chip> {
        match CHIPS.iter().find(|chip| chip.name == name) {
            Some(chip) if ESTIMATED.contains(&name) => Ok(chip),
            _ => Err(unknown(name, format!("known are {}", ESTIMATED.join(", ")))),
        }
    }

    /// The names of the chips to estimate for.
    pub fn estimated_names() -> [&'static str; ESTIMATED.len()] {
        ESTIMATED
    }

    /// Its name and its other names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// The number in a name like `soc-114`, written in one way only.
fn numbered(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(NUMBERED)?;
    let model: u32 = digits.parse().ok()?;
    (model.to_string() == digits).then_some(model)
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
        assert_eq!(Soc::named("sm8650").unwrap().chip.unwrap().arch, 75);
        for (name, near) in [
            ("sm865O", "sm8650"),
            ("SM8650", "sm8650"),
            ("snapdragon-x-elit", "snapdragon-x-elite"),
        ] {
            let help = Soc::named(name).unwrap_err().help.unwrap();
            assert_eq!(help, format!("did you mean `{near}`?"));
        }
        for name in ["kirin", "soc-", "soc-057", "soc-x", "soc-4294967296"] {
            let help = Soc::named(name).unwrap_err().help.unwrap();
            assert!(help.contains("a table of them"), "{name}: {help}");
        }
    }

    #[test]
    fn a_chip_may_be_given_by_its_number() {
        assert_eq!(Soc::named("soc-57").unwrap(), Soc::named("sm8650").unwrap());
        let soc = Soc::named("soc-4000").unwrap();
        assert_eq!((soc.model, soc.name().as_ref()), (4000, "soc-4000"));
        assert!(soc.has_f16() && soc.computes_with(Numbers::Blocks));
    }

    #[test]
    fn names_and_models_are_unique() {
        let (mut names, mut models) = (BTreeSet::new(), BTreeSet::new());
        for chip in Chip::all() {
            assert!(models.insert(chip.model), "{}", chip.model);
            for name in chip.names() {
                assert!(names.insert(name), "{name}");
                assert_eq!(Soc::named(name).unwrap(), chip.into());
            }
        }
    }

    #[test]
    fn few_chips_have_an_estimate() {
        for name in Chip::estimated_names() {
            assert_eq!(Chip::estimated(name).unwrap().name, name);
        }
        let help = Chip::estimated("sm8650").unwrap_err().help.unwrap();
        assert_eq!(help, "known are qcs9075, sa8797p, soc-114");
    }
}
