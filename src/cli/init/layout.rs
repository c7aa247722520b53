//! How the GGUF of a model is stored, according to its file name: as one file, as the files that
//! llama.cpp splits a model into, or as parts of one file.

use serde_json::json;

use crate::base::{Code, Problem, Result, without_secrets};
use crate::model::gguf::files_of;
use crate::plan::MAX_STAGES;
use crate::stages::fetch::MAX_PARTS;

/// Limit of the files of a split model. Each has its own stage, beside a few dozen other stages.
const MAX_SPLIT: usize = MAX_STAGES - 100;

/// How a GGUF is stored.
#[derive(Debug, PartialEq)]
pub(super) enum FileLayout {
    /// One file.
    Single,
    /// Several GGUFs, `NAME-00001-of-00003.gguf`: the URL of each.
    Split(Vec<String>),
    /// Parts of one file, `NAME.gguf.part1of3`: a URL with `{1..3}` in place of the number.
    Parts(String),
}

impl FileLayout {
    /// The layout of the file `file` at `url`. Fails if it is not a GGUF by its name, so that
    /// nothing is fetched in vain. A local file may have any name.
    pub(super) fn of(url: &str, file: &str) -> Result<Self> {
        if let Some((_, count)) = split_part_name(file) {
            if count as usize > MAX_PARTS {
                let what = "parts of a file";
                return Err(too_many(file, count as usize, what, MAX_PARTS));
            }
            let ending = match file.rfind(".part") {
                Some(at) => &file[at..],
                None => "",
            };
            let pattern = format!(".part{{1..{count}}}of{count}");
            return Ok(FileLayout::Parts(with_ending(url, ending, &pattern)?));
        }
        let files = files_of(file);
        if files.len() <= 1 {
            if !is_gguf(file) && !url.starts_with("file:") {
                return Err(not_a_gguf(file));
            }
            return Ok(FileLayout::Single);
        }
        if files.len() > MAX_SPLIT {
            return Err(too_many(file, files.len(), "files of a model", MAX_SPLIT));
        }
        let mut urls = vec![];
        for name in &files {
            urls.push(with_ending(url, split_ending(file), split_ending(name))?);
        }
        Ok(FileLayout::Split(urls))
    }

    /// The names of the stages that fetch it.
    pub(super) fn stages(&self) -> Vec<String> {
        let mut names = vec![];
        match self {
            FileLayout::Split(urls) => {
                for number in 1..=urls.len() {
                    names.push(format!("source-{number}"));
                }
            }
            FileLayout::Single | FileLayout::Parts(_) => names.push("source".into()),
        }
        names
    }

    /// The input `gguf` of the stage `inspect`, as TOML.
    pub(super) fn gguf_input(&self) -> String {
        match self.stages().as_slice() {
            [one] => json!(one).to_string(),
            all => format!("[\"{}\"]", all.join("\", \"")),
        }
    }
}

/// The file name of the complete model, of which `file` may be a part.
pub(super) fn model_file_name(file: &str) -> &str {
    match split_part_name(file) {
        Some((name, _)) => name,
        None if files_of(file).len() > 1 => &file[..file.len() - split_ending(file).len()],
        None => file,
    }
}

/// `-00001-of-00003.gguf` of the name of a file that llama.cpp split.
fn split_ending(file: &str) -> &str {
    &file[file.len().saturating_sub("-00001-of-00003.gguf".len())..]
}

/// `url` with `new` in place of the `ending` of its file name. The query of a web address, which
/// may repeat the name, is not changed.
fn with_ending(url: &str, ending: &str, new: &str) -> Result<String> {
    let scheme = url.split(':').next().unwrap_or_default();
    let is_web = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    let path = match url.find(['?', '#']) {
        Some(at) if is_web => &url[..at],
        _ => url,
    };
    let Some(at) = path.rfind(ending) else {
        let message = format!(
            "`{}` names a part of a model, but does not contain `{ending}`",
            without_secrets(url)
        );
        return Err(Problem::new(Code::CallFormat, message)
            .help("write a plan by hand, with a `fetch` stage for each file"));
    };
    let rest = &url[at + ending.len()..];
    Ok(format!("{}{new}{rest}", &url[..at]))
}

