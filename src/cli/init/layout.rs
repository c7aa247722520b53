//! How a model's file comes, by what it is called: whole, as the files that llama.cpp splits a
//! model into, or as pieces of one file.

use serde_json::json;

use crate::base::{Code, Problem, Result, without_secrets};
use crate::model::gguf::files_of;
use crate::plan::MAX_STAGES;
use crate::stages::fetch::MAX_PARTS;

/// Most files of a split model: each has a stage of its own, and so have a few dozen other things.
const MAX_SPLIT: usize = MAX_STAGES - 100;

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
    /// Of the file `file`, which lies at `url`. What is no GGUF by its name is refused, before
    /// gigabytes are fetched for nothing; a file of this machine may be called anything.
    pub fn of(url: &str, file: &str) -> Result<Self> {
        if let Some((_, count)) = cut(file) {
            if count as usize > MAX_PARTS {
                return Err(too_many(
                    file,
                    count as usize,
                    "pieces of a file",
                    MAX_PARTS,
                ));
            }
            let end = file.rfind(".part").map_or("", |at| &file[at..]);
            return Ok(Pieces::Cut(renamed(
                url,
                end,
                &format!(".part{{1..{count}}}of{count}"),
            )?));
        }
        match files_of(file).as_slice() {
            [] | [_] if !is_gguf(file) && !url.starts_with("file:") => Err(no_gguf(file)),
            [] | [_] => Ok(Pieces::Whole),
            files if files.len() > MAX_SPLIT => {
                Err(too_many(file, files.len(), "files of a model", MAX_SPLIT))
            }
            files => {
                let end = ending(file);
                Ok(Pieces::Split(
                    files
                        .iter()
                        .map(|name| renamed(url, end, ending(name)))
                        .collect::<Result<_>>()?,
                ))
            }
        }
    }

    /// The names of the stages that fetch it.
    pub fn stages(&self) -> Vec<String> {
        match self {
            Pieces::Split(urls) => (1..=urls.len())
                .map(|number| format!("source-{number}"))
                .collect(),
            Pieces::Whole | Pieces::Cut(_) => vec!["source".into()],
        }
    }

    /// What the stage `inspect` takes, as TOML.
    pub fn gguf(&self) -> String {
        match self.stages().as_slice() {
            [one] => json!(one).to_string(),
            all => format!(
                "[{}]",
                all.iter()
                    .map(|name| json!(name).to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }
    }
}

/// What the model in `file` is called when it is whole.
pub fn whole_name(file: &str) -> &str {
    match cut(file) {
        Some((name, _)) => name,
        None if files_of(file).len() > 1 => &file[..file.len() - ending(file).len()],
        None => file,
    }
}

/// `-00001-of-00003.gguf` of the name of a file that llama.cpp split.
fn ending(file: &str) -> &str {
    &file[file.len().saturating_sub("-00001-of-00003.gguf".len())..]
}

/// `url` with `new` in place of the `end` of its file's name. Not in the query of an address, which
/// may repeat it.
fn renamed(url: &str, end: &str, new: &str) -> Result<String> {
    let scheme = url.split(':').next().unwrap_or_default();
    let is_address = ["https", "http"]
        .iter()
        .any(|web| scheme.eq_ignore_ascii_case(web));
    let path = if is_address {
        url.find(['?', '#']).map_or(url, |at| &url[..at])
    } else {
        url
    };
    let at = path.rfind(end).ok_or_else(|| {
        let message = format!(
            "`{}` names a piece of a model, but does not spell `{end}`",
            without_secrets(url)
        );
        Problem::new(Code::CallFormat, message)
            .help("write a plan by hand, with a `fetch` stage for each piece")
    })?;
    Ok(format!("{}{new}{}", &url[..at], &url[at + end.len()..]))
}

/// The name of the whole file and the number of pieces, of `NAME.gguf.part1of3`.
fn cut(file: &str) -> Option<(&str, u32)> {
    let (name, numbers) = file.rsplit_once(".part")?;
    let (number, count) = numbers.split_once("of")?;
    let number_of = |digits: &str| {
        digits
            .parse()
            .ok()
            .filter(|number: &u32| number.to_string() == digits)
    };
    let (number, count) = (number_of(number)?, number_of(count)?);
    (is_gguf(name) && (1..=count).contains(&number)).then_some((name, count))
}

fn is_gguf(file: &str) -> bool {
    file.to_ascii_lowercase().ends_with(".gguf")
}

fn too_many(file: &str, count: usize, what: &str, most: usize) -> Problem {
    let message =
        format!("`{file}` is one of {count} {what} by its name, at most {most} are taken");
    Problem::new(Code::CallFormat, message)
        .help("if that is not what the name means, give the file another one")
}

fn no_gguf(file: &str) -> Problem {
    let help = match file.to_ascii_lowercase().contains(".gguf") {
        true => {
            "if it is a piece of a file that was cut: a plan lists all pieces in `parts` of a \
             `fetch` stage, see docs/plan-format.md"
        }
        false => "name a .gguf file; on the Hugging Face Hub, look for the model's name and `GGUF`",
    };
    Problem::new(Code::CallFormat, format!("`{file}` is no GGUF by its name")).help(help)
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
                split(&[
                    "hf:a/b/c-00001-of-00002.gguf@v1",
                    "hf:a/b/c-00002-of-00002.gguf@v1",
                ]),
                "c",
            ),
            (
                "hf:a/b/c.gguf.part2of3",
                "c.gguf.part2of3",
                Pieces::Cut("hf:a/b/c.gguf.part{1..3}of3".into()),
                "c.gguf",
            ),
            (
                "https://h/größe-00001-of-00002.gguf?name=x-00001-of-00002.gguf",
                "gr%C3%B6%C3%9Fe-00001-of-00002.gguf",
                split(&[
                    "https://h/größe-00001-of-00002.gguf?name=x-00001-of-00002.gguf",
                    "https://h/größe-00002-of-00002.gguf?name=x-00001-of-00002.gguf",
                ]),
                "gr%C3%B6%C3%9Fe",
            ),
            (
                "HTTPS://h/c.gguf.part1of2?name=c.gguf.part1of2",
                "c.gguf.part1of2",
                Pieces::Cut("HTTPS://h/c.gguf.part{1..2}of2?name=c.gguf.part1of2".into()),
                "c.gguf",
            ),
            // Not pieces by these names.
            (
                "hf:a/b/c-00001-of-00001.gguf",
                "c-00001-of-00001.gguf",
                Pieces::Whole,
                "c-00001-of-00001.gguf",
            ),
            (
                "hf:a/b/c-00004-of-00003.gguf",
                "c-00004-of-00003.gguf",
                Pieces::Whole,
                "c-00004-of-00003.gguf",
            ),
        ] {
            let pieces = Pieces::of(url, file).unwrap();
            assert_eq!(pieces, expected);
            assert_eq!(whole_name(file), name);
        }
        let refused = |file: &str, expected: &str| {
            let problem = Pieces::of(&format!("hf:a/b/{file}"), file).unwrap_err();
            assert!(
                problem.help.as_ref().unwrap().contains(expected),
                "{problem}"
            );
        };
        refused("model.safetensors", "name a .gguf file");
        refused("c.gguf-split-a", "`parts`");
        refused("c.gguf.part0of3", "`parts`");
        // They are told of the file: nobody has a plan of it.
        for (file, expected) in [
            (
                "c-00001-of-99999.gguf",
                "`c-00001-of-99999.gguf` is one of 99999 files of a model by its name, at most 900",
            ),
            (
                "c.gguf.part1of100000",
                "`c.gguf.part1of100000` is one of 100000 pieces of a file by its name, at most 1000",
            ),
        ] {
            for url in ["hf:a/b/", "file:"] {
                let problem = Pieces::of(&format!("{url}{file}"), file).unwrap_err();
                assert!(problem.message.starts_with(expected), "{problem}");
            }
        }
        assert!(Pieces::of("hf:a/b/c-00001-of-00900.gguf", "c-00001-of-00900.gguf").is_ok());
        assert_eq!(Pieces::of("file:x/c.bin", "c.bin").unwrap(), Pieces::Whole);
    }
}
