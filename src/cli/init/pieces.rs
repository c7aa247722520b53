//! How a model's file comes, by what it is called: whole, as the files that llama.cpp splits a model into, or as pieces of one file.

use serde_json::json;

use crate::base::{Problem, Result};
use crate::model::gguf::files_of;

/// The most numbers that a plan of one file's pieces may have; the stage `fetch` has the same limit.
const MAX_PIECES: u32 = 1000;

/// How a file comes.
#[derive(Debug, PartialEq)]
pub enum Pieces {
    /// As it is.
    Whole,
    /// As GGUFs of their own, `NAME-00001-of-00003.gguf`: the URL of each.
    Split(Vec<String>),
    /// Cut, `NAME.gguf.part1of3`: a URL with `{1..3}` in place of the number.
    Cut(String),
}

impl Pieces {
    /// Of the file `file`, which lies at `url`. What is no GGUF by its name is refused, before gigabytes are fetched for nothing.
    pub fn of(url: &str, file: &str) -> Result<Self> {
        let renamed = |name: &str| match url.rfind(file) {
            Some(at) => format!("{}{name}{}", &url[..at], &url[at + file.len()..]),
            None => url.into(),
        };
        if let Some((name, count)) = cut(file) {
            return Ok(Pieces::Cut(renamed(&format!("{name}.part{{1..{count}}}of{count}"))));
        }
        match files_of(file).as_slice() {
            [] | [_] if !is_gguf(file) => Err(no_gguf(file)),
            [] | [_] => Ok(Pieces::Whole),
            files => Ok(Pieces::Split(files.iter().map(|name| renamed(name)).collect())),
        }
    }

    /// What the model's file is called when it is whole.
    pub fn whole_name(&self, file: &str) -> String {
        match self {
            Pieces::Whole => file.into(),
            Pieces::Split(_) => file.rsplitn(4, '-').last().unwrap_or(file).into(),
            Pieces::Cut(_) => cut(file).map_or(file, |(name, _)| name).into(),
        }
    }

    /// The names of the stages that fetch it.
    pub fn stages(&self) -> Vec<String> {
        match self {
            Pieces::Split(urls) => (1..=urls.len()).map(|number| format!("source-{number}")).collect(),
            Pieces::Whole | Pieces::Cut(_) => vec!["source".into()],
        }
    }

    /// What the stage `inspect` takes, as TOML.
    pub fn gguf(&self) -> String {
        match self.stages().as_slice() {
            [one] => json!(one).to_string(),
            all => format!("[{}]", all.iter().map(|name| json!(name).to_string()).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// The name of the whole file and the number of pieces, of `NAME.gguf.part1of3`.
fn cut(file: &str) -> Option<(&str, u32)> {
    let (name, numbers) = file.rsplit_once(".part")?;
    let (number, count) = numbers.split_once("of")?;
    let number_of = |digits: &str| digits.parse().ok().filter(|number: &u32| number.to_string() == digits);
    let (number, count) = (number_of(number)?, number_of(count)?);
    (is_gguf(name) && count <= MAX_PIECES && (1..=count).contains(&number)).then_some((name, count))
}

fn is_gguf(file: &str) -> bool {
    file.to_ascii_lowercase().ends_with(".gguf")
}

fn no_gguf(file: &str) -> Problem {
    let help = match file.to_ascii_lowercase().contains(".gguf") {
        true => {
            "if it is a piece of a file that was cut: a plan lists all pieces in `parts` of a `fetch` stage, see docs/plan-format.md"
        }
        false => "name a .gguf file; on the Hugging Face Hub, look for the model's name and `GGUF`",
    };
    Problem::new("kiln::call::format", format!("`{file}` is no GGUF by its name")).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_belongs_to_it() {
        let split = |urls: &[&str]| Pieces::Split(urls.iter().map(|url| url.to_string()).collect());
        for (url, file, expected, name) in [
            ("hf:a/b/c.gguf@v1", "c.gguf", Pieces::Whole, "c.gguf"),
            ("hf:a/b/c.GGUF", "c.GGUF", Pieces::Whole, "c.GGUF"),
            (
                "hf:a/b/c-00002-of-00002.gguf@v1",
                "c-00002-of-00002.gguf",
                split(&["hf:a/b/c-00001-of-00002.gguf@v1", "hf:a/b/c-00002-of-00002.gguf@v1"]),
                "c",
            ),
            ("hf:a/b/c.gguf.part2of3", "c.gguf.part2of3", Pieces::Cut("hf:a/b/c.gguf.part{1..3}of3".into()), "c.gguf"),
            // Not pieces by these names.
            ("hf:a/b/c-00001-of-00001.gguf", "c-00001-of-00001.gguf", Pieces::Whole, "c-00001-of-00001.gguf"),
            ("hf:a/b/c-00004-of-00003.gguf", "c-00004-of-00003.gguf", Pieces::Whole, "c-00004-of-00003.gguf"),
        ] {
            let pieces = Pieces::of(url, file).unwrap();
            assert_eq!(pieces, expected);
            assert_eq!(pieces.whole_name(file), name);
        }
        let refused = |file: &str, expected: &str| {
            let problem = Pieces::of(&format!("hf:a/b/{file}"), file).unwrap_err();
            assert!(problem.help.as_ref().unwrap().contains(expected), "{problem}");
        };
        refused("model.safetensors", "name a .gguf file");
        refused("c.gguf-split-a", "`parts`");
        refused("c.gguf.part0of3", "`parts`");
        refused("c.gguf.part1of100000", "`parts`");
    }
}