/// The name of the complete file and the number of parts, of `NAME.gguf.part1of3`.
fn split_part_name(file: &str) -> Option<(&str, u32)> {
    let (name, numbers) = file.rsplit_once(".part")?;
    let (number, count) = numbers.split_once("of")?;
    let (number, count) = (parse_number(number)?, parse_number(count)?);
    if !is_gguf(name) || !(1..=count).contains(&number) {
        return None;
    }
    Some((name, count))
}

/// A number without leading zeros or a sign.
fn parse_number(digits: &str) -> Option<u32> {
    let number: u32 = digits.parse().ok()?;
    if number.to_string() != digits {
        return None;
    }
    Some(number)
}

fn is_gguf(file: &str) -> bool {
    file.to_ascii_lowercase().ends_with(".gguf")
}

fn too_many(file: &str, count: usize, what: &str, limit: usize) -> Problem {
    let message =
        format!("`{file}` is by its name one of {count} {what}, but the limit is {limit}");
    Problem::new(Code::CallFormat, message)
        .help("if this is not what the name means, rename the file")
}

fn not_a_gguf(file: &str) -> Problem {
    let help = if file.to_ascii_lowercase().contains(".gguf") {
        "if it is a part of a file: a plan lists all parts in `parts` of a `fetch` stage, see \
         docs/plan-format.md"
    } else {
        "name a .gguf file; on the Hugging Face Hub, search for the name of the model and `GGUF`"
    };
    let message = format!("`{file}` is not a GGUF by its name");
    Problem::new(Code::CallFormat, message).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_follows_from_the_name() {
        let split =
            |urls: &[&str]| FileLayout::Split(urls.iter().map(|url| url.to_string()).collect());
        for (url, file, expected, name) in [
            ("hf:a/b/c.gguf@v1", "c.gguf", FileLayout::Single, "c.gguf"),
            ("hf:a/b/c.GGUF", "c.GGUF", FileLayout::Single, "c.GGUF"),
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
                FileLayout::Parts("hf:a/b/c.gguf.part{1..3}of3".into()),
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
                FileLayout::Parts("HTTPS://h/c.gguf.part{1..2}of2?name=c.gguf.part1of2".into()),
                "c.gguf",
            ),
            // These names are not those of parts.
            (
                "hf:a/b/c-00001-of-00001.gguf",
                "c-00001-of-00001.gguf",
                FileLayout::Single,
                "c-00001-of-00001.gguf",
            ),
            (
                "hf:a/b/c-00004-of-00003.gguf",
                "c-00004-of-00003.gguf",
                FileLayout::Single,
                "c-00004-of-00003.gguf",
            ),
        ] {
            let layout = FileLayout::of(url, file).unwrap();
            assert_eq!(layout, expected);
            assert_eq!(model_file_name(file), name);
        }
        let refused = |file: &str, expected: &str| {
            let problem = FileLayout::of(&format!("hf:a/b/{file}"), file).unwrap_err();
            assert!(
                problem.help.as_ref().unwrap().contains(expected),
                "{problem}"
            );
        };
        refused("model.safetensors", "name a .gguf file");
        refused("c.gguf-split-a", "`parts`");
        refused("c.gguf.part0of3", "`parts`");
        // The problem is about the file, as there is no plan yet.
        for (file, expected) in [
            (
                "c-00001-of-99999.gguf",
                "`c-00001-of-99999.gguf` is by its name one of 99999 files of a model, but the limit is 900",
            ),
            (
                "c.gguf.part1of100000",
                "`c.gguf.part1of100000` is by its name one of 100000 parts of a file, but the limit is 1000",
            ),
        ] {
            for url in ["hf:a/b/", "file:"] {
                let problem = FileLayout::of(&format!("{url}{file}"), file).unwrap_err();
                assert!(problem.message.starts_with(expected), "{problem}");
            }
        }
        assert!(FileLayout::of("hf:a/b/c-00001-of-00900.gguf", "c-00001-of-00900.gguf").is_ok());
        assert_eq!(
            FileLayout::of("file:x/c.bin", "c.bin").unwrap(),
            FileLayout::Single
        );
    }
}
